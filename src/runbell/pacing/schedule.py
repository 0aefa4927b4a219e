"""When to look at a run, given how long such runs take."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from runbell.pacing.estimate import Estimate, believed
from runbell.pacing.survival import TAIL_SHAPE, Curve, Survival

__all__ = ["MOST_POINTS", "PAUSES", "Schedule", "best_checks", "best_pause", "schedule"]

FEWEST_POINTS, POINTS_A_RUN, POINTS = 64, 3, 160
"""Moments among which the checks of a kind are chosen: the more, the more is known, up to what
4 KiB a kind allow."""

MOST_POINTS = 255
"""Their indices fit a byte."""

_SHARE = 0.3
_EARLIER, _LATER = 8.0, 4.0
_SLACK = 0.2
"""Of the latency, how much closer than it two checks may be planned. The moments are a grid:
without it, a check as early as possible would have to wait for the next one. What is planned
too early is done as soon as it can be."""


def best_checks(
    times: Sequence[float],
    alive: Sequence[float],
    price: float,
    apart: float,
    first: float,
    rest: float = 0.0,
) -> list[int]:
    """After a check at each of `times` that found a run going on: which of them is next.

    The exact optimum among checks at these moments: it minimises E[delay] + price · E[calls] by
    dynamic programming (Barlow, Hunter, Proschan 1963), where

        J(i) = min over j of  price·S(i) + ∫ from t(i) to t(j) of (t(j) - u) dF(u) + J(j).

    With M(i), the mean ∫ u dF(u) up to t(i), the integral is t(j)·(F(j) - F(i)) - M(j) + M(i): for
    each j a straight line in F(i). As i falls, so does F(i), while the lines that may be used get
    flatter, so the lower envelope of the lines is kept as a queue, and all of it takes time in
    proportion to the moments.

    Args:
        times: seconds, ascending, from 0, where nothing was checked yet.
        alive: S, the probability that a run takes longer than each.
        price: the seconds of delay that a call is worth.
        apart: seconds that two checks are apart at least.
        first: the same for the first check and 0.
        rest: what the calls and delays cost after the last of `times`, in seconds.

    Returns:
        For each of `times` the index of the next check, the last one's being itself.
    """
    end = len(times) - 1
    following = [end] * (end + 1)
    ended = [1.0 - value for value in alive]
    means = [0.0, *accumulate(
        (after - before) * (low + high) / 2
        for (low, high), (before, after) in zip(pairwise(times), pairwise(ended), strict=True)
    )]  # fmt: skip
    slopes: list[float] = []
    heights: list[float] = []
    indices: list[int] = []
    cost = [0.0] * (end + 1)
    cost[end] = rest
    head, new = 0, end
    for i in range(end - 1, -1, -1):
        soonest = times[i] + (apart if i else first)
        while new > i and (times[new] >= soonest or new == end):
            slope, height = -times[new], times[new] * ended[new] - means[new] + cost[new]
            while len(slopes) - head > 1 and (height - heights[-2]) * (slopes[-1] - slopes[-2]) <= (
                heights[-1] - heights[-2]
            ) * (slope - slopes[-2]):
                slopes.pop(), heights.pop(), indices.pop()
            slopes.append(slope)
            heights.append(height)
            indices.append(new)
            new -= 1
        at = ended[i]
        last = len(slopes) - 1
        while head < last and (
            slopes[head + 1] * at + heights[head + 1] <= slopes[head] * at + heights[head]
        ):
            head += 1
        cost[i] = price * (1.0 - at) + means[i] + slopes[head] * at + heights[head]
        following[i] = indices[head]
    return following


class Schedule(NamedTuple):
    """Which check follows which.

    Attributes:
        curve: how long such runs take; its times are the moments of checks.
        following: for each of them the index of the next check.
        price: the seconds of delay that a call is worth.
        latency: seconds from sending a poll until its answer is known. The answer tells how it
            was half of that before.
    """

    curve: Curve
    following: bytes
    price: float
    latency: float

    def after(self, last: float) -> float:
        """The moment of the next check, where a run was going on at `last`; 0 for no check yet."""
        times = self.curve.times
        slack = _SLACK * self.latency
        here = bisect_right(times, last + slack) - 1
        end = len(times) - 1
        soonest = last + (self.latency if last > 0 else self.latency / 2) - slack
        while here < end:
            there = self.following[here]
            if there == end:
                break
            if times[there] >= soonest:
                return times[there] if there > here + 1 else self._within(here, last, soonest)
            here += 1
        # Beyond what is planned: Keller's gap √(2·price/hazard), where the hazard is shape/t.
        return last + max(self.latency, math.sqrt(2 * self.price * last / TAIL_SHAPE))

    def _within(self, here: int, last: float, soonest: float) -> float:
        """The next check where the best is the very next moment of the table.

        A check before it may be better still, where calls are cheap and the table is coarse. Until
        then a run is as likely to end at any time, so the gap is Keller's, √(2·price/hazard).
        """
        until = self.curve.times[here + 1]
        alive, after = self.curve.table[here], self.curve.table[here + 1]
        if alive <= after:
            return until
        mean = alive * (until - self.curve.times[here]) / (alive - after)
        gap = max(self.latency, math.sqrt(2 * self.price * mean))
        checks = round((until - last) / gap)
        return until if checks <= 1 else max(soonest, last + (until - last) / checks)


def schedule(
    own: Estimate,
    parent: Survival,
    doubt: float,
    price: float,
    latency: float,
    points: int | None = None,
) -> Schedule:
    """The best checks of a run that takes as long as `own` and `parent` say; see `believed`."""
    if points is None:
        points = min(FEWEST_POINTS + int(POINTS_A_RUN * own.runs), POINTS)
    times, ended = _moments(own, points)
    alive = believed(own, ended, parent, doubt, times)
    apart = latency * (1 - _SLACK)
    # After the last moment a check is a Keller gap g from the next, and costs price/g and g/2 a
    # second, which are equal; ∫ 2·price/g·S(t) dt, where S falls as 1/t^shape.
    rest = alive[-1] * 2 * math.sqrt(price * TAIL_SHAPE / 2 * times[-1]) / (TAIL_SHAPE - 0.5)
    following = best_checks(times, alive, price, apart, latency / 2, rest)
    return Schedule(Curve(times, alive), bytes(following), price, latency)


def _moments(own: Estimate, points: int) -> tuple[list[float], list[float]]:
    """The moments of checks to choose from, and what share of `own` has ended at each.

    The best gap at a density f is in proportion to √(price/f), so the moments are spread as ∫ √f,
    which resolves a gap equally well everywhere and at any price; a share of them is spread evenly
    on a logarithmic scale, for what is expected of none of the runs seen.
    """
    low, high = own.edges[0], own.edges[-1]
    edges = [low / _EARLIER, *own.edges, high * _LATER]
    masses = [0.0, *own.masses, 0.0]
    roots = [
        math.sqrt(mass * (after - before))
        for mass, (before, after) in zip(masses, pairwise(edges), strict=True)
    ]
    cell = math.log(high / low) / len(own.masses)
    logs = [math.log(_EARLIER), *[cell] * len(own.masses), math.log(_LATER)]
    root_scale, log_scale = (1 - _SHARE) / (sum(roots) or 1.0), _SHARE / sum(logs)
    reached = [0.0, *accumulate(
        root * root_scale + log * log_scale for root, log in zip(roots, logs, strict=True)
    )]  # fmt: skip
    ended = [0.0, *accumulate(masses)]
    times, shares = [0.0], [0.0]
    step = reached[-1] / (points - 2)
    place = 0
    final = len(masses) - 1
    for point in range(points - 1):
        goal = point * step
        while place < final and reached[place + 1] < goal:
            place += 1
        part = (goal - reached[place]) / (reached[place + 1] - reached[place])
        if 0 < place < final:
            time = edges[place] + part * (edges[place + 1] - edges[place])
        else:
            time = edges[place] * (edges[place + 1] / edges[place]) ** part
        times.append(time)
        shares.append(min(ended[place] + part * masses[place], 1.0))
    return times, shares


PAUSES = tuple(0.05 * 1.2**step for step in range(39))
"""Seconds, up to 51: the pauses between polls that are told from each other."""

_EXACT_TERMS = 24


def best_pause(curve: Curve, elapsed: float, price: float, latency: float) -> int:
    """The best pause between polls for a client that keeps to one pause until the run ends.

    Checks are then g = pause + latency apart, from `elapsed` on, where the run was going on. With
    K of them, the run's end is known g·E[K] - E[rest] after `elapsed`, so that delay and calls
    cost (g + price)·E[K], but for a constant; and E[K] = Σ S(elapsed + k·g)/S(elapsed), k ≥ 0.

    The sum's first terms are exact. The rest is an integral (Euler and Maclaurin): as S falls, it
    is at most half of the first term that it replaces away from the sum, 2 % of all checks.

    Returns:
        Its index in `PAUSES`.
    """
    best, cheapest = 0, math.inf
    now = max(curve.alive(elapsed), 1e-12)
    over = 1e-3 * now
    for index, pause in enumerate(PAUSES):
        gap = pause + latency
        if gap + price >= cheapest:
            break  # at least one check is made: that alone is dearer, with any longer pause too
        checks, at, left = 0.0, elapsed, now
        for _ in range(_EXACT_TERMS):
            checks += left
            at += gap
            left = curve.alive(at)
            if left <= over:
                break
        else:
            checks += left / 2 + max(curve.ahead(at)[1], 0.0) / gap
        cost = (gap + price) * checks / now
        if cost < cheapest:
            best, cheapest = index, cost
    return best
