"""What is known of one kind of run, and of runs in general."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate, pairwise
from typing import Protocol

from runbell.pacing.durations import Durations, Observation
from runbell.pacing.estimate import Estimate, believed, estimate
from runbell.pacing.queueing import Queueing
from runbell.pacing.schedule import MOST_POINTS, PAUSES, Schedule, best_pause, schedule
from runbell.pacing.survival import Curve, Survival

__all__ = ["Beliefs", "Kind", "Pool", "pause"]

_DOUBT = 0.1
"""How many runs' worth of belief what is known of other runs has beside a kind's own runs. Where
a kind's own runs are over, the others' alone say how it goes on, whatever their weight; before
that, a greater weight buys polls at moments where runs of this kind never end."""

_AGAIN, _AGAIN_RUNS = 0.6, 96
"""A schedule is made anew after three fifths more runs than it knows, and after 96 at most, or
where the latest runs differ from those before. What is learned from so few is worth about a
hundredth of the calls, and making it costs as much as hundreds of decisions."""

_POOL_AGAIN, _POOL_AGAIN_RUNS = 1.0, 640
"""The same for what is known of all kinds, which counts little beside a kind's own runs."""

_POOL_KINDS, _POOL_RUNS = 24, 8

_FIRST_EDGE = 0.2
_TABLED = 110
"""Moments from 0.2 s to three hours, each a tenth later than the one before."""

_PLACES = 56
"""Up to four hours; what has been running for longer is asked about like that."""


class Beliefs(Protocol):
    """Whom all kinds belong to: Foresight.

    Attributes:
        prior: how long a run takes of which nothing is known.
        kinds: how many are known.
    """

    price: float

    @property
    def latency(self) -> float: ...
    @property
    def prior(self) -> Survival: ...
    @property
    def kinds(self) -> int: ...
    def sample(self, kinds: int, runs: int) -> list[Observation]:
        """A few of the latest runs of each of the latest kinds."""
        ...

    def parent(self) -> Survival:
        """What is believed of any run."""
        ...

    def learned_of_others(self) -> bool:
        """Work out what is known of all kinds, where there is enough news: whether there was."""
        ...


class Kind:
    """What is known of one kind of run."""

    __slots__ = ("_known", "_news", "_queueing", "_schedule", "_waits", "pauses", "queued", "ran")

    def __init__(self) -> None:
        self.ran = Durations()
        self.queued: Durations | None = None
        self.pauses = bytearray(_PLACES)
        self._schedule: Schedule | None = None
        self._known = self._news = 0
        self._queueing: Queueing | None = None
        self._waits = 0

    def add(self, ran: Observation, queued: Observation | None) -> None:
        self._news += 1
        if self.ran.add(ran):
            self._schedule = None
        if queued is not None:
            self._wait(queued)

    def _wait(self, queued: Observation) -> None:
        if self.queued is None:
            self.queued = Durations(capacity=24)
        self.queued.add(queued)

    def restore(self, ran: Iterable[Observation], queued: Iterable[Observation]) -> int:
        """Take in what was kept of earlier runs: of how many nothing was known here."""
        missing = self.ran.missing(ran)
        if missing:
            runs = [*missing, *self.ran]
            self.ran, self._schedule = Durations(), None
            for seen in runs:
                self.add(seen, None)
        if self.queued is None or len(self.queued) == 0:
            for seen in queued:
                self._wait(seen)
        return len(missing)

    def schedule(self, known: Beliefs) -> Schedule:
        """The checks of a run of this kind, counted from its start."""
        due = self._news > min(_AGAIN * self._known, _AGAIN_RUNS - 1)
        if self._schedule is not None and due and known.learned_of_others():
            return self._schedule  # this one's turn comes next: together they would take too long
        if self._schedule is None or due:
            own = estimate(list(self.ran))
            doubt = _DOUBT / (_DOUBT + own.runs)
            self._schedule = schedule(own, known.parent(), doubt, known.price, known.latency)
            self._known, self._news = len(self.ran), 0
            self.pauses = bytearray(_PLACES)
        return self._schedule

    def queueing(self) -> Queueing | None:
        if self.queued is not None and self.queued.seen - self._waits > min(self._waits, 7):
            self._queueing, self._waits = Queueing.of(self.queued), self.queued.seen
        return self._queueing


