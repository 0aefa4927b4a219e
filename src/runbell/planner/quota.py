"""What a policy's calls do to the quota, over a busy day."""

from __future__ import annotations

import math

import numpy as np

from runbell.planner.traces import Floats

__all__ = ["DAYS_A_MONTH", "MINUTES_A_DAY", "attempts", "busy_day", "refused_a_day", "short_of"]

MINUTES_A_DAY = 1440
DAYS_A_MONTH = 30

BUSIEST = 14 * 60
"""The minute of the day at which most runs are created."""


def busy_day(peak: float) -> Floats:
    """How many times the mean each minute of a day has, if the busiest one has `peak` times.

    One hill: peak·exp(k·(cos(angle to the busiest minute) - 1)), with the k that makes the mean 1.
    """
    angles = 2 * math.pi * (np.arange(MINUTES_A_DAY) - BUSIEST) / MINUTES_A_DAY
    low, high = 0.0, 1e7
    for _ in range(200):
        middle = (low + high) / 2
        mean = float(np.exp(middle * (np.cos(angles) - 1)).mean()) * peak
        low, high = (middle, high) if mean > 1 else (low, middle)
    shape: Floats = peak * np.exp(high * (np.cos(angles) - 1))
    return shape


def short_of(share: float, shape: Floats) -> float:
    """In which share of the day's minutes a quota does not suffice of which a policy wants `share`
    at peak."""
    return float(np.mean(share * shape > shape.max()))


def attempts(calls: float, rpm: float, runs_a_second: float) -> tuple[float, float]:
    """Requests of a run, and how many of them are refused, where nobody heeds a quota that does
    not suffice.

    Be R the calls and λ the runs a second, c the requests of a run of length m that is refused
    nothing: one every m/c. A share p of all requests is granted. A run that has ended waits m/(cp)
    for its turn, so there are λ(m + m/(cp)) at a time, which send λ(c + 1/p) requests a second; of
    them R are granted, so p = (R - λ)/(λc), and a run sends cR/(R - λ).

    Args:
        calls: of a run that is refused nothing.
    """
    allowed = rpm / 60
    sent = calls * allowed / (allowed - runs_a_second)
    return sent, max(sent - allowed / runs_a_second, 0.0)


def refused_a_day(
    calls: float, runs_a_day: float, shape: Floats, rpm: float, at_peak: float
) -> float:
    """429s of a policy that heeds no quota: in the minutes in which it does not suffice, as
    `attempts` has them, in proportion to what was played for the busiest one.

    Args:
        calls: of a run that is refused nothing.
        at_peak: 429s of a run at the busiest minute, as played.
    """
    runs = runs_a_day / MINUTES_A_DAY * shape
    full = runs[runs * calls > rpm]
    refused = sum(each * attempts(calls, rpm, each / 60)[1] for each in full)
    _, peak = attempts(calls, rpm, float(runs.max()) / 60)
    return float(refused) * at_peak / peak if peak else 0.0
