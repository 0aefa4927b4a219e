"""What webhooks cost: how soon they arrive, how many a second, and what those that wait cost.

One process, SQLite with `synchronous=FULL`; and a receiver on loopback, in a process of its own,
that answers at once.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import backlog
from bench.figures import Figure, percentile, within
from bench.server import ROOT, Server, served

__all__ = ["Sizes", "measure"]

CLIENTS = 16
ENDPOINTS = 50
EVENTS_A_RUN = 3
RUNS_A_SECOND = 100
MAX_P50_MS, MAX_P99_MS = 8.0, 40.0
MIN_A_SECOND = 1_200.0
MAX_CPU_MS = 0.8
MAX_WAITING_MIB = 50.0
MAX_WAITING_SHARE = 0.03
MAX_LOSS = 0.05
LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class Sizes:
    """How much to do: runs whose events are timed, runs in a burst, deliveries that wait, seconds
    for which those are watched, and rounds with and without a dead endpoint."""

    timed: int
    burst: int
    waiting: int
    watched: float
    rounds: int


class Arrivals:
    """The receiver, and what came there."""

    def __init__(self, process: subprocess.Popen[str], port: int, file: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._process = process
        self._file = file

    def count(self) -> int:
        """How many POSTs have come."""
        return int(self._ask("count"))

    def wait_for(self, count: int) -> None:
        """Return when so many have come."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while self.count() < count:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.count()} webhooks came, not {count}")
            time.sleep(0.05)

    def take(self) -> list[tuple[str, str, int]]:
        """Path, id and time of each, in the order in which they came; and begin anew."""
        self._ask("write")
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [(path, key, int(at_ns)) for path, key, at_ns in lines]

    def _ask(self, what: str) -> str:
        assert self._process.stdin is not None and self._process.stdout is not None  # noqa: PT018 - for mypy
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline()


