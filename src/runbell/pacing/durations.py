"""How long did runs take: the evidence about one kind of run, small and never stale."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

__all__ = ["Durations", "Observation"]

SHORTEST = 1e-3
"""Seconds. What took less is counted as this: durations are looked at on a logarithmic scale."""

LONGEST = 1e7
"""Seconds, about four months. What took longer is counted as this."""

_STEP = 1.06
"""An interval is kept as its lower end and one byte: its width, rounded up to a power of this."""

_NARROWEST = 1e-3
_OPEN = 255

_RECENT = {8: 4, 24: 8, 64: 16}
"""Whether the latest 8 runs differ from those before them is asked after every fourth run, and so
on: each asking sorts the ring."""

_FEWEST = 8
"""Runs that there have to be before them."""

_THRESHOLD = 2.1
"""Kolmogorov-Smirnov: old and recent runs differ where D·√(mn / (m + n)) is greater. By chance
that happens with probability 2·exp(-2·2.1²) = 0.0003; the price of a false alarm is old
evidence."""


class Observation(NamedTuple):
    """One run took more than `low` and at most `high` seconds; `high` is infinite for a run that
    was still going on when somebody stopped looking."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """A single number for it: the geometric mean, or `low` where there is no upper end."""
        return self.low if math.isinf(self.high) else math.sqrt(self.low * self.high)

    @classmethod
    def of(cls, seconds: float | Sequence[float], *, ended: bool = True) -> Observation:
        """From what a caller knows: seconds, or an interval `(low, high)` of them.

        Raises:
            ValueError: it is no duration: negative, not a number, or upside down.
        """
        try:
            # Of whatever kind of number: an array's elements are none of Python's. Text is none.
            if isinstance(seconds, Sequence):
                low, high = (float(0.0 + each) for each in seconds)
            else:
                low = high = float(0.0 + seconds)
            sane = 0 <= low <= high and low < math.inf
        except (TypeError, ValueError, OverflowError):
            sane = False
        if not sane:
            raise ValueError(f"a duration in seconds, or (low, high), is expected, not {seconds!r}")
        low = min(max(low, SHORTEST), LONGEST)
        if not ended or math.isinf(high):
            return cls(low, math.inf)
        return cls(low, min(max(high, low), LONGEST))


class Durations:
    """The latest runs of one kind, at five bytes a run.

    It forgets in two ways. A ring keeps the latest `capacity` runs. And where the latest runs
    differ from those before them, beyond what chance explains, those before them are dropped at
    once: a model that became slower is believed after about ten runs.

    Args:
        capacity: how many runs are kept.
    """

    __slots__ = ("_lows", "_widths", "capacity", "seen")

    def __init__(self, capacity: int = 160) -> None:
        self.capacity = capacity
        self._lows = array("f")
        self._widths = bytearray()
        self.seen = 0
        """Runs ever seen, also those that were forgotten."""

    def __len__(self) -> int:
        return len(self._lows)

    def __iter__(self) -> Iterator[Observation]:
        """From the oldest to the latest."""
        return map(_unpacked, self._lows, self._widths)

    def latest(self, count: int) -> list[Observation]:
        """The latest `count` runs, or all there are, the oldest of them first."""
        return list(map(_unpacked, self._lows[-count:], self._widths[-count:]))

    def missing(self, observations: Iterable[Observation]) -> list[Observation]:
        """Of these, as they would be kept, those that are not kept here; each counts once."""
        others = Durations(capacity=self.capacity)
        for seen in observations:
            others._append(seen)
        here = Counter(zip(self._lows, self._widths, strict=True))
        found = []
        for low, width in zip(others._lows, others._widths, strict=True):
            if here[low, width] > 0:
                here[low, width] -= 1
            else:
                found.append(_unpacked(low, width))
        return found

    def add(self, observation: Observation) -> bool:
        """Take in one run. True where it made older evidence be dropped."""
        self._append(observation)
        self.seen += 1
        asked = [count for count, every in _RECENT.items() if self.seen % every == 0]
        return bool(asked) and self._forget(asked)

    def _append(self, observation: Observation) -> None:
        self._lows.append(observation.low)
        self._widths.append(_packed(observation))
        if len(self._lows) > self.capacity:
            del self._lows[0], self._widths[0]

    def _forget(self, asked: list[int]) -> bool:
        if len(self._lows) < asked[0] + _FEWEST:
            return False
        middles = [
            low if width == 0 else _unpacked(low, width).middle
            for low, width in zip(self._lows, self._widths, strict=True)
        ]
        ranked = sorted(middles)
        for count in asked:
            old = len(middles) - count
            if old < _FEWEST:
                return False
            # All runs are old and recent ones together, which dilutes the difference.
            distance = _distance(ranked, sorted(middles[-count:])) * len(middles) / old
            if distance * math.sqrt(old * count / len(middles)) > _THRESHOLD:
                del self._lows[:-count], self._widths[:-count]
                return True
        return False


def _distance(ranked: list[float], recent: list[float]) -> float:
    """Kolmogorov and Smirnov's D: the greatest difference of two distribution functions, of which
    the second one's values are among the first one's. Both are sorted."""
    total, count = len(ranked), len(recent)
    return max(
        max(
            bisect_left(ranked, value) / total - place / count,
            (place + 1) / count - bisect_right(ranked, value) / total,
        )
        for place, value in enumerate(recent)
    )


def _packed(observation: Observation) -> int:
    width = observation.high - observation.low
    if math.isinf(width):
        return _OPEN
    if width < _NARROWEST:
        return 0
    steps = math.log(width / _NARROWEST) / math.log(_STEP)
    # What was kept before is as wide as it was, but for what floats lose.
    return min(1 + math.ceil(steps - 1e-4), _OPEN - 1)


def _unpacked(low: float, width: int) -> Observation:
    if width == _OPEN:
        return Observation(low, math.inf)
    return Observation(low, low + _NARROWEST * _STEP ** (width - 1) if width else low)
