"""Durations: what is made of a sample, and of a distribution."""

import numpy as np
import pytest

from runbell.planner.traces import HISTORY, MOST_KINDS, Trace, lasting


def test_a_lognormal_has_its_median_and_its_p95():
    draws = Trace.lognormal(6, 25).draws()["lognormal"]
    assert np.percentile(draws, [50, 95]) == pytest.approx([6, 25], rel=1e-3)


def test_a_sample_is_smoothed_and_keeps_its_mean():
    raw = np.round(np.random.default_rng(1).lognormal(1.8, 0.6, 400))
    drawn = Trace.of(raw).draws()["runs"]
    assert drawn.mean() == pytest.approx(np.maximum(raw, 0.001).mean())
    # Whole seconds are no more likely than what lies between them.
    assert np.mean(np.abs(drawn - np.round(drawn)) < 0.05) == pytest.approx(0.1, abs=0.02)
    assert np.percentile(drawn, 50) == pytest.approx(np.percentile(raw, 50), abs=0.6)


def test_one_duration_is_not_taken_for_a_law():
    drawn = Trace.of([5.0]).draws()["runs"]
    assert 0.3 < drawn.std() < 0.8
    assert drawn.mean() == pytest.approx(5.0)


def test_what_is_exact_is_left_as_it_is():
    assert list(Trace.of([3.0, 1.0], exact=True).draws()["runs"]) == [3.0, 1.0]


def test_every_duration_counts_the_same_whatever_its_kind():
    draws = Trace({"a": np.full(300, 1.0), "b": np.full(100, 9.0)}, "two kinds").draws()
    assert len(draws["a"]) == 3 * len(draws["b"])


def test_rare_kinds_are_taken_together():
    kinds = {f"kind {n}": np.full(100 - n, 1.0) for n in range(60)}
    trace = Trace(kinds, "many")
    assert len(trace.kinds) == MOST_KINDS
    assert trace.count == sum(map(len, kinds.values()))
    assert "kind 0" in trace.kinds
    assert "kind 59" not in trace.kinds


def test_the_latest_runs_are_what_was_learned_from():
    assert list(Trace.of(np.arange(1.0, 1001.0)).history()["runs"]) == list(
        np.arange(1001.0 - HISTORY, 1001.0)
    )


def test_a_few_stand_for_all():
    few = lasting({"a": np.arange(0.0, 50.0), "b": np.arange(50.0, 101.0)}, 10)
    assert few == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75, 85, 95])
