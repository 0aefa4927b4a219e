"""Who is next: many waits, one budget of calls."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol

from runbell.pacing.allowance import Allowance
from runbell.pacing.line import Line

__all__ = ["FairPacer", "Pacer"]


class Pacer(Protocol):
    """Decides which wait the next call is spent on, and when. Moments are monotonic seconds.

    The waiter tells it what each wait would like, and takes what it grants; another pacer may
    grant in another order, for example to the run where a call is worth most.

    More methods are used where a pacer has them, as `WorthPacer` does:
        `expect(wait, curve, began, looked)`: before `want`, how long such runs take (a `Curve`),
            when this one started, and when it was last seen to go on.
        `saw_remaining(remaining, limit, now, sent=, reset=)`: what an answer's
            `x-ratelimit-remaining-requests`, `-limit-requests` and `-reset-requests` say.
        `answered()`, `refused(now, sent, told)`: whether calls are refused (429).
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
        self._allowance = Allowance(calls_per_minute)
        self._urgent, self._others = Line(), Line()

    def want(self, wait: Hashable, at: float, *, urgent: bool = False) -> None:
        self.forget(wait)
        (self._urgent if urgent else self._others).add(wait, at)

    def forget(self, wait: Hashable) -> None:
        self._urgent.remove(wait)
        self._others.remove(wait)

    def next_at(self) -> float | None:
        firsts = [at for line in (self._urgent, self._others) if (at := line.first()) is not None]
        return max(min(firsts), self._allowance.next_at()) if firsts else None

    def take(self, now: float) -> Hashable | None:
        at = self.next_at()
        if at is None or at > now:
            return None
        self._allowance.spend(now)
        first = self._urgent.first()
        return (self._others if first is None or first > now else self._urgent).pop()

    def along(self, count: int, until: float) -> list[Hashable]:
        found: list[Hashable] = []
        while len(found) < count and (at := self._others.first()) is not None and at <= until:
            found.append(self._others.pop())
        return found

    def pause(self, until: float) -> None:
        self._allowance.pause(until)
