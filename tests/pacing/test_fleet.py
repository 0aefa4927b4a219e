"""Many waits under one budget."""

import itertools
import random
import sys
import time

import numpy as np
import pytest

from bench.polling.fleets import Fleet, bound, free, paced
from runbell.pacing.fleet import WorthPacer
from runbell.pacing.survival import Curve, LogLogistic
from runbell.pacing.worth import Pile


def curve(median=5.0, shape=4.0):
    times = [0.0, *(0.05 * 1.06**step for step in range(200))]
    return Curve(times, [LogLogistic(median, shape).alive(at) for at in times])


def small_fleet(**options):
    rng = np.random.default_rng(1)
    kinds = {
        "chat": np.sort(4 * np.exp(0.4 * rng.standard_normal(20_000))),
        "tools": np.sort(50 * np.exp(0.8 * rng.standard_normal(20_000))),
    }
    return Fleet(kinds, {"chat": 0.8, "tools": 0.2}, seconds=500, **options)


def test_it_comes_close_to_the_bound_and_provokes_no_429():
    fleet = small_fleet()
    figures = paced(fleet)
    assert figures.refused == 0
    assert figures.mean < 1.15 * bound(fleet)
    assert figures.mean < 0.5 * paced(fleet, worth=False).mean
    stock = free(fleet, "fixed 1 s (openai SDK)", retries=10**9)
    assert stock.refused > 0.3
    assert paced(fleet, closed=True).mean < 0.25 * stock.mean
    # Where its own retries are all that it has, most runs are never seen to end.
    assert free(fleet, "fixed 1 s (openai SDK)").gave_up > 0.5


def test_a_call_goes_where_it_is_worth_most():
    pacer = WorthPacer(60)
    for wait, median in (("late", 60.0), ("soon", 5.0), ("later", 600.0)):
        pacer.expect(wait, curve(median), 0.0, 0.0)
        pacer.want(wait, 1.0)
    assert [pacer.take(10.0), pacer.take(11.0), pacer.take(12.0)] == ["soon", "late", "later"]


def test_nothing_starves():
    # One run that is expected to take an hour, among many that end soon.
    pacer = WorthPacer(60)
    pacer.expect("long", curve(3600.0), 0.0, 0.0)
    pacer.want("long", 0.0)
    now, number = 0.0, 0
    for second in range(7200):
        now = float(second)
        for _ in range(2):
            number += 1
            pacer.expect(number, curve(3.0), now, now)
            pacer.want(number, now)
        taken = pacer.take(now)
        if taken == "long":
            break
        pacer.forget(taken)
    assert now < 7199


@pytest.mark.parametrize("limit", [1, 60, 500])
def test_within_any_minute_no_more_is_granted_than_allowed(limit):
    rng = random.Random(1)
    pacer = WorthPacer(limit)
    grants, now = [], 0.0
    for wait in range(2 * limit + 10):
        pacer.want(wait, 0.0)
    while (at := pacer.next_at()) is not None and now < 200:
        now = max(now, at, now + rng.random() * 0.01)
        if pacer.take(now) is not None:
            grants.append(now)
    for place, start in enumerate(grants):
        # A token is there a microsecond early: floats round.
        within = grants[place : place + limit + 2]
        assert sum(each < start + 60 - 1e-3 for each in within) <= limit


def test_credit_that_nobody_used_is_bounded():
    pacer = WorthPacer(300)
    for wait in range(50):
        pacer.want(wait, 1000.0)
    granted = 0
    while pacer.take(1000.0) is not None:
        granted += 1
    assert 1 <= granted <= 5


@pytest.mark.parametrize(("waits", "limit"), [(40, 600), (100, 3000)])
def test_at_the_moment_that_it_names_it_always_grants_a_look(waits, limit):
    # The bar is raised by the crowd at the beginning, and falls while runs end. Whoever drives the
    # pacer rests until `next_at`; a `take` that gave nothing then would make it spin.
    rng = random.Random(0)
    pacer, shape, now, granted = WorthPacer(limit), curve(), 0.0, 0
    for wait in range(waits):
        pacer.expect(wait, shape, 0.0, 0.0)
        pacer.want(wait, 1.0)
    while (at := pacer.next_at()) is not None:
        now = max(now, at)
        wait = pacer.take(now)
        assert wait is not None, f"nothing at {now}, after {granted} grants"
        granted += 1
        if rng.random() < 0.3:
            pacer.forget(wait)
        else:
            pacer.expect(wait, shape, 0.0, now)
            pacer.want(wait, now + 0.2)
    assert granted > waits


def test_nobody_is_looked_at_before_it_wants():
    pacer = WorthPacer()
    pacer.expect("wait", curve(), 0.0, 0.0)
    pacer.want("wait", 7.0)
    assert pacer.next_at() == 7.0
    assert pacer.take(6.9) is None
    assert pacer.take(7.0) == "wait"
    assert pacer.next_at() is None


def test_what_is_urgent_comes_before_all_looks():
    pacer = WorthPacer(60)
    pacer.expect("look", curve(1.0), 0.0, 0.0)
    pacer.want("look", 0.0)
    pacer.want("submission", 50.0, urgent=True)
    assert pacer.take(50.0) == "submission"
    assert pacer.take(51.0) == "look"


