"""What a run costs: CPU for a run's life and for a read of it, and how long an idle service takes.

Against the model `echo`, one process, SQLite with `synchronous=FULL`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bench.figures import Figure, percentile, significant, within
from bench.server import Server

__all__ = ["Sizes", "measure"]

CLIENTS = 32
ROUNDS = 3
PAUSE_SECONDS = 0.02
"""Between two runs of an idle service."""

MAX_CPU_MS_A_RUN = 1.5
MAX_CPU_MS_A_READ = 0.15
MAX_IDLE_P50_MS = 6.0
MAX_IDLE_P99_MS = 30.0


@dataclass(frozen=True)
class Sizes:
    """How much to do: runs a round, reads a round, and runs of an idle service."""

    runs: int
    reads: int
    idle: int


def measure(server: Server, sizes: Sizes) -> Iterator[Figure]:
    """Everything about runs, on a fresh service."""
    _warm_up(server)
    yield from _idle(server, sizes.idle)
    yield from _busy(server, sizes)


def _warm_up(server: Server) -> None:
    prepared = server.load("prepare_threads", count=300, clients=CLIENTS)
    made = server.load("create_and_read", **prepared, clients=CLIENTS)
    server.load("read_runs", paths=made["paths"], count=600, clients=CLIENTS)


def _idle(server: Server, count: int) -> Iterator[Figure]:
    prepared = server.load("prepare_threads", count=count, clients=CLIENTS)
    ids = server.load("one_at_a_time", **prepared, pause=PAUSE_SECONDS)
    every = server.load("completed_events")
    yield from _delays(
        "idle_created_to_completed",
        [every[run_id] for run_id in ids],
        "created_at_ms to completed_at_ms of the completed event; one run at a time, "
        "not read before its end",
    )
    prepared = server.load("prepare_threads", count=count, clients=CLIENTS)
    seen = server.load("watched", **prepared, pause=PAUSE_SECONDS)
    # Without a target: the reads take turns with the run in the one process that they look at.
    yield Figure(
        "idle_seen_by_client_p50_ms",
        round(percentile(seen["delays_ms"], 50), 2),
        how="from before the request that creates the run until the answer that says completed "
        "has been read; one run at a time, read without a pause by a Python client",
        detail={
            "runs": count,
            "p99_ms": round(percentile(seen["delays_ms"], 99), 2),
            "answer_to_create_p50_ms": round(percentile(seen["creates_ms"], 50), 2),
            "reads_a_run": round(statistics.mean(seen["reads"]), 1),
        },
    )


def _delays(name: str, delays: list[float], how: str) -> Iterator[Figure]:
    detail = {"runs": len(delays), "max_ms": round(max(delays), 2)}
    yield within(f"{name}_p50_ms", percentile(delays, 50), MAX_IDLE_P50_MS, how, **detail)
    yield within(f"{name}_p99_ms", percentile(delays, 99), MAX_IDLE_P99_MS, how, **detail)


def _busy(server: Server, sizes: Sizes) -> Iterator[Figure]:
    per_run, per_read, rates, reads = [], [], [], 0
    for _ in range(ROUNDS):
        prepared = server.load("prepare_threads", count=sizes.runs, clients=CLIENTS)
        made, cpu = _cpu(server, "create_and_read", **prepared)
        per_run.append(cpu / sizes.runs)
        rates.append(round(sizes.runs / made["seconds"]))
        reads += made["reads"]
        _, cpu = _cpu(server, "read_runs", paths=made["paths"], count=sizes.reads)
        per_read.append(cpu / sizes.reads)
    yield within(
        "cpu_a_run_ms",
        statistics.median(per_run),
        MAX_CPU_MS_A_RUN,
        f"server CPU (user + system) for create run + execute + one read of the result, "
        f"{CLIENTS} clients at a time, median of {ROUNDS} rounds; each run on a thread of its own "
        "with one message, which was made before and is not counted; reads beyond one are counted",
        rounds=[significant(each) for each in per_run],
        runs_a_round=sizes.runs,
        reads_a_run=round(reads / (ROUNDS * sizes.runs), 3),
        runs_a_second=rates,
    )
    yield within(
        "cpu_a_read_ms",
        statistics.median(per_read),
        MAX_CPU_MS_A_READ,
        f"server CPU for one GET of a finished run, {CLIENTS} clients at a time, "
        f"median of {ROUNDS} rounds",
        rounds=[significant(each) for each in per_read],
        reads_a_round=sizes.reads,
    )


def _cpu(server: Server, job: str, **arguments: Any) -> tuple[Any, float]:
    """A job's answer, and the server's CPU for it in milliseconds."""
    before = server.cpu_ms()
    answer = server.load(job, **arguments, clients=CLIENTS)
    return answer, server.cpu_ms() - before
