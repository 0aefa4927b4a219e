"""Whether memory stays flat: RSS after some finished runs, and after ten times as many."""

from __future__ import annotations

import time
from collections.abc import Iterator

from bench.figures import Figure
from bench.server import Server

__all__ = ["measure"]

CLIENTS = 32
BATCH = 10_000
SETTLE_SECONDS = 2.0
TOLERANCE = 0.2


def measure(server: Server, few: int, many: int) -> Iterator[Figure]:
    """RSS at `few` and at `many` finished runs, on a fresh service."""
    cpu, began = server.cpu_ms(), time.monotonic()
    at_few = _fill(server, few)
    at_many = _fill(server, many - few)
    ratio = at_many / at_few
    yield Figure(f"rss_at_{few}_runs_mb", round(at_few, 1))
    yield Figure(f"rss_at_{many}_runs_mb", round(at_many, 1))
    yield Figure(
        "rss_ratio",
        round(ratio, 3),
        f"{1 - TOLERANCE:g} to {1 + TOLERANCE:g}",
        abs(ratio - 1) <= TOLERANCE,
        f"resident memory at {many} finished runs against that at {few}; every run on a thread of "
        f"its own, {CLIENTS} clients at a time",
        {
            "seconds": round(time.monotonic() - began, 1),
            "cpu_ms_a_thread_and_run": round((server.cpu_ms() - cpu) / many, 4),
        },
    )


def _fill(server: Server, count: int) -> float:
    for start in range(0, count, BATCH):
        server.load("fill", count=min(BATCH, count - start), clients=CLIENTS)
    # What is done after a run's end (the log's checkpoint, freed buffers) is not the run's.
    time.sleep(SETTLE_SECONDS)
    return server.rss_mb()
