"""The report: it needs nothing else, and its charts can be read."""

import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from runbell.planner import Trace, Workload, crowd, plan, playing
from runbell.planner import frontier as frontiers
from runbell.planner.charts import CHARTS, alone, styled
from runbell.planner.report import page, picture

WORKLOADS = {
    "quota alone": {"runs_per_month": 300_000},
    "calls are billed": {
        "runs_per_month": 5_000_000, "price_per_call": 0.0001, "rpm": 5000, "latency": 0.05,
        "webhook_loss": 0.02,
    },
    "no quota, no loss": {"runs_per_month": 1000, "rpm": None, "webhook_loss": 0.0},
    "far beyond the quota": {"runs_per_month": 100_000, "rpm": 1},
}  # fmt: skip


@pytest.fixture(scope="module", params=WORKLOADS)
def found(request):
    return planned(request.param)


@pytest.fixture(scope="module")
def billed():
    return planned("calls are billed")


def planned(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playing, "SAMPLE", 20)
        patch.setattr(playing, "LOST", 5)
        patch.setattr(frontiers, "MOMENTS", 300)
        patch.setattr(crowd, "FLEET", 60)
        patch.setattr(crowd, "SENT", 2000)
        trace = Trace.of(Trace.lognormal(6, 25).kinds["lognormal"][25::50], exact=True)
        return plan(Workload(trace, **WORKLOADS[name]))


def test_the_page_needs_nothing_else(billed):
    html = page(billed)
    assert not re.search(r'(src|href)="(?!#)', html)
    assert "@import" not in html
    assert html.count("<svg ") == len(CHARTS) == 4
    assert billed.recommendation.replace("'", "&#x27;") in html
    for row in billed.rows:
        assert f"<td>{row.name}</td><td>{row.calls:.2f}</td>" in html
    # What one chart defines is not taken for what another does.
    charts = [set(re.findall(r'<clipPath id="([^"]+)"', part)) for part in html.split("<svg ")[1:]]
    assert all(charts)
    assert not any(one & other for one, other in combinations(charts, 2))


def test_the_picture_is_a_png(billed):
    assert picture(billed).startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_names_in_a_chart_cover_neither_each_other_nor_the_edge(found, chart):
    with styled():
        figure = alone(chart, found)
        figure.canvas.draw()
        assert_readable(figure)


def assert_readable(figure: Figure) -> None:
    axes = figure.axes[0]
    legend = axes.get_legend()
    texts = [*axes.texts, *figure.texts, *axes.get_yticklabels(), *axes.get_xticklabels()]
    texts += legend.get_texts() if legend else []
    boxes = [
        (each.get_text(), each.get_window_extent()) for each in texts if each.get_text().strip()
    ]
    page = figure.bbox
    ticks = {each.get_text() for each in axes.get_xticklabels()}  # there are some beyond the axes
    for name, box in boxes:
        inside = page.x0 - 1 <= box.x0 and box.x1 <= page.x1 + 1
        assert inside or name in ticks, f"{name!r} leaves the page: {box}"
    names = [(text, box) for text, box in boxes if text in {t.get_text() for t in axes.texts}]
    for (one, a), (other, b) in combinations(names, 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        up = min(a.y1, b.y1) - max(a.y0, b.y0)
        assert across <= 2 or up <= 2, f"{one!r} covers {other!r}"


def test_lines_are_told_apart_without_colours(found):
    with styled():
        for chart in CHARTS[1], CHARTS[3]:
            axes = alone(chart, found).axes[0]
            named = [line for line in axes.lines if not line.get_label().startswith("_")]
            lines = named or [line for line in axes.lines if len(line.get_xdata()) > 10]
            looks = [(str(line._dash_pattern), line.get_marker()) for line in lines]
            assert len(set(looks)) == len(looks) > 3


def test_all_that_polls_for_nothing_is_one_line():
    free = planned("quota alone")
    with styled():
        axes = alone(CHARTS[1], free).axes[0]
        polling = [line for line in axes.lines if line.get_label().endswith("$0")]
        assert [set(line.get_ydata()) for line in polling] == [{0.0}] * 3
        assert any("no break-even" in text.get_text() for text in axes.texts)


def test_the_line_of_the_waiter_stays_below_the_quota():
    with styled():
        axes = alone(CHARTS[3], planned("far beyond the quota")).axes[0]
        days = [line for line in axes.lines if len(line.get_xdata()) > 10]
        over = [max(line.get_ydata()) > 1 for line in days]
        assert over == [True, True, False, False, False]  # tight loop and SDK; the waiter thrice


def covered(axes, marks, reach) -> list[str]:
    """Names that lie on a mark: of which each takes so many points around its place."""
    dot = axes.figure.dpi / 72
    return [
        each.get_text()
        for each in axes.texts
        for x, y in axes.transData.transform(marks)
        if each.get_window_extent().padded(reach * dot).contains(x, y)
    ]


def marks_of(axes):
    lines = [each for each in axes.lines if each.get_marker() not in ("None", None)]
    return [each.get_xydata()[0] for each in lines], lines[0].get_markersize() / 2


def test_no_name_lies_on_a_mark(found):
    with styled():
        axes = alone(CHARTS[0], found).axes[0]
        assert covered(axes, *marks_of(axes)) == []


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_no_name_lies_on_a_mark_however_they_crowd(billed, seed):
    """Policies that are all about as good as each other, as many lie beside Foresight."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in billed.rows:
        calls, mean = np.exp(rng.uniform(-1, 1, 2)) * (5, 1)
        rows.append(replace(row, calls=calls, delay=replace(row.delay, mean=mean)))
    with styled():
        axes = alone(CHARTS[0], replace(billed, rows=tuple(rows))).axes[0]
        assert covered(axes, *marks_of(axes)) == []


def test_no_thin_line_ends_at_the_mark_of_another(found):
    with styled():
        axes = alone(CHARTS[0], found).axes[0]
    thin = [line.get_xydata() for line in axes.lines if line.get_linewidth() == 1.2]
    marks = [line.get_xydata()[0] for line in axes.lines if line.get_marker() not in ("None", None)]
    across = axes.transData.transform
    for start, end in (across(each) for each in thin):
        near = [mark for mark in map(across, marks) if np.hypot(*(mark - start)) > 1]
        assert all(np.hypot(*(mark - end)) > 5 for mark in near)
