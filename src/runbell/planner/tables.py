"""A plan in words and rows: what the command line prints and the report shows."""

from __future__ import annotations

from runbell.planner.planning import Plan, Row
from runbell.planner.words import number, percent
from runbell.planner.workload import Workload

__all__ = ["breaks", "notes", "policies", "summary"]

Table = list[list[str]]

POLICIES = (
    "policy", "calls/run", "calls/month", "quota at peak", "spent in", "$/month",
    "mean s", "p95 s", "p99 s", "429s/month",
)  # fmt: skip
BREAKS = ("policy", "runs/month by $", "concurrent", "runs/month by quota", "concurrent")


def summary(plan: Plan) -> list[tuple[str, str]]:
    """What was planned for: names and values."""
    load, trace = plan.load, plan.load.trace
    left_out = f" ({trace.left_out:,} left out: cancelled, expired or going on)"
    kinds = f", {len(trace.kinds)} kinds" if len(trace.kinds) > 1 else ""
    return [
        (
            "runs",
            (
                f"{load.runs:,.0f} a month; {number(plan.concurrent)} at the same time in the "
                f"mean, {number(plan.concurrent_at_peak)} at peak ({load.peak:g} times the mean)"
            ),
        ),
        (
            "durations",
            f"{trace.source}{kinds}: mean {number(plan.mean_seconds)} s, "
            f"median {number(plan.median_seconds)} s, p95 {number(plan.p95_seconds)} s"
            + (left_out if trace.left_out else ""),
        ),
        ("quota", _quota(load)),
        ("prices", f"${load.price_per_call:g} a call, ${load.webhook_monthly:g} a month a webhook"),
        (
            "network",
            f"{load.latency:g} s a request; {percent(load.webhook_loss)} of webhooks are lost",
        ),
    ]


def _quota(load: Workload) -> str:
    return "none" if load.rpm is None else f"{load.rpm:,.0f} calls a minute"


def policies(plan: Plan) -> Table:
    """One row for each policy, below a heading."""
    return [list(POLICIES), *(_policy(row) for row in plan.rows)]


def _policy(row: Row) -> list[str]:
    share = row.quota_share
    return [
        row.name,
        f"{row.calls:.2f}",
        f"{row.calls_per_month:,.0f}",
        "-" if share is None else percent(share),
        "never" if row.quota_spent_after is None else f"{number(row.quota_spent_after)} s",
        f"{row.dollars:,.2f}",
        f"{row.delay.mean:.2f}",
        f"{row.delay.p95:.2f}",
        f"{row.delay.p99:.2f}",
        "0 (paced)" if row.paced else f"{row.refused:,.0f}",
    ]


def notes(plan: Plan) -> list[str]:
    """What has to be known about the rows, in sentences."""
    found = []
    full = [row for row in plan.rows if row.quota_spent_after is not None]
    if any(not row.paced for row in full):
        found.append(
            "Where the share at peak is above 100 %, the quota does not suffice: the delays are "
            "those of the rest of the day, and the 429s the least that there will be."
        )
    late = [(row.name, row.delay_at_peak) for row in full if row.delay_at_peak is not None]
    found += [
        f"{name} keeps within the quota, and is {delay:.1f} s late in the mean at peak."
        for name, delay in late
    ]
    return found


def breaks(plan: Plan) -> Table:
    """From where on a webhook is better than each policy that polls, below a heading."""
    rows = []
    for row in plan.rows:
        even = row.break_even
        if even is not None:
            values = (
                even.runs_by_money, even.concurrent_by_money,
                even.runs_by_quota, even.concurrent_by_quota,
            )  # fmt: skip
            rows.append([row.name, *("never" if v is None else number(v) for v in values)])
    return [list(BREAKS), *rows]
