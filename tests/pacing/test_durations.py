"""The evidence about one kind of run."""

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.pacing.durations import Durations, Observation


@settings(deadline=None, derandomize=True)
@given(st.floats(0.001, 1e6), st.floats(0, 1e6))
def test_an_interval_is_never_kept_narrower_than_it_was(low, width):
    durations = Durations()
    durations.add(Observation.of((low, low + width)))
    (kept,) = durations
    assert kept.low == pytest.approx(low, rel=1e-6)
    if width < 2000:
        assert kept.high >= (low + width) * (1 - 1e-6) - 1e-3
    assert kept.high <= low * (1 + 1e-6) + 1.07 * width + 1e-3


@pytest.mark.parametrize("junk", [-1, math.nan, math.inf, (3, 2), (math.nan, 1), (-1, 2)])
def test_what_is_no_duration_is_refused(junk):
    with pytest.raises(ValueError, match="duration"):
        Observation.of(junk)


def test_a_run_that_was_given_up_has_no_upper_end():
    assert Observation.of(5, ended=False) == (5, math.inf)
    durations = Durations()
    durations.add(Observation.of(5, ended=False))
    assert list(durations) == [(5, math.inf)]


def test_the_oldest_are_dropped_where_there_is_no_more_room():
    durations = Durations(capacity=10)
    rng = random.Random(1)
    values = [rng.uniform(1, 2) for _ in range(15)]
    for value in values:
        durations.add(Observation(value, value))
    assert [seen.low for seen in durations] == pytest.approx(values[5:])
    assert durations.seen == 15


def test_runs_that_became_slower_are_believed_within_a_dozen():
    rng = random.Random(2)
    durations = Durations()
    for _ in range(150):
        durations.add(Observation.of(rng.lognormvariate(1, 0.4)))
    dropped = [durations.add(Observation.of(rng.lognormvariate(2.5, 0.4))) for _ in range(12)]
    assert any(dropped)
    assert all(seen.low > 3 for seen in durations)


def test_runs_that_stay_the_same_are_seldom_taken_for_changed():
    rng = random.Random(3)
    forgotten = 0
    for _ in range(20):
        durations = Durations()
        forgotten += sum(
            durations.add(Observation.of(rng.lognormvariate(1, 0.5))) for _ in range(400)
        )
    assert forgotten <= 4
