"""What Foresight promises to those who ask it."""

import gc
import json
import math
import random
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.polling.optimum import frontier
from bench.polling.ratios import ratio
from bench.polling.rules import LATENCY, checks_of, learned, outcome
from runbell.pacing import kinds
from runbell.pacing.foresight import Foresight
from runbell.pacing.survival import ignorance

KEY = ("asst_1", "gpt", ("search", "sum"))


def run(status, started=None, created=1000):
    return SimpleNamespace(status=status, created_at=created, started_at=started)


def taught(count=170, *, key=KEY, median=5.0, sigma=0.15, seed=1, **options):
    rng = random.Random(seed)
    known = Foresight(**options)
    for _ in range(count):
        known.observe(key, median * math.exp(rng.gauss(0, sigma)))
    return known


def drawn(median, sigma, seed=2):
    return np.sort(median * np.exp(sigma * np.random.default_rng(seed).standard_normal(20_000)))


def test_one_that_knows_nothing_looks_less_and_less_often():
    checks = checks_of(Foresight().policy(KEY).next_delay, 30_000)
    gaps = np.diff(checks)
    assert gaps.min() >= LATENCY
    at = lambda moment: gaps[np.searchsorted(checks, moment)]  # noqa: E731
    assert at(2) < at(20) < at(200) < at(2000)
    # Beyond the guesses, as the square root of the time that has passed: a hundredfold time, a
    # tenfold gap.
    assert 7 < at(20_000) / at(200) < 14


def test_after_200_runs_it_polls_like_one_that_knows_the_distribution():
    # Runs of a few latencies leave little to choose from, which a table spread for all does not
    # resolve.
    for median, sigma, most in ((0.6, 0.3, 1.14), (5, 0.3, 1.04), (40, 0.8, 1.04)):
        draws = drawn(median, sigma)
        best = frontier(draws)
        rng = np.random.default_rng(3)
        lesson = rng.choice(draws, 200)

        def polled(price, lesson=lesson, draws=draws):
            known = Foresight(price)
            for seconds in lesson:
                known.observe("kind", float(seconds))
            return learned(known, "kind", draws)

        assert ratio(polled, best) < most


def test_p95_is_no_worse_than_polling_every_second_at_as_many_calls():
    draws = drawn(10, 0.3)
    every = outcome(checks_of(lambda elapsed, polls: 1.0 if polls else 0.0, draws[-1]), draws)
    known = taught(170, median=10, sigma=0.3, price=0.03)
    mine = learned(known, KEY, draws)
    assert mine.calls < every.calls
    assert mine.percentile(95) < every.percentile(95)
    assert mine.mean < 0.7 * every.mean


@pytest.mark.parametrize(("off", "most"), [(1.0, 1.2), (30.0, 1.6), (1 / 30, 1.6)])
def test_a_cold_start_is_good_and_survives_a_prior_that_is_thirty_times_wrong(off, most):
    # What nothing was tuned to: all medians from one second to half a minute.
    draws = np.sort(np.concatenate([drawn(median, 0.5) for median in (1, 3, 8, 20, 30)]))
    best, prior = frontier(draws), ignorance(8.0 * off)
    assert ratio(lambda price: learned(Foresight(price, prior=prior), "new", draws), best) < most


def test_it_learns_from_the_bounds_that_its_own_looks_leave():
    draws = drawn(10, 0.3)
    best, price = frontier(draws), 0.1
    known = Foresight(price)
    for seconds in np.random.default_rng(3).choice(draws, 100):
        checks = checks_of(known.policy(KEY).next_delay, float(seconds))
        known.observe(KEY, (checks[-2] if len(checks) > 1 else 0.0, checks[-1]))
    mine = learned(known, KEY, draws)
    assert mine.calls / best.calls_at(mine.mean) < 1.15


