"""When to look at one run: what is known of its kind, and what was seen of it so far."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Protocol

from runbell.pacing.policies import SeenRun
from runbell.pacing.queueing import Queueing
from runbell.pacing.schedule import Schedule

__all__ = ["ForesightPolicy", "Knowledge"]


class Knowledge(Protocol):
    """What a policy asks, of a kind of run: Foresight."""

    @property
    def latency(self) -> float: ...
    def schedule(self, key: Hashable) -> Schedule: ...
    def queueing(self, key: Hashable) -> Queueing | None: ...


class ForesightPolicy:
    """When to look at one run. Made by `Foresight.policy`; for a single wait.

    Args:
        known: what is known of how long runs take.
        key: the run's kind.
        age: seconds that the run was old when the wait began.
    """

    # A hundred thousand of these have to fit into memory.
    __slots__ = ("_age", "_key", "_of", "_queueing", "_run", "_schedule", "_started", "_waiting_at")

    def __init__(self, known: Knowledge, key: Hashable, age: float = 0.0) -> None:
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
