"""The plan: every policy played, counted and priced, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from runbell.planner.advice import FORMULAS, BreakEven, Costs, break_even, recommend
from runbell.planner.frontier import Optimum, frontier
from runbell.planner.playing import Outcome
from runbell.planner.quota import (
    DAYS_A_MONTH,
    MINUTES_A_DAY,
    busy_day,
    refused_a_day,
    short_of,
)
from runbell.planner.roster import BACKSTOP, ROSTER, Contender, Setting
from runbell.planner.traces import SECONDS_A_MONTH, Floats
from runbell.planner.workload import MINUTES_A_MONTH, Workload

__all__ = ["Delay", "Plan", "Row", "plan"]

SHARES = [5.0, 25.0, 50.0, 75.0, 95.0, 99.0]


@dataclass(frozen=True, slots=True)
class Delay:
    """From the end of a run until it is known, in seconds."""

    mean: float
    p5: float
    p25: float
    p50: float
    p75: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy costs and brings.

    Attributes:
        calls: status requests of a run, in the mean.
        calls_per_month: of all runs.
        peak_calls_per_minute: at the busiest minute of the day.
        quota_share: of that in the quota; above 1 it does not suffice. None without a quota.
        quota_spent_after: seconds at peak after which a full quota is spent; None for never.
        dollars: a month, the endpoint included.
        delay: while the quota suffices; where it does not, runs of the peak are known later.
        refused: 429s a month; 0 for the waiter, which keeps within the quota it is told; infinity
            where there is no end of them, for which JSON has null.
        paced: it does.
        short: the share of the day in which the quota does not suffice; 1 where it never does, so
            that `delay` is nobody's.
        falls_behind: at peak there are more runs than calls, so that the delay grows without end.
        delay_at_peak: the mean delay at the busiest minute, in seconds, where the quota does not
            suffice then; None where it does, or where it falls behind.
        break_even: against a webhook with a backstop; None for what needs an endpoint itself.
    """

    name: str
    what: str
    calls: float
    calls_per_month: float
    peak_calls_per_minute: float
    quota_share: float | None
    quota_spent_after: float | None
    dollars: float
    delay: Delay
    refused: float
    paced: bool
    break_even: BreakEven | None
    short: float = 0.0
    falls_behind: bool = False
    delay_at_peak: float | None = None


