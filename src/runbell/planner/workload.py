"""What is planned for: how many runs, how long they take, and what calls and webhooks cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from runbell.errors import InvalidSetting
from runbell.planner.traces import SECONDS_A_MONTH, Trace, is_number

__all__ = ["MINUTES_A_MONTH", "Workload"]

MINUTES_A_MONTH = SECONDS_A_MONTH // 60


BOUNDS = {
    "runs_per_month": (0.01, 1e12, "0.01 to 1,000,000,000,000"),
    "rpm": (1, 1e12, "1 to 1,000,000,000,000, or None (--rpm 0) for any number"),
    "price_per_call": (0, 1e6, "0 to 1,000,000, in dollars"),
    "webhook_monthly": (0, 1e12, "0 to 1,000,000,000,000, in dollars"),
    "latency": (0.001, 60, "0.001 to 60, in seconds"),
    "webhook_loss": (0, 1, "a share, from 0 to 1"),
    "peak": (1, 1000, "from 1, where every minute is like the others, to 1000"),
    "delay_price": (1e-6, 1e6, "0.000001 to 1,000,000, in seconds"),
}
"""What values make sense: the least, the greatest, and in words."""


@dataclass(frozen=True, eq=False)
class Workload:
    """What is planned for. A month has 30 days.

    Attributes:
        durations: how long runs take, in seconds: a `Trace`, or the seconds themselves.
        runs_per_month: how many there are; None for what the trace's history tells.
        rpm: calls a minute that the server allows; None for any number.
        price_per_call: of a status request, in dollars. They are rarely billed.
        webhook_monthly: what a public endpoint costs a month, in dollars.
        latency: seconds from sending a request until its answer is known; an event takes half.
        webhook_loss: the share of events that never arrive, after all retries.
        peak: how many times the mean the busiest minute of a day has.
        holds: the server holds requests until the run is settled, as Runbell's does.
        delay_price: the seconds of delay that one call is worth, to Foresight.

    Raises:
        InvalidSetting: a value makes no sense; the message names the field, and the option of
            `runbell plan` that sets it.
    """

    durations: Trace | Iterable[float]
    runs_per_month: float | None = None
    rpm: float | None = 500.0
    price_per_call: float = 0.0
    webhook_monthly: float = 35.0
    latency: float = 0.15
    webhook_loss: float = 0.001
    peak: float = 3.0
    holds: bool = False
    delay_price: float = 0.25

    def __post_init__(self) -> None:
        if not isinstance(self.durations, Trace):
            object.__setattr__(self, "durations", Trace.of(self.durations))
        if self.runs_per_month is None:
            object.__setattr__(self, "runs_per_month", self.trace.runs_per_month)
        if self.runs_per_month is None:
            raise InvalidSetting(
                "runs_per_month (--runs-per-month) is needed: how many runs there are; only a "
                "history of a day or more tells it by itself"
            )
        if not isinstance(self.holds, bool):
            raise InvalidSetting(f"holds is {self.holds!r}: it has to be True or False")
        for name, (low, high, needed) in BOUNDS.items():
            value = getattr(self, name)
            if value is None and name == "rpm":
                continue
            if not is_number(value):
                raise InvalidSetting(f"{name} is {value!r}: a number is needed, {needed}")
            if isinstance(value, np.generic):
                value = value.item()  # for JSON
                object.__setattr__(self, name, value)
            if not low <= value <= high:
                option = "" if name == "delay_price" else f" (--{name.replace('_', '-')})"
                raise InvalidSetting(f"{name} is {value:g}: it has to be {needed}{option}")

    @property
    def trace(self) -> Trace:
        """How long runs take."""
        assert isinstance(self.durations, Trace)
        return self.durations

    @property
    def runs(self) -> float:
        """Runs a month."""
        assert self.runs_per_month is not None
        return self.runs_per_month
