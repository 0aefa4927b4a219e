"""`python -m bench.planning [--runs N]`: is the plan what the product does?

Predicts calls and delays of some runs, then has the real waiter wait for them on a real service, by
each policy at the same time, and prints both. The exit code is 1 where a prediction did not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

import runbell
from runbell.cli.served import ServedProcess
from runbell.client.providers.runs import Runs
from runbell.client.records import Polled, Retried
from runbell.pacing import Backoff, Fixed
from runbell.planner import Plan, Trace, Workload, plan
from runbell.planner.roster import FORESIGHT, LONG_POLL, taught

__all__ = ["Compared", "compare", "main", "measure"]

MEDIAN, P95 = 2.0, 6.0
"""Seconds that the runs take."""

EVERY = 0.2
"""Seconds from one run to the next."""

CALLS, DELAY = 0.05, 0.15
"""By how much a prediction may be wrong."""

NEGLIGIBLE = 0.02
"""Seconds. A delay that is predicted to be milliseconds is not held to a share of them."""


class Alone:
    """Runs, asked about one by one, as of any server; Runbell's can be asked about many at once."""

    holds = True

    def __init__(self) -> None:
        runs = Runs()
        self.owns, self.view, self.retrieve = runs.owns, runs.view, runs.retrieve


@dataclass
class Measured:
    """What the real waiter did by one policy: calls, and the delay of each run in seconds."""

    calls: int = 0
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
        off = abs(self.delay - self.delay_planned)
        return abs(self.calls / self.calls_planned - 1) <= CALLS and off <= max(
            DELAY * self.delay_planned, NEGLIGIBLE
        )

    def row(self) -> str:
        """A row of the table."""
        off = self.calls / self.calls_planned - 1, self.delay / self.delay_planned - 1
        return (
            f"| {self.policy} | {self.calls_planned:.2f} | {self.calls:.2f} | {off[0]:+.1%} "
            f"| {self.delay_planned:.3f} | {self.delay:.3f} | {off[1]:+.1%} "
            f"| {'yes' if self.held else 'NO'} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.planning", description=__doc__)
    parser.add_argument("--runs", type=int, default=300)
    count = parser.parse_args().runs
    warnings.simplefilter("ignore", DeprecationWarning)  # the SDK's, of OpenAI's own service
    rng = random.Random(4)
    draws = Trace.lognormal(MEDIAN, P95).kinds["lognormal"]
    compared = asyncio.run(compare([float(rng.choice(draws)) for _ in range(count)]))
    print(f"{count} runs, median {MEDIAN:g} s, p95 {P95:g} s\n")
    print("| policy | calls planned | measured | | delay planned, s | measured | | held |")
    print("|---|---|---|---|---|---|---|---|")
    for each in compared:
        print(each.row())
    if not all(each.held for each in compared):
        sys.exit("the plan did not hold: on a busy machine, try again when it is idle")


async def compare(seconds: Sequence[float], every: float = EVERY) -> list[Compared]:
    """Plan for runs that take so long, wait for them, and hold the one against the other.

    Args:
        every: seconds from the beginning of one run to that of the next.
    """
    with ServedProcess("--log-level", "error") as service:
        async with AsyncOpenAI(base_url=service.base_url, api_key=service.api_key) as client:
            latency = await _latency(client)
            load = Workload(Trace.of(seconds, exact=True), len(seconds), latency=latency)
            predicted = plan(load)
            known = taught(load)
            policies: dict[str, dict[str, Any]] = {
                "fixed 1 s": {"policy": Fixed(1.0), "hold": False},
                "fixed 2 s": {"policy": Fixed(2.0), "hold": False},
                "tutorial": {"policy": Backoff(), "hold": False},
                FORESIGHT: {"policy": lambda run: known.policy("runs"), "hold": False},
                LONG_POLL: {"policy": Backoff()},
            }
            return _compared(predicted, await measure(client, seconds, policies, every))


def _compared(predicted: Plan, found: Mapping[str, Measured]) -> list[Compared]:
    compared = []
    for name, each in found.items():
        row, runs = predicted.row(name), len(each.delays)
        calls, delay = each.calls / runs, sum(each.delays) / runs
        compared.append(Compared(name, row.calls, calls, row.delay.mean, delay))
    return compared


async def _latency(client: AsyncOpenAI) -> float:
    """Seconds from a request to its answer: the median of a few."""
    took = []
    assistant = await client.beta.assistants.create(model="echo")
    thread = await client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = await client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
    for _ in range(25):
        began = time.perf_counter()
        await client.beta.threads.runs.retrieve(run.id, thread_id=thread.id)
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.01)
    return sorted(took)[len(took) // 2]


async def measure(
    client: AsyncOpenAI,
    seconds: Sequence[float],
    policies: Mapping[str, Mapping[str, Any]],
    every: float,
) -> dict[str, Measured]:
    """Wait for runs that take so long, each by every policy, which are options of a waiter.

    The end of a run is when the service says that it was, by the machine's clock.
    """
    found = {name: Measured() for name in policies}
    assistant = await client.beta.assistants.create(model="echo")
    async with AsyncExitStack() as stack:
        waiters = {
            name: await stack.enter_async_context(
                runbell.AsyncWaiter(
                    client, hooks=[found[name].hear], providers=[Alone()], **options
                )
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
            await asyncio.gather(*(wait(name, run) for name in waiters))

        await asyncio.gather(*(one(place, takes) for place, takes in enumerate(seconds)))
    async for run_id, ended in _ends(client):
        for each in found.values():
            if run_id in each.ended:
                each.delays.append(each.ended[run_id] - ended)
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
