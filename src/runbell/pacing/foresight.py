"""When to look at a run: learned from how long runs of its kind took."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import accumulate, islice, pairwise
from typing import Any, Protocol

from runbell.pacing.durations import Durations, Observation
from runbell.pacing.queueing import Queueing
from runbell.pacing.schedule import MOST_POINTS, PAUSES, Schedule, best_pause, schedule
from runbell.pacing.survival import Curve, Estimate, Survival, estimate, ignorance

__all__ = ["Foresight", "ForesightPolicy", "Key", "SeenRun"]

Key = Hashable
"""What runs of one kind have in common: (assistant, model, names of the tools). Any string will
do, and any tuple of strings and tuples; lists and sets are taken for tuples."""

VERSION = 1

_DOUBT = 0.1
"""How many runs' worth of belief what is known of other runs has beside a kind's own runs. Where
a kind's own runs are over, the others' alone say how it goes on, whatever their weight; before
that, a greater weight buys polls at moments where runs of this kind never end."""

_AGAIN, _AGAIN_RUNS = 0.4, 64
"""A schedule is made anew after two fifths more runs than it knows, and after 64 at most. What is
learned from so few is worth about a hundredth of the calls, and making it costs as much as
hundreds of decisions."""

_POOL_AGAIN, _POOL_AGAIN_RUNS = 0.5, 640
"""The same for what is known of all kinds, which counts little beside a kind's own runs."""

_POOL_KINDS, _POOL_RUNS = 64, 12

_FIRST_EDGE = 0.2
_TABLED = 110
"""Moments from 0.2 s to three hours, each a tenth later than the one before."""

_PLACES = 56
"""Up to four hours; what has been running for longer is asked about like that."""


class SeenRun(Protocol):
    """What a policy is told about the last answer. The stamps are seconds since the epoch."""

    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> float | None: ...
    @property
    def started_at(self) -> float | None: ...


