"""The four charts of a plan. They are told apart by shapes, dashes and names, not by colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runbell.errors import MissingExtra
from runbell.planner.labels import folded, name_ends, name_points
from runbell.planner.planning import Plan, Row
from runbell.planner.quota import MINUTES_A_DAY
from runbell.planner.roster import BACKSTOP, FORESIGHT, LONG_POLL, SDK
from runbell.planner.words import about

try:
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, NullFormatter
except ModuleNotFoundError as error:
    raise MissingExtra("a report", "planner") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CHARTS", "Chart", "alone", "styled", "together"]

FONT = 15.0
"""Points."""

STYLE: dict[str, Any] = {
    "font.size": FONT,
    "axes.titlesize": 17,
    "axes.labelsize": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "lines.linewidth": 2.6,
    "svg.fonttype": "path",
}
SIZE = (9.0, 6.4)
"""Inches of one chart: at half of it the letters are still seven points high."""

FEWEST = 0.01
"""Calls a run that count as none: a logarithmic axis has no 0."""

WHO: dict[str, tuple[str, Any, str]] = {
    "tight loop": ("#7f7f7f", (0, (1, 1)), "v"),
    SDK: ("#d55e00", (0, (6, 2)), "s"),
    "tutorial": ("#b8860b", (0, (3, 1, 1, 1)), "D"),
    FORESIGHT: ("#0072b2", "solid", "o"),
    LONG_POLL: ("#007a5a", (0, (4, 1, 1, 1, 1, 1)), "^"),
    BACKSTOP: ("#000000", (0, (10, 2)), "P"),
}
"""Colour (of the palette of Okabe and Ito, darkened), dashes and marker of those that are lines."""

MEAN: dict[str, Any] = {"markersize": 9, "color": "white", "mec": "black", "mew": 2}

WITHIN = 0.93
"""Of the quota, where the line of a waiter that keeps within it is drawn."""

PAPER = {"facecolor": "white", "edgecolor": "none", "pad": 2, "alpha": 0.85}
OTHER = ("#555555", "solid", "X")


class Chart(NamedTuple):
    """One picture.

    Attributes:
        name: for ids.
        title: what it shows.
        reading: how to read it, in a sentence.
        draw: draws it.
    """

    name: str
    title: str
    reading: str
    draw: Callable[[Axes, Plan], None]


def _plain(value: float, _: int = 0) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    if value >= 1e4:
        return f"{value / 1e3:g} k"
    return f"{value:,g}"


def _short(value: float) -> str:
    return _plain(float(f"{value:.3g}"))


def _log(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_formatter(NullFormatter())


def _groups(rows: Sequence[Row]) -> dict[tuple[float, float], list[Row]]:
    """Rows by where they lie, those that lie at the same place together."""
    found: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        place = (max(row.calls, FEWEST), row.delay.mean)
        near = (
            at
            for at in found
            if all(abs(math.log(a / b)) < 0.06 for a, b in zip(at, place, strict=True))
        )
        found.setdefault(next(near, place), []).append(row)
    return found


def _short_name(row: Row) -> str:
    return row.name.removeprefix("openai ")


def draw_frontier(axes: Axes, plan: Plan) -> None:
    """Delay against calls."""
    calls = [each.calls for each in plan.frontier]
    delays = [each.delay for each in plan.frontier]
    axes.plot(calls, delays, color="#888888", linewidth=7, alpha=0.45, solid_capstyle="round")
    groups = _groups(plan.rows)
    for (x, y), rows in groups.items():
        color, _, marker = WHO.get(rows[-1].name, OTHER)
        axes.plot(x, y, marker=marker, markersize=12, color=color, linestyle="none", zorder=3)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="status calls a run (0.01: hardly any)",
        ylabel="mean delay, seconds",
    )
    axes.set_xlim(FEWEST / 2, max(7 * max(x for x, _ in groups), 300))  # room for names
    ys = [y for _, y in groups] + delays
    axes.set_ylim(min(ys) / 2.2, max(ys) * 1.7)
    _log(axes.xaxis)
    _log(axes.yaxis)
    names = [
        (x, y, rows[0].name if len(rows) == 1 else " ≈ ".join(_short_name(row) for row in rows))
        for (x, y), rows in groups.items()
    ]
    # Those that lines are drawn of in other charts get the best places.
    names.sort(key=lambda each: (each[2] not in WHO, -each[0]))
    axes.annotate(
        "best possible polling", (calls[-3], delays[-3]),
        xytext=(-14, 0), textcoords="offset points", ha="right", va="center", color="#555555",
        style="italic",
    )  # fmt: skip
    name_points(axes, names, [*zip(calls, delays, strict=True)])


def draw_cost(axes: Axes, plan: Plan) -> None:
    """Dollars a month against runs a month."""
    load = plan.load
    rows = [plan.row(name) for name in (SDK, FORESIGHT, LONG_POLL, BACKSTOP)]
    even = plan.row(FORESIGHT).break_even
    crossing = even.runs_by_money if even and load.webhook_monthly else None
    full = [_full_at(plan, row) for row in rows]
    marks = [load.runs, *(each for each in (*full[:3], crossing) if each)]
    low, high = min(marks) / 10, max(marks) * 6
    top = load.webhook_monthly
    for place, (row, end) in enumerate(zip(rows, full, strict=True)):
        color, dashes, marker = WHO[row.name]
        ends = end is not None and end < high
        name = f"{row.name}: quota full at {_short(end)}" if ends and end else row.name
        free = not load.price_per_call and row.name != BACKSTOP
        runs = np.geomspace(low, min(high, end or high), 100)
        fixed = load.webhook_monthly if row.name == BACKSTOP else 0.0
        dollars = fixed + load.price_per_call * row.calls * runs
        axes.plot(
            runs[-1:] if free else runs, dollars[-1:] if free else dollars, color=color,
            linestyle="none" if free else dashes, label=name + (", $0" if free else ""),
            marker=marker, markersize=9, markevery=1 if free else [*range(12 + 3 * place, 96, 28)],
            zorder=3,
        )  # fmt: skip
        if ends:
            axes.plot(runs[-1], dollars[-1], marker="x", markersize=19, mew=4, color=color)
        top = max(top, float(dollars[-1]))
    _cost_axes(axes, plan, low, high, top)
    if crossing:
        _circle(axes, plan, crossing)


def _circle(axes: Axes, plan: Plan, crossing: float) -> None:
    """The break-even by money."""
    dollars = plan.load.price_per_call * plan.row(FORESIGHT).calls * crossing
    axes.plot(crossing, dollars, "o", markersize=19, mfc="none", mec="black", mew=2.5, zorder=4)
    axes.annotate(
        f"break-even\n{about(crossing)} runs", (crossing, dollars), xytext=(-24, 58),
        textcoords="offset points", ha="right", va="center", weight="bold", zorder=5,
        arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 1.6}, bbox=PAPER,
    )  # fmt: skip


def _cost_axes(axes: Axes, plan: Plan, low: float, high: float, top: float) -> None:
    load = plan.load
    axes.set(xscale="log", xlim=(low, high), xlabel="runs a month", ylabel="dollars a month")
    if load.price_per_call:
        floor = load.price_per_call * plan.row(LONG_POLL).calls * low
        axes.set(yscale="log", ylim=(max(floor, top / 1e5), top * 2))
        _log(axes.yaxis)
    else:
        axes.set_ylim(-0.06 * max(top, 10), 1.2 * max(top, 10))
        axes.axhline(0, color="#555555", linewidth=2.6)
        axes.annotate(
            "all that polls costs $0: no break-even by money", (low, 0), xytext=(8, 20),
            textcoords="offset points", style="italic", color="#555555", bbox=PAPER,
        )  # fmt: skip
    _log(axes.xaxis)
    axes.axvline(load.runs, color="#333333", linestyle=":", linewidth=2)
    free = 0.03 if load.price_per_call else 0.6
    axes.annotate(
        f"you: {_short(load.runs)}", (load.runs, free), xycoords=axes.get_xaxis_transform(),
        xytext=(6, 0), textcoords="offset points", bbox=PAPER,
    )  # fmt: skip
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=13.5,
        borderaxespad=0.2, labelspacing=0.25, handlelength=3.6,
    )  # fmt: skip


def _full_at(plan: Plan, row: Row) -> float | None:
    """Runs a month at which a policy wants the whole quota at peak."""
    return None if not row.quota_share else plan.load.runs / row.quota_share


def draw_delays(axes: Axes, plan: Plan) -> None:
    """How the delays of each policy are distributed."""
    rows = plan.rows[::-1]
    for place, row in enumerate(rows):
        color = WHO.get(row.name, OTHER)[0]
        delay = row.delay
        if row.short < 1:
            axes.hlines(place, delay.p5, delay.p95, color=color, linewidth=3)
            axes.hlines(place, delay.p25, delay.p75, color=color, linewidth=13, alpha=0.55)
            axes.plot(delay.p50, place, marker="|", markersize=21, mew=3.5, color="black")
            axes.plot(delay.mean, place, marker="o", **MEAN)
            axes.plot(delay.p99, place, marker=">", markersize=10, color="black")
        if row.delay_at_peak is not None:
            axes.plot(row.delay_at_peak, place, marker="D", **MEAN)
        if row.falls_behind:
            axes.text(
                0.99, place, "falls behind at peak", ha="right", va="center",
                transform=axes.get_yaxis_transform(), style="italic", fontsize=12, bbox=PAPER,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), [folded(row.name) for row in rows])
    axes.set(xscale="log", xlabel="seconds from the end of a run until it is known")
    axes.set_ylim(-0.7, len(rows) - 0.3)
    axes.grid(visible=False, axis="y")
    _log(axes.xaxis)
    _delay_key(axes, plan)


def _delay_key(axes: Axes, plan: Plan) -> None:
    crowded = any(row.delay_at_peak is not None for row in plan.rows)
    keys = [
        Line2D([], [], color="#555555", linewidth=13, alpha=0.55, label="middle half"),
        Line2D([], [], color="#555555", linewidth=3, label="p5 to p95"),
        Line2D([], [], color="black", linestyle="none", marker="|", markersize=21, mew=3.5,
               label="median"),
        Line2D([], [], linestyle="none", marker="o", label="mean", **MEAN),
        Line2D([], [], linestyle="none", marker=">", markersize=10, color="black", label="p99"),
        Line2D([], [], linestyle="none", marker="D", label="mean at peak", **MEAN),
    ]  # fmt: skip
    axes.legend(
        handles=keys if crowded else keys[:-1], loc="lower left", bbox_to_anchor=(-0.22, 1.0),
        ncols=3, frameon=False, fontsize=13, borderaxespad=0.2, labelspacing=0.4, handlelength=1.8,
        columnspacing=1.4,
    )  # fmt: skip


def draw_day(axes: Axes, plan: Plan) -> None:
    """Calls a minute through a busy day, under the quota."""
    hours = np.arange(MINUTES_A_DAY) / 60
    names = ("tight loop", SDK, FORESIGHT, LONG_POLL, BACKSTOP)
    rows = [row for row in map(plan.row, names) if row.calls]
    rpm = plan.load.rpm
    lows, ends = [], []
    for row in rows:
        wanted = row.peak_calls_per_minute / plan.load.peak * plan.busy_day
        if rpm is not None and row.paced:
            wanted = np.minimum(wanted, WITHIN * rpm)
        color, dashes, _ = WHO[row.name]
        axes.plot(hours, wanted, color=color, linestyle=dashes)
        lows.append(float(wanted.min()))
        ends.append((row.name, float(wanted[-1]), color))
    top = max(rows[0].peak_calls_per_minute, rpm or 0.0) * 3
    axes.set(yscale="log", xlim=(0, 24), xlabel="hour of the day", ylabel="status calls a minute")
    axes.set_xticks(range(0, 25, 4))
    axes.set_ylim(min(lows) / 2, top)
    if rpm is not None:
        axes.fill_between([0, 24], rpm, top, facecolor="none", edgecolor="#999999", hatch="//")
        axes.axhline(rpm, color="black", linewidth=3.5)
        axes.text(
            0.3, rpm * 1.1, f"quota {rpm:,.0f}", va="bottom", weight="bold",
            bbox=PAPER,
        )  # fmt: skip
    if len(rows) < len(names):
        axes.text(0.02, 0.02, f"{BACKSTOP}: no calls", transform=axes.transAxes, bbox=PAPER)
    _log(axes.yaxis)
    name_ends(axes, 24.0, ends, FONT)


CHARTS = (
    Chart(
        "frontier",
        "Delay against calls",
        "Down and to the left is better. Where a server answers at once, nobody who asks it gets "
        "below the grey line; requests that are held and events do.",
        draw_frontier,
    ),
    Chart(
        "cost",
        "Cost against volume",
        "Beyond a cross a policy wants more calls at peak than the whole quota; the circle is the "
        "break-even by money, the dotted line your volume.",
        draw_cost,
    ),
    Chart(
        "delays",
        "How late the end of a run is known",
        "Thick: the middle half of all runs. Thin: from the 5th to the 95th percentile. "
        "Bar: median. Circle: mean. Triangle: 99th percentile. Diamond: the mean at peak, where "
        "the quota does not suffice.",
        draw_delays,
    ),
    Chart(
        "day",
        "Quota through a busy day",
        "Calls a minute if runs come as on a busy day. What is hatched is refused; the waiter "
        "(Foresight, long poll) keeps below it, and is later then.",
        draw_day,
    ),
)


@contextmanager
def styled(salt: str = "runbell") -> Iterator[None]:
    """Have figures drawn in our style.

    Args:
        salt: what an SVG defines is called by it: each needs its own where several share a page.
    """
    style: dict[Any, Any] = {**STYLE, "svg.hashsalt": salt}
    with mpl.rc_context(style):
        yield


def alone(chart: Chart, plan: Plan) -> Figure:
    """One chart, as a figure of its own."""
    figure = Figure(figsize=SIZE, layout=None)
    axes = figure.add_subplot()
    _place(figure, axes, chart, plan)
    return figure


def together(plan: Plan) -> Figure:
    """All four, two beside two."""
    figure = Figure(figsize=(2 * SIZE[0], 2 * SIZE[1]), layout=None)
    for place, chart in enumerate(CHARTS):
        axes = figure.add_subplot(2, 2, place + 1)
        _place(figure, axes, chart, plan, (place % 2, 1 - place // 2))
    return figure


def _place(
    figure: Figure, axes: Axes, chart: Chart, plan: Plan, cell: tuple[int, int] = (0, 0)
) -> None:
    """Draw into a cell of the page; where names are wide, the axes leave them room."""
    cells = 1 if len(figure.axes) == 1 and figure.get_size_inches()[0] == SIZE[0] else 2
    left = 0.2 if chart.name == "delays" else 0.13
    right = 0.8 if chart.name == "day" else 0.97
    top = {"cost": 0.72, "delays": 0.8}.get(chart.name, 0.9)
    x, y = cell
    axes.set_position(
        ((x + left) / cells, (y + 0.13) / cells, (right - left) / cells, (top - 0.13) / cells)
    )
    title_at = ((x + 0.02) / cells, (y + 0.94) / cells)
    figure.text(*title_at, chart.title, weight="bold", fontsize=STYLE["axes.titlesize"])
    chart.draw(axes, plan)
