"""What a server says is taken for what it means: old answers, lost ones, and bad moments."""

from __future__ import annotations

import asyncio
import json

import httpx
import openai
import pytest

import runbell
from runbell.client.deeds import Submit, UseTool
from runbell.client.hands import ToolOutcome
from runbell.client.mail import Landed
from runbell.client.providers import Responses, Runs
from runbell.client.records import Planned
from runbell.client.server import GROWS_AFTER, HOLD_SECONDS, SHORTEST_HOLD, Server
from runbell.client.simulation import Scripted, SimulatedRun, Simulation
from runbell.client.tools import toolbox
from runbell.client.view import View
from runbell.pacing import Fixed
from runbell.runs import ToolCall
from tests.waiter.legal import Refused
from tests.waiter.mock import QUICK, answer, asking, async_client, client, ended, fields, run


def refusal(message):
    return httpx.Response(400, json={"error": {"message": message}})


EXPECTED = "Expected tool outputs for call_ids ['call_1', 'call_2'], got ['call_1']"


def test_an_old_answer_after_a_refusal_is_looked_past():
    """A reader shows the first of two calls for a while, also after outputs for it were refused."""
    sent, looks = [], []
    both = (("call_1", "f"), ("call_2", "f"))

    def serve(request):
        if request.method == "POST":
            given = json.loads(request.read())["tool_outputs"]
            sent.append([each["tool_call_id"] for each in given])
            return answer(fields("completed")) if len(given) == 2 else refusal(EXPECTED)
        looks.append(request)
        return answer(asking() if len(looks) < 5 else asking(calls=both))

    with runbell.Waiter(client(serve), tools={"f": lambda: "x"}, policy=QUICK) as waiter:
        assert ended(waiter.wait, run(), timeout=60).status == "completed"
    assert sent == [["call_1"], ["call_1", "call_2"]]


def test_a_refusal_that_stays_is_raised():
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request)
            return refusal(EXPECTED)
        return answer(asking())

    tools = {"f": lambda: "x"}
    with (
        runbell.Waiter(client(serve), tools=tools, policy=QUICK, max_errors=4) as waiter,
        pytest.raises(openai.BadRequestError, match="Expected tool outputs"),
    ):
        ended(waiter.wait, run(), timeout=60)
    assert len(posts) == 1


class NoKeys:
    """A server that makes a run whenever it is asked to, and loses answers."""

    def __init__(self, *answers, made=True):
        self.answers = list(answers)
        self.made = made
        self.runs = [fields("expired", "run_1", metadata={"a": "b"})]
        self.posts = 0

    def __call__(self, request):
        if request.method == "POST":
            self.posts += 1
            odd = self.answers.pop(0) if self.answers else None
            if self.made or odd is None:
                number = len(self.runs) + 1
                new = fields("queued", f"run_{number}", metadata={"a": "b"})
                self.runs.insert(0, new)
            if isinstance(odd, Exception):
                raise odd
            return odd or answer(self.runs[0])
        if request.url.path.endswith("/runs"):
            return httpx.Response(200, json={"object": "list", "data": self.runs})
        return answer(fields("completed", request.url.path.rpartition("/")[2]))


LOST = [httpx.ReadTimeout("lost"), httpx.Response(502, text="lost"), httpx.Response(200, text="{")]


@pytest.mark.parametrize("odd", LOST)
def test_a_restart_whose_answer_was_lost_makes_one_run(odd):
    server = NoKeys(odd)
    waiter = runbell.Waiter(client(server), policy=QUICK, restart_on={"expired"})
    with waiter:
        old = run("expired", metadata={"a": "b"})
        assert ended(waiter.wait, old, timeout=60).id == "run_2"
    assert server.posts == 1


@pytest.mark.parametrize("foreign", [True, False])
def test_a_restart_that_did_not_get_there_is_sent_again(foreign):
    server = NoKeys(httpx.ConnectError("away"), made=False)
    if foreign:  # somebody else's run on the same thread
        server.runs.insert(0, fields("queued", "run_x", assistant_id="asst_2"))
    waiter = runbell.Waiter(client(server), policy=QUICK, restart_on={"expired"})
    with waiter:
        old = run("expired", metadata={"a": "b"})
        assert ended(waiter.wait, old, timeout=60).id == ("run_3" if foreign else "run_2")
    assert server.posts == 2


# Watching.


def test_watching_what_has_ended_tells_it_once():
    seen, hooked = [], []
    waiter = runbell.Waiter(client(lambda request: answer({})), hooks=[hooked.append])
    with waiter:
        seen = [(each.status, each.previous) for each in waiter.watch(run("completed"))]
    assert seen == [("completed", None)]
    assert [type(each).__name__ for each in hooked] == ["Ended"]  # the waiter's own hooks

    async def story():
        async with runbell.AsyncWaiter(async_client(lambda request: answer({}))) as waiter:
            return [each.status async for each in waiter.watch(run("failed"))]

    assert asyncio.run(story()) == ["failed"]


