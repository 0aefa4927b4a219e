"""A wait without a timeout ends a little after its run expires, whatever the server makes of it."""

from __future__ import annotations

import pytest

import runbell
from runbell.client.mail import Landed
from runbell.client.simulation import SimulatedRun, Simulation
from runbell.client.view import Answer
from runbell.pacing import Backoff, Fixed
from tests.waiter.mock import QUICK, answer, asking, client, ended, fields, run

EXPIRES_AT = 600.0
GRACE = 15.0


class NeverSwept:
    """A server on which nothing ever ends, not even what has expired.

    Args:
        dated: its answers have a date.
        ahead: seconds by which its clock is ahead of ours.
        extended: moments from which the run expires that much later.
    """

    def __init__(self, dated=True, ahead=0.0, extended=None):
        self.dated = dated
        self.ahead = ahead
        self.extended = extended or {}

    def perform(self, order, sent):
        assert sent < 5000, "it looks for ever"
        expires_at = EXPIRES_AT + self.ahead
        expires_at += sum(more for at, more in self.extended.items() if sent >= at)
        seen = SimulatedRun("r", "in_progress", expires_at=expires_at)
        time = float(int(sent + self.ahead)) if self.dated else None
        return sent + 0.1, Landed(order.number, Answer(seen, server_time=time))


def waited(server, item, policy):
    simulation = Simulation(server)
    simulation.begin(0.0, [item], policy=policy)
    (ending,) = simulation.run()
    assert isinstance(ending.error, runbell.WaitTimeout)
    return ending.waited


@pytest.mark.parametrize("policy", [Backoff(), Fixed(60), Fixed(7)])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dated", [True, False])
def test_a_run_that_is_never_swept_is_given_up(policy, known, dated):
    item = SimulatedRun("r", expires_at=EXPIRES_AT if known else None)
    seconds = waited(NeverSwept(dated), item, policy)
    assert EXPIRES_AT + GRACE - 1 <= seconds <= EXPIRES_AT + GRACE + 1.2


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_a_server_that_tells_the_time_is_believed(ahead):
    item = SimulatedRun("r", expires_at=EXPIRES_AT + ahead)
    seconds = waited(NeverSwept(ahead=ahead), item, Fixed(8))
    assert EXPIRES_AT + GRACE - 1 <= seconds <= EXPIRES_AT + GRACE + 1.2


def test_an_expiry_that_moves_is_followed():
    server = NeverSwept(extended={300.0: 200.0})
    seconds = waited(server, SimulatedRun("r", expires_at=EXPIRES_AT), Fixed(8))
    assert 200 + EXPIRES_AT + GRACE - 1 <= seconds <= 200 + EXPIRES_AT + GRACE + 1.2


def test_a_run_that_expired_long_ago_is_looked_at():
    server = NeverSwept(extended={0.0: -5000.0})
    seconds = waited(server, SimulatedRun("r", expires_at=-4400.0), Fixed(2))
    assert seconds == pytest.approx(GRACE)


def test_a_clock_that_is_wrong_keeps_no_function_from_its_call():
    ran, sent = [], []

    def serve(request):
        if request.method == "POST":
            sent.append(request.read())
            return answer(fields("completed"))
        return answer(asking(expires_in=-3000))

    tools = {"f": lambda: ran.append(1) or "sunny"}
    with runbell.Waiter(client(serve), tools=tools, policy=QUICK) as waiter:
        found = ended(waiter.wait, run(expires_in=-3000), timeout=60)
    assert found.status == "completed"
    assert ran == [1]
    assert b"sunny" in sent[0]
