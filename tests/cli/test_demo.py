"""`runbell demo`: it does what it shows, fails when a run goes wrong, and leaves nothing behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from runbell.cli.ways import TUTORIAL, WAYS
from tests.served import eventually

RUNBELL = [sys.executable, "-m", "runbell"]

ONE_STORY_GONE_WRONG = """
import dataclasses
from runbell.cli import demo, main
(fails,) = (story for story in demo.STORIES if story.name == "fails")
demo.STORIES = (dataclasses.replace(fails, {change}),)
main()
"""


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "TMPDIR": str(tmp_path), "PYTHONIOENCODING": "utf-8", **more}


def test_every_run_ends_as_it_should_in_a_table_of_100_columns(tmp_path: Path) -> None:
    # Neither the settings nor the proxy of whoever tries it out reach the demo.
    env = environment(tmp_path, RUNBELL_RUN_EXPIRY="0.001", HTTP_PROXY="http://127.0.0.1:9")
    done = subprocess.run(
        [*RUNBELL, "demo"], env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "All runs ended as they should" in done.stdout
    assert "echo answered: What is 2+2?" in done.stdout
    # In milliseconds since the run's creation.
    (expired,) = re.findall(r"expired (\d+)", done.stdout)
    assert int(expired) >= 3_000
    # calls a run, mean and worst delay, failures and endings seen
    rows = dict(
        re.findall(
            r"^(the tutorial's loop|waiter by [a-z ]+?)  +(\S.*?) *$", done.stdout, re.MULTILINE
        )
    )
    assert list(rows) == list(WAYS)
    for way, row in rows.items():
        loop = way == TUTORIAL
        assert row.endswith("3 of 4        7 of 9" if loop else "4 of 4        9 of 9"), rows
    assert float(rows["waiter by webhook"].split()[0]) < 0.5
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ("outcome='something else'", "the run that fails: it says 'last_error rate_limit_exceeded"),
        (
            "statuses=('queued', 'expired')",
            "the run that fails: it went queued → in_progress → failed, not",
        ),
    ],
)
def test_a_run_that_goes_otherwise_fails_the_demo_by_name(
    tmp_path: Path, change: str, complaint: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ONE_STORY_GONE_WRONG.format(change=change), "demo"],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 1
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_ended_ends_its_service(tmp_path: Path, ending: signal.Signals) -> None:
    demo = subprocess.Popen(
        [*RUNBELL, "demo"],
        env=environment(tmp_path, PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("Service: runbell serve on http://127.0.0.1:")
        (service,) = psutil.Process(demo.pid).children()
        demo.send_signal(ending)
        _, stderr = demo.communicate(timeout=60)
    finally:
        demo.kill()
        demo.wait()
    assert demo.returncode == 130
    assert "Traceback" not in stderr
    eventually(lambda: not service.is_running(), "the service ends")
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_cannot_start_is_quoted(tmp_path: Path) -> None:
    program = "from runbell.cli import main, served; served.ServedProcess('--no-such-option')"
    program += ".__enter__()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert "the service ended with exit code 2 at its start" in done.stderr
    assert "--no-such-option" in done.stderr
    assert list(tmp_path.iterdir()) == []
