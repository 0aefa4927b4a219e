"""How long do runs of a kind take: an estimate from few of them."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from operator import mul, sub, truediv
from typing import NamedTuple

from runbell.pacing.durations import Observation
from runbell.pacing.survival import Curve, Survival

__all__ = ["Estimate", "believed", "estimate"]


class Estimate(NamedTuple):
    """What the runs of a kind say, before it is mixed with what others say.

    Attributes:
        edges: ascending, in seconds: the borders of cells that are equally wide on a logarithmic
            scale.
        masses: of each cell, the probability that a run ends in it that does not escape.
        runs: the weight of all runs, in runs.
        escaped: of them, the weight of those of which nobody knows any end that they might have
            had: of longer runs none was seen to end, or next to none.
        ages: how old those were when somebody stopped looking, in seconds, and what share of them.
    """

    edges: list[float]
    masses: list[float]
    runs: float
    escaped: float = 0.0
    ages: tuple[tuple[float, float], ...] = ()


def believed(
    own: Estimate, ended: Sequence[float], parent: Survival, doubt: float, times: Sequence[float]
) -> list[float]:
    """S at each of `times`, as the runs of a kind and what is known of others say.

    What escaped is as old as it was; of how long it went on, only others tell.

    Args:
        own: what the kind's runs say.
        ended: the share of them that has ended at each of the times, but for those that escaped.
        parent: what is known of others.
        doubt: the share of belief in them even so.
        times: ascending, in seconds.
    """
    others = parent.along(times) if isinstance(parent, Curve) else list(map(parent.alive, times))
    gone = own.escaped / own.runs if own.runs else 0.0
    ours = (1.0 - doubt) * (1.0 - gone)
    alive = [
        doubt * other + ours * (1.0 - share) for other, share in zip(others, ended, strict=True)
    ]
    for age, share in own.ages if gone else ():
        weight = (1.0 - doubt) * gone * share
        then = max(parent.alive(age), _FLOOR)
        alive = [
            value + weight * min(other / then, 1.0)
            for value, other in zip(alive, others, strict=True)
        ]
    return alive


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
"""Rounds in which the weights of the widths are looked for."""

_EVEN = [favour / sum(FAVOUR) for favour in FAVOUR]
_FLOOR = 1e-9
"""The share of all mass that is spread evenly while runs are spread, so that each finds some."""

_NOBODY = 1e-9
"""Runs in a cell that are rounding."""

_TURNS = (4, 0, 0, 4, 0)
"""A run known by an interval is moved to where the others are so many times; and in how many more
rounds the weights of the widths are looked for then. They go on from where they were."""

_PARTS = 6
"""Where the ends of most runs are known by intervals alone, cells need not be narrower than this
part of a usual one."""

_WIDEST = math.log(16)
"""An interval that is wider says hardly more, of when a run ended, than its upper end."""

_BEYOND = 0.5
"""How many runs' worth of belief there is, at any age, in runs longer than all that were seen to
end."""

_AGES = (1 / 6, 1 / 2, 5 / 6)
"""Which of those that escaped, from the youngest to the oldest, stand for all."""


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
    spread = cells.ranges()
    escaping = cells.escaping(spread, weights)
    kept = [weight - away for weight, away in zip(weights, escaping, strict=True)]
    # Those of which the moment is known best tell first where the others may have ended.
    known = cells.best_known(spread)
    counts, repeats = cells.counted(
        [spread[each] for each in known], [kept[each] for each in known], [1.0] * cells.count
    )
    masses, shares = cells.smoothed(counts, repeats, _EVEN, _ROUNDS)
    for rounds in () if all(first == last for first, last in spread) else _TURNS:
        counts, repeats = cells.counted(spread, kept, masses)
        masses, shares = cells.smoothed(counts, repeats, shares, rounds)
    total = sum(masses) or 1.0
    masses = [mass / total for mass in masses]
    ages = _ages([(seen.low, away) for seen, away in zip(observations, escaping, strict=True)])
    return Estimate(cells.edges(), masses, sum(weights), sum(escaping), ages)


def _ages(escaped: list[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """A few ages with shares that stand for all of these with their weights."""
    escaped = sorted(each for each in escaped if each[1] > 0)
    if not escaped:
        return ()
    upto = list(accumulate(weight for _, weight in escaped))
    chosen = [escaped[min(bisect_left(upto, part * upto[-1]), len(upto) - 1)][0] for part in _AGES]
    return tuple((age, chosen.count(age) / len(chosen)) for age in sorted(set(chosen)))


class _Cells:
    """Equal cells on the scale of log(seconds), and what is done with counts in them."""

    def __init__(
        self, lows: list[float], highs: list[float], start: float, end: float, kernel: float
    ) -> None:
        self.lows, self.highs, self.start, self.kernel = lows, highs, start, kernel
        self.narrow = min(_usual(lows, highs), _WIDEST)
        self.width = max(kernel * LADDER[-1], (end - start) / _CELLS, self.narrow / _PARTS)
        self.count = max(3, math.ceil((end - start) / self.width))

    @classmethod
    def around(cls, observations: Sequence[Observation]) -> _Cells:
        """Cells for these; the logarithms of their ends are taken once, since they cost most."""
        lows = [math.log(seen.low) for seen in observations]
        highs = [
            low if seen.high == seen.low else math.inf if seen.high == math.inf
            else math.log(seen.high)
            for low, seen in zip(lows, observations, strict=True)
        ]  # fmt: skip
        finite = [high for high in highs if high < math.inf]
        narrow = _usual(lows, highs)
        logs = sorted(
            low if high == math.inf else (max(low, high - _WIDEST) + high) / 2
            for low, high in zip(lows, highs, strict=True)
            if high == math.inf or high - low <= narrow
        )
        kernel = _rule_of_thumb(logs)
        # What ended at a first look may have ended at any time before it.
        start = min([logs[0], *finite]) - _MARGIN * kernel
        end = max([logs[-1] + _MARGIN * kernel, *([max(finite) + kernel] if finite else [])])
        return cls(lows, highs, start, end, kernel)

    def best_known(self, spread: list[tuple[int, int]]) -> list[int]:
        """The runs whose intervals are the narrower half, in cells."""
        widths = [last - first for first, last in spread]
        ended = sorted(
            width for width, (_, last) in zip(widths, spread, strict=True) if last < self.count
        )
        narrow = ended[len(ended) // 2] if ended else -1
        return [
            each
            for each, (_, last) in enumerate(spread)
            if last < self.count and widths[each] <= narrow
        ]

    def edges(self) -> list[float]:
        return [math.exp(self.start + self.width * index) for index in range(self.count + 1)]

    def ranges(self) -> list[tuple[int, int]]:
        """For each run the first and the last cell it may be in; the last is `count` if it may be
        in none."""
        start, width, last, none = self.start, self.width, self.count - 1, self.count
        found = []
        for low, high in zip(self.lows, self.highs, strict=True):
            first = min(max(int((low - start) / width), 0), last)
            if high == low:
                found.append((first, first))
            elif high == math.inf:
                found.append((first, none))
            else:
                found.append((first, min(max(int((high - start) / width), 0), last)))
        return found

    def escaping(self, spread: list[tuple[int, int]], weights: list[float]) -> list[float]:
        """What part of each run's weight is in none of the cells: 0 for what ended.

        As Kaplan and Meier have it, what was given up is shared out among those that went on for
        longer (Efron 1967), from the longest one down: where none of them was seen to end, all of
        it escapes, and never less than the part of half a run in theirs.
        """
        escaping = [0.0] * len(spread)
        out, inside = _BEYOND, 0.0
        # Of those in the same cell, what ended did so before what was given up.
        order = sorted(range(len(spread)), key=lambda each: (-spread[each][0], -spread[each][1]))
        for each in order:
            weight = weights[each]
            if spread[each][1] == self.count:
                escaping[each] = weight * out / (out + inside)
                out += escaping[each]
            inside += weight - escaping[each]
        return escaping

    def counted(
        self, spread: list[tuple[int, int]], weights: list[float], masses: list[float]
    ) -> tuple[list[float], list[float]]:
        """The runs in each cell, and the sum of their squares.

        A run that may be in several cells is spread over them in proportion to `masses`. What it
        adds to a cell is thus the cell's mass times a scale of its own; so the scales are summed
        up cell by cell, from where a run begins to where it ends, and no run is looked at in each
        of its cells.
        """
        counts, repeats = [0.0] * self.count, [0.0] * self.count
        spans = False
        scales, squares = [0.0] * (self.count + 1), [0.0] * (self.count + 1)
        # Where nothing is believed to end, a run that must have ended there is spread evenly.
        floor = (_FLOOR * sum(masses) or 1.0) / self.count
        masses = [mass + floor for mass in masses]
        upto = [0.0, *accumulate(masses)]
        for (first, last), weight in zip(spread, weights, strict=True):
            if first == last:
                counts[first] += weight
                repeats[first] += weight * weight
                continue
            if weight <= _NOBODY:
                continue
            spans = True
            end = min(last + 1, self.count)
            scale = weight / (upto[end] - upto[first])
            scales[first] += scale
            scales[end] -= scale
            squares[first] += scale * scale
            squares[end] -= scale * scale
        if spans:
            counts = [
                count + mass * scale if scale > 0.0 else count
                for count, mass, scale in zip(counts, masses, accumulate(scales), strict=False)
            ]
            repeats = [
                repeat + mass * mass * square if square > 0.0 else repeat
                for repeat, mass, square in zip(repeats, masses, accumulate(squares), strict=False)
            ]
        return counts, repeats

    def smoothed(
        self, counts: list[float], repeats: list[float], shares: list[float], rounds: int
    ) -> tuple[list[float], list[float]]:
        """The counts under kernels of several widths; and the weight that each width earns, which
        is looked for from `shares` on."""
        if sum(counts) <= 0:
            return [1.0] * self.count, shares
        reaches = [self._reach(max(self.kernel * rung, _NARROWEST)) for rung in LADDER]
        blurs = [_blurred(counts, reach) for reach in reaches]
        if rounds:
            shares = _weighed(counts, repeats, blurs, reaches, shares, rounds)
        return _mixed(shares, blurs), shares

    def _reach(self, kernel: float) -> int:
        """Half the width of a box that has the kernel's variance, applied `_PASSES` times."""
        wide = math.sqrt(1 + 12 / _PASSES * (kernel / self.width) ** 2)
        return min(max(0, round((wide - 1) / 2)), self.count)