def test_runs_that_were_all_given_up_at_a_timeout_are_not_taken_to_end_there():
    # The truth: a median of 20 s. Every caller gave up after 12.
    rng = random.Random(1)
    known = Foresight()
    for _ in range(100):
        seconds = 20 * math.exp(rng.gauss(0, 0.3))
        known.observe(KEY, min(seconds, 12.0), ended=seconds < 12.0)
    assert known.survival(KEY, 20) > 0.4
    assert known.survival(KEY, 11.5) > 0.9
    checks = checks_of(known.policy(KEY).next_delay, 60)
    assert sum(checks < 12) <= 2


def test_several_threads_may_use_one():
    known, errors = Foresight(most=50), []
    began = sys.getswitchinterval()

    def use(number):
        try:
            for turn in range(300):
                known.observe("same", 5.0)
                if turn % 20 == 0:
                    known.observe((number, turn), 5.0)
                    known.policy((number, turn)).next_delay(0, 0)
                    known.load(known.dump())
        except Exception as error:  # noqa: BLE001 - any is wrong
            errors.append(error)

    threads = [threading.Thread(target=use, args=(number,)) for number in range(4)]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(began)
    assert errors == []
    assert known._kinds["same"].ran.seen == 1200


def test_what_answers_take_becomes_the_latency():
    known = Foresight()
    for seconds in (0.4, 9.0, 0.5, 0.6, 0.45, 0.5, math.nan, 0.5, 0.5):
        known.answered(seconds)
    assert known.latency == 0.5


def test_a_new_kind_is_taken_for_one_like_the_others():
    known = taught(40, key="one", median=50)
    for seconds in (45.0, 52.0, 55.0):
        known.observe("two", seconds)
    draws = drawn(50, 0.15)
    after_none = learned(Foresight(), "three", draws)
    after_others = learned(known, "three", draws)
    assert after_others.calls < 0.8 * after_none.calls
    assert after_others.mean < 0.6 * after_none.mean
    # Together they are what it minimises.
    costs = [each.mean + known.price * each.calls for each in (after_others, after_none)]
    assert costs[0] < 0.6 * costs[1]


def test_a_model_that_became_slower_is_relearned_within_50_runs():
    draws = drawn(15, 0.3)
    best = frontier(draws)
    rng = random.Random(4)
    lesson = [5 * math.exp(rng.gauss(0, 0.3)) for _ in range(300)]
    lesson += [15 * math.exp(rng.gauss(0, 0.3)) for _ in range(50)]

    def polled(price):
        known = Foresight(price)
        for seconds in lesson:
            known.observe(KEY, seconds)
            known.schedule(KEY)
        return learned(known, KEY, draws)

    assert ratio(polled, best) < 1.15


def test_it_counts_from_the_start_once_the_start_is_known():
    known = taught()
    undisturbed = known.policy(KEY).next_delay(0, 0)
    policy = known.policy(KEY)
    policy.next_delay(0, 0)
    policy.saw(run("queued"), None)
    policy.next_delay(28.0, 1)
    policy.saw(run("in_progress", started=1030), None)
    # The stamp says 29 to 31 s, the looks 28 to 30.4 s.
    delay = policy.next_delay(30.5, 2)
    assert 30.5 + delay == pytest.approx(29.7 + undisturbed, abs=0.75)


def test_stamps_of_another_beginning_are_not_believed():
    # Tool outputs were submitted at 40 s; the run's first start says nothing of this part.
    known = taught()
    policy = known.policy(KEY, age=40.0)
    policy.saw(run("queued", started=1001), None)
    policy.next_delay(0.1, 1)
    policy.saw(run("in_progress", started=1001), None)
    delay = policy.next_delay(3.0, 2)
    assert 3.0 + delay < 7.5


def test_a_run_that_is_still_queued_starts_its_time_anew():
    known = taught()
    policy = known.policy(KEY)
    first = policy.next_delay(0, 0)
    policy.saw(run("queued"), None)
    assert policy.next_delay(20.0, 1) == pytest.approx(first, abs=0.3)