@contextmanager
def _receiver() -> Iterator[Arrivals]:
    with (
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            (sys.executable, "-m", "bench.receiver", f"{directory}/arrivals"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            yield Arrivals(process, int(process.stdout.readline()), Path(directory, "arrivals"))
        finally:
            process.kill()


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Each on a fresh service."""
    with _receiver() as receiver:
        yield from _delays(receiver, sizes)
        yield from _rate(receiver, sizes)
        yield from _dead(receiver, sizes)
        yield from _waiting(receiver, sizes)


@contextmanager
def _service(*options: str, program: tuple[str, ...] = ()) -> Iterator[Server]:
    with served(*program, options=("--allow-private-webhooks", *options)) as server:
        yield server


def _delays(receiver: Arrivals, sizes: Sizes) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        stamps = Path(directory) / "commits"
        program = (str(Path(__file__).with_name("stamped.py")), str(stamps))
        with _service(program=program) as server:
            server.load("register", urls=[f"{receiver.url}/ok"])
            for count in (50, sizes.timed):
                prepared = server.load("prepare_threads", count=count, clients=CLIENTS)
                receiver.take()
                made = server.load("create_at_rate", **prepared, per_second=RUNS_A_SECOND)
                receiver.wait_for(EVENTS_A_RUN * count)
            events = server.load("stamps_of_events", runs=made)
        commits = [int(line) for line in stamps.read_text().split()]
    came = {key: at_ns for _, key, at_ns in reversed(receiver.take())}
    # An event is stamped before its commit, and no other commit comes between the two.
    delays = [
        (came[key] - commits[bisect_left(commits, at_ns)]) / 1e6 for key, at_ns in events.items()
    ]
    how = (
        "from the return of SQLite's COMMIT of a status change to the moment when the receiver has "
        f"the whole POST, both by the system's monotonic clock; {RUNS_A_SECOND} runs a second of "
        "three events each, one endpoint"
    )
    detail = {"deliveries": len(delays), "max_ms": round(max(delays), 2)}
    yield within(
        "webhook_commit_to_arrival_p50_ms", percentile(delays, 50), MAX_P50_MS, how, **detail
    )
    yield within(
        "webhook_commit_to_arrival_p99_ms", percentile(delays, 99), MAX_P99_MS, how, **detail
    )


def _rate(receiver: Arrivals, sizes: Sizes) -> Iterator[Figure]:
    rates, cpus = [], []
    rounds = min(3, sizes.rounds)
    with _service() as server:
        urls = [f"{receiver.url}/ok/{number}" for number in range(ENDPOINTS)]
        server.load("register", urls=urls)
        for runs in (min(10, sizes.burst), *[sizes.burst] * rounds):
            rate, cpu = _burst(server, receiver, runs)
            rates.append(rate)
            cpus.append(cpu)
    how = (
        f"{ENDPOINTS} endpoints that want all, {EVENTS_A_RUN * ENDPOINTS} deliveries a run; "
        "from the first arrival to the last, the runs' own work included; "
        f"median of {rounds} rounds"
    )
    value = statistics.median(rates[1:])
    yield Figure(
        "webhook_deliveries_a_second",
        round(value),
        f">= {MIN_A_SECOND:g}",
        value >= MIN_A_SECOND,
        how,
        {"rounds": [round(each) for each in rates[1:]], "runs_a_round": sizes.burst},
    )
    yield within(
        "cpu_a_delivery_ms",
        statistics.median(cpus[1:]),
        MAX_CPU_MS,
        "server CPU (user + system) by the number of deliveries, in the same rounds",
        rounds=[round(each, 4) for each in cpus[1:]],
    )


def _burst(server: Server, receiver: Arrivals, runs: int) -> tuple[float, float]:
    """Deliveries a second, and milliseconds of CPU for each."""
    prepared = server.load("prepare_threads", count=runs, clients=CLIENTS)
    server.wait_idle()
    receiver.take()
    before = server.cpu_ms()
    server.load("create_at_rate", **prepared, per_second=10_000)
    count = EVENTS_A_RUN * ENDPOINTS * runs
    receiver.wait_for(count)
    server.wait_idle()
    cpu = server.cpu_ms() - before
    came = [at_ns for _, _, at_ns in receiver.take()]
    return count / ((came[-1] - came[0]) / 1e9), cpu / count


def _dead(receiver: Arrivals, sizes: Sizes) -> Iterator[Figure]:
    """The others' rate beside an endpoint that never answers, and without it, in turns."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    with _service("--webhook-answer-timeout", "5", "--webhook-retries", "36000") as server:
        others = [f"{receiver.url}/ok/{number}" for number in range(ENDPOINTS - 1)]
        server.load("register", urls=others)
        (dead,) = server.load("register", urls=[f"{receiver.url}/never"])
        for number in range(2 * sizes.rounds + 1):
            with_dead = number % 2 == 1
            server.load("enable", endpoint=dead, enabled=with_dead)
            runs = max(1, sizes.burst // 2)
            prepared = server.load("prepare_threads", count=runs, clients=CLIENTS)
            receiver.take()
            server.load("create_at_rate", **prepared, per_second=10_000)
            count = EVENTS_A_RUN * len(others) * runs
            came: list[int] = []
            while len(came) < count:
                receiver.wait_for(1)
                came += [at_ns for path, _, at_ns in receiver.take() if path.startswith("/ok")]
            if number:
                rates[with_dead].append(count / ((came[-1] - came[0]) / 1e9))
    loss = 1 - statistics.median(rates[True]) / statistics.median(rates[False])
    yield within(
        "webhook_rate_lost_to_a_dead_endpoint",
        loss,
        MAX_LOSS,
        f"share by which {ENDPOINTS - 1} endpoints get fewer deliveries a second where another one "
        f"never answers; medians of {sizes.rounds} rounds each, in turns",
        a_second={
            "with": [round(each) for each in rates[True]],
            "without": [round(each) for each in rates[False]],
        },
    )


def _waiting(receiver: Arrivals, sizes: Sizes) -> Iterator[Figure]:
    """The same service on the same file, before they are there and with them."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "runbell.db")
        options = ("--database", f"sqlite:///{file}", "--webhook-retries", "36000")
        with _service(*options) as server:
            urls = [f"{receiver.url}/fail/{number}" for number in range(ENDPOINTS)]
            server.load("register", urls=urls)
            _burst(server, receiver, 1)
            without = server.rss_mb()
        waiting = backlog.put(file, sizes.waiting)
        with _service(*options) as server:
            _burst(server, receiver, 1)
            grown = server.rss_mb() - without
            cpu = server.cpu_ms()
            time.sleep(sizes.watched)
            share = (server.cpu_ms() - cpu) / 1000 / sizes.watched
    detail = {"waiting": waiting, "endpoints": ENDPOINTS}
    yield within(
        "webhook_waiting_mib",
        grown * 1e6 / 2**20,
        MAX_WAITING_MIB,
        "resident memory with so many deliveries that failed once and wait for a retry, beyond "
        "that without them; of a fresh process each, after a delivery to every endpoint",
        **detail,
    )
    yield within(
        "webhook_waiting_cpu_share",
        share,
        MAX_WAITING_SHARE,
        f"of a core, while they wait and nothing else happens; over {sizes.watched:g} s",
        **detail,
    )
