"""What to do: the break-even, and a recommendation with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import combinations, pairwise
from typing import NamedTuple

from runbell.planner.roster import ADVISED, BACKSTOP, FORESIGHT, LONG_POLL, WEBHOOK
from runbell.planner.traces import SECONDS_A_MONTH
from runbell.planner.words import about, dollars, percent, price, share_of
from runbell.planner.workload import MINUTES_A_MONTH, Workload

__all__ = ["FORMULAS", "ROOM", "Advice", "BreakEven", "Costs", "break_even", "recommend"]

ROOM = 0.8
"""The share of the quota that status requests may take at peak: the rest is for the runs."""

LATER = 1.1
"""What is later than Foresight by more than this factor is not cheaper, but worse."""

CENT = 0.005
ALIKE = 0.995

NAMES = {
    FORESIGHT: "polling with Foresight",
    LONG_POLL: "holding the request",
    BACKSTOP: "webhooks with a backstop",
}

FORMULAS = (
    "by money: runs a month = webhook $ a month / ($ a call x (calls a run - the webhook's))",
    f"by quota: runs a month = {percent(ROOM)} x calls a minute x 43,200 / (peak x calls a run)",
    f"the other {percent(1 - ROOM)} of the quota are for the runs themselves",
    "concurrent runs at peak = runs a month x peak x mean seconds of a run / 2,592,000 (Little)",
    f"by quota that is {percent(ROOM)} x calls a minute x mean seconds / (60 x calls a run)",
)


class BreakEven(NamedTuple):
    """Where a webhook begins to be better than a policy; None for never.

    Attributes:
        runs_by_money: runs a month from which polling costs more than the webhook.
        concurrent_by_money: the runs that go on at the same time at peak, then.
        runs_by_quota: runs a month from which polling wants more of the quota at peak than status
            requests should have (`ROOM`).
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
    """What a recommendation looks at, of one policy. Shares and dollars are of a month's runs."""

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
        quota = ROOM * load.rpm * MINUTES_A_MONTH / (load.peak * calls)

    def concurrent(runs: float | None) -> float | None:
        return None if runs is None else runs * load.peak * mean_seconds / SECONDS_A_MONTH

    return BreakEven(money, concurrent(money), quota, concurrent(quota))


class Advice(NamedTuple):
    """What to do.

    Attributes:
        name: of a policy.
        sentence: which, why, and what would change it.
    """

    name: str
    sentence: str


def recommend(load: Workload, rows: Mapping[str, Costs], mean_seconds: float) -> Advice:
    """What to do: of the ways whose calls find room in the quota and that are no later than
    Foresight, the one that costs least; of those that cost the same, the one with the least
    delay + price of a call in seconds x calls.

    Args:
        mean_seconds: how long a run takes.
    """
    return _Adviser(load, rows, mean_seconds).advice()


