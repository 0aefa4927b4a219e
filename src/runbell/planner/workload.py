"""What is planned for: how many runs, how long they take, and what calls and webhooks cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from runbell.errors import InvalidSetting
from runbell.planner.traces import SECONDS_A_MONTH, Trace

__all__ = ["MINUTES_A_MONTH", "Workload"]

MINUTES_A_MONTH = SECONDS_A_MONTH // 60


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
        InvalidSetting: a value makes no sense.
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
                "--runs-per-month is needed: how many runs there are (only a history of a day or "
                "more tells it by itself)"
            )
        above, from_0 = (lambda value: value > 0), (lambda value: value >= 0)
        checks = (
            ("runs_per_month", above, "above 0"),
            ("rpm", lambda value: value >= 1, "at least 1; 0 on the command line for no limit"),
            ("price_per_call", from_0, "0 dollars or more"),
            ("webhook_monthly", from_0, "0 dollars or more"),
            ("latency", lambda value: 0.001 <= value <= 60, "0.001 to 60, in seconds"),
            ("webhook_loss", lambda value: 0 <= value <= 1, "a share, from 0 to 1"),
            ("peak", lambda value: 1 <= value <= 1000, "1 (every minute like the others) to 1000"),
            ("delay_price", above, "above 0"),
        )
        for name, makes_sense, needed in checks:
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and makes_sense(value)):
                raise InvalidSetting(
                    f"{name} is {value:g}: it has to be {needed} (--{name.replace('_', '-')})"
                )

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
