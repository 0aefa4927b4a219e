"""Which run is a call worth most for: many waits, one budget of calls."""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections.abc import Hashable
from typing import NamedTuple

from runbell.pacing.bucket import TokenBucket
from runbell.pacing.survival import Curve, LogLogistic, ignorance

__all__ = ["WorthPacer", "worth"]

_CROWD = 16
"""Ready waits that are compared with each other, or twice the root of all waits. Where
there are more still, the bar is raised."""

_CHOICE = 4
"""For each that may come along with others, how many are compared: those that are due longest."""

_SOON = 0.03
_MARGIN = 0.02
"""Of the server's limit, what is left to calls that are on their way and to other processes."""

_ENOUGH = 1e-9
_TAIL_SHAPE = LogLogistic().shape


class Outlook:
    """How long runs of a kind take, with the sums that tell what a look is worth.

    Args:
        curve: how long they take.
    """

    __slots__ = ("curve", "sums")

    def __init__(self, curve: Curve) -> None:
        self.curve = curve
        areas = (
            (after - before) * (high + low) / 2
            for before, after, high, low in zip(
                curve.times, curve.times[1:], curve.table, curve.table[1:], strict=False
            )
        )
        self.sums = [0.0, *itertools.accumulate(areas)]

    def at(self, seconds: float) -> tuple[float, float]:
        """S, the probability that a run takes longer than `seconds`; and ∫ S from 0 to there."""
        times, table = self.curve.times, self.curve.table
        place = bisect_right(times, seconds) - 1
        if place < 0:
            return 1.0, 0.0
        past = seconds - times[place]
        if place + 1 < len(times):
            slope = (table[place + 1] - table[place]) / (times[place + 1] - times[place])
            alive = table[place] + slope * past
        else:
            alive = self.curve.alive(seconds)
        return alive, self.sums[place] + past * (table[place] + alive) / 2

    def since(self, looked: float) -> Pile:
        """What piles up after a look that found a run going on, `looked` seconds old."""
        return Pile(self, looked, *self.at(looked))


class Pile(NamedTuple):
    """What a further look is worth at a run that was going on at the last one.

    Attributes:
        outlook: how long such runs take.
        looked: seconds from the run's start to the last look.
        alive: S at the last look.
        area: ∫ S up to it.
    """

    outlook: Outlook
    looked: float
    alive: float
    area: float

    def value(self, now: float) -> float:
        """V, in seconds, of a look `now`, counted from the run's start.

        V = ∫ (F(u) - F(x)) du / S(now), from x = looked to now: the delay that has piled up in
        expectation, over the probability that the look is in vain. It never falls. Along the
        best schedule of a run it is the price of a call; so between runs that share a budget
        the call belongs where it is greatest (after Whittle, 1988).
        """
        alive, area = self.outlook.at(now)
        piled = (now - self.looked) * self.alive - (area - self.area)
        return piled / max(alive, _ENOUGH) if piled > 0 else 0.0

    def reaches(self, bar: float) -> float:
        """The moment at which `value` is `bar`, roughly."""
        times = self.outlook.curve.times
        low, high = bisect_right(times, self.looked), len(times)
        if low == high or self.value(times[-1]) < bar:
            start = max(self.looked, times[-1])
            return start + math.sqrt(2 * bar * start / _TAIL_SHAPE)
        while low < high:
            middle = (low + high) // 2
            if self.value(times[middle]) < bar:
                low = middle + 1
            else:
                high = middle
        after, before = times[low], max(self.looked, times[low - 1] if low else 0.0)
        above, below = self.value(after), self.value(before)
        if above <= below:
            return after
        # It is about quadratic in between.
        share = math.sqrt(max(bar - below, 0.0) / (above - below))
        return before + min(share, 1.0) * (after - before)


def worth(curve: Curve, looked: float, now: float) -> float:
    """The index V of a run that was going on `looked` seconds after its start; see `Pile`."""
    return Outlook(curve).since(looked).value(now)


class _Wish(NamedTuple):
    at: float
    turn: int
    began: float
    pile: Pile

    @property
    def looked(self) -> float:
        return self.began + self.pile.looked

    def value(self, now: float) -> float:
        return self.pile.value(now - self.began)

    def reaches(self, bar: float) -> float:
        """The moment from which a look is wanted, and worth as much as the bar."""
        return max(self.at, self.began + self.pile.reaches(bar)) if bar > 0 else self.at


