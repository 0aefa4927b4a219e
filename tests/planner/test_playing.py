"""What a policy does, taken from one run that shows all looks, is what each run by itself does."""

import numpy as np
import pytest

from runbell.client.simulation import Scripted, Simulation
from runbell.pacing import Backoff, Backstop, Fixed
from runbell.pacing.foresight import Foresight
from runbell.planner import playing
from runbell.planner.playing import Outcome, held, looks, polled, told
from runbell.planner.traces import Trace

LATENCY = 0.2


def one_by_one(policy, seconds):
    """Each run played by itself, by the simulation's own world: calls and delays."""
    calls, delays = [], []
    for takes in seconds:
        world = Scripted({"run": [(0.0, "in_progress"), (takes, "completed")]}, latency=LATENCY)
        simulation = Simulation(world)
        simulation.begin(0.0, ["run"], policy=policy)
        (ending,) = simulation.run()
        calls.append(len(world.requests))
        delays.append(ending.at - takes)
    return calls, delays


def learned():
    known = Foresight(latency=LATENCY)
    for seconds in Trace.lognormal(4, 12).sample().lessons[0].seen["lognormal"]:
        known.observe("kind", float(seconds))
    return known.policy("kind")


@pytest.mark.parametrize("policy", [Fixed(1.0), Fixed(0.05), Backoff(), learned()])
def test_one_unending_run_shows_what_every_run_does(policy):
    seconds = np.array([0.001, 0.09, 0.11, 1.0, 1.29, 1.31, 3.7, 9.99, 24.3])
    found = looks(policy, seconds.max(), LATENCY).at(seconds)
    calls, delays = one_by_one(policy, [float(each) for each in seconds])
    assert found.delays == pytest.approx(delays)
    assert found.calls == pytest.approx(np.mean(calls))


def test_polling_at_an_interval_is_what_arithmetic_says():
    # Looks are sent at 0, 1.2, 2.4 … and see how it stands 0.1 s later.
    found = polled({"a": np.array([0.1, 0.11, 1.3, 1.31])}, {"a": Fixed(1.0)}, LATENCY)
    assert found.delays == pytest.approx([0.1, 1.29, 0.1, 1.29])
    assert found.calls == pytest.approx((1 + 2 + 2 + 3) / 4)


def test_kinds_count_by_their_runs():
    draws = {"short": np.full(3, 0.05), "long": np.full(1, 10.0)}
    policy = Fixed(1.0)
    found = polled(draws, dict.fromkeys(draws, policy), LATENCY)
    assert found.calls == pytest.approx((3 * 1 + 1 * 10) / 4)


def test_looks_that_are_not_played_are_like_the_last_ones(monkeypatch):
    seconds = np.array([0.5, 7.7, 30.2])
    whole = looks(Fixed(0.5), 31.0, LATENCY).at(seconds)
    monkeypatch.setattr(playing, "MOST_LOOKS", 6)
    few = looks(Fixed(0.5), 31.0, LATENCY)
    assert len(few.sent) == 6
    assert few.at(seconds).delays == pytest.approx(whole.delays)
    assert few.at(seconds).calls == pytest.approx(whole.calls)


def test_a_held_request_is_answered_at_the_end(monkeypatch):
    monkeypatch.setattr(playing, "SAMPLE", 10)
    short = held({"a": np.linspace(1, 9, 50)}, Backoff(), LATENCY)
    assert short.delays == pytest.approx(np.full(10, LATENCY / 2))
    # The first request of a process asks whether the server holds.
    assert short.calls == pytest.approx(1.1)
    # One that lasts longer than a request may be held takes another.
    assert held({"a": np.full(50, 70.0)}, Backoff(), LATENCY).calls == pytest.approx(2.1)


def test_a_run_of_days_is_held_as_often_as_it_takes(monkeypatch):
    monkeypatch.setattr(playing, "SAMPLE", 3)
    seconds = np.array([500.0, 800.0, 1111.0])
    whole = held({"a": seconds}, Backoff(), LATENCY)
    monkeypatch.setattr(playing, "LONG", 400.0)
    short = held({"a": seconds}, Backoff(), LATENCY)
    assert short.calls == pytest.approx(whole.calls, rel=0.02)
    assert short.mean == pytest.approx(whole.mean, abs=0.01)


def test_an_event_costs_no_call_and_a_lost_one_is_noticed_by_the_backstop(monkeypatch):
    monkeypatch.setattr(playing, "SAMPLE", 10)
    monkeypatch.setattr(playing, "LOST", 4)
    draws = {"a": np.full(20, 5.0)}
    heard = told(draws, Backstop(), LATENCY, 0.0)
    assert (heard.calls, heard.mean) == (0.0, pytest.approx(LATENCY / 2))
    lost = told(draws, Backstop(), LATENCY, 1.0)
    assert (lost.calls, lost.mean) == (1.0, pytest.approx(30 + LATENCY - 5))
    some = told(draws, Backstop(), LATENCY, 0.25)
    assert some.calls == pytest.approx(0.25)
    assert some.mean == pytest.approx(0.75 * heard.mean + 0.25 * lost.mean)
    assert some.percentiles([74.0, 76.0]) == pytest.approx([heard.mean, lost.mean])


def test_what_no_backstop_looks_for_is_noticed_when_the_run_has_expired(monkeypatch):
    monkeypatch.setattr(playing, "LOST", 3)

    class Silent:
        def next_delay(self, elapsed, polls):
            return None

    lost = told({"a": np.full(9, 5.0)}, Silent(), LATENCY, 1.0)
    assert lost.mean == pytest.approx(600 - 5, abs=20)


def test_percentiles_heed_weights():
    even = Outcome(0.0, np.array([3.0, 1.0, 2.0]), np.array([1.0, 1.0, 1.0]))
    assert even.percentiles([33.0, 66.0, 100.0]) == [1.0, 2.0, 3.0]
    assert even.mean == 2.0
    heavy = Outcome(0.0, np.array([3.0, 1.0]), np.array([0.99, 0.01]))
    assert heavy.percentiles([1.0, 1.5]) == [1.0, 3.0]
