"""The service under test: a process of its own, its CPU and memory, and the load it is given."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from runbell.cli.served import ServedProcess

__all__ = ["Server", "served"]

ROOT = Path(__file__).parents[1]
LOAD_SECONDS = 600.0
"""How long one job of the load client may take at the most."""


class Server:
    """A served process as a measurement sees it."""

    def __init__(self, service: ServedProcess) -> None:
        self._service = service
        self._process = psutil.Process(service.pid)

    def cpu_ms(self) -> float:
        """CPU time, user and system, of all threads since the process started."""
        times = self._process.cpu_times()
        return (times.user + times.system) * 1000

    def rss_mb(self) -> float:
        """Resident memory, in units of 1,000,000 bytes."""
        return float(self._process.memory_info().rss) / 1e6

    def load(self, job: str, **arguments: Any) -> Any:
        """Run one job of `bench.load` in a process of its own; what it answered."""
        order = {
            "base_url": self._service.base_url,
            "api_key": self._service.api_key,
            "job": job,
            "arguments": arguments,
        }
        done = subprocess.run(
            [sys.executable, "-m", "bench.load"],
            input=json.dumps(order),
            stdout=subprocess.PIPE,
            text=True,
            timeout=LOAD_SECONDS,
            cwd=ROOT,
            check=True,
        )
        return json.loads(done.stdout)


@contextmanager
def served() -> Iterator[Server]:
    """A fresh service, with an empty database on the disk of the temporary directory."""
    with ServedProcess("--log-level", "warning") as service:
        yield Server(service)