class _Adviser:
    """All that costs or takes quota is in proportion to the runs, so other volumes can be asked
    about, and the sentence says where the answer is another one."""

    def __init__(self, load: Workload, rows: Mapping[str, Costs], mean_seconds: float) -> None:
        self._load, self._rows, self._mean = load, rows, mean_seconds
        self._ways = [name for name in NAMES if name != LONG_POLL or load.holds]
        ours = () if load.holds else (LONG_POLL, ADVISED)  # what other servers do not have
        self._there = [name for name in rows if name not in (*ours, WEBHOOK)]

    def advice(self) -> Advice:
        name = self._best(self._load.runs)
        if not self._fits(name, self._load.runs):
            return Advice(name, self._nothing_fits(name))
        return Advice(name, f"{self._reason(name)}{self._change(name)}.")

    def _share(self, name: str, runs: float) -> float:
        return (self._rows[name].share or 0.0) * runs / self._load.runs

    def _dollars(self, name: str, runs: float) -> float:
        return self._fixed(name) + self._load.price_per_call * self._rows[name].calls * runs

    def _fixed(self, name: str) -> float:
        return self._load.webhook_monthly if name == BACKSTOP else 0.0

    def _calls(self, name: str) -> float:
        return self._rows[name].calls

    def _fits(self, name: str, runs: float) -> bool:
        return self._share(name, runs) <= ROOM

    def _worth(self, name: str) -> float:
        return self._rows[name].delay + self._load.delay_price * self._rows[name].calls

    def _best(self, runs: float, *, quota: bool = True) -> str:
        """Args:
        quota: there is one; otherwise, what would be best if there was none.
        """
        fit = [name for name in self._ways if not quota or self._fits(name, runs)]
        if not fit:
            return min(self._ways, key=lambda name: self._share(name, runs))
        late = LATER * self._rows[FORESIGHT].delay
        prompt = [name for name in fit if self._rows[name].delay <= late] or fit
        least = min(self._dollars(name, runs) for name in prompt) + CENT
        best = min((name for name in prompt if self._dollars(name, runs) <= least), key=self._worth)
        better = [name for name in self._there if self._beats(name, best, runs)]
        return min(better, key=self._worth, default=best)

    def _beats(self, name: str, other: str, runs: float) -> bool:
        """Whether a policy is no worse in any way, and better by more than rounding."""
        one, two = self._rows[name], self._rows[other]
        no_worse = (
            one.delay <= two.delay
            and one.calls <= two.calls
            and self._dollars(name, runs) <= self._dollars(other, runs)
        )
        return no_worse and (one.delay < ALIKE * two.delay or one.calls < ALIKE * two.calls)

    def _turns(self) -> list[float]:
        """Volumes at which another way may be the best: where one crowds the quota, or costs as
        much as another."""
        found = [
            ROOM * self._load.runs / row.share
            for name in self._ways
            if (row := self._rows[name]).share
        ]
        for one, two in combinations(self._ways, 2):
            saved = self._load.price_per_call * (self._rows[one].calls - self._rows[two].calls)
            more = self._fixed(two) - self._fixed(one)
            if saved and more / saved > 0:
                found.append(more / saved)
        return sorted(found)

    def _neighbours(self, best: str) -> tuple[tuple[float, str] | None, tuple[float, str] | None]:
        """The nearest volumes below and above at which the best way is another, and which."""
        runs = self._load.runs
        turns = [0.0, *self._turns(), math.inf]
        below = above = None
        for low, high in pairwise(turns):
            middle = 2 * low if high == math.inf else math.sqrt(max(low, high / 4) * high)
            if not middle:
                continue
            there = self._best(middle)
            if there != best and high <= runs:
                below = (high, there)
            elif there != best and low >= runs and above is None:
                above = (low, there)
        return below, above

    def _change(self, name: str) -> str:
        below, above = self._neighbours(name)
        parts = []
        if above is not None:
            runs, other = above
            instead = f"{NAMES.get(other, other)} would be better"
            if not self._fits(other, runs * 1.01):
                instead = "nothing would fit"
            parts.append(
                f"from {about(runs)} runs a month on ({self._together(runs)} at the same time at "
                f"peak) {instead}, since {self._why_not(name, runs)}"
            )
        if below is not None:
            runs, other = below
            parts.append(
                f"with fewer than {about(runs)} runs a month ({self._together(runs)} at the same "
                f"time at peak) {NAMES.get(other, other)} would be better"
            )
        parts += self._other_settings(name)
        return "".join(f"; {part}" for part in parts)

    def _together(self, runs: float) -> str:
        return about(runs * self._load.peak * self._mean / SECONDS_A_MONTH)

    def _why_not(self, name: str, runs: float) -> str:
        if not self._fits(name, runs * 1.01):
            return f"it would take more than {percent(ROOM)} of the quota at peak"
        return "its calls would cost more"

    def _other_settings(self, name: str) -> list[str]:
        """What would change it but the volume."""
        load, polling, webhook = self._load, self._rows[FORESIGHT], self._rows[BACKSTOP]
        if name != BACKSTOP:
            quick = f"{self._rows[name].p95:.2g} s (the slowest twentieth)"
            serverless = "take webhooks with a backstop where nobody is there to hold a connection"
            too_late = f"take webhooks with a backstop where {quick} is too late for you"
            return (
                [serverless if name == LONG_POLL else too_late]
                if (name == LONG_POLL or webhook.p95 < polling.p95)
                else []
            )
        if not self._fits(FORESIGHT, load.runs):
            other = self._best(load.runs, quota=False)
            needed = (load.rpm or 0.0) * (self._rows[other].share or 0.0) / ROOM
            better = f"with a quota of {about(needed)} calls a minute {NAMES.get(other, other)}"
            return [] if other == BACKSTOP else [f"{better} would be better"]
        other = min((way for way in self._ways if way != BACKSTOP), key=self._calls)
        saved = load.runs * (self._calls(other) - webhook.calls)
        if load.price_per_call and load.webhook_monthly and saved > 0:
            most = price(load.webhook_monthly / saved)
            return [f"at less than {most} a call {NAMES[other]} would be better"]
        return []

    def _reason(self, name: str) -> str:
        row = self._rows[name]
        quota = "" if row.share is None else f"takes {share_of(row.share, 'the quota')} at peak, "
        costs = f"costs {dollars(row.dollars)} a month"
        late = f"knows of an end {row.delay:.2g} s late in the mean"
        endpoint = f"where an endpoint costs {dollars(self._rows[BACKSTOP].dollars)}"
        if name == FORESIGHT:
            return f"Poll with Foresight: it {quota}{costs}, {endpoint}, and {late}"
        if name == LONG_POLL:
            return (
                "Hold the request (Prefer: wait), as your service can: it takes "
                f"{row.calls:.1f} calls a run, {quota}{costs}, {endpoint}, and {late}"
            )
        if name == BACKSTOP:
            return (
                f"Take webhooks with a backstop: {self._against_polling()}; they "
                f"{quota.replace('takes', 'take', 1)}cost {dollars(row.dollars)} a month, and know "
                f"of an end {row.delay:.2g} s late in the mean"
            )
        return (
            f"Take {name}: for these runs it is no later than what else costs as little, and takes "
            f"no more calls; it {quota}{costs}, {endpoint}, and {late}"
        )

    def _against_polling(self) -> str:
        load, polling, webhook = self._load, self._rows[FORESIGHT], self._rows[BACKSTOP]
        if not self._fits(FORESIGHT, load.runs):
            return (
                f"at peak even Foresight would take {share_of(polling.share or 0.0, 'your quota')} "
                f"of {load.rpm:,.0f} calls a minute, and {percent(ROOM)} is as much as status "
                "requests should have"
            )
        if polling.dollars > webhook.dollars + CENT:
            return f"polling with Foresight costs {dollars(polling.dollars)} a month"
        return "polling costs no less, takes more calls and is later"

    def _nothing_fits(self, name: str) -> str:
        load, row = self._load, self._rows[name]
        share = row.share or 0.0
        needed = about((load.rpm or 0.0) * share / ROOM)
        return (
            f"Nothing fits into your quota of {load.rpm:,.0f} calls a minute: even "
            f"{NAMES[name]}, the least, would take {share_of(share, 'that')} at peak, and "
            f"{percent(ROOM)} is as much as status requests should have; get a quota of {needed} "
            f"calls a minute, or have fewer than {about(ROOM * load.runs / share)} runs a month."
        )
