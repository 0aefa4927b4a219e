"""What to do: the break-even, and a recommendation with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from runbell.planner.roster import BACKSTOP, FORESIGHT, LONG_POLL
from runbell.planner.traces import SECONDS_A_MONTH
from runbell.planner.words import about, percent
from runbell.planner.workload import MINUTES_A_MONTH, Workload

__all__ = ["FORMULAS", "BreakEven", "Costs", "break_even", "recommend"]

ROOM = 0.8
"""The share of the quota that polling may take at peak: the rest is for the runs themselves."""

FORMULAS = (
    "by money: runs a month = webhook $ a month / ($ a call x (calls a run - the webhook's))",
    "by quota: runs a month = calls a minute x 43,200 / (peak x calls a run)",
    "concurrent runs at peak = runs a month x peak x mean seconds of a run / 2,592,000 (Little)",
    "by quota that is calls a minute x mean seconds / (60 x calls a run): RPM x interval / 60",
)


class BreakEven(NamedTuple):
    """Where a webhook begins to be better than a policy; None for never.

    Attributes:
        runs_by_money: runs a month from which polling costs more than the webhook.
        concurrent_by_money: the runs that go on at the same time at peak, then.
        runs_by_quota: runs a month from which polling wants more than the quota at peak.
        concurrent_by_quota: the runs that go on at the same time at peak, then.
    """

    runs_by_money: float | None
    concurrent_by_money: float | None
    runs_by_quota: float | None
    concurrent_by_quota: float | None

    @property
    def runs(self) -> float | None:
        """Runs a month from which the one or the other holds."""
        return min(
            (each for each in (self.runs_by_money, self.runs_by_quota) if each is not None),
            default=None,
        )

    @property
    def concurrent(self) -> float | None:
        """The runs that go on at the same time at peak, then."""
        both = (self.concurrent_by_money, self.concurrent_by_quota)
        return min((each for each in both if each is not None), default=None)


class Costs(NamedTuple):
    """What a recommendation looks at, of one policy."""

    calls: float
    share: float | None
    dollars: float
    delay: float
    p95: float


def break_even(
    load: Workload, calls: float, webhook_calls: float, mean_seconds: float
) -> BreakEven:
    """From where on a webhook with a backstop is better than a policy; see `FORMULAS`.

    Args:
        calls: of the policy, a run.
        webhook_calls: of the webhook's backstop, a run.
        mean_seconds: how long a run takes.
    """
    saved = load.price_per_call * (calls - webhook_calls)
    money = load.webhook_monthly / saved if saved > 0 else None
    quota = None
    if load.rpm is not None and calls > webhook_calls:
        quota = load.rpm * MINUTES_A_MONTH / (load.peak * calls)

    def concurrent(runs: float | None) -> float | None:
        return None if runs is None else runs * load.peak * mean_seconds / SECONDS_A_MONTH

    return BreakEven(money, concurrent(money), quota, concurrent(quota))


def recommend(load: Workload, rows: Mapping[str, Costs], even: BreakEven) -> tuple[str, str]:
    """A policy, and a sentence that says why, and what would change it.

    Args:
        even: of Foresight against the webhook.
    """
    polling, webhook = rows[FORESIGHT], rows[BACKSTOP]
    if load.holds and (rows[LONG_POLL].share or 0.0) <= ROOM:
        return LONG_POLL, _hold(rows[LONG_POLL], webhook)
    if load.rpm is not None and polling.share is not None and polling.share > ROOM:
        return BACKSTOP, (
            f"Take webhooks with a backstop: at peak even Foresight would take "
            f"{percent(polling.share)} of your quota of {load.rpm:,.0f} calls a minute, and "
            f"{percent(ROOM)} is as much as status requests should have; with fewer than "
            f"{about(load.runs * ROOM / polling.share)} runs a month, or a quota of "
            f"{about(load.rpm * polling.share / ROOM)} calls a minute, polling would do."
        )
    if even.runs_by_money is not None and load.runs > even.runs_by_money:
        return BACKSTOP, (
            f"Take webhooks with a backstop: they cost ${webhook.dollars:,.2f} a month, where "
            f"polling with Foresight costs ${polling.dollars:,.2f}; with fewer than "
            f"{about(even.runs_by_money)} runs a month "
            f"({about(even.concurrent_by_money or 0.0)} at the same time at peak), or at less than "
            f"${load.webhook_monthly / (load.runs * polling.calls):.2g} a call, polling would do."
        )
    return FORESIGHT, _poll(load, polling, webhook, even)


def _hold(row: Costs, webhook: Costs) -> str:
    return (
        f"Hold the request (Prefer: wait): your service can, so an end is known {row.delay:.2f} s "
        f"late for {row.calls:.1f} calls a run and ${row.dollars:,.2f} a month, where an endpoint "
        f"costs ${webhook.dollars:,.2f} and is no quicker; take webhooks with a backstop if nobody "
        "is there to hold a connection, as in serverless functions."
    )


def _poll(load: Workload, polling: Costs, webhook: Costs, even: BreakEven) -> str:
    quota = (
        "" if polling.share is None else f"takes {percent(polling.share)} of the quota at peak, "
    )
    return (
        f"Poll with Foresight: it {quota}costs ${polling.dollars:,.2f} a month, where an "
        f"endpoint costs ${webhook.dollars:,.2f}, and knows of an end {polling.delay:.1f} s late "
        f"in the mean; take webhooks with a backstop {_until(load, polling, even)}if "
        f"{polling.p95:.1f} s (the slowest twentieth) is too late for you."
    )


def _until(load: Workload, polling: Costs, even: BreakEven) -> str:
    """From where on polling would not do any more, as a part of a clause."""
    candidates = []
    if polling.share:
        candidates.append((load.runs * ROOM / polling.share, "where it would crowd the quota"))
    if even.runs_by_money is not None:
        candidates.append((even.runs_by_money, "where calls cost more than an endpoint"))
    if not candidates:
        return ""
    runs, why = min(candidates)
    together = (even.concurrent or 0.0) / (even.runs or 1.0) * runs
    return f"from {about(runs)} runs a month on ({about(together)} at the same time), {why}, or "
