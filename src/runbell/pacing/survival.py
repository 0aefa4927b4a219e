"""How long will it take: distributions of durations."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

__all__ = ["TAIL_SHAPE", "Curve", "LogLogistic", "Mixed", "Survival", "ignorance"]

TAIL_SHAPE = 1.5
"""Of runs that outlast all that is known, the survival falls as 1/t to this power."""


_APART = 4
"""Of a curve's areas every so manieth is kept."""


class Survival(Protocol):
    """A distribution of durations."""

    def alive(self, seconds: float) -> float:
        """The probability that a run takes longer than `seconds`."""
        ...


class LogLogistic(NamedTuple):
    """A distribution that claims little.

    Its hazard falls as shape/t in the long run, which is how ignorance of the time scale looks, so
    the gaps that it leads to grow with the square root of the time elapsed, and being wrong about
    the median by a factor costs little.

    Attributes:
        median: in seconds.
        shape: the slope on logarithmic scales; the smaller, the less is claimed.
    """

    median: float = 8.0
    shape: float = TAIL_SHAPE

    def alive(self, seconds: float) -> float:
        return float(1.0 / (1.0 + (max(seconds, 0.0) / self.median) ** self.shape))


class Curve:
    """A distribution as a table: at `times`, in seconds, the probability that a run takes longer.

    Between two times a run is as likely to end at any moment. Single precision: it is kept for
    each kind of run.
    """

    __slots__ = ("_areas", "table", "times")

    def __init__(self, times: Iterable[float], alive: Iterable[float]) -> None:
        self.times: Sequence[float] = array("f", times)
        self.table: Sequence[float] = array("f", alive)
        self._areas: Sequence[float] | None = None

    def alive(self, seconds: float) -> float:
        after = bisect_right(self.times, seconds)
        if after == 0:
            return 1.0
        if after == len(self.times):
            # Past the table, the tail of a run of unknown scale.
            return float(self.table[-1] * (self.times[-1] / seconds) ** TAIL_SHAPE)
        low, high = self.times[after - 1], self.times[after]
        share = (seconds - low) / (high - low)
        return self.table[after - 1] + share * (self.table[after] - self.table[after - 1])

    def along(self, moments: Iterable[float]) -> list[float]:
        """`alive` at each of many moments, which ascend: both tables are walked once."""
        times, table = self.times, self.table
        found, after, end = [], 0, len(times)
        for moment in moments:
            while after < end and times[after] <= moment:
                after += 1
            if after == 0:
                found.append(1.0)
            elif after == end:
                found.append(table[-1] * (times[-1] / moment) ** TAIL_SHAPE)
            else:
                low, below = times[after - 1], table[after - 1]
                share = (moment - low) / (times[after] - low)
                found.append(below + share * (table[after] - below))
        return found

    def area(self, place: int) -> float:
        """∫ S from the time at a place to the last one, in seconds.

        Kept for every fourth place alone, which spares memory, and summed up from the end, since
        what is left there is small and so keeps its digits.
        """
        times, table = self.times, self.table
        if self._areas is None:
            area, kept = 0.0, [0.0] * ((len(times) + _APART - 1) // _APART)
            for here in range(len(times) - 2, -1, -1):
                area += (times[here + 1] - times[here]) * (table[here] + table[here + 1]) / 2
                if here % _APART == 0:
                    kept[here // _APART] = area
            self._areas = array("f", kept)
        known = min(-(-place // _APART) * _APART, len(times) - 1)
        area = self._areas[known // _APART] if known % _APART == 0 else 0.0
        for here in range(place, known):
            area += (times[here + 1] - times[here]) * (table[here] + table[here + 1]) / 2
        return area

    def ahead(self, seconds: float) -> tuple[float, float]:
        """S(seconds), and ∫ S from there to the last of the times; less than 0 past it."""
        times, table = self.times, self.table
        after = bisect_right(times, seconds)
        if after == 0:
            return 1.0, self.area(0) + times[0] - seconds
        if after == len(times):
            alive = table[-1] * (times[-1] / seconds) ** TAIL_SHAPE
            return alive, -(seconds - times[-1]) * (table[-1] + alive) / 2
        low, high = times[after - 1], times[after]
        left = (high - seconds) / (high - low)
        alive = table[after] + left * (table[after - 1] - table[after])
        return alive, self.area(after) + (high - seconds) * (alive + table[after]) / 2


class Mixed(NamedTuple):
    """Some distributions, each with a weight. The weights add up to one."""

    parts: tuple[tuple[float, Survival], ...]

    def alive(self, seconds: float) -> float:
        return sum(weight * part.alive(seconds) for weight, part in self.parts)


def ignorance(median: float = 8.0) -> Mixed:
    """What is believed of a run that nothing is known about; the median in seconds is a guess.

    Nearly every second belief is that the guess is far too short. It makes up for most of what is
    lost where that is so, and where the guess is right it costs a few calls in a hundred. One in a
    hundred is that it is far too long, so that a run is not left alone for minutes that takes
    seconds. Weights, factors and slopes are round numbers for a guess that is 30 times wrong: see
    `docs/foresight.md`.
    """
    return Mixed(
        (
            (0.54, LogLogistic(median)),
            (0.45, LogLogistic(15 * median, 2.0)),
            (0.01, LogLogistic(median / 20)),
        )
    )
