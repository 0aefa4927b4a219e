"""How long will it take: distributions of durations, and their estimate from few runs."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul, sub, truediv
from typing import NamedTuple, Protocol

from runbell.pacing.durations import Observation

__all__ = ["Curve", "Estimate", "LogLogistic", "Mixed", "Survival", "estimate", "ignorance"]


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
    shape: float = 1.5

    def alive(self, seconds: float) -> float:
        return float(1.0 / (1.0 + (max(seconds, 0.0) / self.median) ** self.shape))


class Curve:
    """A distribution as a table: at `times`, in seconds, the probability that a run takes longer.

    Between two times a run is as likely to end at any moment. Single precision: it is kept for
    each kind of run.
    """

    __slots__ = ("table", "times")

    def __init__(self, times: Iterable[float], alive: Iterable[float]) -> None:
        self.times: Sequence[float] = array("f", times)
        self.table: Sequence[float] = array("f", alive)

    def alive(self, seconds: float) -> float:
        after = bisect_right(self.times, seconds)
        if after == 0:
            return 1.0
        if after == len(self.times):
            # Past the table, the tail of a run of unknown scale.
            return float(self.table[-1] * (self.times[-1] / seconds) ** LogLogistic().shape)
        low, high = self.times[after - 1], self.times[after]
        share = (seconds - low) / (high - low)
        return self.table[after - 1] + share * (self.table[after] - self.table[after - 1])


class Mixed(NamedTuple):
    """Some distributions, each with a weight. The weights add up to one."""

    parts: tuple[tuple[float, Survival], ...]

    def alive(self, seconds: float) -> float:
        return sum(weight * part.alive(seconds) for weight, part in self.parts)


def ignorance(median: float = 8.0) -> Mixed:
    """What is believed of a run that nothing is known about; the median in seconds is a guess.

    One belief in twenty is that the guess is far too short: it makes up for most of what is lost
    where that is so, and costs next to nothing where it is not.
    """
    return Mixed(((0.95, LogLogistic(median)), (0.05, LogLogistic(20 * median))))


class Estimate(NamedTuple):
    """What the runs of a kind say, before it is mixed with what others say.

    Attributes:
        edges: ascending, in seconds: the borders of cells that are equally wide on a logarithmic
            scale.
        masses: of each cell, the probability that a run ends in it.
        escaped: the weight of the runs that outlast every cell, in runs.
        runs: the weight of all of them, in runs.
    """

    edges: list[float]
    masses: list[float]
    escaped: float
    runs: float


HALF_LIFE = 96.0
"""Runs after which one counts half: what drifts too slowly to be noticed is forgotten too."""

LADDER = (1.4, 0.7, 0.35, 0.18, 0.09)
"""Kernel widths that are tried, in units of Silverman's rule of thumb. Runs that take either
about two or about twelve seconds, or nearly always the same time, want the narrow ones."""

FAVOUR = (1.0, 2.0, 0.5, 0.25, 0.12)
"""How many runs' worth of belief each width has before there is evidence."""

SPREAD = 0.5
"""The standard deviation of the logarithm that a single run is credited with."""

_DOUBT = 4.0
_NARROWEST = 0.003
_CELLS = 640
_MARGIN = 3.5
_PASSES = 2
_ROUNDS = 8
_TURNS = 5
"""Times that the share of a run known by an interval is moved to where the others are."""


def estimate(observations: Sequence[Observation], half_life: float = HALF_LIFE) -> Estimate:
    """The distribution that runs like these come from: at least one, the oldest first.

    A mixture of Gaussian kernels in the logarithm of the duration, of several widths. The weight
    of each width maximises the likelihood of every run under the kernels of the others (by
    expectation maximisation), so that each kind of run finds the smoothness that it needs. A run
    known by an interval is spread over it in proportion to the estimate itself, and estimated
    again; for runs that were given up that is Kaplan and Meier's estimate (Efron 1967), for
    intervals Turnbull's (1976), smoothed at each step as in Silverman and others (1990).
    """
    latest = len(observations) - 1
    weights = [0.5 ** ((latest - index) / half_life) for index in range(len(observations))]
    cells = _Cells.around(observations)
    spread = [cells.range(observation) for observation in observations]
    # Those of which the moment is known tell first where the others may have ended.
    known = [both for both in zip(spread, weights, strict=True) if both[0][0] == both[0][1]]
    counts, repeats, escaped = cells.counted(known, [1.0] * cells.count)
    masses = cells.smoothed(counts, repeats)
    for _ in range(0 if len(known) == len(spread) else _TURNS):
        every = list(zip(spread, weights, strict=True))
        counts, repeats, escaped = cells.counted(every, masses)
        masses = cells.smoothed(counts, repeats)
    total = sum(masses) or 1.0
    return Estimate(cells.edges(), [mass / total for mass in masses], escaped, sum(weights))


