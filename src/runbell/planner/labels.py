"""Where the names in a chart stand, so that they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.text import Text

__all__ = ["folded", "name_ends", "name_points"]

Point = tuple[float, float]

FAR = (12, 22, 34, 48, 64, 84, 108, 136)
"""How far from its point a name may stand, in points of the print: the nearer the better."""

AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))

MARK, GAP = 7, 2
"""Points: half of what a mark takes, and what is left free around names, since letters are a little
wider in one format than in another."""


class _Box(NamedTuple):
    """A part of the picture, in its dots."""

    left: float
    low: float
    right: float
    high: float

    @classmethod
    def of(cls, drawn: Artist) -> _Box:
        extent = drawn.get_window_extent()
        return cls(extent.x0, extent.y0, extent.x1, extent.y1)

    @classmethod
    def around(cls, at: Point, reach: float) -> _Box:
        return cls(at[0] - reach, at[1] - reach, at[0] + reach, at[1] + reach)

    def covers(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.low < other.high
            and other.low < self.high
        )

    def holds(self, other: _Box) -> bool:
        return (
            self.left <= other.left
            and other.right <= self.right
            and self.low <= other.low
            and other.high <= self.high
        )

    def nearest(self, at: Point) -> Point:
        """Its point that is nearest to another."""
        x, y = at
        return min(max(x, self.left), self.right), min(max(y, self.low), self.high)


def folded(name: str) -> str:
    """A long name on two lines."""
    return name.replace(" with ", "\nwith ").replace(" ≈ ", "\n≈ ", 1)


def name_ends(axes: Axes, x: float, ends: Iterable[tuple[str, float, str]], font: float) -> None:
    """Names to the right of where lines end at `x`, pushed apart: names, heights, colours."""
    dot = axes.figure.dpi / 72
    lowest = -math.inf
    for name, y, color in sorted(ends, key=lambda each: each[1]):
        at = max(axes.transData.transform((x, y))[1], lowest)
        lowest = at + 1.3 * font * dot
        axes.annotate(
            folded(name), (x, axes.transData.inverted().transform((0, at))[1]), xytext=(8, 0),
            textcoords="offset points", va="center", color=color, annotation_clip=False,
        )  # fmt: skip


def name_points(
    axes: Axes, names: Sequence[tuple[float, float, str]], line: Sequence[Point]
) -> None:
    """Names beside points, where they cover neither points, nor a line, nor each other, nor what
    is written there already.

    A name that does not stand right beside its point gets a thin line to it. Where there is no free
    place, it stands where it covers least, and no point as long as that is possible.

    Args:
        names: points and their names; the first get the best places.
        line: points of the line, on logarithmic scales.
    """
    dot, to_data = axes.figure.dpi / 72, axes.transData.inverted()
    places = [tuple(each) for each in axes.transData.transform([(x, y) for x, y, _ in names])]
    paper = _Paper(_Box.of(axes), [_Box.around(each, MARK * dot) for each in places])
    paper.taken += [_Box.of(each) for each in axes.texts]
    dense = axes.transData.transform([*_dense(line)])
    paper.taken += [_Box.around((x, y), 3 * dot) for x, y in dense]
    for (x, y, name), at in zip(names, places, strict=True):
        text = axes.text(x, y, name, va="center", ha="left")
        best = paper.place(_ways(text, name, at, dot), at)
        text.set_text(best.text)
        paper.taken.append(best.box)
        left, middle = to_data.transform((best.box.left, (best.box.low + best.box.high) / 2))
        text.set_position((left, middle))
        if not best.beside:
            end = best.box.nearest(at)
            paper.taken += [_Box.around(each, dot) for each in _along(at, end)]
            tip = to_data.transform(end)
            axes.plot([x, tip[0]], [y, tip[1]], color="#555555", linewidth=1.2, zorder=2)


class _Way(NamedTuple):
    """How a name may stand: on one line or two, where, and whether its point is at once beside."""

    text: str
    box: _Box
    beside: bool


def _ways(text: Text, name: str, at: Point, dot: float) -> Iterator[_Way]:
    """All of them, the best first: on one line, near its point."""
    for form in dict.fromkeys((name, folded(name))):
        text.set_text(form)
        box = _Box.of(text)
        width, height = box.right - box.left + GAP * dot, box.high - box.low + GAP * dot
        for far, (dx, dy) in product(FAR, AROUND):
            beside = far == FAR[0] and dy == 0
            yield _Way(form, _beside(at, far * dot, dx, dy, width, height), beside)


class _Paper:
    """What is free of a chart.

    Args:
        frame: where names may stand.
        marks: of all points.
    """

    def __init__(self, frame: _Box, marks: Sequence[_Box]) -> None:
        self._frame = frame
        self._marks = marks
        self.taken: list[_Box] = []

    def place(self, ways: Iterable[_Way], at: Point) -> _Way:
        """The first way that covers nothing, else the one that covers least."""
        inside = [each for each in ways if self._frame.holds(each.box)]
        others = [mark for mark in self._marks if not mark.holds(_Box.around(at, 0.0))]
        best, least = None, math.inf
        for way in inside:
            covered = self._covered(way, at, others)
            if covered < least:
                best, least = way, covered
            if not covered:
                break
        assert best is not None, "a chart has room for every name at some distance"
        return best

    def _covered(self, way: _Way, at: Point, others: Sequence[_Box]) -> float:
        """How bad it is: of marks, and of a line that would end at another's, worst."""
        marks = sum(map(way.box.covers, self._marks))
        marks += sum(_crosses(at, way.box.nearest(at), mark) for mark in others)
        return 1000.0 * marks + sum(map(way.box.covers, self.taken))


def _beside(at: Point, far: float, dx: int, dy: int, width: float, height: float) -> _Box:
    """The box of a name so far away from a point, in one of the directions."""
    left = at[0] + dx * far - (width if dx < 0 else width / 2 if dx == 0 else 0.0)
    low = at[1] + dy * far - height / 2
    return _Box(left, low, left + width, low + height)


def _crosses(start: Point, end: Point, box: _Box) -> bool:
    """Whether a line goes through a box: it would end at the wrong mark."""
    return any(box.left < x < box.right and box.low < y < box.high for x, y in _along(start, end))


def _along(start: Point, end: Point) -> list[Point]:
    """Points of a line in the picture."""
    (x0, y0), (x1, y1) = start, end
    return [(x0 + step / 20 * (x1 - x0), y0 + step / 20 * (y1 - y0)) for step in range(21)]


def _dense(line: Sequence[Point]) -> Iterator[Point]:
    """Points all along a line on logarithmic scales."""
    for (x0, y0), (x1, y1) in pairwise(line):
        for share in (0.0, 0.25, 0.5, 0.75):
            yield x0 * (x1 / x0) ** share, y0 * (y1 / y0) ** share
    yield from line[-1:]
