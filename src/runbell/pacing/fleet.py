"""Which run is a call worth most for: many waits, one budget of calls."""

from __future__ import annotations

import heapq
import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from runbell.pacing.allowance import Allowance
from runbell.pacing.line import Line
from runbell.pacing.survival import Curve, ignorance
from runbell.pacing.worth import Pile

__all__ = ["WorthPacer"]

_CROWD = 16
"""Waits that are compared with each other at the most, however many there are. Where more are
worth the bar, the bar is raised to the better half of them; where none is, it is lowered to
half as many."""

_CHOICE = 4
"""For each that may come along with others, how many are compared: those that are due longest."""

_SOON = 0.03


class _Expected(NamedTuple):
    """How long the run of a wait takes; when it began, and when it was last looked at."""

    curve: Curve
    began: float
    looked: float


class _Wish(NamedTuple):
    at: float
    began: float
    pile: Pile

    def value(self, now: float) -> float:
        return self.pile.value(now - self.began)

    def reaches(self, bar: float) -> float:
        """The moment from which a look is wanted, and worth as much as the bar."""
        return max(self.at, self.began + self.pile.reaches(bar)) if bar > 0 else self.at


class WorthPacer:
    """Each call goes to the run for which it is worth most.

    A pacer of the waiter. A wait is granted a look no sooner than it wants one; where calls are
    scarce, those wait for which a look is worth less. What a look is worth never falls, and has
    no bound, so every wait's turn comes. Calls come evenly: credit is bounded by a second's worth.

    Waits are compared only once a look at them is worth the bar, the price of a call at which
    supply and demand met lately; the others stand in a line by the moment at which they get there.
    Never more than a handful are compared, whether ten runs are awaited or ten thousand; beyond
    that a grant costs the logarithm of their number, and each new wish one reckoning of when it
    gets to the bar.

    Args:
        calls_per_minute: calls that are granted within any 60 seconds; None for as many as the
            server allows.

    Raises:
        ValueError: the budget is below one call a minute.
    """

    def __init__(self, calls_per_minute: float | None = None) -> None:
        self._allowance = Allowance(calls_per_minute)
        self._unknown: Curve | None = None
        self._expected: dict[Hashable, _Expected] = {}
        self._urgent = Line()
        self._wanted: dict[Hashable, float] = {}
        self._due = Line()
        """Who does not want a look yet."""
        self._later = Line()
        """Who does, and for whom it is not worth the bar yet."""
        self._wishes: dict[Hashable, _Wish] = {}
        """Of those."""
        self._ready: dict[Hashable, _Wish | None] = {}
        """For whom it is. What it is worth is reckoned where somebody is to be compared."""
        self._bar = 0.0
        self._admitted_at = -math.inf

    def expect(self, wait: Hashable, curve: Curve, began: float, looked: float) -> None:
        """Say how long the run of a wait takes, before `want`.

        Args:
            wait: as in `want`.
            curve: how long such runs take.
            began: the moment at which it started.
            looked: the moment of the latest look, which found it going on; or `began`.
        """
        self._expected[wait] = _Expected(curve, began, max(looked, began))

    def want(self, wait: Hashable, at: float, *, urgent: bool = False) -> None:
        """`wait` would like a call at `at`; this takes the place of what it wanted before.

        One that is `urgent`, such as a submission, comes before all looks.
        """
        self._drop(wait)
        if urgent:
            self._urgent.add(wait, at)
        else:
            self._wanted[wait] = at
            self._due.add(wait, at)

    def forget(self, wait: Hashable) -> None:
        """`wait` wants nothing any more, and its run is over."""
        self._drop(wait)
        self._expected.pop(wait, None)

    def next_at(self) -> float | None:
        """The moment of the next grant; None while nobody wants anything."""
        firsts = [at for line in (self._urgent, self._due) if (at := line.first()) is not None]
        if self._ready or self._later:
            firsts.append(self._admitted_at)
        return max(min(firsts), self._allowance.next_at()) if firsts else None

    def take(self, now: float) -> Hashable | None:
        """The wait that gets a call now, if any does. It wants nothing from then on."""
        if now < self._allowance.next_at():
            return None
        first = self._urgent.first()
        found = self._urgent.pop() if first is not None and first <= now else self._best(now)
        if found is not None:
            self._allowance.spend(now)
            self._drop(found)
        return found

    def along(self, count: int, until: float) -> list[Hashable]:
        """Up to `count` waits that want a look by `until`, those first for which it is worth
        most, to be part of a call that is granted already. They want nothing from then on."""
        near = {wait: self._wish(wait) for wait in self._nearest(_CHOICE * count, until)}
        found = heapq.nlargest(count, near, key=lambda wait: near[wait].value(until))
        for wait in found:
            self._drop(wait)
        return found

    def pause(self, until: float) -> None:
        """Grant nothing before `until`: the server has said so."""
        self._allowance.pause(until)

    def saw_remaining(
        self,
        remaining: float,
        limit: float,
        now: float,
        *,
        sent: float | None = None,
        reset: float | None = None,
    ) -> None:
        """Take note of an answer's `x-ratelimit-` headers; see `Allowance.saw_remaining`.

        Other processes that use the same key are seen in it: what they took is not granted here.
        """
        self._allowance.saw_remaining(remaining, limit, now, sent=sent, reset=reset)

    def answered(self) -> None:
        """A call was not refused."""
        self._allowance.answered()

    def refused(self, now: float, sent: float, told: bool) -> None:
        """A call was refused (429); see `Allowance.refused`."""
        self._allowance.refused(now, sent, told)

    def __len__(self) -> int:
        return len(self._wanted) + len(self._urgent)

    def _drop(self, wait: Hashable) -> None:
        self._urgent.remove(wait)
        if self._wanted.pop(wait, None) is not None:
            self._due.remove(wait)
            self._later.remove(wait)
            self._ready.pop(wait, None)
            self._wishes.pop(wait, None)

    def _nearest(self, count: int, until: float) -> list[Hashable]:
        """Up to `count` waits that want a look by `until`, who are next to get one or due
        longest."""
        found = list(self._ready)[:count]
        for line in (self._later, self._due):
            taken = []
            while len(found) < count and (at := line.first()) is not None:
                if at > until and line is self._due:
                    break
                taken.append((line.pop(), at))
                found.append(taken[-1][0])
            for wait, at in taken:
                line.add(wait, at)
        return found

    def _best(self, now: float) -> Hashable | None:
        if not (self._allowance.is_scarce or self._ready or self._later):
            at = self._due.first()  # there are calls for all: nobody need be compared
            return self._due.pop() if at is not None and at <= now else None
        self._admit(now)
        if not self._ready and self._later:
            self._lower(now)
        if len(self._ready) <= 1:
            return next(iter(self._ready), None)
        if len(self._ready) >= _CROWD and self._is_more(now):
            self._raise(now)
        return max(self._ready, key=lambda wait: self._valued(wait, now))

    def _valued(self, wait: Hashable, now: float) -> float:
        return self._wish(wait).value(now)

    def _wish(self, wait: Hashable) -> _Wish:
        """What is expected of a wait, with its sums."""
        wish = self._ready.get(wait) or self._wishes.get(wait)
        if wish is None:
            at = self._wanted[wait]
            expected = self._expected.get(wait) or _Expected(self._cold(), at, at)
            pile = Pile.since(expected.curve, expected.looked - expected.began)
            wish = _Wish(at, expected.began, pile)
            if wait in self._ready:
                self._ready[wait] = wish
        return wish

    def _admit(self, now: float) -> None:
        """Make ready who wants a look, and whom it is worth the bar for."""
        self._admitted_at = now
        while (at := self._due.first()) is not None and at <= now:
            wait = self._due.pop()
            full = len(self._ready) >= _CROWD
            if full or self._bar > 0:
                wish = self._wish(wait)
                if (at := wish.reaches(self._bar)) > now or full:
                    self._put_off(wait, wish, at)
                    continue
            self._ready[wait] = None
        while len(self._ready) < _CROWD and self._is_more(now):
            wait = self._later.pop()
            wish = self._wishes.pop(wait)
            # The bar may have been raised since; and moments are rounded.
            if wish.value(now) >= 0.99 * self._bar:
                self._ready[wait] = wish
            else:
                looked = wish.began + wish.pile.looked
                self._put_off(
                    wait, wish, max(wish.reaches(self._bar), now + _SOON * (1 + now - looked))
                )

    def _is_more(self, now: float) -> bool:
        """Whether the bar is reached by somebody in the line."""
        at = self._later.first()
        return at is not None and at <= now

    def _put_off(self, wait: Hashable, wish: _Wish, at: float) -> None:
        self._wishes[wait] = wish
        self._later.add(wait, at)

    def _raise(self, now: float) -> None:
        """Up to where half a crowd is ready."""
        worths = {wait: self._valued(wait, now) for wait in self._ready}
        best: Iterable[Hashable] = heapq.nlargest(_CROWD // 2, worths, key=worths.__getitem__)
        kept: dict[Hashable, _Wish | None] = {wait: self._wish(wait) for wait in best}
        bar = min(worths[wait] for wait in kept)
        if bar > 0:
            self._bar = bar
        for wait in self._ready:
            if wait not in kept:
                wish = self._wish(wait)
                self._put_off(wait, wish, wish.reaches(self._bar))
        self._ready = kept

    def _lower(self, now: float) -> None:
        """Down to where half a crowd is ready, of those who would have got to the bar first; to
        nothing where fewer want a look.

        There are calls to spare for whom nobody is worth the bar. Who gets there first is worth
        about the most now. Moments in the line that were reckoned with a higher bar are late by as
        much as the bar fell since: they come to be compared a little later than they might.
        """
        while self._later and len(self._ready) < _CROWD // 2:
            wait = self._later.pop()
            self._ready[wait] = self._wishes.pop(wait)
        if self._later:
            self._bar = min(self._bar, min(self._valued(wait, now) for wait in self._ready))
        else:
            self._bar = 0.0

    def _cold(self) -> Curve:
        """How long a run takes that `expect` said nothing about."""
        if self._unknown is None:
            prior = ignorance()
            times = [0.0, *(0.1 * math.exp(0.1 * step) for step in range(120))]
            self._unknown = Curve(times, [prior.alive(time) for time in times])
        return self._unknown
