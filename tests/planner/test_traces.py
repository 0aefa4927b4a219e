"""Durations: what is made of a sample, and of a distribution."""

import numpy as np
import pytest

from runbell.errors import InvalidSetting
from runbell.planner.traces import HISTORY, MOST_KINDS, OTHERS, Trace, lasting


def drawn(raw, **options):
    return Trace.of(raw, **options).sample().draws["runs"]


def spikes(count, seed=1):
    """Runs that take either about 0.9 or about 12 s."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal(count)
    short = 0.9 * np.exp(0.08 * noise)
    return np.where(rng.random(count) < 0.5, short, 12 * np.exp(0.1 * noise))


def test_a_lognormal_has_its_median_and_its_p95():
    draws = Trace.lognormal(6, 25).sample().draws["lognormal"]
    assert np.percentile(draws, [50, 95]) == pytest.approx([6, 25], rel=1e-3)


def test_a_sample_is_smoothed_and_keeps_its_mean():
    raw = np.round(np.random.default_rng(1).lognormal(1.8, 0.6, 400))
    smooth = drawn(raw)
    assert smooth.mean() == pytest.approx(raw.mean(), rel=0.02)
    # Whole seconds are no more likely than what lies between them.
    assert np.mean(np.abs(smooth - np.round(smooth)) < 0.05) == pytest.approx(0.1, abs=0.02)
    assert np.percentile(smooth, 50) == pytest.approx(np.percentile(raw, 50), abs=0.6)


def test_runs_that_take_either_of_two_times_stay_such():
    shares = [5, 25, 75, 95]
    raw = spikes(400)
    assert np.percentile(drawn(raw), shares) == pytest.approx(np.percentile(raw, shares), rel=0.06)


def test_one_duration_is_not_taken_for_a_law():
    smooth = drawn([5.03])
    assert 0.3 < smooth.std() < 0.8
    assert smooth.mean() == pytest.approx(5.03, rel=0.01)


def test_what_is_exact_is_left_as_it_is():
    assert list(drawn([3.0, 1.0], exact=True)) == [3.0, 1.0]


def test_every_duration_counts_the_same_whatever_its_kind():
    kinds = {"a": np.full(300, 1.0), "b": np.full(100, 9.0)}
    sample = Trace(kinds, "two kinds").sample()
    assert len(sample.draws["a"]) == 3 * len(sample.draws["b"])
    judged = [sum(len(each.draws.get(k, ())) for each in sample.lessons) for k in "ab"]
    assert judged == [len(sample.draws[k]) for k in "ab"]


@pytest.mark.parametrize("count", [2, 20, 399, 1000])
def test_nobody_is_judged_by_what_he_has_learned_from(count):
    # So far apart that a draw tells its row.
    raw = 1.0001 ** (7 * np.arange(count)) * 1.2345
    trace = Trace.of(raw)
    sample = trace.sample()
    if trace.step():
        pytest.fail("the rows are not rounded")
    judged = []
    for seen, draws in sample.lessons:
        assert 0 < len(seen["runs"]) <= HISTORY
        whole = set(np.round(seen["runs"], 9))
        assert whole <= set(np.round(raw, 9))
        judged.append(len(draws["runs"]))
    assert sum(judged) == len(sample.draws["runs"])


def test_the_order_of_the_durations_says_nothing():
    raw = np.random.default_rng(2).lognormal(1.8, 0.9, 1000)
    for order in (np.sort(raw), np.sort(raw)[::-1]):
        (seen, draws), *_ = Trace.of(order).sample().lessons
        assert np.median(seen["runs"]) == pytest.approx(np.median(raw), rel=0.2)
        assert np.median(draws["runs"]) == pytest.approx(np.median(raw), rel=0.05)


def test_what_was_learned_can_be_said():
    ((seen, draws),) = Trace.of([1.0, 2.0], exact=True, seen=[9.0]).sample().lessons
    assert (list(seen["runs"]), list(draws["runs"])) == ([9.0], [1.0, 2.0])


def test_rare_kinds_are_taken_together_and_it_is_said():
    kinds = {f"kind {n}": np.full(100 - n, 1.0) for n in range(60)}
    trace = Trace(kinds | {OTHERS: np.ones(7)}, "many")
    assert len(trace.kinds) == MOST_KINDS
    assert trace.count == 7 + sum(map(len, kinds.values()))
    assert "kind 0" in trace.kinds
    assert "kind 59" not in trace.kinds
    assert "taken together" in " ".join(trace.remarks)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: Trace.lognormal("a", 6), "median is 'a': a number of seconds is needed"),
        (lambda: Trace.lognormal(6, None), "p95 is None: a number of seconds is needed"),
        (lambda: Trace.lognormal(6, 25, unit="min"), 'unit is \'min\': it has to be "s" or "ms"'),
        (lambda: Trace.of([1.5], unit="h"), "unit is 'h'"),
        (lambda: Trace.of(None), "durations have to be numbers, in seconds: 'NoneType'"),
        (lambda: Trace.of([1.5, "x"]), "have to be numbers, in seconds: could not convert"),
        (lambda: Trace.of(np.array(["1"])), "have to be numbers, in seconds: Cannot cast"),
        (lambda: Trace.of([1.5], seen=["x"]), "have to be numbers, in seconds"),
        (lambda: Trace.of([1.5], seen=[-1.0]), "-1 is no duration"),
        (lambda: Trace([1.5], "mine"), r"mine: kinds and .* not list; Trace\.of takes durations"),
        (lambda: Trace({"a": "12"}, "mine"), "str is no list of numbers"),
    ],
)
def test_what_are_no_durations_is_said(make, complaint):
    with pytest.raises(InvalidSetting, match=complaint):
        make()


def test_what_is_made_of_few_durations_and_of_none_is_said():
    said = " ".join(Trace.of([0.0, 1.234]).remarks)
    assert "1 of 2 durations are 0" in said
    assert "2 durations are few" in said
    with pytest.raises(InvalidSetting, match="all durations are 0"):
        Trace.of([0.0, 0.0])


@pytest.mark.parametrize(
    "make",
    [
        lambda **unit: Trace.of([6000.5, 25_000.0, 4000.0], **unit),
        lambda **unit: Trace.of([500, 580, 90], **unit),
        lambda **unit: Trace.lognormal(6000, 25_000, **unit),
    ],
)
def test_milliseconds_are_not_taken_for_seconds(make):
    with pytest.raises(InvalidSetting, match=r"milliseconds\? Say --unit ms.*unit=\"s\""):
        make()
    long, short = make(unit="s"), make(unit="ms")
    assert short.median() == pytest.approx(long.median() / 1000)
    # Minutes are fine where they are not whole numbers.
    Trace.of([500.5, 580.25, 90.125])


def test_a_tail_beyond_all_measure_is_refused_and_a_long_one_cut_and_said():
    with pytest.raises(InvalidSetting, match="p95 <= 86400"):
        Trace.lognormal(6, 1e300)
    assert "more than a week: cut there" in Trace.lognormal(6, 80_000).remarks[0]


def test_a_few_stand_for_all():
    few = lasting({"a": np.arange(0.0, 50.0), "b": np.arange(50.0, 101.0)}, 10)
    assert few == pytest.approx([5, 15, 25, 35, 45, 55, 65, 75, 85, 95])
