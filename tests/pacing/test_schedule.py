"""The best checks: against a closed form, and against every choice there is."""

import itertools
import math
import random

import numpy as np
import pytest

from bench.polling.optimum import frontier, programme
from runbell.pacing.schedule import PAUSES, Schedule, best_checks, best_pause
from runbell.pacing.survival import Curve, LogLogistic


def walked(times, following):
    """The moments of the checks, from the first one to the last."""
    place, found = 0, []
    while place < len(times) - 1:
        place = following[place]
        found.append(place)
    return found


def cost(times, alive, chosen, price):
    """E[delay] + price · E[calls] of these checks, reckoned run by run."""
    total, before = 0.0, 0
    for place in chosen:
        total += price * alive[before]
        for cell in range(before, place):
            # Between two moments a run is as likely to end at any.
            middle = (times[cell] + times[cell + 1]) / 2
            total += (alive[cell] - alive[cell + 1]) * (times[place] - middle)
        before = place
    return total


def test_for_exponential_durations_the_best_checks_are_periodic():
    # e^{hδ} - hδ - 1 = hλ, the optimality condition of Barlow, Hunter and Proschan.
    hazard, price = 0.2, 0.5
    low, high = 0.0, 20.0
    for _ in range(60):
        gap = (low + high) / 2
        too_long = math.expm1(hazard * gap) - hazard * gap > hazard * price
        low, high = (low, gap) if too_long else (gap, high)
    times = [step * 0.01 for step in range(12_001)]
    alive = [math.exp(-hazard * time) for time in times]

    following = best_checks(times, alive, price, 0.01, 0.01)

    gaps = [times[following[place]] - times[place] for place in range(0, 2000, 37)]
    assert gaps == pytest.approx([gap] * len(gaps), abs=0.011)


@pytest.mark.parametrize("seed", range(25))
def test_no_choice_of_checks_is_better(seed):
    rng = random.Random(seed)
    times = [0.0, *sorted(rng.uniform(0.1, 10) for _ in range(9))]
    drops = [rng.random() ** 3 for _ in range(9)]
    alive = [1.0]
    for drop in drops:
        alive.append(alive[-1] - drop / sum(drops))
    alive[-1] = 0.0
    price, apart = rng.uniform(0.01, 2), rng.choice([0.0, 0.5, 1.5])

    chosen = walked(times, best_checks(times, alive, price, apart, apart / 2))

    least = math.inf
    for size in range(9):
        for inner in itertools.combinations(range(1, 9), size):
            tried = (*inner, 9)
            # The last moment is the end, and may be as close as it likes to the one before.
            gaps = [times[b] - times[a] for a, b in itertools.pairwise(tried[:-1])]
            if all(gap >= apart for gap in gaps) and (
                len(tried) == 1 or times[tried[0]] >= apart / 2
            ):
                least = min(least, cost(times, alive, tried, price))
    assert cost(times, alive, chosen, price) == pytest.approx(least)


@pytest.mark.parametrize("price", [0.01, 0.25, 3.0])
def test_the_plain_programme_of_the_benchmark_comes_to_the_same(price):
    times = [0.0, *(0.1 * 1.02**step for step in range(400))]
    alive = [LogLogistic(5, 3).alive(time) for time in times]
    alive[-1] = 0.0
    ended = 1 - np.array(alive)
    steps = np.diff(ended) * (np.array(times)[1:] + np.array(times)[:-1]) / 2
    means = np.concatenate([[0], np.cumsum(steps)])

    calls, delay = programme(np.array(times), ended, means, np.array([price]), 0.15)

    chosen = walked(times, best_checks(times, alive, price, 0.15, 0.075))
    assert cost(times, alive, chosen, price) == pytest.approx(
        float(delay[0]) - 0.075 + price * float(calls[0])
    )


def test_the_frontier_is_convex_and_falls():
    draws = np.sort(np.random.default_rng(1).exponential(5, 5000))
    best = frontier(draws)
    fewest = [best.calls_at(delay) for delay in (0.3, 0.6, 1.2, 2.4)]
    assert fewest == sorted(fewest, reverse=True)
    assert fewest[0] > 2 * fewest[-1]


@pytest.mark.parametrize(("price", "gap"), [(0.02, 2.0), (0.5, 10.0), (0.0, 0.15)])
def test_between_two_moments_of_the_table_cheap_calls_are_made_too(price, gap):
    # A hazard of a hundredth: Keller's gap is √(2·price/0.01). The table has every tenth second.
    times = [10.0 * step for step in range(80)]
    curve = Curve(times, [math.exp(-0.01 * time) for time in times])
    known = Schedule(curve, bytes([*range(1, 80), 79]), price, 0.15)
    checks = [100.0]
    while checks[-1] < 300:
        checks.append(known.after(checks[-1]))
    gaps = [after - before for before, after in itertools.pairwise(checks)]
    assert gaps == pytest.approx([gap] * len(gaps), rel=0.12)


def test_the_best_pause_for_exponential_durations_is_the_best_period():
    # The same closed form: a fixed pause is no disadvantage where the best gap never changes.
    hazard, price, latency = 0.1, 0.5, 0.15
    times = [0.0, *(0.05 * 1.03**step for step in range(280))]
    curve = Curve(times, [math.exp(-hazard * time) for time in times])
    low, high = 0.0, 50.0
    for _ in range(60):
        gap = (low + high) / 2
        too_long = math.expm1(hazard * gap) - hazard * gap > hazard * price
        low, high = (low, gap) if too_long else (gap, high)

    pause = PAUSES[best_pause(curve, 3.0, price, latency)]

    assert pause + latency == pytest.approx(gap, rel=0.12)
