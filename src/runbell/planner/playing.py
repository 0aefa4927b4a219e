"""What a policy does: the waiter's own flow, played under the virtual clock.

Until it ends, a run looks like any other of its kind. So one run that takes as long as the longest
shows every moment at which a policy looks, and where a shorter one would have ended between them:
its calls and its delay follow, exactly, for a million runs as for one. Where the server answers
at another moment for each run, since it holds the request or sends an event, 500 runs that stand
for all are played one after the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from runbell.client.deeds import Order, Retrieve
from runbell.client.mail import Landed
from runbell.client.simulation import SimulatedRun, Simulation
from runbell.client.view import Answer
from runbell.pacing import PolicySource
from runbell.planner.traces import Floats, lasting

__all__ = ["SAMPLE", "Looks", "Outcome", "Service", "held", "looks", "merged", "polled", "told"]

MOST_LOOKS = 5000
"""Looks at one run that are played; beyond them the last pause is repeated."""

SAMPLE = 500
"""Runs that stand for all, where each is played. A percentile of them is one of all to 0.1 %."""

LOST = 100
"""The same, of those whose event is lost."""

LONG = 3600.0
"""Seconds. Of a run that takes longer, requests are held one after the other, all alike."""

EXPIRES = 600.0
"""Seconds after which a run expires, unless runs take longer than that."""


class Outcome(NamedTuple):
    """What came of a policy, run by run.

    Attributes:
        calls: in the mean.
        delays: from a run's end until it is known, in seconds.
        weights: how much each of them counts; None for all the same.
    """

    calls: float
    delays: Floats
    weights: Floats | None = None

    @property
    def mean(self) -> float:
        """The mean delay, in seconds."""
        return float(np.average(self.delays, weights=self.weights))

    def percentiles(self, shares: list[float]) -> list[float]:
        """These percentiles of the delay, in seconds."""
        if self.weights is None:
            return [float(value) for value in np.percentile(self.delays, shares)]
        order = np.argsort(self.delays)
        reached = np.cumsum(self.weights[order]) / self.weights.sum()
        places = np.searchsorted(reached, np.array(shares) / 100 - 1e-12)
        return [float(self.delays[order[min(at, len(order) - 1)]]) for at in places]


@dataclass(frozen=True)
class Looks:
    """The moments at which a run is looked at while it goes on, in seconds after its beginning.

    Attributes:
        sent: when each request is sent. It is answered from the state half the latency later.
        latency: until the answer is known.
    """

    sent: Floats
    latency: float

    def at(self, ends: Floats) -> Outcome:
        """What comes of them for runs that end at these moments."""
        seen = self.sent + self.latency / 2
        which = np.searchsorted(seen, ends)
        beyond = which == len(seen)
        last = len(seen) - 1
        known = seen[np.minimum(which, last)] + self.latency / 2
        calls = which + 1
        if beyond.any():
            pause = self.sent[-1] - self.sent[-2]
            more = np.ceil((ends[beyond] - seen[-1]) / pause)
            known[beyond] = seen[-1] + more * pause + self.latency / 2
            calls[beyond] = last + 1 + more
        return Outcome(float(calls.mean()), known - ends)


class Service:
    """The run service, played.

    Args:
        latency: seconds from a request to its answer, which says how it stood halfway.
        holds: it applies `Prefer: wait`.
    """

    def __init__(self, latency: float, holds: bool = False) -> None:
        self._latency, self._holds = latency, holds
        self._runs: dict[str, tuple[float, float, float]] = {}
        self.requests: dict[str, list[float]] = {}
        self.kinds: dict[str, str] = {}

    def create(self, name: str, at: float, seconds: float, expires: float) -> SimulatedRun:
        self._runs[name] = (at, at + seconds, at + expires)
        self.requests[name] = []
        return self._seen(name, at)

    def perform(self, order: Order, sent: float) -> tuple[float, Landed]:
        assert isinstance(order.deed, Retrieve)
        name, hold = order.deed.item.id, order.deed.hold
        asked = self.requests[name]
        asked.append(sent)
        seen = sent + self._latency / 2
        if hold and self._holds:
            seen = min(max(seen, self._runs[name][1]), seen + hold)
        item = self._seen(name, seen, over=len(asked) >= MOST_LOOKS)
        answer = Answer(item, held=self._holds and hold is not None)
        return seen + self._latency / 2, Landed(order.number, answer)

    def _seen(self, name: str, at: float, over: bool = False) -> SimulatedRun:
        began, ends, expires = self._runs[name]
        status = "completed" if at >= ends or over else "in_progress"
        return SimulatedRun(name, status, created_at=began, expires_at=expires)


def looks(policy: PolicySource, until: float, latency: float) -> Looks:
    """Every look of a policy at a run that takes `until` seconds."""
    server = Service(latency)
    simulation = Simulation(server)
    run = server.create("run", 0.0, until, 2 * until + EXPIRES)
    simulation.begin(0.0, [run], policy=policy, timeout=2 * until + 10 * EXPIRES)
    simulation.run()
    return Looks(np.array(server.requests["run"]), latency)


def polled(
    draws: Mapping[str, Floats], policies: Mapping[str, PolicySource], latency: float
) -> Outcome:
    """What comes of polling runs of several kinds, each kind by a policy of its own."""
    played: dict[int, Looks] = {}
    longest = max(float(ends.max()) for ends in draws.values())
    shared = len({id(policy) for policy in policies.values()}) == 1
    outcomes = []
    for kind, ends in draws.items():
        policy = policies[kind]
        if id(policy) not in played:
            until = longest if shared else float(ends.max())
            played[id(policy)] = looks(policy, until, latency)
        outcomes.append(played[id(policy)].at(ends))
    return merged(outcomes)


def merged(parts: Sequence[Outcome]) -> Outcome:
    """What came of a policy in all parts; all runs count the same."""
    counts = [len(each.delays) for each in parts]
    calls = float(np.average([each.calls for each in parts], weights=counts))
    return Outcome(calls, np.concatenate([each.delays for each in parts]))


def held(draws: Mapping[str, Floats], policy: PolicySource, latency: float) -> Outcome:
    """What comes of having the server hold requests."""
    seconds = lasting(draws, SAMPLE)
    more = np.zeros(len(seconds))
    if seconds[-1] > LONG:
        period = _held_again(policy, latency)
        more = np.ceil(np.maximum(seconds - LONG, 0.0) / period)
        seconds = np.sort(seconds - more * period)
    server = Service(latency, holds=True)
    simulation = Simulation(server, hold=True)
    calls, delays = _each(simulation, server, seconds, policy, None)
    return Outcome(calls + float(more.mean()), delays)


def _held_again(policy: PolicySource, latency: float) -> float:
    """Seconds from one held request of a long run to the next."""
    server = Service(latency, holds=True)
    _each(Simulation(server, hold=True), server, np.array([LONG]), policy, None)
    (sent,) = server.requests.values()
    return sent[-1] - sent[-2]


def told(draws: Mapping[str, Floats], policy: PolicySource, latency: float, loss: float) -> Outcome:
    """What comes of being told of ends by an event, which takes half the latency, or is lost."""
    calls, delays, weights = 0.0, [], []
    for share, delay, count in ((1 - loss, latency / 2, SAMPLE), (loss, None, LOST)):
        if not share:
            continue
        seconds, server = lasting(draws, count), Service(latency)
        asked, late = _each(Simulation(server), server, seconds, policy, delay, pushed=True)
        calls += share * asked
        delays.append(late)
        weights.append(np.full(count, share / count))
    return Outcome(calls, np.concatenate(delays), np.concatenate(weights))


def _each(
    simulation: Simulation,
    server: Service,
    seconds: Floats,
    policy: PolicySource,
    event_after: float | None,
    *,
    pushed: bool = False,
) -> tuple[float, Floats]:
    """Play one run after the other: the mean of their calls, and their delays."""
    expires = max(EXPIRES, 1.2 * float(seconds[-1]))
    ends: dict[str, float] = {}
    for number, takes in enumerate(seconds):
        name, began = f"run_{number}", number * 2 * (expires + EXPIRES)
        ends[name] = began + float(takes)
        run = server.create(name, began, float(takes), expires)
        simulation.begin(began, [run], policy=policy, pushed=pushed)
        if event_after is not None:
            data = {"id": name, "status": "completed"}
            simulation.tell(ends[name] + event_after, {"data": data})
    endings = {ending.item.id: ending.at for ending in simulation.run()}
    calls = sum(map(len, server.requests.values())) / len(seconds)
    return calls, np.array([endings[name] - end for name, end in ends.items()])