def test_where_runs_queue_for_long_the_queue_is_learned():
    rng = random.Random(5)
    known = Foresight()
    for _ in range(60):
        known.observe(KEY, 2 * math.exp(rng.gauss(0, 0.1)), queued=30 * math.exp(rng.gauss(0, 0.1)))
    policy = known.policy(KEY)
    assert 26 < policy.next_delay(0, 0) < 40
    policy.saw(run("queued"), None)
    assert 10 < policy.next_delay(10.0, 1) < 30
    policy.saw(run("in_progress", started=1031), None)
    assert policy.next_delay(32.0, 2) < 2.0


def test_a_dear_call_is_made_later_and_less_often():
    gaps = [np.diff(checks_of(taught(price=price).policy(KEY).next_delay, 12)).mean()
            for price in (0.01, 0.1, 1.0)]  # fmt: skip
    assert gaps == sorted(gaps)
    assert gaps[2] > 2 * gaps[0]


def test_survival_falls_from_one_to_nothing():
    known = taught()
    values = [known.survival(KEY, at / 4) for at in range(200)]
    assert values[0] == 1
    assert values == sorted(values, reverse=True)
    assert known.survival(KEY, 5) == pytest.approx(0.5, abs=0.1)
    assert known.survival(KEY, 1e6) < 1e-4


def test_a_run_that_was_given_up_makes_others_longer():
    one, other = taught(20), taught(20)
    for _ in range(10):
        one.observe(KEY, 8.0, ended=False)
    assert one.survival(KEY, 8) > other.survival(KEY, 8) + 0.1


def test_an_interval_says_less_than_a_number_but_says_it():
    known = Foresight()
    for _ in range(40):
        known.observe(KEY, (4, 6))
    assert known.survival(KEY, 3.5) > 0.95
    assert known.survival(KEY, 6.5) < 0.05


def test_a_key_is_the_same_however_its_tools_were_named():
    known = taught(20)
    expected = known.survival(KEY, 5)
    assert known.survival(["asst_1", "gpt", ["search", "sum"]], 5) == expected
    assert known.survival(("asst_1", "gpt", frozenset({"sum", "search"})), 5) == expected


def test_what_was_learned_survives_a_dump():
    known = taught(60)
    known.observe(KEY, 9.0, ended=False, queued=2.0)
    again = Foresight()
    assert again.load(json.loads(json.dumps(known.dump()))) == 61
    for at in (3, 5, 8):
        assert again.survival(KEY, at) == pytest.approx(known.survival(KEY, at), abs=0.01)
    assert again.dump() == known.dump()


def test_what_is_known_is_not_learned_again():
    known = taught(20)
    known.observe(KEY, (3.0, 4.7))
    dump = json.loads(json.dumps(known.dump()))
    assert known.load(dump) == 0
    other = taught(5, seed=2)
    assert [other.load(dump), other.load(dump), other.runs(KEY)] == [21, 0, 26]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=10,
)


@settings(max_examples=100, derandomize=True, deadline=None)
@given(JSON, JSON, JSON)
def test_junk_is_left_out_and_nothing_breaks(junk, more, row):
    known = Foresight()
    known.load(junk)
    known.load({"runbell": "foresight", "version": 1, "kinds": junk})
    good = {"key": "kind", "ran": [[4.0, 4.0], row, [5.0, None]], "queued": more}
    learned_from = known.load(
        {"runbell": "foresight", "version": 1, "kinds": [junk, {"key": more, "ran": row}, good]}
    )
    assert learned_from >= 2
    assert 0 <= known.survival("kind", 4.5) <= 1


@pytest.mark.parametrize("junk", [10**400, "12", ("1", "2"), None, [], (1, 2, 3), 1j, {}])
def test_what_is_no_number_is_refused(junk):
    with pytest.raises(ValueError, match="duration"):
        Foresight().observe(KEY, junk)


def test_numbers_of_other_kinds_are_numbers():
    known = Foresight()
    known.observe(KEY, np.float32(5))
    known.observe(KEY, (np.int64(3), np.float32(4)))
    assert known.runs(KEY) == 2