class Pool:
    """What is known of runs in general."""

    def __init__(self, known: Beliefs) -> None:
        self._of = known
        self._news = 0
        self._known = 0
        self._own: Estimate | None = None
        self._schedule: Schedule | None = None
        self._survival: Survival | None = None
        self.pauses = bytearray(_PLACES)

    def grew(self, runs: int = 1) -> None:
        self._news += runs

    @property
    def seen(self) -> int:
        """Runs ever learned from."""
        return self._known + self._news

    def survival(self) -> Survival:
        """What was last worked out of it."""
        if self._known == 0:
            self.learn()
        if self._own is None:
            return self._of.prior
        if self._survival is None:
            self._survival = _tabled(self._own, self._of.prior)
        return self._survival

    def schedule(self) -> Schedule:
        """The checks of a run of a kind that was never seen."""
        self.learn()
        if self._schedule is None:
            own = self._own or _of_prior(self._of.prior)
            # As likely as not it is like none of one kind seen, rarely like none of a hundred.
            doubt = 1.0 if self._own is None else 1.0 / (1.0 + self._of.kinds)
            self._schedule = schedule(
                own, self._of.prior, doubt, self._of.price, self._of.latency, MOST_POINTS
            )
            self.pauses = bytearray(_PLACES)
        return self._schedule

    def learn(self) -> bool:
        """Take in the news, where there are enough: whether there were."""
        if self._news <= min(_POOL_AGAIN * self._known, _POOL_AGAIN_RUNS - 1):
            return False
        seen = self._of.sample(_POOL_KINDS, _POOL_RUNS)
        self._own = estimate(seen, math.inf) if seen else None
        self._schedule = self._survival = None
        self._known += self._news
        self._news = 0
        return True


def pause(found: bytearray, plan: Schedule, elapsed: float) -> float:
    """The best pause for a run that has been running for `elapsed` seconds.

    Up to a quarter of a second, and from then on a fifth more or less, make no other pause.

    Args:
        found: what was found before for this plan: for each place one more than the index of a
            pause, 0 for nothing. Many clients ask, each at another moment.
    """
    elapsed = max(elapsed, 0.0)
    place = min(round(5 * math.log(4 * elapsed + 1)), len(found) - 1)
    if not found[place]:
        found[place] = 1 + best_pause(plan.curve, elapsed, plan.price, plan.latency)
    return PAUSES[found[place] - 1]


def _tabled(own: Estimate, prior: Survival) -> Curve:
    """Half of what is known of all kinds and half of the prior, as a table: whoever makes a
    schedule looks it up at every moment."""
    low, high = own.edges[0], own.edges[-1]
    steps = [_FIRST_EDGE * math.exp(0.1 * step) for step in range(_TABLED)]
    ended = accumulate(own.masses, initial=0.0)
    times = [0.0, *(at for at in steps if at < low), *own.edges, *(at for at in steps if at > high)]
    before = bisect_left(times, low)
    shares = [0.0] * before + list(ended)
    shares += [1.0] * (len(times) - len(shares))
    return Curve(times, believed(own, shares, prior, 0.5, times))


def _of_prior(prior: Survival) -> Estimate:
    """A prior in cells: from 0.2 s to an hour of them."""
    edges = [_FIRST_EDGE * math.exp(0.025 * step) for step in range(393)]
    masses = [prior.alive(low) - prior.alive(high) for low, high in pairwise(edges)]
    return Estimate(edges, masses, 0.0)
