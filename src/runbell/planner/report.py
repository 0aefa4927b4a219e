"""A plan as a page that needs nothing else, and as a picture."""

from __future__ import annotations

import io
from html import escape

from runbell.planner import tables
from runbell.planner.charts import CHARTS, Chart, alone, styled, together
from runbell.planner.planning import Plan

__all__ = ["page", "picture"]

CSS = """
body{font:16px/1.5 system-ui,sans-serif;color:#111;background:#fff;max-width:76rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin:0 0 .5rem}h2{font-size:1.2rem;margin:2rem 0 .5rem}
.advice{font-size:1.15rem;border-left:.4rem solid #000;padding:.4rem 1rem;margin:1rem 0}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.95rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .5rem;text-align:right;border-bottom:1px solid #ccc;white-space:nowrap}
th:first-child,td:first-child{text-align:left}thead th{border-bottom:2px solid #000}
tr.taken{font-weight:bold;background:#eee}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:1.5rem}
figure{margin:0}figure svg{width:100%;height:auto}figcaption{color:#333;font-size:.95rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1rem}dt{font-weight:bold}
dd{margin:0}
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>Polling or webhooks?</title><style>{css}</style></head><body>
<h1>Polling or webhooks?</h1>
<p class="advice">{advice}</p>
<dl>{summary}</dl>
<h2>What each way costs</h2>
<div class="wide">{policies}</div>
{notes}
<div class="charts">{charts}</div>
<h2>From where on a webhook with a backstop is better</h2>
<div class="wide">{breaks}</div>
<ul>{formulas}</ul>
<h2>The policies</h2>
<dl>{what}</dl>
</body></html>
"""

NOTES = (
    "The waiter's own flow was played under a virtual clock. A waiter is told its budget, so "
    "nothing that it sends is refused."
)


def page(plan: Plan) -> str:
    """The whole page: HTML with its style and its charts in it."""
    return PAGE.format(
        css=CSS,
        advice=escape(plan.recommendation),
        summary=_definitions(tables.summary(plan)),
        policies=_table(tables.policies(plan), plan.recommended),
        notes="".join(f"<p>{escape(each)}</p>" for each in (NOTES, *tables.notes(plan))),
        charts="".join(_figure(chart, plan) for chart in CHARTS),
        breaks=_table(tables.breaks(plan), plan.recommended),
        formulas="".join(f"<li>{escape(each)}</li>" for each in plan.formulas),
        what=_definitions([(row.name, row.what) for row in plan.rows]),
    )


def picture(plan: Plan) -> bytes:
    """The four charts as a PNG."""
    made = io.BytesIO()
    with styled():
        together(plan).savefig(made, format="png", dpi=100)
    return made.getvalue()


def _figure(chart: Chart, plan: Plan) -> str:
    made = io.StringIO()
    # A salt for each: what the charts define is called by it, and they share a page.
    with styled(chart.name):
        alone(chart, plan).savefig(made, format="svg", metadata={"Date": None})
    text = made.getvalue()
    drawing = text[text.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(chart.title)}" ', 1
    )
    return f"<figure>{drawing}<figcaption>{escape(chart.reading)}</figcaption></figure>"


def _definitions(pairs: list[tuple[str, str]]) -> str:
    return "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs)


def _table(rows: list[list[str]], taken: str) -> str:
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in rows[0])
    body = "".join(
        f"<tr{' class=taken' if row[0] == taken else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>"
        for row in rows[1:]
    )
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
