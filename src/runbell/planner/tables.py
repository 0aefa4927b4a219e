"""A plan in words and rows: what the command line prints and the report shows."""

from __future__ import annotations

from math import inf

from runbell.planner.planning import Plan, Row
from runbell.planner.words import dollars, number, percent, price
from runbell.planner.workload import MINUTES_A_MONTH, Workload

__all__ = ["breaks", "notes", "policies", "summary"]

Table = list[list[str]]

POLICIES = (
    "policy", "calls/run", "calls/month", "quota at peak", "spent in", "$/month",
    "mean s", "p95 s", "p99 s", "mean s at peak", "429s/month",
)  # fmt: skip
BREAKS = (
    "policy", "runs/month by $", "concurrent at peak", "runs/month by quota", "concurrent at peak",
)  # fmt: skip


def summary(plan: Plan) -> list[tuple[str, str]]:
    """What was planned for: names and values."""
    load, trace = plan.load, plan.load.trace
    endpoint = dollars(load.webhook_monthly)
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
        ("prices", f"{price(load.price_per_call)} a call, {endpoint} a month a webhook"),
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
    delays = row.delay.mean, row.delay.p95, row.delay.p99
    return [
        row.name,
        f"{row.calls:.2f}",
        f"{row.calls_per_month:,.0f}",
        "-" if share is None else percent(share),
        "never" if row.quota_spent_after is None else f"{number(row.quota_spent_after)} s",
        f"{row.dollars:,.2f}",
        *(f"{each:.2f}" if row.short < 1 else "-" for each in delays),
        _at_peak(row),
        "0 (paced)" if row.paced else f"{row.refused:,.0f}" if row.refused < inf else "no end",
    ]


def _at_peak(row: Row) -> str:
    if row.falls_behind:
        return "falls behind"
    return f"{row.delay_at_peak or row.delay.mean:.2f}"


def notes(plan: Plan) -> list[str]:
    """What has to be known about the rows, in sentences."""
    found = list(plan.load.trace.remarks)
    if not plan.load.trace.exact:
        found.append(
            "The order of the durations is not used: Foresight has learned from some that were "
            "drawn at random, and is judged by the others."
        )
    short = [row for row in plan.rows if row.short > 0]
    if any(row.short < 1 for row in short):
        found.append(
            "Where the share at peak is above 100 %, the quota does not suffice: mean, p95 and p99 "
            "are those of the rest of the day."
        )
    if any(row.short == 1 for row in short):
        found.append("Where the quota does not suffice at any time of the day, they are left out.")
    if any(row.falls_behind for row in short):
        a_minute = plan.load.runs * plan.load.peak / MINUTES_A_MONTH
        found.append(
            f"What falls behind does so without end: {number(a_minute)} runs a minute at peak want "
            f"a call each at least, and {plan.load.rpm:,.0f} are allowed."
        )
    if any(row.delay_at_peak is not None and not row.paced for row in short):
        found.append(
            "At peak, who is refused asks again; the SDK does so by itself after the time that it "
            "is told. The waiter keeps within the quota, and spends it where it is worth most."
        )
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
