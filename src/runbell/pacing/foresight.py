"""How long do runs take: learned from those that are over, for whoever waits for the next one."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

from runbell.pacing.durations import Durations, Observation
from runbell.pacing.kinds import Kind, Pool, pause
from runbell.pacing.queueing import Queueing
from runbell.pacing.schedule import Schedule
from runbell.pacing.survival import Survival, ignorance
from runbell.pacing.watching import ForesightPolicy

__all__ = ["Foresight", "Key"]

Key = Hashable
"""What runs of one kind have in common: (assistant, model, names of the tools). Any string will
do, and any tuple of strings and tuples; lists and sets are taken for tuples."""

VERSION = 1

_ANSWERS = 33
"""Answers whose median is the latency; it is looked for anew after every eighth."""

_ANSWERS_AGAIN = 8
_SAME = 0.2
"""A latency that differs from what is believed by less than this share is the same."""

_QUICKEST, _SLOWEST = 0.005, 5.0
"""Seconds: what is believed of a latency, whatever is seen."""


class Foresight:
    """Learns how long runs take, and says when to look at the next one.

    It minimises E[detection delay] + price · E[calls]. What is known of a kind of run is a
    distribution of durations, estimated from its latest runs; where there are few, from what is
    known of the others, and where there are none, from a prior. The checks are the exact optimum
    for that distribution. Nothing here does I/O or knows what time it is. Several threads may use
    one.

    Args:
        price: the seconds of delay that one call is worth.
        latency: seconds from sending a poll until its answer is known, until `answered` tells
            how long answers take.
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
        self._kinds: dict[Key, Kind] = {}
        self._pool = Pool(self)
        self._answers: deque[float] = deque(maxlen=_ANSWERS)
        self._answered = 0
        # What is asked may have to be worked out first, so it is held for questions too.
        self._lock = threading.RLock()

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
        with self._lock:
            self._kind(key).add(ran, waited)
            self._pool.grew()

    def answered(self, seconds: float) -> None:
        """A poll that nobody held was answered after so long: the latency is their median."""
        if not 0 <= seconds < math.inf:
            return
        with self._lock:
            self._answers.append(seconds)
            self._answered += 1
            if self._answered % _ANSWERS_AGAIN == 0:
                median = sorted(self._answers)[len(self._answers) // 2]
                median = min(max(median, _QUICKEST), _SLOWEST)
                if abs(median - self.latency) > _SAME * self.latency:
                    self.latency = median

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
        with self._lock:
            plan = self.schedule(key)
            known = self._found(key) or self._pool
            return pause(known.pauses, plan, elapsed)

    def schedule(self, key: Key) -> Schedule:
        """The checks of a run of this kind, counted from its start."""
        with self._lock:
            kind = self._found(key)
            return self._pool.schedule() if kind is None else kind.schedule(self)

    def queueing(self, key: Key) -> Queueing | None:
        """How long runs of this kind wait for their start; None where they hardly do."""
        with self._lock:
            kind = self._found(key)
            return None if kind is None else kind.queueing()

    def dump(self) -> dict[str, Any]:
        """Everything learned, as what JSON can say; `load` takes it."""
        with self._lock:
            kinds = [
                {"key": key, "ran": _dumped(kind.ran), "queued": _dumped(kind.queued)}
                for key, kind in self._kinds.items()
            ]
        return {"runbell": "foresight", "version": VERSION, "kinds": kinds}

    def load(self, document: object) -> int:
        """Learn what another one has `dump`ed, in addition to what is known.

        A run that is known already is not counted again, so a dump may be loaded any number of
        times. What cannot be understood is left out: evidence is worth having, not worth failing
        for.

        Returns:
            How many runs were learned from.
        """
        if not isinstance(document, Mapping) or document.get("version") != VERSION:
            return 0
        kinds = document.get("kinds")
        if document.get("runbell") != "foresight" or not isinstance(kinds, list):
            return 0
        learned = 0
        with self._lock:
            for entry in kinds:
                if isinstance(entry, Mapping) and "key" in entry:
                    try:
                        learned += self._load(entry["key"], entry)
                    except (TypeError, RecursionError):  # it is no key
                        continue
            self._pool.grew(learned)
        return learned

    def _load(self, key: Key, entry: Mapping[str, Any]) -> int:
        ran, queued = list(_loaded(entry.get("ran"))), list(_loaded(entry.get("queued")))
        return self._kind(key).restore(ran, queued) if ran else 0

    def _kind(self, key: Key) -> Kind:
        """The evidence of a kind, which becomes the latest to be forgotten."""
        key = _hashable(key)
        kind = self._kinds.pop(key, None) or Kind()
        self._kinds[key] = kind
        if len(self._kinds) > self._most:
            del self._kinds[next(iter(self._kinds))]
        return kind

    def _found(self, key: Key) -> Kind | None:
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

    def sample(self, kinds: int, runs: int) -> list[Observation]:
        """A few of the latest runs of each of the latest kinds: none outweighs the others."""
        with self._lock:
            latest = islice(reversed(self._kinds.values()), kinds)
            return [seen for kind in latest for seen in kind.ran.latest(runs)]

    def runs(self, key: Key) -> int:
        """How many runs of this kind are remembered."""
        with self._lock:
            kind = self._found(key)
            return 0 if kind is None else len(kind.ran)

    @property
    def seen(self) -> int:
        """Runs of any kind that were ever learned from."""
        return self._pool.seen

    @property
    def kinds(self) -> int:
        """Kinds that are known."""
        return len(self._kinds)


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


def _dumped(durations: Durations | None) -> list[list[float | None]]:
    """To the last digit: what is loaded again has to be recognised."""
    return [[seen.low, None if math.isinf(seen.high) else seen.high] for seen in durations or ()]


def _loaded(rows: object) -> Iterable[Observation]:
    for row in rows if isinstance(rows, list) else ():
        try:
            low, high = row
            yield Observation.of((low, math.inf if high is None else high))
        except (TypeError, ValueError):
            continue