# What a server can do.


def test_a_server_that_is_not_well_has_not_lost_what_it_can():
    server = Server()
    server.batches = server.holds = True
    for status in (500, 502, 503, 504):
        assert not server.refuses_batches(Refused(status), None)
        server.broke(Refused(status), 0.1)
    assert not server.refuses_batches(ConnectionResetError(), None)
    server.broke(ConnectionResetError(), 0.1)
    server.answered(40, False, 1.0)  # one answer of a server that does not hold
    assert server.hold(100.0) == HOLD_SECONDS


@pytest.mark.parametrize("status", [400, 404, 501])
def test_clear_signs_count_at_once(status):
    server = Server()
    server.batches = True
    assert server.refuses_batches(Refused(status), None)
    assert server.refuses_batches(None, None)  # 200, and nothing of the kind


def test_a_gateway_that_answers_500_to_what_it_does_not_know_is_found_out():
    server = Server()
    assert [server.refuses_batches(Refused(500), None) for _ in range(3)] == [False, False, True]


def test_what_cuts_requests_that_are_held_is_heeded_and_tried_again():
    server = Server()
    server.answered(0, True, 0.1)
    for _ in range(64):  # all that were held at the time
        server.broke(Refused(504), 30.0)
    assert server.hold(100.0) == 15
    for _ in range(10):
        server.broke(Refused(504), 6.0)
    assert server.hold(100.0) == SHORTEST_HOLD
    for _ in range(GROWS_AFTER):
        server.answered(SHORTEST_HOLD, True, SHORTEST_HOLD + 0.1)
    assert server.hold(100.0) == 2 * SHORTEST_HOLD
    server.broke(Refused(501), 0.1)
    assert server.hold(100.0) is None


# Objects.


class Ours:
    def owns(self, item):
        return isinstance(item, dict)

    def view(self, item):
        return View(item["id"], item["state"], "completed" if item["state"] == "ok" else "ended")


def test_an_object_of_ones_own_has_a_status_too():
    good, bad = {"id": "a", "state": "ok"}, {"id": "b", "state": "broken"}
    assert runbell.raise_for_status(good, providers=[Ours()]) is good
    with pytest.raises(runbell.RunError, match="b is broken"):
        runbell.raise_for_status(bad, providers=[Ours()])


SPARSE = ("created_at", "started_at", "expires_at", "last_error", "incomplete_details")


def test_a_gateway_may_leave_fields_out():
    def serve(request):
        found = fields("completed")
        return answer({name: found[name] for name in found if name not in SPARSE})

    with runbell.Waiter(client(serve), policy=Fixed(0.01)) as waiter:
        found = ended(waiter.wait, runbell.RunRef("thread_1", "run_1"), timeout=60)
    assert runbell.raise_for_status(found) is found
    assert Runs().view(found).created_at is None
    response = openai.types.responses.Response.construct(
        id="resp_1", object="response", status="queued", created_at="soon"
    )
    assert Responses().view(response).created_at is None


class Tooled(Scripted):
    """A run that asks for outputs once, on a server that holds requests, or that does not."""

    def __init__(self, holds):
        asks = SimulatedRun("r", "requires_action", calls=(ToolCall("call_1", "f", "{}"),))
        super().__init__({"r": [(0.0, "queued"), (0.2, asks.status)]}, latency=0.1, holds=holds)
        self.asks, self.submitted = asks, None

    def perform(self, order, sent):
        if isinstance(order.deed, UseTool):
            return sent + 0.1, Landed(order.number, ToolOutcome("sunny"))
        if isinstance(order.deed, Submit):
            self._histories = {"r": [(0.0, "queued"), (sent + 3.0, "completed")]}
            self.submitted = sent + 0.1
            return sent + 0.1, Landed(order.number, SimulatedRun("r", "queued"))
        return super().perform(order, sent)

    def _run(self, run_id, at):
        found = super()._run(run_id, at)
        return self.asks if found.status == self.asks.status else found


@pytest.mark.parametrize("holds", [True, False])
def test_after_outputs_a_server_that_holds_is_asked_at_once(holds):
    world = Tooled(holds)
    simulation = Simulation(world, hold=True)
    plans = []
    simulation.begin(
        0.0,
        ["r"],
        timeout=60.0,
        tools=toolbox({"f": lambda: "sunny"}),
        hooks=[lambda record: isinstance(record, Planned) and plans.append(record)],
    )
    (ending,) = simulation.run()
    assert ending.item.status == "completed"
    looks = [at for at, _ in world.requests if at >= world.submitted]
    plan = next(each for each in plans if each.elapsed >= world.submitted)
    if holds:
        assert looks == [world.submitted]
        assert plan.delay == 0.0
    else:
        assert looks[0] == pytest.approx(world.submitted + 0.5)
