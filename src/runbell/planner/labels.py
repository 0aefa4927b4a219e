"""Where the names in a chart stand, so that they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["folded", "name_ends", "name_points"]

Point = tuple[float, float]

FAR = (12, 22, 34, 48, 64, 84)
"""How far from its point a name may stand, in points of the print: the nearer the better."""

AROUND = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))

LETTER = 0.56
LINE = 1.15
"""How wide a letter and how high a line is, of the size of the font."""


class _Box(NamedTuple):
    """A part of the picture, in its dots."""

    left: float
    low: float
    right: float
    high: float

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

    def nearest(self, at: Point) -> Point:
        """Its point that is nearest to another."""
        x, y = at
        return min(max(x, self.left), self.right), min(max(y, self.low), self.high)


def folded(name: str) -> str:
    """A long name on two lines."""
    return name.replace(" with ", "\nwith ")


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
    axes: Axes, names: Sequence[tuple[float, float, str]], line: Sequence[Point], font: float
) -> None:
    """Names beside points, where they cover neither points, nor a line, nor each other.

    A name that does not stand right beside its point gets a thin line to it.

    Args:
        names: points and their names; the first get the best places.
        line: points of the line, on logarithmic scales.
    """
    dot, to_data = axes.figure.dpi / 72, axes.transData.inverted()
    places = [tuple(each) for each in axes.transData.transform([(x, y) for x, y, _ in names])]
    marks = [_Box.around((x, y), 7 * dot) for x, y in places]
    taken = list(marks)
    taken += [_Box.around((x, y), 3 * dot) for x, y in axes.transData.transform([*_dense(line)])]
    frame = axes.get_window_extent()
    for (x, y, text), at in zip(names, places, strict=True):
        width, height = LETTER * font * dot * len(text), LINE * font * dot
        found, beside = None, False
        for far, (dx, dy) in product(FAR, AROUND):
            box = _beside(at, far * dot, dx, dy, width, height)
            inside = frame.x0 <= box.left and box.right <= frame.x1
            others = [mark for mark in marks if not mark.covers(_Box.around(at, dot))]
            if (
                inside
                and not any(box.covers(other) for other in taken)
                and not any(_crosses(at, box.nearest(at), mark) for mark in others)
            ):
                found, beside = box, far == FAR[0] and dy == 0
                break
        box = found or _within(_beside(at, FAR[0] * dot, 1, 0, width, height), frame.x1)
        taken.append(box)
        left, middle = to_data.transform((box.left, (box.low + box.high) / 2))
        axes.text(left, middle, text, va="center", ha="left")
        if not beside:
            tip = to_data.transform(box.nearest(at))
            axes.plot([x, tip[0]], [y, tip[1]], color="#555555", linewidth=1.2, zorder=2)


def _beside(at: Point, far: float, dx: int, dy: int, width: float, height: float) -> _Box:
    """The box of a name so far away from a point, in one of the directions."""
    left = at[0] + dx * far - (width if dx < 0 else width / 2 if dx == 0 else 0.0)
    low = at[1] + dy * far - height / 2
    return _Box(left, low, left + width, low + height)


def _within(box: _Box, right: float) -> _Box:
    """A box moved to the left until it ends at the edge."""
    over = max(box.right - right, 0.0)
    return box._replace(left=box.left - over, right=box.right - over)


def _crosses(start: Point, end: Point, box: _Box) -> bool:
    """Whether a line goes through a box: it would end at the wrong mark."""
    for step in range(21):
        share = step / 20
        at = tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))
        if box.left < at[0] < box.right and box.low < at[1] < box.high:
            return True
    return False


def _dense(line: Sequence[Point]) -> Iterator[Point]:
    """Points all along a line on logarithmic scales."""
    for (x0, y0), (x1, y1) in pairwise(line):
        for share in (0.0, 0.25, 0.5, 0.75):
            yield x0 * (x1 / x0) ** share, y0 * (y1 / y0) ** share
    yield from line[-1:]
