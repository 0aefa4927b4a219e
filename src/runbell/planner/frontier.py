"""The fewest calls that any policy can have with a mean delay, if it knows how long runs take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from runbell.pacing.schedule import best_checks
from runbell.planner.traces import Floats

__all__ = ["Optimum", "frontier"]

MOMENTS = 6000
"""Among so many the checks are chosen, all kinds together; what is between them is not found."""

LEAST_MOMENTS = 150
STAND_FOR = 2000
PRICES = np.geomspace(0.0002, 30.0, 17)


class Optimum(NamedTuple):
    """The best policy at one price of a call.

    Attributes:
        price: seconds of delay that a call is worth.
        calls: of a run, in the mean.
        delay: in the mean, in seconds.
    """

    price: float
    calls: float
    delay: float


def frontier(draws: Mapping[str, Floats], latency: float) -> list[Optimum]:
    """The optimum of each kind at each of some prices, by the exact dynamic programme.

    Source: Barlow, Hunter and Proschan, "Optimum Checking Procedures", 1963.
    """
    counts = [len(ends) for ends in draws.values()]
    few = [
        np.quantile(ends, (np.arange(STAND_FOR) + 0.5) / STAND_FOR)
        if len(ends) > STAND_FOR
        else np.sort(ends)
        for ends in draws.values()
    ]
    grids = [_moments(ends, max(LEAST_MOMENTS, MOMENTS // len(few))) for ends in few]
    found = []
    for price in PRICES:
        parts = [
            _best(ends, times, float(price), latency)
            for ends, times in zip(few, grids, strict=True)
        ]
        calls, delay = np.average(np.array(parts), axis=0, weights=counts)
        found.append(Optimum(float(price), float(calls), float(delay)))
    return found


def _moments(ends: Floats, count: int) -> Floats:
    """Where a check may be: close together where many runs end, and nowhere far apart."""
    third, last = count // 3, float(ends[-1])
    often = np.quantile(ends, np.linspace(0, 1, third))
    early = np.geomspace(float(ends[0]), last, third)
    evenly = np.linspace(0, last, third)
    return np.unique(np.concatenate([often, early, evenly]))


def _best(ends: Floats, times: Floats, price: float, latency: float) -> tuple[float, float]:
    """E[calls] and E[delay] of the best checks for runs that end at these moments, ascending."""
    alive = 1.0 - np.searchsorted(ends, times, side="right") / len(ends)
    following = best_checks(times.tolist(), alive.tolist(), price, latency, latency / 2)
    checks, place = [], 0
    while place < len(times) - 1:
        place = following[place]
        checks.append(times[place])
    seen = np.array(checks)
    which = np.minimum(np.searchsorted(seen, ends), len(seen) - 1)
    return float((which + 1).mean()), float((seen[which] - ends).mean() + latency / 2)
