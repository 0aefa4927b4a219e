"""What the waiter costs: import time, memory and CPU of 100,000 waits, calls and delays of runs."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from openai import DefaultHttpxClient, OpenAI
from openai.types.beta.threads import Run

import runbell
from bench.figures import Figure, percentile, within
from runbell.cli.served import ServedProcess
from runbell.client.records import Polled
from runbell.client.view import View
from runbell.pacing import Backoff, Foresight

__all__ = ["Sizes", "measure"]

LIMIT_SECONDS = 300.0
MAX_KIB = 2.0
MAX_CPU_PERCENT = 5.0
MAX_IMPORT_SECONDS = 0.15
MIN_FEWER_REQUESTS = 20.0
MAX_REQUESTS_HELD = 2.0
MAX_DELAY_MS = 50.0

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

    def __init__(self, waits: int) -> None:
        self.left = waits
        self.asked_all = asyncio.Event()

    def owns(self, item: object) -> bool:
        return True

    def view(self, item: Any) -> Any:
        return View(item.id, item.status, "pending", expires_at=item.expires_at)

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            self.asked_all.set()
        return item


async def _idle(sizes: Sizes) -> Sequence[Figure]:
    expires_at = int(time.time()) + 36_000
    runs = [
        Run.construct(id=f"run_{number}", status="in_progress", expires_at=expires_at)
        for number in range(sizes.waits)
    ]
    away = Away(sizes.waits)
    # Runs of this kind take hours, so that nothing is due for a while after the first look.
    foresight = Foresight()
    for number in range(60):
        foresight.observe((type(away).__name__,), 20_000.0 + number)
    waiter = runbell.AsyncWaiter(object(), providers=[away], foresight=foresight)
    gc.collect()
    before = psutil.Process().memory_info().rss
    waiting = asyncio.create_task(waiter.wait_all(runs))
    async with asyncio.timeout(LIMIT_SECONDS):
        await away.asked_all.wait()
    await asyncio.sleep(1)
    gc.collect()
    after = psutil.Process().memory_info().rss
    began, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(sizes.idle_seconds)
    idle = 100 * (time.process_time() - cpu) / (time.monotonic() - began)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await waiter.aclose()
    how = "after each was looked at once, by the default policy, in one wait_all of"
    return (
        within(
            "kib_a_wait",
            (after - before) / 1024 / sizes.waits,
            MAX_KIB,
            f"growth of resident memory beyond the SDK's objects, {how} this many",
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


@dataclass(frozen=True)
class Waited:
    """What waiting for some runs took: requests, and the delay of each in seconds."""

    runs: int
    requests: int
    delays: Sequence[float]


def _on_a_service(count: int) -> Iterator[Figure]:
    """Runs on a service of their own: held one at a time, then together, then one by one."""
    with (
        ServedProcess("--log-level", "warning") as service,
        OpenAI(base_url=service.base_url, api_key=service.api_key) as client,
    ):
        held = _held(client, max(10, count // 5))
        together = _many(client, count, batches=True)
        alone = _many(client, count, batches=False)
    yield within(
        "prefer_wait_requests_a_run",
        held.requests / held.runs,
        MAX_REQUESTS_HELD,
        "requests of a wait on a service that holds them, one run at a time",
        runs=held.runs,
    )
    yield within(
        "prefer_wait_delay_p50_ms",
        1000 * percentile(held.delays, 50),
        MAX_DELAY_MS,
        "from the completion by the service's clock (its feed of events) to the return of the wait "
        "by the same clock",
        p99_ms=round(1000 * percentile(held.delays, 99), 1),
        runs=held.runs,
    )
    yield Figure(
        "batched_times_fewer_requests",
        round(alone.requests / together.requests, 1),
        f">= {MIN_FEWER_REQUESTS:g}",
        alone.requests >= MIN_FEWER_REQUESTS * together.requests,
        "requests for as many runs at a time, policy Backoff(), nothing held: one by one, as a "
        "multiple of those when they are asked about together",
        {"runs": count, "one_by_one": alone.requests, "together": together.requests},
    )


def _held(client: OpenAI, count: int) -> Waited:
    requests = 0

    def count_requests(record: Any) -> None:
        nonlocal requests
        requests += isinstance(record, Polled)

    ends: dict[str, float] = {}
    with runbell.Waiter(client, hooks=[count_requests]) as waiter:
        for _ in range(count):
            run = waiter.wait(_run(client, 0.3))
            ends[run.id] = time.time()
    feed: Any = client.get(
        "/events",
        cast_to=object,
        options={"params": {"types": "thread.run.completed", "limit": 100}},
    )
    delays = [
        ends[event["data"]["id"]] - event["data"]["completed_at_ms"] / 1000
        for event in feed["data"]
        if event["data"]["id"] in ends
    ]
    return Waited(count, requests, delays)


def _many(client: OpenAI, count: int, *, batches: bool) -> Waited:
    runs = [_run(client, 1 + 4 * number / count) for number in range(count)]
    sent: list[str] = []
    counting = client.with_options(
        http_client=DefaultHttpxClient(
            event_hooks={"request": [lambda request: sent.append(str(request.url))]}
        )
    )
    with counting, runbell.Waiter(counting, hold=False, policy=Backoff()) as waiter:
        waiter._server.batches = None if batches else False
        waiter.wait_all(runs)
    return Waited(count, len(sent), ())


def _run(client: OpenAI, seconds: float) -> Any:
    threads = client.beta.threads
    assistant = client.beta.assistants.create(model="echo")
    thread = threads.create(messages=[{"role": "user", "content": f"sleep {seconds}"}])
    return threads.runs.create(thread.id, assistant_id=assistant.id)