class WorthPacer:
    """Each call goes to the run for which it is worth most.

    A pacer of the waiter. A wait is granted a look no sooner than it wants one; where the budget
    is tight, those wait for which a look is worth less. What a look is worth never falls, and has
    no bound, so every wait's turn comes. Calls come evenly: credit is bounded by a second's worth.

    Waits are compared only once a look at them is worth the bar, the price of a call at which
    supply and demand met lately; the others lie in a heap by the moment at which they get there.
    So a grant costs the same whether ten runs are awaited or ten thousand.

    Args:
        calls_per_minute: calls that are granted within any 60 seconds; None for any number.
        unknown: how long a run takes that `expect` said nothing about.

    Raises:
        ValueError: the budget is below one call a minute.
    """

    def __init__(
        self, calls_per_minute: float | None = None, *, unknown: Curve | None = None
    ) -> None:
        if calls_per_minute is not None and not calls_per_minute >= 1:
            raise ValueError("calls_per_minute has to be at least 1")
        self._bucket = None if calls_per_minute is None else _even(calls_per_minute)
        self._rate = None if calls_per_minute is None else calls_per_minute / 60.0
        self._full_at = self._not_before = -math.inf
        self._left: float | None = None
        self._left_at = 0.0
        self._unknown = Outlook(unknown or _cold())
        self._outlooks: dict[int, Outlook] = {}
        self._expected: dict[Hashable, tuple[Outlook, float, float]] = {}
        self._turns = itertools.count()
        self._urgent: dict[Hashable, tuple[float, int]] = {}
        self._wishes: dict[Hashable, _Wish] = {}
        self._due: list[tuple[float, int, Hashable]] = []
        self._later: list[tuple[float, int, Hashable]] = []
        self._ready: dict[Hashable, _Wish] = {}
        self._bar = 0.0

    def expect(self, wait: Hashable, curve: Curve, began: float, looked: float) -> None:
        """Say how long the run of a wait takes, before `want`.

        Args:
            wait: as in `want`.
            curve: how long such runs take.
            began: the moment at which it started.
            looked: the moment of the latest look, which found it going on; or `began`.
        """
        outlook = self._outlooks.get(id(curve))
        if outlook is None:
            if len(self._outlooks) > 256:
                self._outlooks.clear()
            outlook = self._outlooks[id(curve)] = Outlook(curve)
        self._expected[wait] = (outlook, began, max(looked, began))

    def want(self, wait: Hashable, at: float, *, urgent: bool = False) -> None:
        """`wait` would like a call at `at`; this takes the place of what it wanted before.

        One that is `urgent`, such as a submission, comes before all looks.
        """
        self._drop(wait)
        turn = next(self._turns)
        if urgent:
            self._urgent[wait] = (at, turn)
            return
        outlook, began, looked = self._expected.get(wait) or (self._unknown, at, at)
        wish = self._wishes[wait] = _Wish(at, turn, began, outlook.since(looked - began))
        heapq.heappush(self._due, (at, turn, wait))
        heapq.heappush(self._later, (wish.reaches(self._bar), turn, wait))
        if len(self._due) > 64 and len(self._due) > 2 * len(self._wishes):
            self._due = [(wish.at, wish.turn, each) for each, wish in self._wishes.items()]
            heapq.heapify(self._due)
        if len(self._later) > 64 and len(self._later) > 2 * len(self._wishes):
            self._sort_out()

    def forget(self, wait: Hashable) -> None:
        """`wait` wants nothing any more, and its run is over."""
        self._drop(wait)
        self._expected.pop(wait, None)

    def next_at(self) -> float | None:
        """The moment of the next grant; None while nobody wants anything."""
        firsts = [at for at, _ in self._urgent.values()]
        if self._ready:
            firsts.append(min(wish.at for wish in self._ready.values()))
        elif self._wishes:
            firsts.append(self._first())
        if not firsts:
            return None
        return max(min(firsts), self._not_before, self._token_at())

    def take(self, now: float) -> Hashable | None:
        """The wait that gets a call now, if any does. It wants nothing from then on."""
        if now < self._not_before or now < self._token_at():
            return None
        found = self._most_urgent(now)
        if found is None:
            found = self._best(now)
        if found is not None:
            self._spend(now)
            self._drop(found)
        return found

    def along(self, count: int, until: float) -> list[Hashable]:
        """Up to `count` waits that want a look by `until`, those first for which it is worth
        most, to be part of a call that is granted already. They want nothing from then on."""
        near = self._nearest(_CHOICE * count, until)
        ready = [(wish.value(until), wish.turn, wait) for wait, wish in near]
        found = [wait for _, _, wait in heapq.nlargest(count, ready)]
        for wait in found:
            self._drop(wait)
        return found

    def _nearest(self, count: int, until: float) -> list[tuple[Hashable, _Wish]]:
        """Up to `count` waits that want a look by `until`, who are due longest."""
        entries: list[tuple[float, int, Hashable]] = []
        found: list[tuple[Hashable, _Wish]] = []
        while self._due and self._due[0][0] <= until and len(found) < count:
            entry = heapq.heappop(self._due)
            wish = self._wishes.get(entry[2])
            if wish is not None and wish.turn == entry[1]:
                entries.append(entry)
                found.append((entry[2], wish))
        for entry in entries:
            heapq.heappush(self._due, entry)
        return found

    def pause(self, until: float) -> None:
        """Grant nothing before `until`: the server has said so."""
        self._not_before = max(self._not_before, until)

    def saw_remaining(self, remaining: float, limit: float, now: float) -> None:
        """Take note of an answer's `x-ratelimit-remaining-requests` and `-limit-requests`.

        Other processes that use the same key are seen in it: what they took is not granted here.
        """
        if not (0 <= remaining <= limit) or limit <= 0:
            return
        self._left, self._left_at = remaining - max(2.0, _MARGIN * limit), now
        self._rate = self._rate or limit / 60.0

    def __len__(self) -> int:
        return len(self._wishes) + len(self._urgent)

    def _drop(self, wait: Hashable) -> None:
        self._urgent.pop(wait, None)
        self._ready.pop(wait, None)
        self._wishes.pop(wait, None)

    def _most_urgent(self, now: float) -> Hashable | None:
        due = [(at, turn, wait) for wait, (at, turn) in self._urgent.items() if at <= now]
        return min(due, key=lambda each: each[:2])[2] if due else None

    def _best(self, now: float) -> Hashable | None:
        self._fill(now)
        if not self._ready and self._wishes and self._first() <= now:
            # Calls to spare: what nobody is worth the bar for is worth less. Also where the bar is
            # down already, since the moments in the heap may be those of a higher one.
            self._lower(now)
        worths = {wait: wish.value(now) for wait, wish in self._ready.items() if wish.at <= now}
        if not worths:
            return None
        best = max(worths, key=worths.__getitem__)
        if len(worths) > self._crowd():
            self._raise(heapq.nlargest(self._crowd() // 2, worths.values())[-1], now)
        return best

    def _crowd(self) -> int:
        return max(_CROWD, 2 * math.isqrt(len(self._wishes)))

    def _fill(self, now: float) -> None:
        """Make ready whom a look is worth the bar for."""
        while self._later and self._later[0][0] <= now:
            _, turn, wait = heapq.heappop(self._later)
            wish = self._wishes.get(wait)
            if wish is None or wish.turn != turn:
                continue
            # The bar may have been raised since; and moments are rounded.
            if wish.at <= now and wish.value(now) >= 0.99 * self._bar:
                self._ready[wait] = wish
            else:
                at = max(wish.reaches(self._bar), now + _SOON * (1 + now - wish.looked))
                heapq.heappush(self._later, (at, turn, wait))

    def _raise(self, bar: float, now: float) -> None:
        self._bar = bar
        for wait, wish in list(self._ready.items()):
            if wish.value(now) < bar:
                del self._ready[wait]
                heapq.heappush(self._later, (wish.reaches(bar), wish.turn, wait))

    def _lower(self, now: float) -> None:
        """Down to where half a crowd is ready; to nothing where fewer want a look yet.

        The moments in the heap stay those of the higher bar: whoever passes the lower one only is
        found here the next time, which costs less than to reckon all moments again.
        """
        some = self._crowd() // 2
        wanting = (
            (wish.value(now), wish.turn, wait)
            for wait, wish in self._wishes.items()
            if wish.at <= now
        )
        half = heapq.nlargest(some, wanting)
        self._bar = half[-1][0] if len(half) == some else 0.0
        self._ready = {wait: self._wishes[wait] for _, _, wait in half}

    def _sort_out(self) -> None:
        self._later = [
            (wish.reaches(self._bar), wish.turn, wait)
            for wait, wish in self._wishes.items()
            if wait not in self._ready
        ]
        heapq.heapify(self._later)

    def _first(self) -> float:
        """The moment at which the first wait wants a look, at whatever it is worth."""
        while True:
            at, turn, wait = self._due[0]
            wish = self._wishes.get(wait)
            if wish is not None and wish.turn == turn:
                return at
            heapq.heappop(self._due)

    def _token_at(self) -> float:
        at = -math.inf
        if self._bucket is not None:
            at = self._full_at - (self._bucket.capacity - 1) * self._bucket.interval
        if self._left is not None and self._left < 1 and self._rate:
            at = max(at, self._left_at + (1 - self._left) / self._rate)
        return at

    def _spend(self, now: float) -> None:
        if self._bucket is not None:
            self._full_at = self._bucket.take(self._full_at, now).full_at
        if self._left is not None and self._rate:
            self._left += (now - self._left_at) * self._rate - 1
            self._left_at = now


def _even(calls_per_minute: float) -> TokenBucket:
    """A bucket that grants at most this many within 60 seconds, and a second's worth at once.

    One of capacity c and interval i grants up to c - 1 + 60/i of them.
    """
    burst = max(1, int(calls_per_minute // 60))
    return TokenBucket(burst, 60.0 / (calls_per_minute - (burst - 1)))


def _cold() -> Curve:
    prior = ignorance()
    times = [0.0, *(0.1 * math.exp(0.1 * step) for step in range(120))]
    return Curve(times, [prior.alive(time) for time in times])
