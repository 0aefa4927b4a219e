"""Many runs at once under one budget of calls."""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.polling.optimum import programme, table
from bench.polling.ratios import taught
from bench.polling.rules import LATENCY, RULES, NextDelay
from bench.polling.truth import Draws
from runbell.pacing.bucket import TokenBucket
from runbell.pacing.fleet import WorthPacer
from runbell.pacing.foresight import Foresight

__all__ = ["Figures", "Fleet", "bound", "free", "paced"]


@dataclass(frozen=True)
class Fleet:
    """Runs that arrive at random moments, so many at once in the mean.

    Attributes:
        kinds: how long they take.
        shares: how often each kind comes; they add up to one.
        concurrent: runs that are going on, in the mean.
        calls_per_minute: what the server allows.
        seconds: how long runs arrive.
    """

    kinds: dict[str, Draws]
    shares: dict[str, float]
    concurrent: int = 100
    calls_per_minute: int = 500
    seconds: float = 3000.0

    @property
    def arrivals(self) -> float:
        """Runs a second."""
        mean = sum(share * self.kinds[key].mean() for key, share in self.shares.items())
        return float(self.concurrent / mean)

    def drawn(self, seed: int = 3) -> list[Run]:
        """The runs, in the order of their arrival."""
        rng = random.Random(seed)
        runs, at = [], 0.0
        while (at := at + rng.expovariate(self.arrivals)) < self.seconds:
            key = rng.choices(list(self.shares), list(self.shares.values()))[0]
            draws = self.kinds[key]
            runs.append(Run(key, at, at + float(draws[rng.randrange(len(draws))])))
        return runs


@dataclass(slots=True, eq=False)
class Run:
    """One run, and what the waiter knows of it."""

    key: str
    began: float
    ends: float
    looked: float = 0.0
    polls: int = 0
    refusals: int = 0
    next_delay: NextDelay = field(default=lambda elapsed, polls: 0.0)

    def wish(self, now: float) -> float:
        """The moment at which its policy wants the next look."""
        delay = self.next_delay(now - self.began, self.polls)
        assert delay is not None
        return now + delay


class Figures(NamedTuple):
    """What came of it, but for the first fifth of the runs.

    Attributes:
        calls: a run, refused ones included.
        refused: the share of calls that were.
        gave_up: the share of runs that whoever waited never saw end.
        mean, p50, p95, p99, longest: seconds from the end of one that was until that was known.
    """

    calls: float
    refused: float
    gave_up: float
    mean: float
    p50: float
    p95: float
    p99: float
    longest: float