def test_a_new_wish_takes_the_place_of_the_old_and_forgetting_ends_it():
    pacer = WorthPacer()
    pacer.want("wait", 1.0)
    pacer.want("wait", 9.0)
    assert pacer.next_at() == 9.0
    pacer.forget("wait")
    assert pacer.next_at() is None
    assert pacer.take(10.0) is None


def test_a_pause_is_kept():
    pacer = WorthPacer()
    pacer.want("wait", 1.0)
    pacer.pause(30.0)
    assert pacer.next_at() == 30.0
    assert pacer.take(29.0) is None
    assert pacer.take(30.0) == "wait"


def test_what_others_spend_of_the_same_budget_is_not_spent_again():
    pacer = WorthPacer(600)
    for wait in range(100):
        pacer.want(wait, 0.0)
    pacer.saw_remaining(12, 600, 0.0)
    assert pacer.take(0.0) is None
    # The margin is 12 calls, and 10 come back each second.
    assert 0.0 < pacer.next_at() <= 0.2
    pacer.saw_remaining(600, 600, 1.0)
    assert pacer.take(1.0) is not None


def test_a_call_that_is_granted_takes_others_along():
    pacer = WorthPacer()
    for wait, median in (("late", 60.0), ("soon", 5.0), ("never", 5.0)):
        pacer.expect(wait, curve(median), 0.0, 0.0)
        pacer.want(wait, 99.0 if wait == "never" else 4.0)
    assert pacer.along(1, 5.0) == ["soon"]
    assert pacer.along(5, 5.0) == ["late"]
    assert pacer.next_at() == 99.0


def test_worth_never_falls_and_grows_beyond_any_bound():
    shape = curve()
    values = [Pile.since(shape, 2.0).value(2.0 + step * 0.25) for step in range(4000)]
    assert values[0] == 0
    assert all(later >= earlier - 1e-4 for earlier, later in itertools.pairwise(values))
    assert values[-1] > 1000


def test_a_grant_among_many_waits_costs_far_less_than_looking_at_all_of_them():
    rng = random.Random(1)
    pacer, shape, looks = WorthPacer(6_000), curve(20.0), 0
    for wait in range(1_000):
        pacer.expect(wait, shape, -rng.random() * 20, 0.0)
        pacer.want(wait, 0.0)
    was = Pile.value

    def counted(pile, now):
        nonlocal looks
        looks += 1
        return was(pile, now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pile, "value", counted)
        for grant in range(2_500):
            if grant == 2_000:
                looks = 0  # by now the bar is where supply and demand meet
            wait = pacer.take(grant / 100)
            pacer.expect(wait, shape, grant / 100, grant / 100)
            pacer.want(wait, grant / 100)
    assert looks / 500 < 50


def test_who_comes_along_comes_once_and_is_worth_most_of_those_due_longest():
    pacer = WorthPacer(60)
    for at in (3.0, 1.0):
        pacer.want("twice", at)
    pacer.want("later", 30.0)
    assert pacer.along(5, 10.0) == ["twice"]
    assert pacer.along(5, 10.0) == []
    assert pacer.next_at() == 30.0
    slow, quick = LogLogistic(1000.0), LogLogistic(1.0)
    times = [0.0, *(0.1 * 1.1**step for step in range(120))]
    for name, prior in (("slow", slow), ("quick", quick)):
        pacer.expect(name, Curve(times, [prior.alive(time) for time in times]), 0.0, 0.0)
        pacer.want(name, 1.0)
    assert pacer.along(1, 20.0) == ["quick"]


@pytest.mark.parametrize("limit", [None, 6e7])
def test_grants_cost_the_same_however_many_are_due_at_once(limit):
    pacer, shape = WorthPacer(limit), curve()
    for wait in range(20_000):
        pacer.expect(wait, shape, 0.0, 0.0)
        pacer.want(wait, 1.0)
    began = time.process_time()
    for grant in range(2_000):
        assert pacer.next_at() <= 10.0 + grant
        assert pacer.take(10.0 + grant) is not None
    assert time.process_time() - began < 5  # a look at each for each would take minutes


def test_urgent_calls_are_not_searched_for():
    pacer = WorthPacer()
    for wait in range(20_000):
        pacer.want(wait, float(-wait), urgent=True)
    began = time.process_time()
    assert [pacer.take(0.0) for _ in range(20_000)] == list(range(19_999, -1, -1))
    assert time.process_time() - began < 5  # a scan for each would take minutes


def test_what_is_known_of_a_kind_is_reckoned_once_for_all_who_wait_for_it():
    curves = [curve(2.0 + kind) for kind in range(300)]
    pacer = WorthPacer(60)
    for wait in range(3_000):
        pacer.expect(wait, curves[wait % 300], 0.0, 0.0)
        pacer.want(wait, 1.0)
    assert pacer.take(60.0) is not None
    kept = [each._areas for each in curves]
    pacer.take(61.0)
    assert all(each._areas is areas for each, areas in zip(curves, kept, strict=True))
    assert sys.getsizeof(curves[0]._areas) < 400


def test_what_is_ahead_is_the_integral():
    shape = curve()
    for at in (-1.0, 0.0, 0.03, 1.0, 4.9, 40.0):
        grid = np.linspace(at, shape.times[-1], 40_001)
        total = float(np.trapezoid(shape.along(grid), grid))
        alive, area = shape.ahead(at)
        assert alive == pytest.approx(shape.alive(at), rel=1e-6)
        assert area == pytest.approx(total, rel=2e-3)