def test_keys_and_numbers_without_bounds_are_left_out():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    rows = [[10**400, 10**400], [4.0, 4.0]]
    kinds = [{"key": deep, "ran": rows}, {"key": "k", "ran": rows}]
    assert Foresight().load({"runbell": "foresight", "version": 1, "kinds": kinds}) == 1


def test_a_dump_of_another_version_is_left_alone():
    assert Foresight().load({**taught(20).dump(), "version": 2}) == 0


@pytest.mark.parametrize("junk", [-1, math.nan, math.inf, (3, 2)])
def test_what_is_no_duration_is_refused(junk):
    with pytest.raises(ValueError, match="duration"):
        Foresight().observe(KEY, junk)


@pytest.mark.parametrize("options", [{"price": -1}, {"price": math.nan}, {"latency": 0}])
def test_prices_and_latencies_that_make_no_sense_are_refused(options):
    with pytest.raises(ValueError, match="price"):
        Foresight(**options)


def size(thing, seen):
    """The bytes of a thing and of all that it holds on to, each once."""
    if id(thing) in seen or isinstance(thing, type | Foresight):
        return 0
    seen.add(id(thing))
    return sys.getsizeof(thing) + sum(size(part, seen) for part in gc.get_referents(thing))


def test_a_kind_takes_at_most_4_kib():
    rng = random.Random(6)
    known = Foresight()
    for _ in range(500):
        known.observe(KEY, rng.lognormvariate(1.5, 0.4), queued=rng.random())
    known.policy(KEY).next_delay(0, 0)
    known.poll_after(KEY, 0.2)
    (kind,) = known._kinds.values()
    assert 2000 < size(kind, set()) <= 4096


def test_kinds_beyond_the_most_are_forgotten_the_oldest_first():
    known = Foresight(most=3)
    for kind in ("one", "two", "one", "three", "four"):
        known.observe(kind, 5.0)
    assert [entry["key"] for entry in known.dump()["kinds"]] == ["one", "three", "four"]


def test_decisions_are_cheap():
    known = taught(200)
    policy = known.policy(KEY)
    policy.next_delay(0, 0)
    began = time.process_time()
    for at in range(5000):
        policy.next_delay(at % 20 + 0.1, 1)
    # Twenty microseconds are promised; a busy machine gets three times that.
    assert (time.process_time() - began) / 5000 < 60e-6


def test_the_pause_it_advises_is_the_best_there_is():
    known = taught(170, median=12, sigma=0.3)
    draws = drawn(12, 0.3)
    advised = known.poll_after(KEY, 0.1)

    def cost(pause):
        result = outcome(np.arange(0.1, 200, pause + LATENCY), draws)
        return result.mean + known.price * result.calls

    assert cost(advised) <= 1.05 * min(cost(0.1 * 1.15**step) for step in range(45))


def test_advice_for_a_kind_that_nobody_knows_is_sane():
    assert 0.2 < Foresight().poll_after("new") < 10


def test_a_prior_of_ones_own_is_believed():
    patient = Foresight(prior=ignorance(600.0))
    assert patient.policy(KEY).next_delay(0, 0) > 5 * Foresight().policy(KEY).next_delay(0, 0)


def test_one_look_works_out_one_thing_at_a_time(monkeypatch):
    """What is learned of a kind, and of all kinds, takes tens of milliseconds of an event loop."""
    worked_out = []
    estimate = kinds.estimate
    monkeypatch.setattr(kinds, "estimate", lambda *given: worked_out.append(1) or estimate(*given))
    known = Foresight()
    for _ in range(10):
        known.observe("k", (1.0, 2.0))
    known.schedule("k")
    most = 0
    for _ in range(200):
        known.observe("k", (1.0, 2.0))
        worked_out.clear()
        known.schedule("k")
        most = max(most, len(worked_out))
    assert most == 1
