"""When a delivery is tried again, how fast an endpoint is sent to, and when it is given up."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.pacing import Meter, Pace, RetrySchedule, SlowDown, is_given_up, wait_seconds
from runbell.pacing.deliveries import DISABLE_AFTER_MS

OWED = 1_800_000_000_000
HOUR = 3_600_000
PLAIN = RetrySchedule(jitter=0.0)


def attempts(
    schedule: RetrySchedule, rng: random.Random, takes_ms: int = 0, retry_after: float | None = None
) -> list[int]:
    """When a delivery is tried that never succeeds, in milliseconds since it was owed."""
    made: list[int] = []
    now = OWED
    while (due := schedule.next_attempt(len(made), OWED, now, rng, retry_after)) is not None:
        assert due >= now
        made.append(due - OWED)
        now = due + takes_ms
    return made


def test_the_schedule_without_jitter() -> None:
    seconds = [0, 5, 60, 300, 1800, 7200, 18000, 36000, 50400, 72000, 72000]
    expected = [sum(seconds[: n + 1]) * 1000 for n in range(len(seconds))]
    assert attempts(PLAIN, random.Random(1)) == expected
    assert expected[-1] < 72 * HOUR


@settings(deadline=None, derandomize=True)
@given(st.randoms(use_true_random=False), st.integers(0, 30_000))
def test_each_delay_is_near_its_own_and_the_last_attempt_is_within_72_hours(
    rng: random.Random, takes_ms: int
) -> None:
    schedule = RetrySchedule()
    made = attempts(schedule, rng, takes_ms)
    assert made[0] == 0, "the first attempt is made at once"
    assert len(made) == len(schedule.delays)
    assert made[-1] <= 72 * HOUR
    for before, after, delay in zip(made, made[1:], schedule.delays[1:], strict=False):
        waited = (after - before - takes_ms) / 1000
        assert waited <= delay * 1.1 + 0.001
        assert waited >= delay * 0.9 - 0.001 or after == 72 * HOUR


def test_a_backlog_does_not_come_back_at_one_moment() -> None:
    rng = random.Random(1)
    due = [RetrySchedule().next_attempt(1, OWED, OWED, rng) for _ in range(1_000)]
    assert len(set(due)) > 500


def test_patience_ends() -> None:
    end = OWED + 72 * HOUR
    assert PLAIN.next_attempt(9, OWED, end - 1, random.Random(1)) == end
    assert PLAIN.next_attempt(9, OWED, end, random.Random(1)) is None
    assert PLAIN.next_attempt(11, OWED, OWED, random.Random(1)) is None
    # A service that was down for a week still makes the first attempt.
    assert PLAIN.next_attempt(0, OWED, end + HOUR, random.Random(1)) == end + HOUR


def test_a_schedule_of_ones_own() -> None:
    schedule = RetrySchedule(delays=(0.0, 1.0, 2.0), jitter=0.0, patience=2.5)
    assert attempts(schedule, random.Random(1)) == [0, 1_000, 2_500]


@pytest.mark.parametrize(
    ("retry_after", "waited"),
    [
        (None, 300),
        (0.0, 300),
        (-5.0, 300),
        (60.0, 300),
        (301.0, 301),
        (3600.0, 3600),
        (6 * 3600.0, 6 * 3600),
        (315_360_000.0, 6 * 3600),
        (1e300, 6 * 3600),
    ],
)
def test_retry_after_makes_a_delay_longer_within_bounds(
    retry_after: float | None, waited: int
) -> None:
    due = PLAIN.next_attempt(3, OWED, OWED, random.Random(1), retry_after)
    assert due == OWED + waited * 1000


def test_retry_after_is_never_undercut_by_jitter_and_never_ends_the_delivery() -> None:
    rng = random.Random(1)
    for _ in range(200):
        due = RetrySchedule().next_attempt(1, OWED, OWED, rng, 600.0)
        assert due is not None
        assert 600_000 <= due - OWED <= 660_000
    made = attempts(RetrySchedule(), rng, retry_after=315_360_000.0)
    assert made[-1] <= 72 * HOUR
    assert len(made) >= 7


# How fast.

RULE = SlowDown()


@pytest.mark.parametrize("status", [429, 502, 503, 504])
def test_an_overloaded_endpoint_is_slowed_down(status: int) -> None:
    """From the rate that it had; and from what was planned, where that is less."""
    assert RULE.after(Pace(), status, 10.0, 40.0) == Pace(20.0, 10.0, 40.0)
    slowed = Pace(8.0, 0.0, 40.0)
    assert RULE.after(slowed, status, 10.0, 40.0) == Pace(4.0, 10.0, 40.0)
    assert RULE.after(slowed, status, 10.0, 2.0) == Pace(1.0, 10.0, 40.0)


@pytest.mark.parametrize("status", [None, 200, 204, 302, 400, 404, 410, 500])
def test_other_answers_slow_nothing_down(status: int | None) -> None:
    assert RULE.after(Pace(), status, 10.0, 40.0) == Pace()
    slowed = RULE.after(Pace(8.0, 0.0, 40.0), status, 10.0, 40.0).per_second
    assert slowed == (10.0 if status in (200, 204) else 8.0)


def test_many_answers_of_one_moment_count_once() -> None:
    pace = Pace()
    for _ in range(50):
        pace = RULE.after(pace, 429, 10.0, 100.0)
    assert pace == Pace(50.0, 10.0, 100.0)
    for _ in range(50):
        pace = RULE.after(pace, 200, 10.5, 50.0)
    assert pace == Pace(50.0, 10.0, 100.0)


def test_the_slowest_is_still_something() -> None:
    pace = Pace()
    for second in range(100):
        pace = RULE.after(pace, 503, float(second * 2), 100.0)
    assert pace.per_second == 0.1
    assert pace.interval == pytest.approx(10.0)


def test_an_endpoint_that_recovers_is_as_fast_as_before() -> None:
    pace, second = Pace(0.1, 0.0, 50.0), 0.0
    while pace.per_second is not None:
        second += max(1.0, pace.interval)
        pace = RULE.after(pace, 200, second, pace.per_second)
        assert pace.per_second is None or pace.per_second < 50.0
    assert second < 300
    assert pace.interval == 0.0


@pytest.mark.parametrize("interval", [0.01, 0.1, 0.4])
def test_a_meter_tells_the_rate_of_the_last_second(interval: float) -> None:
    meter = Meter()
    for number in range(round(5 / interval)):
        now = number * interval
        if now > 1:
            assert meter.per_second(now) == pytest.approx(1 / interval, abs=1.01)
        meter.began(now)
    assert meter.per_second(7.0) == 1.0


@pytest.mark.parametrize(
    ("status", "asked", "held"),
    [
        (429, 30.0, 30),
        (503, 9e9, 3600),
        (503, -1.0, 0),
        (503, None, 0),
        (500, 30.0, 0),
        (200, 9, 0),
    ],
)
def test_retry_after_of_one_that_is_overloaded_holds_everything(
    status: int, asked: float | None, held: float
) -> None:
    assert RULE.hold(status, asked) == held


# Giving up.


def test_an_endpoint_is_given_up_after_five_days_without_a_success() -> None:
    assert not is_given_up(None, OWED)
    assert not is_given_up(OWED, OWED + 5 * 24 * HOUR - 1)
    assert is_given_up(OWED, OWED + 5 * 24 * HOUR)
    assert DISABLE_AFTER_MS == 5 * 24 * HOUR


@settings(deadline=None, derandomize=True)
@given(st.text() | st.integers().map(str) | st.floats().map(str))
def test_any_value_of_retry_after_is_a_wait_or_nothing(value: str) -> None:
    wait = wait_seconds(value, OWED)
    assert wait is None or 0 <= wait < float("inf")
