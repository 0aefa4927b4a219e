"""The best that any policy could do that knows how durations are distributed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.polling.truth import Draws

__all__ = ["Frontier", "frontier", "programme"]

Floats = NDArray[np.float64]


def programme(
    times: Floats, ended: Floats, means: Floats, prices: Floats, latency: float
) -> tuple[Floats, Floats]:
    """The least E[delay] + price · E[calls] over all choices of checks among `times`.

    J(i) = min over j of  price·S(i) + ∫ from t(i) to t(j) of (t(j) - u) dF(u) + J(j): the plain
    dynamic programme, every j tried for every i. The product has a faster one; neither knows of
    the other.

    Args:
        times: seconds, ascending, from 0 to where every run has ended.
        ended: F at each of them.
        means: ∫ u dF(u) up to each of them.
        prices: seconds of delay that a call is worth; all are solved for at once.
        latency: seconds that two checks are apart at least; the first comes after half of it.

    Returns:
        For each price E[calls] and E[delay]. The delay counts the half latency that an answer is
        on its way.
    """
    count = len(times)
    cost = np.zeros((count, len(prices)))
    calls = np.zeros((count, len(prices)))
    # What a next check at j costs, but for the part that depends on i as well.
    base = np.zeros((count, len(prices)))
    base[-1] = times[-1] * ended[-1] - means[-1]
    columns = np.arange(len(prices))
    for i in range(count - 2, -1, -1):
        soonest = times[i] + (latency if i else latency / 2)
        start = min(int(np.searchsorted(times, soonest - 1e-9)), count - 1)
        tried = base[start:] - ended[i] * times[start:, None]
        best = tried.argmin(axis=0)
        alive = 1 - ended[i]
        cost[i] = prices * alive + means[i] + tried[best, columns]
        calls[i] = alive + calls[start + best, columns]
        base[i] = times[i] * ended[i] - means[i] + cost[i]
    return calls[0], cost[0] - prices * calls[0] + latency / 2


class Frontier:
    """The best delays for numbers of calls.

    Args:
        calls: E[calls] of optimal policies.
        delays: their E[delay], in seconds.
    """

    def __init__(self, calls: Floats, delays: Floats) -> None:
        order = np.argsort(delays)
        self.calls, self.delays = calls[order], delays[order]

    def calls_at(self, delay: float) -> float:
        """The fewest calls with this mean delay: between two optimal policies, by using each now
        and then."""
        return float(np.interp(delay, self.delays, self.calls))


def frontier(draws: Draws, latency: float = 0.15) -> Frontier:
    """The frontier for durations that are drawn like these."""
    times, ended, means = table(draws)
    return Frontier(*programme(times, ended, means, np.geomspace(2e-5, 200, 64), latency))


def table(draws: Draws) -> tuple[Floats, Floats, Floats]:
    """Moments of checks to choose from, dense where durations are; F and ∫ u dF there."""
    count = len(draws)
    times = np.unique(
        np.concatenate(
            [
                [0.0],
                draws[(np.linspace(0, 1, 900) * (count - 1)).astype(int)],
                np.geomspace(max(draws[0] / 2, 0.01), draws[-1], 700),
                np.linspace(draws[0], draws[-1], 300),
            ]
        )
    )
    upto = np.searchsorted(draws, times, side="right")
    return times, upto / count, np.concatenate([[0.0], np.cumsum(draws)])[upto] / count
