"""What becomes of a policy at the busiest minute, where the quota does not suffice."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from runbell.client.simulation import Simulation
from runbell.pacing import Policy, PolicySource
from runbell.pacing.bucket import TokenBucket
from runbell.pacing.fleet import WorthPacer
from runbell.pacing.foresight import Foresight
from runbell.planner.playing import EXPIRES, Service
from runbell.planner.quota import attempts
from runbell.planner.traces import Floats

__all__ = ["Crowd", "Rush", "loops", "within"]

FLEET = 1200
"""Runs that are played, at the most; the first fifth, which finds nobody waiting, is left out."""

SENT = 60_000
"""Requests that are played, about."""

VARIES = 0.2
"""By which share of itself the time that a request takes varies."""

HELD = 40
"""Runs at the same time where requests are held: more would share connections."""

RETRIES = 2
"""How often the openai SDK sends a request again that was refused, before it says so."""

SPAN = 10
"""How many times as long as a run goes on, or waits for its turn, runs arrive."""


class Crowd(NamedTuple):
    """How it is in the mean of the runs.

    Attributes:
        delay: in seconds.
        refused: 429s of a run.
    """

    delay: float
    refused: float


@dataclass(frozen=True, slots=True)
class Rush:
    """The busiest minute, for ever.

    Attributes:
        draws: how long runs take, by kind.
        rpm: calls a minute that are allowed.
        arrivals: runs a second.
        latency: seconds from a request to its answer.
    """

    draws: Mapping[str, Floats]
    rpm: float
    arrivals: float
    latency: float

    @property
    def is_hopeless(self) -> bool:
        """Each run takes a call at least: there are more runs than calls."""
        return self.arrivals * 60 >= self.rpm

    def runs(self, share: float, seed: int = 3) -> Iterator[tuple[str, float, float]]:
        """For ever, the kind of a run, its beginning and its end; this share of all."""
        rng = np.random.default_rng(seed)
        names = list(self.draws)
        counts = np.array([len(self.draws[name]) for name in names])
        began = 0.0
        while True:
            began += float(rng.exponential(1 / (self.arrivals * share)))
            kind = names[rng.choice(len(names), p=counts / counts.sum())]
            takes = float(self.draws[kind][rng.integers(len(self.draws[kind]))])
            yield kind, began, began + takes

    def mean(self) -> float:
        """How long a run takes, in seconds."""
        return float(np.mean(np.concatenate(list(self.draws.values()))))


def loops(
    rush: Rush, policy_of: Callable[[str], Policy], calls: float, *, retries: bool = False
) -> Crowd:
    """Every run is asked about by a loop of its own that knows nothing of the others. After a 429
    it goes on as after any answer.

    Args:
        policy_of: gives the policy for a kind.
        calls: of a run that is refused nothing.
        retries: the loop is the SDK's, which sends a refused request again, when it is told to.
    """
    sent, _ = attempts(calls, rush.rpm, rush.arrivals)
    count = int(min(max(SENT / sent, 60), FLEET))
    alike = rush.mean() * rush.rpm / (rush.rpm - 60 * rush.arrivals)  # with waiting for a turn
    share = min(1.0, count / (SPAN * alike * rush.arrivals))
    return _Loops(rush, share, count, policy_of, RETRIES if retries else 0).play()


@dataclass(slots=True, eq=False)
class _Loop:
    number: int
    began: float
    ends: float
    policy: Policy
    polls: int = 0
    retries: int = 0
    refused: int = 0

    def answered(self, at: float) -> float:
        """When the next request is sent, after an answer."""
        self.polls += 1
        self.retries = 0
        delay = self.policy.next_delay(at - self.began, self.polls)
        assert delay is not None
        return at + delay


class _Loops:
    """Loops before a bucket that is empty at first. Runs arrive until all that count are known."""

    def __init__(
        self,
        rush: Rush,
        share: float,
        count: int,
        policy_of: Callable[[str], Policy],
        retries: int,
    ) -> None:
        self._rush, self._count, self._retries, self._share = rush, count, retries, share
        self._policy_of, self._runs = policy_of, rush.runs(share)
        a_minute = rush.rpm * share
        self._bucket = TokenBucket(max(round(a_minute), 1), 60.0 / a_minute)
        self._full_at = 60.0
        self._due: list[tuple[float, int, _Loop]] = []
        self._tie = itertools.count()
        self._arrived = 0
        self._chance = random.Random(4)

    def play(self) -> Crowd:
        delays, refused = [], 0
        left = self._count - self._count // 5
        self._arrive()
        while left:
            now, _, loop = heapq.heappop(self._due)
            if loop.polls == 0 and loop.refused == 0:
                self._arrive()
            # No two answers take as long; else who comes too late once does so for ever.
            landed = now + self._rush.latency * self._chance.uniform(1 - VARIES, 1 + VARIES)
            taken = self._bucket.take(self._full_at, now)
            self._full_at = taken.full_at
            if not taken.granted:
                self._send(self._refused(loop, landed, taken.retry_after), loop)
            elif (now + landed) / 2 < loop.ends:
                self._send(loop.answered(landed), loop)
            elif self._count // 5 <= loop.number < self._count:
                delays.append(landed - loop.ends)
                refused += loop.refused
                left -= 1
        return Crowd(float(np.mean(delays)), refused / len(delays))

    def _arrive(self) -> None:
        kind, began, ends = next(self._runs)
        self._send(began, _Loop(self._arrived, began, ends, self._policy_of(kind)))
        self._arrived += 1

    def _refused(self, loop: _Loop, landed: float, retry_after: float) -> float:
        loop.refused += 1
        if loop.retries == self._retries:
            return loop.answered(landed)
        loop.retries += 1
        # The header is in whole seconds. For all runs together there are more calls than here.
        return landed + max(math.ceil(retry_after * self._share), 1)

    def _send(self, at: float, loop: _Loop) -> None:
        heapq.heappush(self._due, (at, next(self._tie), loop))


class _ByWorth(WorthPacer):
    """The pacer of a waiter with a budget, which is told how long each run takes."""

    def __init__(self, rpm: float, known: Foresight, server: Service) -> None:
        super().__init__(rpm)
        self._known, self._server = known, server

    def want(self, wait: Any, at: float, *, urgent: bool = False) -> None:
        curve = self._known.schedule(self._server.kinds[wait.id]).curve
        looked = wait.pending_until - self._known.latency / 2 if wait.polls else wait.began
        self.expect(wait, curve, wait.began, looked)
        super().want(wait, at, urgent=urgent)


def within(
    rush: Rush,
    known: Foresight,
    policy_of: Callable[[str], PolicySource],
    *,
    holds: bool = False,
    heard: float | None = None,
) -> Crowd:
    """The waiter, which keeps within its budget and spends each call where it is worth most.

    Where there are many runs, a smaller fleet is played that has as many calls for each of them.

    Args:
        known: what it knows of how long runs take.
        holds: the server holds requests.
        heard: the share of runs of which an event tells; None where there are no events.
    """
    mean = rush.mean()
    span = 60.0 + 2 * SPAN * mean
    share = min(1.0, FLEET / (rush.arrivals * span))
    if holds:
        share = min(share, HELD / (rush.arrivals * mean))
    share = min(max(share, 1 / rush.rpm), 1.0)  # a budget is of a call a minute at least
    server = Service(rush.latency, holds)
    simulation = Simulation(server, _ByWorth(rush.rpm * share, known, server), hold=holds)
    longest = max(float(each.max()) for each in rush.draws.values())
    expires = 1e6 if heard is None else max(EXPIRES, 1.2 * longest)
    rng, ends = np.random.default_rng(5), {}
    for number, (kind, began, end) in enumerate(itertools.islice(rush.runs(share), FLEET)):
        name = f"run_{number}"
        ends[name], server.kinds[name] = end, kind
        run = server.create(name, began, end - began, expires)
        simulation.begin(
            began, [run], policy=policy_of(kind), timeout=1e6, pushed=heard is not None
        )
        if heard is not None and rng.random() < heard:
            event = {"data": {"id": name, "status": "completed"}}
            simulation.tell(end + rush.latency / 2, event)
    known_at = {ending.item.id: ending.at for ending in simulation.run()}
    # Those that come last find ever fewer others.
    names = list(ends)[FLEET // 5 : 3 * FLEET // 5]
    return Crowd(float(np.mean([known_at[name] - ends[name] for name in names])), 0.0)