class Foresight:
    """Learns how long runs take, and says when to look at the next one.

    It minimises E[detection delay] + price · E[calls]. What is known of a kind of run is a
    distribution of durations, estimated from its latest runs; where there are few, from what is
    known of the others, and where there are none, from a prior. The checks are the exact optimum
    for that distribution. Nothing here does I/O or knows what time it is.

    Args:
        price: the seconds of delay that one call is worth.
        latency: seconds from sending a poll until its answer is known.
        prior: how long a run takes of which nothing is known.
        most: kinds that are remembered; the one that was not seen for longest is forgotten.

    Raises:
        ValueError: the price is negative, or the latency not positive.
    """

    def __init__(
        self,
        price: float = 0.25,
        latency: float = 0.15,
        *,
        prior: Survival | None = None,
        most: int = 1000,
    ) -> None:
        if not (0 <= price < math.inf and 0 < latency < math.inf):
            raise ValueError("a price of at least 0 and a latency above 0 are needed, in seconds")
        self.price, self.latency, self._most = price, latency, most
        self._prior: Survival = ignorance() if prior is None else prior
        self._kinds: dict[Key, _Kind] = {}
        self._pool = _Pool(self)

    def observe(
        self,
        key: Key,
        seconds: float | Sequence[float],
        *,
        ended: bool = True,
        queued: float | Sequence[float] | None = None,
    ) -> None:
        """Learn from one run.

        Args:
            key: its kind.
            seconds: how long it ran, from its start on where that is known. An interval
                `(low, high)` where that is all that is known, for example from whole-second
                stamps and from the last poll that found it going on.
            ended: False for a run that was cancelled or given up after `seconds`: it would have
                taken longer.
            queued: how long it waited for its start.

        Raises:
            ValueError: it is no duration: negative, not a number, or upside down.
        """
        ran = Observation.of(seconds, ended=ended)
        waited = None if queued is None else Observation.of(queued)
        kind = self._kind(key)
        kind.add(ran, waited)
        self._pool.grew()

    def policy(self, key: Key, *, age: float = 0.0) -> ForesightPolicy:
        """A policy of the waiter, for one wait for one run.

        Args:
            key: the run's kind.
            age: seconds that the run was old when the wait began; also where it began anew, after
                tool outputs were submitted.
        """
        return ForesightPolicy(self, key, age)

    def survival(self, key: Key, t: float) -> float:
        """The probability that a run of this kind takes longer than `t` seconds."""
        return self.schedule(key).curve.alive(t)

    def poll_after(self, key: Key, elapsed: float = 0.0) -> float:
        """The pause that serves a client best which keeps to it until the run ends, in seconds.

        It is what a server says in `openai-poll-after-ms`, in the first answer that tells that
        the run is going on: the openai SDK reads it there, once, and polls at that pause.

        Args:
            key: the run's kind.
            elapsed: how long the run has been running.
        """
        kind = self._found(key)
        known = self._pool if kind is None else kind
        plan = self.schedule(key)
        return _pause(known.pauses, plan, elapsed)

    def schedule(self, key: Key) -> Schedule:
        """The checks of a run of this kind, counted from its start."""
        kind = self._found(key)
        return self._pool.schedule() if kind is None else kind.schedule(self)

    def queueing(self, key: Key) -> Queueing | None:
        """How long runs of this kind wait for their start; None where they hardly do."""
        kind = self._found(key)
        return None if kind is None else kind.queueing()

    def dump(self) -> dict[str, Any]:
        """Everything learned, as what JSON can say; `load` takes it."""
        kinds = [{"key": key, **kind.dump()} for key, kind in self._kinds.items()]
        return {"runbell": "foresight", "version": VERSION, "kinds": kinds}

    def load(self, document: object) -> int:
        """Learn what another one has `dump`ed, in addition to what is known.

        What cannot be understood is left out: evidence is worth having, not worth failing for.

        Returns:
            How many runs were learned from.
        """
        if not isinstance(document, Mapping) or document.get("version") != VERSION:
            return 0
        kinds = document.get("kinds")
        if document.get("runbell") != "foresight" or not isinstance(kinds, list):
            return 0
        learned = 0
        for entry in kinds:
            if isinstance(entry, Mapping) and "key" in entry:
                try:
                    key = _hashable(entry["key"])
                except TypeError:
                    continue
                learned += self._load(key, entry)
        self._pool.grew()
        return learned

    def _load(self, key: Key, entry: Mapping[str, Any]) -> int:
        ran, queued = list(_loaded(entry.get("ran"))), list(_loaded(entry.get("queued")))
        if ran:
            self._kind(key).restore(ran, queued)
        return len(ran)

    def _kind(self, key: Key) -> _Kind:
        """The evidence of a kind, which becomes the latest to be forgotten."""
        key = _hashable(key)
        kind = self._kinds.pop(key, None) or _Kind()
        self._kinds[key] = kind
        if len(self._kinds) > self._most:
            del self._kinds[next(iter(self._kinds))]
        return kind

    def _found(self, key: Key) -> _Kind | None:
        try:
            if (kind := self._kinds.get(key)) is not None:
                return kind
        except TypeError:
            pass  # a list, or a tuple with one: it is known by another name
        return self._kinds.get(_hashable(key))

    def learned_of_others(self) -> bool:
        """Work out what is known of all kinds, where there is enough news of them: whether there
        was. It takes milliseconds, perhaps of an event loop."""
        return self._pool.learn()

    def parent(self) -> Survival:
        """What is believed of any run: what is known of all kinds, and the prior."""
        return self._pool.survival()

    @property
    def prior(self) -> Survival:
        """How long a run takes of which nothing is known."""
        return self._prior

    def sample(self) -> list[Observation]:
        """A few of the latest runs of each of the latest kinds: none outweighs the others."""
        latest = islice(reversed(self._kinds.values()), _POOL_KINDS)
        return [seen for kind in latest for seen in kind.ran.latest(_POOL_RUNS)]

    def runs(self, key: Key) -> int:
        """How many runs of this kind are remembered."""
        kind = self._found(key)
        return 0 if kind is None else len(kind.ran)

    @property
    def kinds(self) -> int:
        """Kinds that are known."""
        return len(self._kinds)


class _Kind:
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
            if self.queued is None:
                self.queued = Durations(capacity=24)
            self.queued.add(queued)

    def restore(self, ran: Iterable[Observation], queued: Iterable[Observation]) -> None:
        for seen in ran:
            self.add(seen, None)
        for seen in queued:
            self.queued = self.queued or Durations(capacity=24)
            self.queued.add(seen)

    def schedule(self, known: Foresight) -> Schedule:
        due = self._news > min(_AGAIN * self._known, _AGAIN_RUNS - 1)
        if self._schedule is not None and due and known.learned_of_others():
            return self._schedule  # this one's turn comes next: together they would take too long
        if self._schedule is None or due:
            own = estimate(list(self.ran))
            doubt = (_DOUBT + own.escaped) / (_DOUBT + own.runs)
            self._schedule = schedule(own, known.parent(), doubt, known.price, known.latency)
            self._known, self._news = len(self.ran), 0
            self.pauses = bytearray(_PLACES)
        return self._schedule

    def queueing(self) -> Queueing | None:
        if self.queued is not None and self.queued.seen - self._waits > min(self._waits, 7):
            self._queueing, self._waits = Queueing.of(self.queued), self.queued.seen
        return self._queueing

    def dump(self) -> dict[str, Any]:
        queued = [] if self.queued is None else _dumped(self.queued)
        return {"ran": _dumped(self.ran), "queued": queued}


