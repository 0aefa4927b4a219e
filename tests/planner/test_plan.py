"""A plan: rows follow from their calls, break-evens are such, and advice turns where it says."""

import json

import numpy as np
import pytest

from runbell.errors import InvalidSetting
from runbell.planner import Trace, Workload, crowd, plan, playing, tables
from runbell.planner import frontier as frontiers
from runbell.planner.advice import ROOM
from runbell.planner.quota import busy_day
from runbell.planner.roster import BACKSTOP, FORESIGHT, LONG_POLL, ROSTER, SDK

WHOLE = Trace.lognormal(6, 25)
# Fewer runs than a plan for people takes, and as good for the rules.
TRACE = Trace.of(WHOLE.kinds["lognormal"][12::25], exact=True)


@pytest.fixture(scope="module", autouse=True)
def few():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(playing, "SAMPLE", 20)
        patch.setattr(playing, "LOST", 5)
        patch.setattr(frontiers, "PRICES", (0.01, 1.0))
        patch.setattr(frontiers, "MOMENTS", 300)
        patch.setattr(crowd, "FLEET", 100)
        patch.setattr(crowd, "SENT", 3000)
        yield


@pytest.fixture(scope="module")
def usual(few):
    return plan(Workload(TRACE, 100_000, price_per_call=0.00015))


def at(runs, **options):
    return plan(Workload(TRACE, runs, **options))


def test_there_is_a_row_for_each_policy(usual):
    assert [row.name for row in usual.rows] == [
        "tight loop", "fixed 1 s", "fixed 2 s", "fixed 3 s", "tutorial", "openai SDK",
        "SDK, advised", "Foresight", "long poll", "webhook", "webhook with backstop",
    ]  # fmt: skip


def test_a_row_follows_from_its_calls(usual):
    for row in usual.rows:
        assert row.calls_per_month == pytest.approx(100_000 * row.calls)
        assert row.peak_calls_per_minute == pytest.approx(3 * row.calls_per_month / 43_200)
        assert row.quota_share == pytest.approx(row.peak_calls_per_minute / 500)
        endpoint = 35 if "webhook" in row.name else 0
        assert row.dollars == pytest.approx(row.calls_per_month * 0.00015 + endpoint)
        delay = row.delay
        assert delay.p5 <= delay.p25 <= delay.p50 <= delay.p75 <= delay.p95 <= delay.p99
    assert usual.concurrent == pytest.approx(100_000 * usual.mean_seconds / 2_592_000)


def test_the_delays_are_those_of_arithmetic(usual):
    # A look every 1.15 s: an end is seen within that, and known half the latency later.
    delay = usual.row(SDK).delay
    assert delay.mean == pytest.approx(0.075 + 1.15 / 2, rel=0.02)
    assert delay.p95 == pytest.approx(0.075 + 0.95 * 1.15, rel=0.02)
    assert usual.row(SDK).calls == pytest.approx(1.4 + usual.mean_seconds / 1.15, rel=0.02)


def test_nothing_that_polls_is_better_than_the_frontier(usual, monkeypatch):
    monkeypatch.setattr(frontiers, "PRICES", (0.01, 0.05, 0.1, 0.2, 0.4, 0.8))
    monkeypatch.setattr(frontiers, "MOMENTS", 2000)
    best = frontiers.frontier(TRACE.kinds, usual.load.latency)
    calls = [each.calls for each in best][::-1]
    delays = [each.delay for each in best][::-1]
    for name in ("fixed 1 s", "fixed 2 s", "fixed 3 s", "tutorial", "SDK, advised", FORESIGHT):
        row = usual.row(name)
        least = float(np.exp(np.interp(np.log(row.calls), np.log(calls), np.log(delays))))
        assert row.delay.mean > 0.97 * least, name
    row = usual.row(FORESIGHT)
    assert row.delay.mean < 1.1 * float(np.interp(row.calls, calls, delays))


def test_at_the_break_even_by_money_polling_costs_what_the_webhook_costs(usual):
    for name in (SDK, FORESIGHT, LONG_POLL):
        even = usual.row(name).break_even
        there = at(even.runs_by_money, price_per_call=0.00015)
        assert there.row(name).dollars == pytest.approx(there.row(BACKSTOP).dollars)
        assert there.concurrent_at_peak == pytest.approx(even.concurrent_by_money)


def test_at_the_break_even_by_quota_polling_wants_as_much_as_it_may_have_at_peak(usual):
    even = usual.row(SDK).break_even
    there = at(even.runs_by_quota)
    assert there.row(SDK).quota_share == pytest.approx(ROOM)
    assert there.concurrent_at_peak == pytest.approx(even.concurrent_by_quota)
    # The rule of thumb, RPM · interval / 60, within what the first and the last look add.
    assert even.concurrent_by_quota == pytest.approx(ROOM * 500 * 1.15 / 60, rel=0.2)


def test_without_a_price_there_is_no_break_even_by_money_and_without_a_quota_none_at_all():
    found = at(100_000, rpm=None)
    for row in found.rows:
        assert row.quota_share is None
        assert row.break_even is None or row.break_even.runs is None
    assert found.recommended == FORESIGHT
    assert "quota" not in found.recommendation