def _weighed(
    counts: list[float],
    repeats: list[float],
    blurs: list[list[float]],
    reaches: list[int],
    shares: list[float],
    rounds: int,
) -> list[float]:
    """The weights of the kernel widths; each run is judged by the kernels of the others."""
    taken = [cell for cell, count in enumerate(counts) if count > _NOBODY]
    alone = [repeats[cell] / counts[cell] for cell in taken]
    # What a cell's runs get from kernels other than their own.
    others = [
        [max(blur[cell] - repeat / (2 * reach + 1), 1e-9)
         for cell, repeat in zip(taken, alone, strict=True)]
        for blur, reach in zip(blurs, reaches, strict=True)
    ]  # fmt: skip
    return _earned([counts[cell] for cell in taken], others, shares, rounds)


def _earned(
    counts: list[float], others: list[list[float]], shares: list[float], rounds: int
) -> list[float]:
    """The weights of the kernel widths, by expectation maximisation; they add up to one."""
    total = sum(counts) + sum(FAVOUR)
    for _ in range(rounds):
        mixed = list(map(truediv, counts, _mixed(shares, others)))
        shares = [
            (share * sum(map(mul, likely, mixed)) + favour) / total
            for share, likely, favour in zip(shares, others, FAVOUR, strict=True)
        ]
    return shares


def _mixed(shares: list[float], columns: list[list[float]]) -> list[float]:
    """The weighted sum of one column for each width of the ladder.

    Written out, since this is where an estimate spends its time: three times as fast as a sum.
    """
    a, b, c, d, e = shares
    return [
        a * one + b * two + c * three + d * four + e * five
        for one, two, three, four, five in zip(*columns, strict=True)
    ]


def _usual(lows: list[float], highs: list[float]) -> float:
    """The usual width of an interval; 0 where the moment is known of most runs."""
    widths = sorted(high - low for low, high in zip(lows, highs, strict=True) if high < math.inf)
    return widths[len(widths) // 2] if widths else 0.0


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
    before = [0.0] * reach
    for _ in range(_PASSES):
        sums = [*before, 0.0, *accumulate(values)]
        sums += [sums[-1]] * reach
        values = list(map(sub, sums[width : width + count], sums))
    scale = 1.0 / width**_PASSES
    return [scale * value for value in values]
