"""Distributions from few runs."""

import itertools
import math
import random

import pytest

from runbell.pacing.durations import Observation
from runbell.pacing.estimate import _Cells, believed, estimate
from runbell.pacing.survival import Curve, LogLogistic, Mixed


def alive(found, seconds):
    """The estimate's S, summed over its cells, in which a run is as likely to end anywhere."""
    cells = zip(found.masses, itertools.pairwise(found.edges), strict=True)
    return sum(
        mass * min(max((high - seconds) / (high - low), 0.0), 1.0) for mass, (low, high) in cells
    )


def exact(values):
    return [Observation.of(value) for value in values]


def test_a_log_normal_is_found_again():
    rng = random.Random(1)
    found = estimate(exact(rng.lognormvariate(1.5, 0.4) for _ in range(170)))
    for quantile in (-1.2816, -0.6745, 0.0, 0.6745, 1.2816):
        seconds = math.exp(1.5 + 0.4 * quantile)
        assert alive(found, seconds) == pytest.approx(
            0.5 * math.erfc(quantile / math.sqrt(2)), abs=0.07
        )


def test_two_spikes_stay_two_spikes():
    rng = random.Random(2)
    values = [rng.choice((1.0, 12.0)) * rng.uniform(0.97, 1.03) for _ in range(100)]
    found = estimate(exact(values))
    between = alive(found, 1.3) - alive(found, 9.5)
    assert between < 0.03


def test_whole_seconds_are_taken_for_the_intervals_that_they_are():
    rng = random.Random(3)
    truth = [rng.lognormvariate(1.5, 0.3) for _ in range(170)]
    found = estimate(
        [Observation.of((math.floor(value), math.floor(value) + 1)) for value in truth]
    )
    for seconds in (3.3, 4.5, 5.5, 6.6):
        expected = sum(value > seconds for value in truth) / len(truth)
        assert alive(found, seconds) == pytest.approx(expected, abs=0.06)


def kaplan_meier(seen, seconds):
    """The probability of more than `seconds`, as the textbook has it."""
    at_risk, remaining = len(seen), 1.0
    for each in sorted(seen):
        if each.low > seconds:
            break
        if math.isfinite(each.high):
            remaining *= 1 - 1 / at_risk
        at_risk -= 1
    return remaining


@pytest.mark.parametrize("seed", range(3))
def test_a_run_given_up_counts_as_longer_and_not_as_ended(seed):
    # Half of the runs are cancelled after 4 s, whatever they would have taken.
    rng = random.Random(seed)
    seen = []
    for _ in range(170):
        seconds = rng.lognormvariate(1.5, 0.4)
        seen.append(Observation.of(min(seconds, 4), ended=seconds <= 4))
        seen.append(Observation.of(rng.lognormvariate(1.5, 0.4)))
    found = estimate(seen, math.inf)
    for seconds in (5, 6, 8):
        assert alive(found, seconds) == pytest.approx(kaplan_meier(seen, seconds), abs=0.03)
    as_if_ended = estimate(exact(each.low for each in seen), math.inf)
    assert alive(as_if_ended, 6.0) < kaplan_meier(seen, 6) - 0.08


@pytest.mark.parametrize("given_up", [50, 90, 100])
def test_who_was_given_up_at_a_fixed_time_is_not_taken_to_end_just_after_it(given_up):
    # As with a caller's `timeout`: of how it goes on from there, no run says anything.
    rng = random.Random(5)
    seen = exact(rng.uniform(5, 11.9) for _ in range(100 - given_up))
    seen += [Observation.of(12, ended=False)] * given_up
    rng.shuffle(seen)
    found = estimate(seen, math.inf)
    assert found.escaped == pytest.approx(given_up)
    assert found.ages == ((12, 1.0),)
    others = LogLogistic(20, 3.0)
    times = [1.0, 11.8, 15.0, 20.0, 40.0]
    ended = [1 - alive(found, time) for time in times]
    told = believed(found, ended, others, 0.0, times)
    for time, value in list(zip(times, told, strict=True))[2:]:
        expected = given_up / 100 * others.alive(time) / others.alive(12)
        assert value == pytest.approx(expected, abs=0.02)
    assert told[1] > 0.97 * given_up / 100
    assert found.runs == 100


def test_one_run_that_was_seen_to_end_late_does_not_speak_for_all_that_were_given_up():
    seen = [*[Observation.of(12, ended=False)] * 50, *exact([25.0])]
    assert estimate(seen, math.inf).escaped == pytest.approx(50 / 3)


def test_a_table_says_between_its_rows_what_is_between():
    curve = Curve([0, 2, 4], [1, 0.5, 0.25])
    assert [curve.alive(at) for at in (-1, 0, 1, 2, 3)] == pytest.approx([1, 1, 0.75, 0.5, 0.375])
    assert curve.alive(16) == pytest.approx(0.25 / 8)


def test_a_mixture_is_the_weighted_mean():
    mixed = Mixed(((0.25, LogLogistic(1)), (0.75, LogLogistic(100))))
    assert mixed.alive(1) == pytest.approx(0.25 * 0.5 + 0.75 * LogLogistic(100).alive(1))


def test_the_prior_has_its_median_and_its_tail():
    prior = LogLogistic()
    assert prior.alive(8) == 0.5
    assert prior.alive(0) == prior.alive(-1) == 1
    assert prior.alive(8000) / prior.alive(800) == pytest.approx(10**-1.5, rel=1e-2)


def test_a_run_known_by_an_interval_is_shared_among_its_cells():
    """The sums for all runs at once are those for each run."""
    seen = [Observation.of(each) for each in ((1.0, 2.0), (1.5, 4.0), (3.0, 3.0), (0.5, 1.2))]
    seen.append(Observation.of(2.0, ended=False))
    cells = _Cells.around(seen)
    masses = [1.0 + cell % 7 for cell in range(cells.count)]
    weights = [0.5 + place for place in range(len(seen))]
    spread = list(zip(cells.ranges(), weights, strict=True))
    counts, repeats = cells.counted(cells.ranges(), weights, masses)
    wanted, squares = [0.0] * cells.count, [0.0] * cells.count
    for (first, last), weight in spread:
        inside = range(first, min(last + 1, cells.count))
        scale = weight / sum(masses[cell] for cell in inside)
        for cell in inside:
            part = masses[cell] * scale
            wanted[cell] += part
            squares[cell] += part * part
    assert counts == pytest.approx(wanted)
    assert repeats == pytest.approx(squares)
    assert sum(counts) == pytest.approx(sum(weight for _, weight in spread))