class _World:
    """A server with a budget, and a clock that jumps.

    Args:
        closed: a run begins when another is known to be over; else they come at random moments.
    """

    def __init__(self, fleet: Fleet, closed: bool = False) -> None:
        self._bucket = TokenBucket.per_minute(fleet.calls_per_minute)
        self._full_at = 0.0
        self._tie = 0
        self.events: list[tuple[float, int, bool, Run, Any]] = []
        self.calls = self.refused = self.gave_up = 0
        self.delays: list[float] = []
        self.runs = fleet.drawn()
        self._next = fleet.concurrent if closed else len(self.runs)
        for run in self.runs[: self._next]:
            self.put(run.began, False, run, None)

    def follow(self, now: float) -> None:
        """Have the next run begin, since one is over."""
        if self._next < len(self.runs):
            run = self.runs[self._next]
            self._next += 1
            run.began, run.ends = now, now + run.ends - run.began
            self.put(now, False, run, None)

    def put(self, at: float, answer: bool, run: Run, ended: Any) -> None:
        self._tie += 1
        heapq.heappush(self.events, (at, self._tie, answer, run, ended))

    def poll(self, run: Run, now: float) -> None:
        """Send a poll; its answer says whether the run has ended, or None for a 429."""
        self.calls += 1
        taken = self._bucket.take(self._full_at, now)
        self._full_at = taken.full_at
        if not taken.granted:
            self.refused += 1
        ended = run.ends <= now + LATENCY / 2 if taken.granted else None
        self.put(now + LATENCY, True, run, ended)

    def figures(self) -> Figures:
        late = np.array(self.delays[len(self.delays) // 5 :])
        p50, p95, p99 = (float(value) for value in np.percentile(late, [50, 95, 99]))
        return Figures(
            self.calls / len(self.runs), self.refused / max(self.calls, 1),
            self.gave_up / len(self.runs),
            float(late.mean()), p50, p95, p99, float(late.max()),
        )  # fmt: skip


def free(fleet: Fleet, rule: str, retries: int = 2) -> Figures:
    """So many programs, each of which waits for one run after the other, by a rule.

    A refused poll is tried again as the openai SDK does it: after 0.5 s, then twice as long each
    time up to 8 s, less up to a quarter by chance. Where that is refused too after `retries`, the
    SDK raises, and the program gives the run up and begins another. Nobody is more than
    `concurrent` runs behind: with runs that come whatever happens, the delay would only tell how
    long the bench lasts.
    """
    world = _World(fleet, closed=True)
    rng = random.Random(7)
    sending: list[tuple[float, int, Run]] = []
    tie = 0
    while world.events or sending:
        if sending and (not world.events or sending[0][0] <= world.events[0][0]):
            at, _, run = heapq.heappop(sending)
            world.poll(run, at)
            continue
        at, _, answer, run, ended = heapq.heappop(world.events)
        if not answer:
            run.next_delay = RULES[rule][0](rng)
            wish = run.wish(at)
        elif ended is None:
            run.refusals += 1
            if run.refusals > retries:
                world.gave_up += 1
                world.follow(at)
                continue
            pause = min(0.5 * 2.0 ** min(run.refusals - 1, 9), 8.0)
            wish = at + pause * (1 - 0.25 * rng.random())
        elif ended:
            world.delays.append(at - run.ends)
            world.follow(at)
            continue
        else:
            run.polls, run.refusals = run.polls + 1, 0
            wish = run.wish(at)
        tie += 1
        heapq.heappush(sending, (wish, tie, run))
    return world.figures()


def paced(fleet: Fleet, *, worth: bool = True, closed: bool = False) -> Figures:
    """One pacer for all: by what a call is worth, or whoever was looked at longest ago.

    Args:
        closed: as for `free`, a run begins when another is known to be over.
    """
    world = _World(fleet, closed)
    pacer = WorthPacer(fleet.calls_per_minute)
    known = taught(fleet.kinds, 200, 0.25)
    while world.events:
        at = pacer.next_at()
        if at is not None and at <= world.events[0][0]:
            run: Any = pacer.take(at)
            if run is not None:
                world.poll(run, at)
                continue
        at, _, answer, run, ended = heapq.heappop(world.events)
        run.polls += answer
        if ended:
            world.delays.append(at - run.ends)
            pacer.forget(run)
            known.observe(run.key, run.ends - run.began)
            if closed:
                world.follow(at)
            continue
        _ask(run, at, answer, known, pacer, worth)
    return world.figures()


def _ask(
    run: Run, now: float, answer: bool, known: Foresight, pacer: WorthPacer, worth: bool
) -> None:
    if not answer:
        run.looked = run.began
        run.next_delay = known.policy(run.key).next_delay
    else:
        run.looked = now - LATENCY / 2
    if worth:
        pacer.expect(run, known.schedule(run.key).curve, run.began, run.looked)
        pacer.want(run, run.wish(now))
    else:
        pacer.want(run, now)


def bound(fleet: Fleet) -> float:
    """A mean delay that no policy gets below within the budget, in seconds.

    For each price λ of a call: the least E[delay] + λ·E[calls] of each kind, less λ times the
    calls that there are for each run. The greatest of these is Lagrange's bound.
    """
    prices = np.geomspace(0.01, 200, 60)
    cost = np.zeros(len(prices))
    for key, share in fleet.shares.items():
        calls, delays = programme(*table(fleet.kinds[key]), prices, LATENCY)
        cost += share * (delays + prices * calls)
    budget = fleet.calls_per_minute / 60 / fleet.arrivals
    return float((cost - prices * budget).max())
