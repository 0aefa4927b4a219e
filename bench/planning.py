"""`python -m bench.planning [--runs N] [--rows N]`: is the plan what the product does?

Has the real waiter wait for some runs on a real service, by each policy at the same time; meanwhile
the machine's own slowness is measured, apart from the waiter: how long a request takes, by how much
a pause is overslept, and how late an answer is that is due at once. With that, and with what a
waiter knows that has seen as many earlier runs, calls and delays are predicted, and both are
printed. The exit code is 1 where a prediction did not hold.

With `--rows` a trace of so many rows, each of a kind of its own, is planned from: how long that
takes, and how much memory.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from openai import AsyncOpenAI

import runbell
from runbell.cli.served import ServedProcess
from runbell.client.providers.runs import Runs
from runbell.client.records import Polled, Retried
from runbell.pacing import Backoff, Fixed, Foresight
from runbell.planner import Plan, Trace, Workload, plan
from runbell.planner.roster import FORESIGHT, LONG_POLL

__all__ = ["Compared", "Machine", "compare", "main", "measure"]

MEDIAN, P95 = 2.0, 6.0
"""Seconds that the runs take."""

EVERY = 0.5
"""Seconds from one run to the next. All waiters share a loop with what measures them: were there
more runs at a time, they would wait for each other on a machine that is busy besides."""

CALLS, DELAY = 0.05, 0.15
"""By how much a prediction may be wrong."""

TOLD_S = 0.002
"""Seconds: what stamps in milliseconds, of an end and of when it was seen, cannot tell."""

PROBED_EVERY = 0.4
"""Seconds."""

DEFAULT = "waiter as it is"

MOST_SECONDS, MOST_MIB = 10.0, 500.0
"""That a million rows may take."""


class Alone:
    """Runs, asked about one by one, as of any server; Runbell's can be asked about many at once."""

    holds = True

    def __init__(self) -> None:
        runs = Runs()
        self.owns, self.view, self.retrieve = runs.owns, runs.view, runs.retrieve


@dataclass
class Measured:
    """What the real waiter did by one policy: calls, and the delay of each run in seconds.

    Attributes:
        lasted: how long each run took, from the moment at which the waiter was told of it.
    """

    calls: int = 0
    lasted: list[float] = field(default_factory=list)
    ended: dict[str, float] = field(default_factory=dict)
    delays: list[float] = field(default_factory=list)

    def hear(self, record: Any) -> None:
        """Count a call: every one is told of."""
        self.calls += isinstance(record, Polled | Retried)


@dataclass(frozen=True)
class Compared:
    """A prediction and what came of it; `calls` of a run and `delay` in the mean, in seconds."""

    policy: str
    calls_planned: float
    calls: float
    delay_planned: float
    delay: float

    @property
    def held(self) -> bool:
        """Calls and delay are as predicted; who asks about many runs at once may need fewer."""
        off = self.calls / self.calls_planned - 1
        fewer = self.policy == DEFAULT and off < 0
        apart = abs(self.delay - self.delay_planned)
        near = apart <= max(DELAY * self.delay_planned, TOLD_S)
        return (fewer or abs(off) <= CALLS) and near

    def row(self) -> str:
        """A row of the table."""
        off = self.calls / self.calls_planned - 1, self.delay / self.delay_planned - 1
        return (
            f"| {self.policy} | {self.calls_planned:.2f} | {self.calls:.2f} | {off[0]:+.1%} "
            f"| {self.delay_planned:.3f} | {self.delay:.3f} | {off[1]:+.1%} "
            f"| {'yes' if self.held else 'NO'} |"
        )


@dataclass(frozen=True)
class Machine:
    """How slow it is by itself, in seconds.

    Attributes:
        latency: from a request until its answer is handled, and by how much a pause is overslept.
            What the waiter takes to handle it is in it: that is found out with a run that has
            ended, where there is nothing to wait for.
        visible: from the end of a run, by its stamp, until a request finds it; which waits for the
            service's disk.
    """

    latency: float
    visible: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.planning", description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--rows", type=int, default=0)
    options = parser.parse_args()
    if options.rows:
        _large(options.rows)
        return
    warnings.simplefilter("ignore", DeprecationWarning)  # the SDK's, of OpenAI's own service
    rng = random.Random(4)
    draws = Trace.lognormal(MEDIAN, P95).kinds["lognormal"]
    earlier, later = (
        [float(rng.choice(draws)) for _ in range(options.runs)] for _ in ("earlier", "later")
    )
    compared, machine = asyncio.run(compare(earlier, later))
    print(f"{options.runs} runs, median {MEDIAN:g} s, p95 {P95:g} s; a request takes")
    latency, visible = 1000 * machine.latency, 1000 * machine.visible
    print(f"{latency:.1f} ms, and an end is seen {visible:.1f} ms late\n")
    print("| policy | calls planned | measured | | delay planned, s | measured | | held |")
    print("|---|---|---|---|---|---|---|---|")
    for each in compared:
        print(each.row())
    if not all(each.held for each in compared):
        sys.exit("the plan did not hold")


