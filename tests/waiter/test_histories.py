"""Whatever the server does, a wait ends in time, with the truth, and runs no tool call twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.client.flow import cancelling
from runbell.client.simulation import Simulation
from runbell.client.tools import toolbox
from runbell.errors import ActionRequired, WaitTimeout
from runbell.pacing import Advised, Backoff, Fixed, Jittered, SqrtElapsed
from tests.waiter.legal import LegalServer, Refused

TOOLS = toolbox({"f": lambda: "out"})
POLICIES = st.sampled_from([Backoff(), Fixed(0.4), Jittered(), SqrtElapsed(), Advised()])
SEEDS = st.integers(0, 2**32)


def play(server, **terms):
    simulation = Simulation(server, seed=1)
    terms.setdefault("max_errors", 1000)
    simulation.begin(0.0, [server.settled(0.0)], **terms)
    (ending,) = simulation.run()
    return ending


@given(SEEDS, POLICIES, st.sampled_from([3.0, 20.0, 200.0, None]), st.floats(0, 0.8))
@settings(max_examples=300, deadline=None)
def test_a_wait_ends_in_time_with_the_true_status(seed, policy, timeout, trouble):
    server = LegalServer(seed, trouble=trouble)
    ending = play(server, policy=policy, timeout=timeout, tools=TOOLS)
    limit = timeout if timeout is not None else server.expires_at + 15 + 1
    assert ending.waited <= limit + 1e-6
    assert all(times == 1 for times in server.ran.values()), server.ran
    assert len(server.accepted) == len(set(server.accepted))
    if ending.error is None:
        assert ending.item == server.settled(ending.at)
    else:
        assert isinstance(ending.error, WaitTimeout), ending.error
        assert ending.at >= limit - 1.5


@given(SEEDS, st.floats(0, 0.8))
@settings(max_examples=150, deadline=None)
def test_without_tools_a_run_that_asks_ends_the_wait(seed, trouble):
    server = LegalServer(seed, trouble=trouble)
    ending = play(server)
    if isinstance(ending.error, ActionRequired):
        assert ending.error.calls
        assert ending.item.status == "requires_action"
    else:
        assert ending.error is None or isinstance(ending.error, WaitTimeout)
    assert not server.ran


@given(SEEDS)
@settings(max_examples=150, deadline=None)
def test_a_cancel_is_seen_through(seed):
    server = LegalServer(seed, trouble=0.4)
    ending = play(server, play=cancelling, answers_actions=False, timeout=100.0)
    assert ending.error is None
    assert ending.item == server.settled(ending.at)
    assert not server.ran


@given(SEEDS)
@settings(max_examples=100, deadline=None)
def test_a_timeout_can_cancel(seed):
    server = LegalServer(seed, trouble=0.0, expires_in=1e6)
    ending = play(server, timeout=2.0, cancel_on_timeout=True, tools=TOOLS)
    if ending.error is not None:
        assert server.status.is_terminal
    assert ending.waited <= 2.0 + 1e-6


@given(SEEDS, st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_a_server_that_only_fails_is_given_up_after_max_errors(seed, max_errors):
    server = LegalServer(seed)
    server._serve = None
    server._problem = lambda: Refused(500)
    server.trouble = 2.0
    ending = play(server, timeout=1e6, max_errors=max_errors)
    assert isinstance(ending.error, Refused)
    assert any(f"{max_errors} requests in a row failed" in note for note in ending.error.__notes__)
