"""`runbell worker`: what it does, and what it answers."""

from __future__ import annotations

import http.client
import itertools
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from tests.forking import Forked, spawn
from tests.processes.house import House, several
from tests.served import eventually

METRICS = re.compile(r"^runbell: metrics are on http://127\.0\.0\.1:(\d+)/metrics$", re.MULTILINE)


def started(house: House, folder: Path, *options: str) -> Forked:
    """A worker on the house's database; what it prints is in `worker.txt`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RUNBELL_")}
    env |= {
        "RUNBELL_DATABASE": house.url,
        "RUNBELL_ENCRYPTION_KEY": "A" * 43 + "=",
        "RUNBELL_API_KEY": str(house.served[0].key),
    }
    command = [sys.executable, "-m", "runbell", "worker", *options]
    with (folder / "worker.txt").open("wb") as out:
        return spawn(command, stdout=out, stderr=out, cwd=folder, env=env)


def said(folder: Path) -> str:
    return (folder / "worker.txt").read_text()


def get(port: int, path: str, **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def calls(page: str) -> float:
    """Model calls that a process has made, by its metrics."""
    found = re.findall(r"^runbell_model_call_seconds_count\{.*\} (\S+)$", page, re.MULTILINE)
    return sum(map(float, found))


def test_a_worker_works_and_says_how_it_is(tmp_path: Path) -> None:
    """It takes runs beside a service; its port has its metrics and probes, and no API."""
    with several(tmp_path, 1) as house:
        worker = started(house, tmp_path, "--metrics-port", "0")
        try:
            found = eventually(lambda: METRICS.search(said(tmp_path)), "the worker works")
            port = int(found[1])
            assert get(port, "/healthz") == (200, '{"status":"ok"}')
            assert get(port, "/readyz")[0] == 200
            made = itertools.count(1)

            def takes_one() -> bool:
                """Whichever of the two is quicker: each has a chance."""
                house.run(f"sleep 0.05\nHello {next(made)}")
                return calls(get(port, "/metrics")[1]) > 0

            eventually(takes_one, "the worker has taken a run")
            runs = next(made) - 1
            eventually(lambda: house.ended() == runs, "all runs have ended")
            both = get(port, "/metrics")[1] + house.api.get("/metrics").body.decode()
            assert calls(both) == runs, "each run is executed once"
            key = {"Authorization": f"Bearer {house.served[0].key}"}
            assert get(port, "/v1/models", **key)[0] == 404
            assert get(port, "/docs", **key)[0] == 404
            assert get(port, "/v1/models")[0] == 401
            assert get(port, "/metrics", **{"X-Forwarded-For": "192.0.2.1"})[0] == 401
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(60) == 0, said(tmp_path)
        finally:
            worker.kill()
        assert "Traceback" not in said(tmp_path)
        house.run("Hello")
        eventually(lambda: house.ended() == runs + 1, "the service goes on alone")


@pytest.mark.parametrize("port", ["70000", "-1", "x"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, port: str) -> None:
    command = [sys.executable, "-m", "runbell", "worker", "--metrics-port", port]
    with (tmp_path / "worker.txt").open("wb") as out:
        worker = spawn(command, stdout=out, stderr=out, cwd=tmp_path, env=dict(os.environ))
    assert worker.wait(60) == 2
    assert "metrics_port" in said(tmp_path)
