"""What a policy's calls do to the quota, over a busy day."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from runbell.planner.traces import Floats

__all__ = ["DAYS_A_MONTH", "MINUTES_A_DAY", "Day", "busy_day", "day_of"]

MINUTES_A_DAY = 1440
DAYS_A_MONTH = 30

BUSIEST = 14 * 60
"""The minute of the day at which most runs are created."""


class Day(NamedTuple):
    """One day under a quota.

    Attributes:
        wanted: calls in each minute of it, by the policy.
        refused: of these, how many are answered 429.
    """

    wanted: Floats
    refused: Floats


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


def day_of(calls_a_day: float, shape: Floats, rpm: float | None) -> Day:
    """A day's calls against a token bucket of `rpm` calls that gets `rpm` a minute.

    A policy that is refused asks again at its own pace, in the place of a call that it would have
    made: what is beyond the quota is refused, and that is the least. In the mean of minutes; that
    runs come at random moments within a minute is not in it.
    """
    wanted = calls_a_day / MINUTES_A_DAY * shape
    refused = np.zeros(MINUTES_A_DAY)
    if rpm is None:
        return Day(wanted, refused)
    left = rpm
    for minute, calls in enumerate(wanted):
        there = left + rpm
        refused[minute] = max(float(calls) - there, 0.0)
        left = min(rpm, max(there - float(calls), 0.0))
    return Day(wanted, refused)
