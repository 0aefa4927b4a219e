"""At the busiest minute: loops before a bucket, and the waiter that keeps within it."""

import numpy as np
import pytest

from runbell.pacing import Backoff, Backstop, Fixed
from runbell.pacing.foresight import Foresight
from runbell.planner import crowd
from runbell.planner.crowd import Rush, loops, within
from runbell.planner.quota import attempts, busy_day, refused_a_day, short_of
from runbell.planner.traces import Trace

LATENCY = 0.15


def rush(rpm, arrivals, median=6, p95=25):
    draws = Trace.lognormal(median, p95).sample().draws
    return Rush(draws, rpm, arrivals, LATENCY)


def taught(median=6, p95=25):
    known = Foresight(latency=LATENCY)
    for seconds in Trace.lognormal(median, p95).sample().lessons[0].seen["lognormal"]:
        known.observe("lognormal", float(seconds))
    return known


def test_loops_before_an_empty_bucket_send_what_arithmetic_says():
    """1,500,000 runs a month at three times the mean want 188 % of 500 calls a minute."""
    here = rush(500, 1_500_000 * 3 / 2_592_000)
    calls = here.mean() / 1.15 + 1.4
    found = loops(here, lambda kind: Fixed(1.0), calls, retries=True)
    sent, refused = attempts(calls, here.rpm, here.arrivals)
    assert found.refused == pytest.approx(refused, rel=0.15)
    # Whoever has ended waits for his turn: as long as the requests take that are refused.
    assert found.delay == pytest.approx(0.65 + here.mean() * (sent / calls - 1), rel=0.25)


@pytest.mark.parametrize("pause", [0.0, 5.0])
def test_nobody_starves_for_ever_whatever_the_pause(pause, monkeypatch):
    monkeypatch.setattr(crowd, "SENT", 6000)

    class Steady:
        def next_delay(self, elapsed, polls):
            return pause

    here = rush(60, 0.8)
    found = loops(here, lambda kind: Steady(), here.mean() / (pause + LATENCY) + 1)
    assert 1 < found.delay < 500


def test_the_sdk_asks_again_after_the_time_that_it_is_told(monkeypatch):
    monkeypatch.setattr(crowd, "FLEET", 200)
    here = rush(500, 6.0)
    calls = here.mean() / 5.15 + 1.4
    by_itself = loops(here, lambda kind: Fixed(5.0), calls)
    told = loops(here, lambda kind: Fixed(5.0), calls, retries=True)
    assert told.refused > 1.3 * by_itself.refused


def test_more_runs_than_calls_are_hopeless():
    assert rush(60, 1.0).is_hopeless
    assert not rush(61, 1.0).is_hopeless


def test_a_budget_that_is_too_small_makes_the_waiter_later(monkeypatch):
    monkeypatch.setattr(crowd, "FLEET", 150)
    known = taught(4, 12)
    free = within(rush(10_000, 2, 4, 12), known, known.policy)
    scarce = within(rush(180, 2, 4, 12), known, known.policy)
    assert free.delay == pytest.approx(0.8, rel=0.3)
    assert scarce.delay > 2 * free.delay
    assert scarce.refused == 0


def test_events_and_held_requests_are_quick_in_a_crowd(monkeypatch):
    monkeypatch.setattr(crowd, "FLEET", 60)
    known = taught()
    heard = within(rush(10, 1.0), known, lambda kind: Backstop(), heard=1.0)
    assert heard.delay == pytest.approx(LATENCY / 2)
    held = within(rush(200, 1.0), known, lambda kind: Backoff(), holds=True)
    assert held.delay == pytest.approx(LATENCY / 2, rel=0.2)


def test_a_day_is_short_of_its_quota_where_more_is_wanted():
    shape = busy_day(3.0)
    assert short_of(0.99, shape) == 0
    assert 0.2 < short_of(2.0, shape) < 0.5
    assert short_of(2.0, busy_day(1.0)) == 1


def test_429s_are_counted_in_the_minutes_that_are_short():
    flat = busy_day(1.0)
    _, refused = attempts(9.0, 500, 100 / 60)
    assert refused_a_day(9.0, 144_000, flat, 500, refused) == pytest.approx(144_000 * refused)
    assert refused_a_day(9.0, 144_000, flat, 500, refused / 2) == pytest.approx(72_000 * refused)
    assert refused_a_day(4.9, 144_000, flat, 500, 1.0) == 0
    hilly = refused_a_day(9.0, 72_000, busy_day(2.0), 500, refused)
    assert 0 < hilly < 0.6 * 144_000 * refused


def test_runs_arrive_as_often_as_is_said():
    runs = rush(500, 2.0).runs(0.5)
    began = [next(runs)[1] for _ in range(400)]
    assert np.mean(np.diff(began)) == pytest.approx(1.0, rel=0.15)