@pytest.mark.parametrize("price", [0.0, 0.00015])
def test_the_recommendation_turns_where_it_says(price):
    few = at(20_000, price_per_call=price)
    assert few.recommended == FORESIGHT
    even = few.row(FORESIGHT).break_even
    turn = min(even.runs_by_quota, even.runs_by_money or even.runs_by_quota)
    assert f"from {float(f'{turn:.3g}'):,.0f} runs a month on" in few.recommendation
    assert at(0.99 * turn, price_per_call=price).recommended == FORESIGHT
    beyond = at(1.01 * turn, price_per_call=price)
    assert beyond.recommended == BACKSTOP
    assert f"fewer than {float(f'{turn:.3g}'):,.0f} runs a month" in beyond.recommendation


def test_beyond_the_quota_calls_are_refused_and_all_are_late():
    found = at(3_000_000)
    sdk, foresight = found.row(SDK), found.row(FORESIGHT)
    excess = sdk.peak_calls_per_minute - 500
    assert sdk.quota_spent_after == pytest.approx(60 * 500 / excess)
    assert sdk.refused > 0
    assert sdk.delay_at_peak > 3 * sdk.delay.mean
    assert 0 < sdk.short < 1
    assert foresight.quota_share > 1
    assert foresight.refused == 0
    assert foresight.delay.mean < foresight.delay_at_peak < sdk.delay_at_peak
    assert found.row(LONG_POLL).delay_at_peak is None
    said = " ".join(tables.notes(found))
    assert "those of the rest of the day" in said
    assert "without end" not in said


def test_more_runs_than_calls_fall_behind_and_that_is_said():
    found = at(100_000, rpm=1)
    for row in found.rows:
        assert row.falls_behind == (row.break_even is not None)
        assert row.short == (1 if row.falls_behind else 0)
        assert row.delay_at_peak is None
    assert found.to_dict()["policies"][0]["refused"] is None
    sdk = next(row for row in tables.policies(found) if row[0] == SDK)
    assert sdk[-5:] == ["-", "-", "-", "falls behind", "no end"]
    said = " ".join(tables.notes(found))
    assert "falls behind does so without end: 6.94 runs a minute" in said
    assert "rest of the day" not in said
    assert found.recommended == BACKSTOP


def test_a_busy_day_has_its_mean_and_its_peak():
    for peak in (1.0, 1.5, 3.0, 50.0):
        shape = busy_day(peak)
        assert shape.mean() == pytest.approx(1.0)
        assert shape.max() == pytest.approx(peak)
        assert int(shape.argmax()) == 14 * 60 or peak == 1.0


def test_a_plan_is_json(usual):
    found = json.loads(json.dumps(usual.to_dict()))
    assert found["recommended"] == BACKSTOP
    assert found["workload"]["runs_per_month"] == 100_000
    assert [row["name"] for row in found["policies"]] == [each.name for each in ROSTER]
    assert found["policies"][0]["break_even"]["runs_by_quota"] > 0
    assert found["policies"][-1]["break_even"] is None
    assert found["frontier"][0]["calls"] > 1


def test_something_else_than_a_workload_is_refused():
    with pytest.raises(TypeError, match=r"plan\(Workload\(.*not int"):
        plan(3)


def test_progress_is_told_to_the_end():
    told = []
    plan(Workload([1.0, 2.0, 3.0], 10), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"runs_per_month": 0}, r"runs_per_month is 0: .* \(--runs-per-month\)"),
        ({"runs_per_month": float("nan")}, "runs_per_month is nan"),
        ({"rpm": -1}, r"rpm is -1: .*\(--rpm\)"),
        ({"price_per_call": -0.1}, "price_per_call is -0.1"),
        ({"webhook_monthly": float("inf")}, "webhook_monthly is inf"),
        ({"latency": 150}, "latency is 150: it has to be 0.001 to 60, in seconds"),
        ({"webhook_loss": 2}, "a share, from 0 to 1"),
        ({"peak": 0.5}, "peak is 0.5"),
        ({"delay_price": 0}, "delay_price is 0"),
        ({"durations": []}, "0 durations holds no durations"),
        ({"durations": [-1.0]}, "-1 is no duration"),
        ({"durations": [float("nan")]}, "nan is no duration"),
        ({"runs_per_month": None}, r"runs_per_month \(--runs-per-month\) is needed"),
        ({"runs_per_month": float("inf")}, "runs_per_month is inf: .* 0.01 to 1,000,000,000,000"),
        ({"runs_per_month": 1e30}, "1e\\+30: it has to be 0.01 to 1,000,000,000,000"),
        ({"rpm": float("inf")}, "rpm is inf: .* 1 to 1,000,000,000,000, or None"),
        ({"rpm": "500"}, "rpm is '500': a number is needed"),
        ({"latency": None}, "latency is None: a number is needed"),
        ({"durations": [1500.0, 2000.0]}, "are these milliseconds"),
        ({"durations": 5}, "durations have to be numbers, in seconds: 'int' object"),
        ({"durations": "123"}, "durations have to be numbers, in seconds: str is no list"),
        ({"holds": "no"}, "holds is 'no': it has to be True or False"),
    ],
)
def test_what_makes_no_sense_is_said(options, complaint):
    with pytest.raises(InvalidSetting, match=complaint):
        Workload(**{"durations": [1.0, 2.0], "runs_per_month": 10.0, **options})


def test_numbers_of_numpy_are_numbers():
    load = Workload([1.0, 2.0], np.int64(10), latency=np.float32(0.5))
    assert json.dumps([load.runs, load.latency]) == "[10, 0.5]"
