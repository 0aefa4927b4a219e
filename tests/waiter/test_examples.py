"""The examples run as they stand, and the loop misses what it is said to miss."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import runbell
from examples import ten_lines, tutorial_loop
from runbell.testing.front import refuse

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["tutorial_loop.py", "ten_lines.py"])
def test_an_example_runs(served, name):
    env = {"OPENAI_BASE_URL": served.base_url, "OPENAI_API_KEY": served.key}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(EXAMPLES / name)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "completed\n"), done.stderr


def test_the_loop_does_not_end_where_the_ten_lines_do(stage):
    run = stage.run("one\nincomplete")
    with pytest.raises(TimeoutError):
        tutorial_loop.wait_for_run(stage.client, run.thread_id, run.id, timeout=1)
    with pytest.raises(runbell.RunIncomplete):
        ten_lines.wait_for_run(stage.client, run)


def test_the_loop_loses_a_run_to_a_429(stage):
    plain = stage.client.with_options(max_retries=0)
    run = stage.run("sleep 0.2\nhello")
    stage.front.do(refuse(429))
    with pytest.raises(Exception, match="429"):
        tutorial_loop.wait_for_run(plain, run.thread_id, run.id)
    stage.front.do(refuse(429))
    assert ten_lines.wait_for_run(plain, run).status == "completed"