@dataclass(frozen=True)
class Plan:
    """What polling and webhooks cost, and what to do.

    Attributes:
        rows: one for each policy.
        recommended: the name of one of them.
        recommendation: a sentence: which, why, and what would change it.
        frontier: the best that any policy could do that knows how long runs take.
        mean_seconds: how long a run takes.
        concurrent: runs that go on at the same time, in the mean of the day.
        concurrent_at_peak: and at its busiest minute.
        busy_day: how many times the mean each minute of a day has.
        formulas: of the break-even.
    """

    load: Workload
    rows: tuple[Row, ...]
    recommended: str
    recommendation: str
    frontier: tuple[Optimum, ...]
    mean_seconds: float
    median_seconds: float
    p95_seconds: float
    concurrent: float
    concurrent_at_peak: float
    busy_day: Floats
    formulas: tuple[str, ...] = FORMULAS

    def row(self, name: str) -> Row:
        """The row of a policy.

        Raises:
            KeyError: there is none of this name.
        """
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as what JSON can say."""
        load = self.load
        names = (
            "runs_per_month", "rpm", "price_per_call", "webhook_monthly", "latency",
            "webhook_loss", "peak", "holds", "delay_price",
        )  # fmt: skip
        rows = []
        for row in self.rows:
            even = row.break_even
            refused = row.refused if math.isfinite(row.refused) else None
            rows.append(asdict(row) | {"break_even": even and even._asdict(), "refused": refused})
        return {
            "workload": {name: getattr(load, name) for name in names}
            | {
                "durations": load.trace.source,
                "durations_count": load.trace.count,
                "durations_left_out": load.trace.left_out,
                "durations_remarks": list(load.trace.remarks),
                "mean_seconds": self.mean_seconds,
                "median_seconds": self.median_seconds,
                "p95_seconds": self.p95_seconds,
                "concurrent": self.concurrent,
                "concurrent_at_peak": self.concurrent_at_peak,
            },
            "policies": rows,
            "recommended": self.recommended,
            "recommendation": self.recommendation,
            "formulas": list(self.formulas),
            "frontier": [each._asdict() for each in self.frontier],
        }


def plan(load: Workload, progress: Callable[[float], None] = lambda share: None) -> Plan:
    """Play every policy on these runs, and say what to do.

    Args:
        progress: is told which share of the work is done, from 0 to 1.

    Raises:
        TypeError: that is no `Workload`.
    """
    if not isinstance(load, Workload):
        raise TypeError(
            f"plan(Workload(durations, runs_per_month)) is expected, not {type(load).__name__}"
        )
    here = Setting.of(load)
    steps = len(ROSTER) + 2
    progress(1 / steps)
    played = []
    for done, contender in enumerate(ROSTER, 2):
        played.append(_summed(contender.play(here)))
        progress(done / steps)
    everything = np.concatenate(list(here.draws.values()))
    mean = float(everything.mean())
    median, p95 = (float(value) for value in np.percentile(everything, [50, 95]))
    shape = busy_day(load.peak)
    webhook = played[[each.name for each in ROSTER].index(BACKSTOP)].calls
    rows = tuple(
        _crowded(_row(load, contender, each, webhook, mean), contender, here, shape)
        for contender, each in zip(ROSTER, played, strict=True)
    )
    costs = {
        row.name: Costs(row.calls, row.quota_share, row.dollars, row.delay.mean, row.delay.p95)
        for row in rows
    }
    advice = recommend(load, costs, mean)
    best = tuple(frontier(here.draws, load.latency))
    progress(1.0)
    concurrent = load.runs * mean / SECONDS_A_MONTH
    return Plan(
        load=load,
        rows=rows,
        recommended=advice.name,
        recommendation=advice.sentence,
        frontier=best,
        mean_seconds=mean,
        median_seconds=median,
        p95_seconds=p95,
        concurrent=concurrent,
        concurrent_at_peak=concurrent * load.peak,
        busy_day=shape,
    )


@dataclass(frozen=True, slots=True)
class _Summed:
    """An outcome without its runs, of which there may be a million."""

    calls: float
    delay: Delay


def _summed(outcome: Outcome) -> _Summed:
    return _Summed(outcome.calls, Delay(outcome.mean, *outcome.percentiles(SHARES)))


def _crowded(row: Row, contender: Contender, here: Setting, shape: Floats) -> Row:
    """With what becomes of it where the quota does not suffice."""
    rush, share = here.rush, row.quota_share
    if rush is None or share is None or share <= 1:
        return row
    load, short = here.load, short_of(share, shape)
    if load.runs * (load.webhook_loss if contender.pushed else 1) >= rush.rpm * MINUTES_A_MONTH:
        short = 1.0  # the night is not long enough to catch up
    # Who is told of ends needs a call for those whose event is lost.
    runs = replace(rush, arrivals=rush.arrivals * load.webhook_loss) if contender.pushed else rush
    if runs.is_hopeless:
        return replace(
            row, short=short, falls_behind=True, refused=0.0 if contender.paced else math.inf
        )
    crowd = contender.crowd(here, rush, row.calls)
    refused = 0.0
    if not contender.paced:
        a_day = load.runs / DAYS_A_MONTH
        refused = refused_a_day(row.calls, a_day, shape, rush.rpm, crowd.refused) * DAYS_A_MONTH
    return replace(row, short=short, delay_at_peak=crowd.delay, refused=refused)


def _row(
    load: Workload, contender: Contender, played: _Summed, webhook_calls: float, mean: float
) -> Row:
    a_month = load.runs * played.calls
    peak = a_month / DAYS_A_MONTH / MINUTES_A_DAY * load.peak
    spent = None
    if load.rpm is not None and peak > load.rpm:
        spent = 60 * load.rpm / (peak - load.rpm)
    even = None
    if not contender.pushed:
        even = break_even(load, played.calls, webhook_calls, mean)
    return Row(
        name=contender.name,
        what=contender.what,
        calls=played.calls,
        calls_per_month=a_month,
        peak_calls_per_minute=peak,
        quota_share=None if load.rpm is None else peak / load.rpm,
        quota_spent_after=spent,
        dollars=a_month * load.price_per_call + contender.pushed * load.webhook_monthly,
        delay=played.delay,
        refused=0.0,
        paced=contender.paced,
        break_even=even,
    )
