"""What the waiter costs: import time, memory and CPU of 100,000 waits, calls and delays of runs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bench.figures import Figure, within

__all__ = ["Sizes", "measure"]

MAX_KIB = 2.0
MAX_CPU_PERCENT = 5.0
MAX_IMPORT_SECONDS = 0.15
MIN_FEWER_CALLS = 20.0
MAX_CALLS_HELD = 2.0

IMPORTS = """
import sys, time
import openai
began = time.perf_counter()
import runbell
for name in runbell.__all__:
    getattr(runbell, name)
print(time.perf_counter() - began)
"""


@dataclass(frozen=True)
class Sizes:
    """How much to do: waits at a time, runs for calls and delays, and seconds of idling."""

    waits: int
    runs: int
    idle_seconds: float


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Import time, then many idle waits, then real runs on a service of their own."""
    yield _import_seconds()
    yield from asyncio.run(_idle(sizes))
    yield from _on_a_service(sizes.runs)


def _import_seconds() -> Figure:
    took = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", IMPORTS],
            capture_output=True,
            text=True,
            check=True,
        )
        took.append(float(done.stdout))
    return within(
        "import_runbell_s",
        min(took),
        MAX_IMPORT_SECONDS,
        "importing runbell and every name of it, after openai; the best of five processes",
    )


class Away:
    """A provider whose server always says that nothing has happened, without a socket."""

    def __init__(self) -> None:
        self.asked = 0

    def owns(self, item: object) -> bool:
        return True

    def view(self, item: Any) -> Any:
        from runbell.client.view import View

        return View(item.id, item.status, "pending", expires_at=item.expires_at)

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        self.asked += 1
        return item


async def _idle(sizes: Sizes) -> Sequence[Figure]:
    from openai.types.beta.threads import Run

    import runbell
    from runbell.pacing import Fixed

    expires_at = int(time.time()) + 3600
    runs = [
        Run.construct(id=f"run_{number}", status="in_progress", expires_at=expires_at)
        for number in range(sizes.waits)
    ]
    away = Away()
    waiter = runbell.AsyncWaiter(object(), providers=[away])
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    waiting = asyncio.create_task(waiter.wait_all(runs, policy=Fixed(3600)))
    while away.asked < sizes.waits:
        await asyncio.sleep(0.1)
    await asyncio.sleep(0.5)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(sizes.idle_seconds)
    idle = 100 * (time.process_time() - cpu) / (time.monotonic() - began)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await waiter.aclose()
    how = "after each was looked at once, in one wait_all of"
    return (
        within(
            "kib_a_wait",
            (after - before) / 1024 / sizes.waits,
            MAX_KIB,
            f"Python's own allocations beyond the SDK's objects, {how} this many",
            waits=sizes.waits,
        ),
        within(
            "idle_cpu_percent",
            idle,
            MAX_CPU_PERCENT,
            f"processor time of the whole process while nothing is due, {how} this many",
            waits=sizes.waits,
            seconds=sizes.idle_seconds,
        ),
    )
