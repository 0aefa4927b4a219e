"""The token bucket: so much at once, so much in the long run, and honest about when."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.pacing import TokenBucket

COUNTS = st.integers(1, 100_000)
STARTS = st.floats(0, 1e7)
GAPS = st.lists(st.integers(0, 40_000), min_size=1, max_size=200)
"""Milliseconds between one request and the next."""


def granted_at(count: int, start: float, gaps: list[int]) -> list[Fraction]:
    """The moments at which a bucket for `count` a minute granted a token, from `start` on."""
    bucket, full_at, now_ms, granted = TokenBucket.per_minute(count), start, 0, []
    for gap in gaps:
        now_ms += gap
        taken = bucket.take(full_at, start + now_ms / 1000)
        full_at = taken.full_at
        if taken.granted:
            granted.append(Fraction(now_ms, 1000))
    return granted


@settings(deadline=None, derandomize=True)
@given(count=st.integers(1, 40), start=STARTS, gaps=GAPS)
def test_no_window_has_more_than_a_burst_and_what_came_in_meanwhile(
    count: int, start: float, gaps: list[int]
) -> None:
    """`capacity + window / interval`, for every window between two grants."""
    granted = granted_at(count, start, gaps)
    for first, begin in enumerate(granted):
        for last in range(first, len(granted)):
            window = granted[last] - begin
            assert last - first + 1 <= count + window * count / 60 + Fraction(1, 1000)


@settings(deadline=None, derandomize=True)
@given(count=st.integers(1, 40), start=STARTS, gaps=GAPS)
def test_it_grants_what_a_plain_count_of_tokens_grants(
    count: int, start: float, gaps: list[int]
) -> None:
    """The one number that is kept says as much as tokens that are counted exactly."""
    tokens, now, expected = Fraction(count), Fraction(0), []
    for gap in gaps:
        now += Fraction(gap, 1000)
        tokens = min(Fraction(count), tokens + Fraction(gap, 1000) * count / 60)
        # What is nearly a token is one, so that rounding decides nothing that anybody notices.
        if tokens >= 1 - Fraction(count, 10**8):
            tokens -= 1
            expected.append(now)
    assert granted_at(count, start, gaps) == expected


@settings(deadline=None, derandomize=True)
@given(count=COUNTS, start=STARTS)
def test_what_is_left_can_be_had_at_once_and_no_more(count: int, start: float) -> None:
    """A bucket that nobody has used is full; `left` counts down to nothing."""
    count = min(count, 500)
    bucket, full_at = TokenBucket.per_minute(count), start
    for left in reversed(range(count)):
        taken = bucket.take(full_at, start)
        assert (taken.granted, taken.left, taken.retry_after) == (True, left, 0.0)
        full_at = taken.full_at
    assert full_at - start == pytest.approx(60, rel=1e-6)
    refused = bucket.take(full_at, start)
    assert (refused.granted, refused.left) == (False, 0)
    assert refused.retry_after == pytest.approx(60 / count, rel=1e-3)


@settings(deadline=None, derandomize=True)
@given(count=st.integers(1, 1_000), start=STARTS, after=st.floats(0, 1))
def test_who_comes_back_when_told_is_let_in_and_not_before(
    count: int, start: float, after: float
) -> None:
    """`retry_after` is exact; asking meanwhile costs nothing."""
    bucket = TokenBucket.per_minute(count)
    now, full_at = start + after * bucket.interval, start + 60.0
    refused = bucket.take(full_at, now)
    if refused.granted:
        assert after > 0.99
        return
    assert refused.full_at == full_at
    assert bucket.take(refused.full_at, now + refused.retry_after).granted
    early = now + refused.retry_after * 0.99 - 1e-5
    if early > now:
        assert not bucket.take(refused.full_at, early).granted


@settings(deadline=None, derandomize=True)
@given(count=st.integers(1, 1_000), ago=st.floats(0, 1e6), start=STARTS)
def test_a_bucket_whose_moment_has_passed_is_like_a_new_one(
    count: int, ago: float, start: float
) -> None:
    """So it need not be kept."""
    bucket = TokenBucket.per_minute(count)
    assert bucket.take(start - ago, start) == bucket.take(start, start)


@pytest.mark.parametrize("count", [1, 3, 7, 60, 61, 9_999, 1_000_000])
def test_floats_do_not_eat_a_token(count: int) -> None:
    """At counts that do not divide a minute as well."""
    bucket, full_at, now = TokenBucket.per_minute(count), 0.0, 123_456.789
    for _ in range(min(count, 20_000)):
        taken = bucket.take(full_at, now)
        assert taken.granted
        full_at = taken.full_at
    assert taken.left == count - min(count, 20_000)