class _Cells:
    """Equal cells on the scale of log(seconds), and what is done with counts in them."""

    def __init__(self, start: float, width: float, count: int, kernel: float) -> None:
        self.start, self.width, self.count, self.kernel = start, width, count, kernel

    @classmethod
    def around(cls, observations: Sequence[Observation]) -> _Cells:
        logs = sorted(math.log(observation.middle) for observation in observations)
        kernel = _rule_of_thumb(logs)
        start, end = logs[0] - _MARGIN * kernel, logs[-1] + _MARGIN * kernel
        start = min([start, *(math.log(seen.low) - kernel for seen in observations)])
        finite = [math.log(seen.high) + kernel for seen in observations if seen.high < math.inf]
        end = max([end, *finite])
        width = max(kernel * LADDER[-1], (end - start) / _CELLS)
        return cls(start, width, max(3, math.ceil((end - start) / width)), kernel)

    def edges(self) -> list[float]:
        return [math.exp(self.start + self.width * index) for index in range(self.count + 1)]

    def range(self, observation: Observation) -> tuple[int, int]:
        """The first and the last cell it may be in; the last is `count` if it may be in none."""
        first = self._cell(observation.low)
        if math.isinf(observation.high):
            return first, self.count
        return first, self._cell(observation.high)

    def _cell(self, seconds: float) -> int:
        return min(max(int((math.log(seconds) - self.start) / self.width), 0), self.count - 1)

    def counted(
        self, spread: list[tuple[tuple[int, int], float]], masses: list[float]
    ) -> tuple[list[float], list[float], float]:
        """The runs in each cell; the sum of their squares; and how many outlasted all cells."""
        counts, repeats, escaped = [0.0] * self.count, [0.0] * self.count, 0.0
        upto = [0.0, *accumulate(masses)]
        beyond = 0.5 * upto[-1] / (len(spread) + 1)
        # A cell's part of a run is its mass times the run's scale, so the scales of all runs that
        # may be in it are added up first: as what begins and what ends at each cell.
        scales, squares, covered = ([0.0] * (self.count + 1) for _ in range(3))
        for (first, last), weight in spread:
            if first == last:
                counts[first] += weight
                repeats[first] += weight * weight
                continue
            end = min(last + 1, self.count)
            inside = upto[end] - upto[first]
            outside = beyond if last == self.count else 0.0
            if inside + outside <= 0:
                even = weight / (end - first)
                for cell in range(first, end):
                    counts[cell] += even
                    repeats[cell] += even * even
                continue
            scale = weight / (inside + outside)
            escaped += outside * scale
            for sums, value in ((scales, scale), (squares, scale * scale), (covered, 1.0)):
                sums[first] += value
                sums[end] -= value
        upto_here = zip(accumulate(scales), accumulate(squares), accumulate(covered), strict=True)
        for cell, (mass, (scale, square, runs)) in enumerate(zip(masses, upto_here, strict=False)):
            if runs:  # elsewhere, what rounding has left of the sums is nothing
                counts[cell] += mass * scale
                repeats[cell] += mass * mass * square
        return counts, repeats, escaped

    def smoothed(self, counts: list[float], repeats: list[float]) -> list[float]:
        """The counts under kernels of several widths, each with the weight that it earns."""
        total = sum(counts)
        if total <= 0:
            return [1.0] * self.count
        taken = [cell for cell, count in enumerate(counts) if count > 0]
        blurs = []
        own = []
        for rung in LADDER:
            reach = self._reach(max(self.kernel * rung, _NARROWEST))
            blurs.append(_blurred(counts, reach))
            own.append(1.0 / (2 * reach + 1))
        # What a cell's runs get from kernels other than their own.
        theirs = [(cell, repeats[cell] / counts[cell]) for cell in taken]
        others = [
            [
                1e-9 + (got if (got := blur[cell] - centre * part) > 0 else 0.0)
                for cell, part in theirs
            ]
            for blur, centre in zip(blurs, own, strict=True)
        ]
        shares = _earned([counts[cell] for cell in taken], others)
        return _mixed(shares, blurs)

    def _reach(self, kernel: float) -> int:
        """Half the width of a box that has the kernel's variance, applied `_PASSES` times."""
        wide = math.sqrt(1 + 12 / _PASSES * (kernel / self.width) ** 2)
        return min(max(0, round((wide - 1) / 2)), self.count)


def _earned(counts: list[float], others: list[list[float]]) -> list[float]:
    """The weights of the kernel widths, by expectation maximisation; they add up to one."""
    total = sum(counts) + sum(FAVOUR)
    shares = [favour / sum(FAVOUR) for favour in FAVOUR]
    for _ in range(_ROUNDS):
        mixed = list(map(truediv, counts, _mixed(shares, others)))
        shares = [
            (share * sum(map(mul, likely, mixed)) + favour) / total
            for share, likely, favour in zip(shares, others, FAVOUR, strict=True)
        ]
    return shares


def _mixed(shares: list[float], columns: list[list[float]]) -> list[float]:
    """Each cell's sum over the kernel widths, written out: nothing here takes more time."""
    s, t, u, v, w = shares
    return [s * a + t * b + u * c + v * d + w * e for a, b, c, d, e in zip(*columns, strict=True)]


def _rule_of_thumb(logs: list[float]) -> float:
    """Silverman's kernel width (1986, formula 3.31) of sorted values, wider for a handful."""
    count = len(logs)
    if count == 1:
        return 0.9 * SPREAD
    mean = sum(logs) / count
    deviation = math.sqrt(sum((value - mean) ** 2 for value in logs) / (count - 1))
    quartiles = (_quantile(logs, 0.75) - _quantile(logs, 0.25)) / 1.34
    narrow = min(deviation, quartiles) or deviation
    # A few runs that took about the same may have done so by chance.
    doubt = _DOUBT / count**2
    narrow = math.sqrt(((count - 1) * narrow**2 + doubt * SPREAD**2) / (count - 1 + doubt))
    return float(max(0.9 * narrow * count**-0.2, _NARROWEST))


def _quantile(values: list[float], share: float) -> float:
    place = share * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (place - low) * (values[high] - values[low])


def _blurred(values: list[float], reach: int) -> list[float]:
    """Each value spread evenly over the cells within `reach`, `_PASSES` times over."""
    if reach == 0:
        return values
    width, count = 2 * reach + 1, len(values)
    for _ in range(_PASSES):
        upto = [0.0, *accumulate(values)]
        padded = [0.0] * reach + upto + [upto[-1]] * reach
        near = map(sub, padded[width : width + count], padded[:count])
        values = [total / width for total in near]
    return values
