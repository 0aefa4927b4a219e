"""The report: it needs nothing else, and its charts can be read."""

import re
from itertools import combinations

import pytest
from matplotlib.figure import Figure

from runbell.planner import Trace, Workload, plan, playing
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
            lines = [
                line
                for line in alone(chart, found).axes[0].lines
                if len(line.get_xdata()) > 10 and len(set(line.get_ydata())) >= 1
            ]
            looks = [(line.get_linestyle(), str(line._dash_pattern)) for line in lines]
            assert len(set(looks)) == len(looks) > 3