class _Pool:
    """What is known of runs in general."""

    def __init__(self, known: Foresight) -> None:
        self._of = known
        self._news = 0
        self._known = 0
        self._own: Estimate | None = None
        self._schedule: Schedule | None = None
        self._survival: Survival | None = None
        self.pauses = bytearray(_PLACES)

    def grew(self) -> None:
        self._news += 1

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
        seen = self._of.sample()
        self._own = estimate(seen, math.inf) if seen else None
        self._schedule = self._survival = None
        self._known += self._news
        self._news = 0
        return True


def _pause(found: bytearray, plan: Schedule, elapsed: float) -> float:
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
    return Curve(
        times,
        [
            0.5 * max(1.0 - share, 0.0) + 0.5 * prior.alive(time)
            for time, share in zip(times, shares, strict=True)
        ],
    )


def _of_prior(prior: Survival) -> Estimate:
    """A prior in cells: from 0.2 s to an hour of them."""
    edges = [_FIRST_EDGE * math.exp(0.025 * step) for step in range(393)]
    masses = [prior.alive(low) - prior.alive(high) for low, high in pairwise(edges)]
    return Estimate(edges, masses, 0.0, 0.0)


class ForesightPolicy:
    """When to look at one run. Made by `Foresight.policy`; for a single wait.

    Args:
        known: what is known of how long runs take.
        key: the run's kind.
        age: seconds that the run was old when the wait began.
    """

    # A hundred thousand of these have to fit into memory.
    __slots__ = ("_age", "_key", "_of", "_queueing", "_run", "_schedule", "_started", "_waiting_at")

    def __init__(self, known: Foresight, key: Key, age: float = 0.0) -> None:
        self._of, self._key, self._age = known, key, age
        self._schedule: Schedule | None = None
        self._queueing: Queueing | None = None
        self._run: SeenRun | None = None
        self._waiting_at = -math.inf
        self._started: float | None = None

    def __repr__(self) -> str:
        return f"ForesightPolicy({self._key!r})"

    def saw(self, run: SeenRun, hint: float | None = None) -> None:
        """Be told the last answer. The server's hint is left to policies that know less."""
        self._run = run

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        """Seconds from now to the next poll, where `elapsed` seconds have passed since the wait
        began, and `polls` answers came; never None, since a run ends some time."""
        latency = self._of.latency
        if self._schedule is None:
            self._schedule = self._of.schedule(self._key)
            self._queueing = self._of.queueing(self._key)
        looked = max(elapsed - latency / 2, 0.0) if polls else 0.0
        check = self._next_check(looked)
        return max(0.0, check - latency / 2 - elapsed)

    def _next_check(self, looked: float) -> float:
        """The moment of the next check, after a check at `looked`; both counted from the wait's
        beginning."""
        assert self._schedule is not None
        run, self._run = self._run, None
        if run is not None and run.status == "queued":
            self._waiting_at = looked
            self._started = None
        elif run is not None and self._started is None:
            self._started = self._start(run, looked)
        if self._started is not None:
            return self._started + self._schedule.after(max(looked - self._started, 0.0))
        queueing = self._queueing
        waited = max(self._waiting_at, 0.0)
        if queueing is None or (self._waiting_at < 0 and not queueing.usual):
            # Nothing is known of a queue: as if it started when it was last seen waiting.
            return waited + self._schedule.after(looked - waited)
        return queueing.next_check(self._schedule, self._age + looked) - self._age

    def _start(self, run: SeenRun, looked: float) -> float:
        """The moment at which a run that is going on started, counted from the wait's beginning.

        It lies between the last answer that said `queued` and the one that did not. Where the
        run was created when the wait began, the stamps tell it too, to whole seconds.
        """
        earliest = max(self._waiting_at, -self._age)
        latest = max(looked, earliest)
        if run.created_at is not None and run.started_at is not None:
            stamped = run.started_at - run.created_at - self._age
            low, high = max(earliest, stamped - 1.0), min(latest, stamped + 1.0)
            if low <= high:
                earliest, latest = low, high
        if self._waiting_at == -math.inf and earliest <= 0.0:
            # It may well have started at once, as most runs do.
            return max(earliest, min(latest, -self._age, 0.0))
        return (earliest + latest) / 2


def _hashable(key: Key) -> Key:
    """The same key whichever way it was written."""
    if isinstance(key, str):
        return key
    if isinstance(key, tuple | list):
        return tuple(map(_hashable, key))
    if isinstance(key, set | frozenset):
        return tuple(sorted(map(_hashable, key), key=repr))
    hash(key)
    return key


def _dumped(durations: Durations) -> list[list[float | None]]:
    return [
        [_rounded(seen.low), None if math.isinf(seen.high) else _rounded(seen.high)]
        for seen in durations
    ]


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.7g}")


def _loaded(rows: object) -> Iterable[Observation]:
    for row in rows if isinstance(rows, list) else ():
        try:
            low, high = row
            yield Observation.of((low, math.inf if high is None else high))
        except (TypeError, ValueError):
            continue
