"""The service under test: a process of its own, its CPU and memory, and the load it is given."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from runbell.cli.served import ServedProcess

__all__ = ["Server", "served"]

ROOT = Path(__file__).parents[1]
LOAD_SECONDS = 600.0
"""How long one job of the load client may take at the most."""

LOAD = (sys.executable, "-m", "bench.load")

IDLE_SECONDS = 0.5
IDLE_SHARE = 0.05
"""Of a core: below that the service is at rest."""


class Server:
    """A served process as a measurement sees it."""

    def __init__(self, service: ServedProcess) -> None:
        self._service = service
        self.base_url, self.api_key = service.base_url, service.api_key
        self._process = psutil.Process(service.pid)

    def cpu_ms(self) -> float:
        """CPU time, user and system, of all threads since the process started."""
        times = self._process.cpu_times()
        return (times.user + times.system) * 1000

    def rss_mb(self) -> float:
        """Resident memory, in units of 1,000,000 bytes."""
        return float(self._process.memory_info().rss) / 1e6

    def threads(self) -> int:
        """Threads of the process."""
        return self._process.num_threads()

    def files(self) -> int:
        """Files that are open, the database among them; sockets are not counted."""
        return len(self._process.open_files())

    def connections(self) -> int:
        """Connections of clients that are open."""
        return sum(each.status == "ESTABLISHED" for each in self._process.net_connections("tcp"))

    def wait_idle(self) -> None:
        """Return when the process has hardly done anything for a while."""
        deadline = time.monotonic() + LOAD_SECONDS
        before, cpu = self.cpu_ms(), IDLE_SECONDS * 1000
        while cpu > IDLE_SHARE * IDLE_SECONDS * 1000:
            if time.monotonic() > deadline:
                raise RuntimeError("the service does not come to rest")
            time.sleep(IDLE_SECONDS)
            after = self.cpu_ms()
            before, cpu = after, after - before

    def load(self, job: str, **arguments: Any) -> Any:
        """Run one job of `bench.load` in a process of its own; what it answered."""
        done = subprocess.run(
            LOAD,
            input=self._order(job, arguments),
            stdout=subprocess.PIPE,
            text=True,
            timeout=LOAD_SECONDS,
            cwd=ROOT,
            check=True,
        )
        return json.loads(done.stdout)

    @contextmanager
    def holding(self, job: str, **arguments: Any) -> Iterator[None]:
        """Have a job of `bench.load` hold for the block what it has opened."""
        with subprocess.Popen(
            LOAD, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdin is not None and process.stdout is not None  # noqa: PT018 - for mypy
            try:
                process.stdin.write(self._order(job, arguments))
                process.stdin.flush()
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError(f"{job} ended with exit code {process.wait()}")
                yield
            except BaseException:
                process.kill()
                raise
            process.stdin.close()
            if process.wait(LOAD_SECONDS):
                raise RuntimeError(f"{job} did not hold what it had opened")

    def _order(self, job: str, arguments: dict[str, Any]) -> str:
        order = {
            "base_url": self.base_url,
            "api_key": self.api_key,
            "job": job,
            "arguments": arguments,
        }
        return json.dumps(order) + "\n"


@contextmanager
def served(*program: str, options: Sequence[str] = ()) -> Iterator[Server]:
    """A fresh service, with an empty database on the disk of the temporary directory.

    Args:
        program: what Python runs instead of `-m runbell`.
        options: more options of `runbell serve`.
    """
    with ServedProcess(
        "--log-level", "error", *options, program=program or ("-m", "runbell")
    ) as service:
        yield Server(service)
