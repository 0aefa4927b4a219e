"""Who is next: many waits, one budget of calls."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable
from typing import Protocol

from runbell.pacing.bucket import TokenBucket

__all__ = ["FairPacer", "Pacer"]


class Pacer(Protocol):
    """Decides which wait the next call is spent on, and when. Moments are monotonic seconds.

    The waiter tells it what each wait would like, and takes what it grants; another pacer may
    grant in another order, for example to the run where a call is worth most.

    Two more methods are used where a pacer has them, as `WorthPacer` does:
        `expect(wait, curve, began, looked)`: before `want`, how long such runs take (a `Curve`),
            when this one started, and when it was last seen to go on.
        `saw_remaining(remaining, limit, now)`: what an answer's `x-ratelimit-remaining-requests`
            and `x-ratelimit-limit-requests` say.
    """

    def want(self, wait: Hashable, at: float, *, urgent: bool = False) -> None:
        """`wait` would like a call at `at`; this takes the place of what it wanted before.

        One that is `urgent`, such as a submission, comes before all looks.
        """
        ...

    def forget(self, wait: Hashable) -> None:
        """`wait` wants nothing any more."""
        ...

    def next_at(self) -> float | None:
        """The moment of the next grant; None while nobody wants anything."""
        ...

    def take(self, now: float) -> Hashable | None:
        """The wait that gets a call now, if any does. It wants nothing from then on."""
        ...

    def along(self, count: int, until: float) -> list[Hashable]:
        """Up to `count` waits that want a look by `until`, to be part of a call that is granted
        already. They want nothing from then on."""
        ...

    def pause(self, until: float) -> None:
        """Grant nothing before `until`: the server has said so."""
        ...


class FairPacer:
    """Whoever is due longest comes first, so none starves; calls come evenly, not in bursts.

    Args:
        calls_per_minute: how many calls are granted within any 60 seconds; None for any number.

    Raises:
        ValueError: the budget is below one call a minute.
    """

    def __init__(self, calls_per_minute: float | None = None) -> None:
        if calls_per_minute is not None and not calls_per_minute >= 1:
            raise ValueError("calls_per_minute has to be at least 1")
        self._bucket = None if calls_per_minute is None else _even(calls_per_minute)
        self._full_at = float("-inf")
        self._not_before = float("-inf")
        self._urgent, self._others = _Line(), _Line()

    def want(self, wait: Hashable, at: float, *, urgent: bool = False) -> None:
        self.forget(wait)
        (self._urgent if urgent else self._others).add(wait, at)

    def forget(self, wait: Hashable) -> None:
        self._urgent.remove(wait)
        self._others.remove(wait)

    def next_at(self) -> float | None:
        firsts = [at for line in (self._urgent, self._others) if (at := line.first()) is not None]
        if not firsts:
            return None
        return max(min(firsts), self._not_before, self._token_at())

    def take(self, now: float) -> Hashable | None:
        at = self.next_at()
        if at is None or at > now:
            return None
        if self._bucket is not None:
            taken = self._bucket.take(self._full_at, now)
            if not taken.granted:
                return None
            self._full_at = taken.full_at
        first = self._urgent.first()
        return (self._others if first is None or first > now else self._urgent).pop()

    def along(self, count: int, until: float) -> list[Hashable]:
        found: list[Hashable] = []
        while len(found) < count and (at := self._others.first()) is not None and at <= until:
            found.append(self._others.pop())
        return found

    def pause(self, until: float) -> None:
        self._not_before = max(self._not_before, until)

    def _token_at(self) -> float:
        if self._bucket is None:
            return float("-inf")
        return self._full_at - (self._bucket.capacity - 1) * self._bucket.interval


def _even(calls_per_minute: float) -> TokenBucket:
    """A bucket that grants at most this many within 60 seconds, and at most a second's at once.

    One of capacity c and interval i grants up to c - 1 + 60/i of them.
    """
    burst = max(1, int(calls_per_minute // 60))
    return TokenBucket(burst, 60.0 / (calls_per_minute - (burst - 1)))


class _Line:
    """Waits by the moments that they want, each once."""

    def __init__(self) -> None:
        self._tie = itertools.count()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._wanted: dict[Hashable, int] = {}

    def add(self, wait: Hashable, at: float) -> None:
        tie = next(self._tie)
        self._wanted[wait] = tie
        heapq.heappush(self._heap, (at, tie, wait))
        # Wishes that were replaced are not searched for: they go when they are most of the heap.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._wanted):
            self._heap = [each for each in self._heap if self._wanted.get(each[2]) == each[1]]
            heapq.heapify(self._heap)

    def remove(self, wait: Hashable) -> None:
        self._wanted.pop(wait, None)

    def first(self) -> float | None:
        while self._heap and self._wanted.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Hashable:
        self.first()
        wait = heapq.heappop(self._heap)[2]
        del self._wanted[wait]
        return wait