def _large(rows: int) -> None:
    """Plan from many rows of as many kinds, in a process of its own, as the command line does."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "runs.csv"
        rng = random.Random(4)
        with path.open("w") as file:
            file.write("key,duration_s\n")
            file.writelines(f"k{row},{rng.lognormvariate(1.8, 0.9):.3f}\n" for row in range(rows))
        command = ["plan", "--durations", str(path), "--runs-per-month", "100000", "--json"]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "runbell", *command], check=True, capture_output=True)
        took = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu, memory = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
    print(f"{rows:,} rows of as many kinds: {took:.1f} s ({cpu:.1f} s of a core), {memory:.0f} MiB")
    if cpu > MOST_SECONDS or memory > MOST_MIB:
        sys.exit(f"more than {MOST_SECONDS:g} s or {MOST_MIB:g} MiB")


async def compare(
    earlier: Sequence[float], seconds: Sequence[float], every: float = EVERY
) -> tuple[list[Compared], Machine]:
    """Wait for runs that take so long, plan for them, and hold the one against the other.

    Args:
        earlier: how long runs took from which the waiter has learned.
        every: seconds from the beginning of one run to that of the next.
    """
    known = Foresight()
    for each in earlier:
        known.observe("runs", each)
    policies: dict[str, dict[str, Any]] = {
        "fixed 1 s": {"policy": Fixed(1.0), "hold": False},
        "fixed 2 s": {"policy": Fixed(2.0), "hold": False},
        "tutorial": {"policy": Backoff(), "hold": False},
        FORESIGHT: {"policy": lambda run: known.policy("runs"), "hold": False},
        LONG_POLL: {"policy": Backoff()},
    }
    alone = {name: {**options, "providers": [Alone()]} for name, options in policies.items()}
    with ServedProcess("--log-level", "error") as service:
        async with (
            AsyncOpenAI(base_url=service.base_url, api_key=service.api_key) as client,
            AsyncExitStack() as stack,
        ):
            known.latency = await _request(client)  # as the waiter has it that measures
            plain = runbell.AsyncWaiter(client, providers=[Alone()], policy=Fixed(1.0), hold=False)
            probe = _Probe(client, await stack.enter_async_context(plain))
            await probe.begin()
            async with asyncio.TaskGroup() as tasks:
                probing = tasks.create_task(probe.go_on())
                found = await measure(client, seconds, {**alone, DEFAULT: {}}, every, probe.hold)
                probing.cancel()
            machine = await probe.machine()
    lasted = found[FORESIGHT].lasted  # a busy service takes longer than it was told to
    trace = Trace.of(lasted, exact=True, seen=earlier)
    load = Workload(trace, len(lasted), latency=machine.latency)
    return _compared(plan(load), found, machine), machine


def _compared(predicted: Plan, found: Mapping[str, Measured], machine: Machine) -> list[Compared]:
    compared = []
    for name, each in found.items():
        row, runs = predicted.row(LONG_POLL if name == DEFAULT else name), len(each.delays)
        calls, delay = each.calls / runs, sum(each.delays) / runs
        late = row.delay.mean + machine.visible
        compared.append(Compared(name, row.calls, calls, late, delay))
    return compared


async def _request(client: AsyncOpenAI) -> float:
    """Seconds from a request to its answer: the median of a few."""
    run, took = await _started(client, 0.0), []
    for _ in range(25):
        began = time.perf_counter()
        await client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return sorted(took)[len(took) // 2]


async def _started(client: AsyncOpenAI, seconds: float) -> Any:
    assistant = await client.beta.assistants.create(model="echo")
    message: Any = {"role": "user", "content": f"sleep {seconds:.3f}"}
    return await client.beta.threads.create_and_run(
        assistant_id=assistant.id, thread={"messages": [message]}
    )


class _Probe:
    """Measures the machine while it is at work, without a waiter: plain requests and pauses."""

    def __init__(self, client: AsyncOpenAI, waiter: runbell.AsyncWaiter) -> None:
        self._client, self._waiter = client, waiter
        self._waited: list[float] = []
        self._took: list[float] = []
        self._overslept: list[float] = []
        self._known: dict[str, float] = {}
        self._run: Any = None

    async def begin(self) -> None:
        """Have a run that has ended, and look once: first times take longer."""
        self._run = await _started(self._client, 0.0)
        await self.hold(self._run)
        await self._once()
        self._took.clear()
        self._waited.clear()
        self._known.clear()
        await self._once()

    async def go_on(self) -> None:
        """Until it is cancelled. It begins at its times, however slow the machine is: who waits
        for one look to end before the next sees the quick ones alone."""
        async with asyncio.TaskGroup() as looks:
            while True:
                looks.create_task(self._once())
                await asyncio.sleep(PROBED_EVERY)

    async def _once(self) -> None:
        runs = self._client.beta.threads.runs
        began = time.perf_counter()
        await asyncio.sleep(PROBED_EVERY)
        self._overslept.append(time.perf_counter() - began - PROBED_EVERY)
        began = time.perf_counter()
        await runs.retrieve(self._run.id, thread_id=self._run.thread_id)
        self._took.append(time.perf_counter() - began)
        began = time.perf_counter()
        await self._waiter.wait(self._run)
        self._waited.append(time.perf_counter() - began)

    async def hold(self, run: Any) -> None:
        """Hold a request for a run until it ends, as the waiters do that hold theirs."""
        while run.status in ("queued", "in_progress"):
            run = await self._client.beta.threads.runs.retrieve(
                run.id, thread_id=run.thread_id, extra_headers={"Prefer": "wait=50"}
            )
        self._known[run.id] = time.time()

    async def machine(self) -> Machine:
        """What was found, in the mean."""
        ends = [(run_id, ended) async for run_id, ended in _ends(self._client)]
        late = [self._known[run_id] - ended for run_id, ended in ends if run_id in self._known]
        request = fmean(self._took) + fmean(self._overslept)
        own = max(fmean(self._waited) - fmean(self._took), 0.0)
        # An answer that is due at once takes half a request, and what the service takes; a waiter
        # knows of it when it has handled it.
        visible = max(fmean(late) - request / 2, 0.0)
        return Machine(request + own, visible + own / 2)


async def measure(
    client: AsyncOpenAI,
    seconds: Sequence[float],
    policies: Mapping[str, Mapping[str, Any]],
    every: float,
    beside: Callable[[Any], Awaitable[None]],
) -> dict[str, Measured]:
    """Wait for runs that take so long, each by every policy, which are options of a waiter.

    The end of a run is when the service says that it was, by the machine's clock.

    Args:
        beside: waits for each run too, without a waiter.
    """
    found = {name: Measured() for name in policies}
    begun: dict[str, float] = {}
    order = random.Random(5)
    assistant = await client.beta.assistants.create(model="echo")
    async with AsyncExitStack() as stack:
        waiters = {
            name: await stack.enter_async_context(
                runbell.AsyncWaiter(client, hooks=[found[name].hear], **options)
            )
            for name, options in policies.items()
        }

        async def wait(name: str, run: Any) -> None:
            await waiters[name].wait(run)
            found[name].ended[run.id] = time.time()

        async def one(place: int, takes: float) -> None:
            await asyncio.sleep(place * every)
            message: Any = {"role": "user", "content": f"sleep {takes:.3f}"}
            run = await client.beta.threads.create_and_run(
                assistant_id=assistant.id, thread={"messages": [message]}
            )
            begun[run.id] = time.time()
            waits = [beside(run), *(wait(name, run) for name in waiters)]
            # Answers that are due at once are handled one after the other.
            order.shuffle(waits)
            await asyncio.gather(*waits)

        await asyncio.gather(*(one(place, takes) for place, takes in enumerate(seconds)))
    async for run_id, ended in _ends(client):
        for each in found.values():
            if run_id in each.ended:
                each.delays.append(each.ended[run_id] - ended)
                each.lasted.append(max(ended - begun[run_id], 0.0))
    return found


async def _ends(client: AsyncOpenAI) -> Any:
    """Every run that completed, and when, in seconds since the epoch."""
    params: dict[str, Any] = {"types": "thread.run.completed", "limit": 100}
    while True:
        page: Any = await client.get("/events", cast_to=object, options={"params": params})
        for event in page["data"]:
            yield event["data"]["id"], event["data"]["completed_at_ms"] / 1000
        if not page["has_more"]:
            return
        params["after"] = page["data"][-1]["id"]


if __name__ == "__main__":
    main()
