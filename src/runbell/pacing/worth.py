"""What is a look at a run worth: the delay that has piled up, over the chance that it is vain."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import NamedTuple

from runbell.pacing.survival import TAIL_SHAPE, Curve

__all__ = ["Pile"]

_ENOUGH = 1e-9


class Pile(NamedTuple):
    """What a further look is worth at a run that was going on at the last one.

    Attributes:
        curve: how long such runs take.
        looked: seconds from the run's start to the last look.
        alive: S at the last look.
        area: ∫ S from there on, as far as the curve's table goes.
    """

    curve: Curve
    looked: float
    alive: float
    area: float

    @classmethod
    def since(cls, curve: Curve, looked: float) -> Pile:
        """What piles up after a look that found a run going on, `looked` seconds old."""
        return cls(curve, looked, *curve.ahead(looked))

    def value(self, now: float) -> float:
        """V, in seconds, of a look `now`, counted from the run's start.

        V = ∫ (F(u) - F(x)) du / S(now), from x = looked to now: the delay that has piled up in
        expectation, over the probability that the look is in vain. It never falls. Along the
        best schedule of a run it is the price of a call; so between runs that share a budget
        the call belongs where it is greatest (after Whittle, 1988).
        """
        alive, area = self.curve.ahead(now)
        piled = (now - self.looked) * self.alive - (self.area - area)
        return piled / max(alive, _ENOUGH) if piled > 0 else 0.0

    def reaches(self, bar: float) -> float:
        """The moment at which `value` is `bar`, roughly."""
        curve, looked = self.curve, self.looked
        times, table = curve.times, curve.table
        # At the curve's own times `value` is (t·S(x) + area(t) - this) / S(t).
        base = looked * self.alive + self.area
        first = low = bisect_right(times, looked)
        end = high = len(times)
        while low < high:
            middle = (low + high) // 2
            if times[middle] * self.alive + curve.area(middle) - base < bar * table[middle]:
                low = middle + 1
            else:
                high = middle
        if low == end:
            start = max(looked, times[-1])
            return start + math.sqrt(2 * bar * start / TAIL_SHAPE)
        after, before = times[low], looked if low == first else times[low - 1]
        above, below = self.value(after), self.value(before)
        if above <= below:
            return after
        # It is about quadratic in between.
        share = math.sqrt(max(bar - below, 0.0) / (above - below))
        return before + min(share, 1.0) * (after - before)
