"""What may be spent, by what was agreed and by what the server says."""

import math

import pytest

from runbell.pacing.allowance import Allowance


def spent(allowance, now, until):
    """The moments of as many calls as are allowed."""
    moments = []
    while (now := max(now, allowance.next_at())) < until:
        allowance.spend(now)
        moments.append(now)
    return moments


def test_nothing_is_scarce_until_somebody_says_so():
    allowance = Allowance()
    assert allowance.next_at() == -math.inf
    assert not allowance.is_scarce
    allowance.saw_remaining(90, 100, 0.0)
    assert allowance.is_scarce


def test_the_lower_of_two_limits_holds_and_the_latest_word_counts():
    allowance = Allowance(600)
    allowance.saw_remaining(2, 60, 0.0)
    assert len(spent(allowance, 0.0, 30.0)) <= 30
    allowance.saw_remaining(300, 300, 30.0)
    assert len(spent(allowance, 30.0, 60.0)) > 200


def test_a_limit_that_comes_back_at_once_is_waited_for():
    # A window: 100 of 100 are used, 40 s are left. A bucket that is empty takes a minute to fill.
    allowance = Allowance()
    allowance.saw_remaining(0, 100, 5.0, reset=40.0)
    assert allowance.next_at() == pytest.approx(45.0)
    assert len(spent(allowance, 5.0, 45.5)) > 80
    bucket = Allowance()
    bucket.saw_remaining(0, 100, 5.0, reset=60.0)
    assert 5.6 < bucket.next_at() < 8.0


def test_a_limit_a_day_comes_back_within_a_day():
    allowance = Allowance()
    allowance.saw_remaining(0, 1440, 0.0, reset=86_400.0)
    assert allowance.next_at() >= 60.0


def test_calls_that_are_on_their_way_are_counted():
    allowance = Allowance()
    for _ in range(8):
        allowance.spend(1.0)
    # The answer to the first of them was made when the others were not there yet.
    allowance.saw_remaining(9, 60, 1.2, sent=1.0 - 1e-9)
    assert allowance.next_at() > 1.2
    # An older answer says nothing new.
    allowance.saw_remaining(60, 60, 1.3, sent=0.5)
    assert allowance.next_at() > 1.2


def test_refusals_without_a_word_are_answered_by_fewer_calls_and_forgotten_in_time():
    allowance = Allowance()
    for place in range(200):
        allowance.spend(place / 20)
    allowance.refused(10.0, 9.9, told=False)
    allowance.refused(10.05, 9.95, told=False)  # it was on its way: the same refusal
    assert 100 < len(spent(allowance, 10.0, 70.0)) < 150
    before = len(spent(allowance, 70.0, 100.0))
    for _ in range(100):
        allowance.answered()
    assert len(spent(allowance, 100.0, 130.0)) > 1.5 * before


def test_refusals_in_a_row_are_left_alone_for_longer():
    allowance, now, gaps = Allowance(), 0.0, []
    for _ in range(6):
        allowance.spend(now)
        allowance.refused(now + 0.1, now, told=False)
        gaps.append(allowance.next_at() - now)
        now = allowance.next_at()
    assert gaps == sorted(gaps)
    assert 4.0 < gaps[-1] < 10.0


@pytest.mark.parametrize("junk", [(-1, 10), (11, 10), (math.nan, 10), (1, math.inf), (0, 0)])
def test_what_makes_no_sense_is_not_heeded(junk):
    allowance = Allowance()
    allowance.saw_remaining(*junk, 0.0)
    assert not allowance.is_scarce
