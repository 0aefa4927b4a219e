"""Which events a stream has, in which order, and that they are what is stored in the end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from runbell.runs import RunStatus, Usage
from runbell.service.backends import Finished, TextDelta, ToolCallDelta
from runbell.service.operations import runs, threads
from runbell.testing.databases import writer_held
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.streams.told import put_together, told_is_stored
from tests.web import Exchange, Web

BEGUN = ["run.created", "run.queued", "run.in_progress"]
SPEAKING = [
    "run.step.created",
    "run.step.in_progress",
    "message.created",
    "message.in_progress",
]
CALLING = ["run.step.created", "run.step.in_progress"]
SAID = "message.delta"
CALLED = "run.step.delta"
RUN_EVENTS = {f"thread.run.{status}" for status in ("created", *RunStatus)}
STOP = Finished("stop", Usage(3, 2))


async def begun(service: EmbeddedService, **fields: Any) -> Exchange:
    """A stream of a run whose model is being called."""
    stream = Web(service).stream(await service.thread("Hello"), **fields)
    await service.settle()
    assert stream.names == BEGUN
    return stream


def run_of(stream: Exchange) -> Any:
    runs_told = [data for name, data in stream.events if name in RUN_EVENTS]
    return runs_told[-1]


async def ends(service: EmbeddedService, stream: Exchange, *expected: str) -> None:
    """The stream has exactly these events behind its beginning, and all of it is stored."""
    await stream.answered()
    assert stream.ended
    assert stream.names == [*BEGUN, *expected, "done"]
    await told_is_stored(service, stream.events)
    assert Web(service).nothing_held()


@on_a_service()
async def test_text(service: EmbeddedService) -> None:
    """A message grows piece by piece, as the model says it."""
    stream = await begun(service)
    for count, word in enumerate(("One, ", "two, ", "three."), 1):
        service.backend.turn.give(TextDelta(word))
        await service.settle()
        assert stream.names == [*BEGUN, *SPEAKING, *[SAID] * count]
    service.backend.turn.play(STOP)
    end = ["message.completed", "run.step.completed", "run.completed"]
    await ends(service, stream, *SPEAKING, SAID, SAID, SAID, *end)
    assert run_of(stream)["usage"]["total_tokens"] == 5


@on_a_service()
async def test_headers(service: EmbeddedService) -> None:
    """No proxy is to keep or to gather what is streamed."""
    stream = await begun(service)
    service.backend.turn.say("Hi")
    await stream.answered()
    assert stream.status == 200
    assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert stream.headers["cache-control"] == "no-cache"
    assert stream.headers["x-accel-buffering"] == "no"
    assert stream.headers["x-request-id"].startswith("req_")
    assert stream.headers["openai-processing-ms"].isdigit()
    assert "content-length" not in stream.headers


@on_a_service()
async def test_an_answer_without_a_word(service: EmbeddedService) -> None:
    """Is an empty message; pieces without text begin none."""
    stream = await begun(service)
    service.backend.turn.give(TextDelta(""))
    await service.settle()
    assert stream.names == BEGUN
    service.backend.turn.play(STOP)
    end = ["message.completed", "run.step.completed", "run.completed"]
    await ends(service, stream, *SPEAKING, *end)


@on_a_service()
async def test_parallel_calls(service: EmbeddedService) -> None:
    """Arguments grow side by side; the stream ends where outputs are wanted."""
    stream = await begun(service)
    turn = service.backend.turn
    turn.give(ToolCallDelta(0, "f", '{"a":', "call_one"), ToolCallDelta(1, "g-2", "{"))
    turn.play(ToolCallDelta(0, arguments=" 1}"), ToolCallDelta(1, arguments="}"), STOP)
    await ends(service, stream, *CALLING, *[CALLED] * 4, "run.requires_action")
    calls = run_of(stream)["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in calls] == [
        ("f", '{"a": 1}'),
        ("g-2", "{}"),
    ]
    assert calls[0]["id"] == "call_one"


@on_a_service()
async def test_calls_stand_in_the_order_in_which_they_began(service: EmbeddedService) -> None:
    """Whatever numbers the model gives them, and in however many pieces their names come."""
    stream = await begun(service)
    turn = service.backend.turn
    turn.give(ToolCallDelta(7, "g-"), ToolCallDelta(3, "f", "{"), ToolCallDelta(7, "2", "{"))
    turn.play(ToolCallDelta(3, arguments="}"), ToolCallDelta(7, arguments="}"), STOP)
    await ends(service, stream, *CALLING, *[CALLED] * 6, "run.requires_action")
    step = (await service.steps(run_of(stream)["id"]))[0]
    assert [(call.name, call.arguments) for call in step.tool_calls] == [("g-2", "{}"), ("f", "{}")]


@on_a_service()
async def test_text_and_calls_in_one_turn(service: EmbeddedService) -> None:
    stream = await begun(service)
    turn = service.backend.turn
    turn.play(TextDelta("Let me look."), ToolCallDelta(0, "f", "{}"), STOP)
    end = ["message.completed", "run.step.completed", "run.requires_action"]
    await ends(service, stream, *SPEAKING, SAID, *CALLING, CALLED, *end)


@on_a_service()
async def test_outputs_and_the_answer_behind_them(service: EmbeddedService) -> None:
    """The second stream begins with the end of the step that the first one left open."""
    first = await begun(service)
    service.backend.turn.call(("f", "{}"), ("g-2", '{"a": 1}'))
    await ends(service, first, *CALLING, CALLED, CALLED, "run.requires_action")
    web, run = Web(service), run_of(first)
    outputs = [
        {"tool_call_id": call["id"], "output": f"output {number}"}
        for number, call in enumerate(run["required_action"]["submit_tool_outputs"]["tool_calls"])
    ]
    path = f"{await web.path_of(run['id'])}/submit_tool_outputs"
    second = web.post(path, {"tool_outputs": outputs, "stream": True})
    await service.settle()
    service.backend.turn.play(TextDelta("It "), TextDelta("rains."), STOP)
    await second.answered()
    assert second.names == [
        *("run.step.completed", "run.queued", "run.in_progress"),
        *(*SPEAKING, SAID, SAID),
        *("message.completed", "run.step.completed", "run.completed", "done"),
    ]
    answered = second.events[0][1]["step_details"]["tool_calls"]
    assert [call["function"]["output"] for call in answered] == ["output 0", "output 1"]
    await told_is_stored(service, first.events, second.events)


@on_a_service()
async def test_outputs_for_calls_that_were_not_told_of_yet(service: EmbeddedService) -> None:
    """Whoever reads the row is quicker than the news of it, which is none for the second stream."""
    first = await begun(service)
    run, web = run_of(first), Web(service)
    path = await web.path_of(run["id"])
    with news_held(service) as news:
        service.backend.turn.call(("f", "{}"))
        calls: tuple[Any, ...] = ()
        while not calls:
            await asyncio.sleep(0.001)
            calls = (await service.find(run["id"])).tool_calls
        assert "run.requires_action" not in first.names
        outputs = [{"tool_call_id": calls[0].id, "output": "1"}]
        second = web.post(f"{path}/submit_tool_outputs", {"tool_outputs": outputs, "stream": True})
        await some_turns()
        news.set()
    await service.settle()
    service.backend.turn.say("It rains.")
    await second.answered()
    assert second.names[:3] == ["run.step.completed", "run.queued", "run.in_progress"]
    assert second.names[-2:] == ["run.completed", "done"]


@on_a_service()
async def test_a_run_that_ends_in_the_commit_that_made_it(service: EmbeddedService) -> None:
    """As when its thread is deleted at the same time: the stream of its creation ends too."""
    web, thread = Web(service), await service.thread("Hi")
    with news_held(service) as news:
        filler = asyncio.create_task(service.thread("fills the writer's time"))
        await some_turns()
        stream = web.stream(thread)
        await some_turns()
        deleted = web.send("DELETE", f"/v1/threads/{thread}")
        await some_turns()
        news.set()
    await filler
    await deleted.answered()
    await stream.answered()
    assert stream.names == ["run.created", "run.queued", "run.cancelled", "done"]


@contextlib.contextmanager
def news_held(service: EmbeddedService) -> Iterator[threading.Event]:
    """The next commit is there, and nobody is told of it until the event is set."""
    store, news = service.store.inner, threading.Event()
    told = store.on_commit

    def hold(units: int, seconds: float) -> None:
        assert news.wait(60)
        told(units, seconds)

    store.on_commit = hold
    try:
        yield news
    finally:
        news.set()
        store.on_commit = told


async def some_turns() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@on_a_service()
async def test_a_thread_and_its_run(service: EmbeddedService) -> None:
    """The thread comes first."""
    thread = {"messages": [{"role": "user", "content": "Hi"}], "metadata": {"k": "v"}}
    body = {"assistant_id": service.assistant, "thread": thread, "stream": True}
    stream = Web(service).post("/v1/threads/runs", body)
    await service.settle()
    service.backend.turn.say("Hi")
    await stream.answered()
    assert stream.names[: len(BEGUN) + 1] == ["created", *BEGUN]
    created = stream.events[0][1]
    assert (created["object"], created["metadata"]) == ("thread", {"k": "v"})
    assert created["id"] == run_of(stream)["thread_id"]
    await told_is_stored(service, stream.events)


@on_a_service()
async def test_failed(service: EmbeddedService) -> None:
    """Before a word: only the run has failed."""
    stream = await begun(service)
    service.backend.turn.fail("rate_limit_exceeded", "Not now.")
    await ends(service, stream, "run.failed")
    assert run_of(stream)["last_error"] == {"code": "rate_limit_exceeded", "message": "Not now."}


@on_a_service()
async def test_failed_in_the_middle(service: EmbeddedService) -> None:
    """What was said stays, marked as what it is; and so do calls that nobody will answer."""
    stream = await begun(service)
    turn = service.backend.turn
    turn.give(TextDelta("Half an "), ToolCallDelta(0, "f", '{"a"'))
    await service.settle()
    turn.fail()
    end = ["message.incomplete", "run.step.failed", "run.step.failed", "run.failed"]
    await ends(service, stream, *SPEAKING, SAID, *CALLING, CALLED, *end)
    (message,) = [data for name, data in stream.events if name == "thread.message.incomplete"]
    assert message["incomplete_details"] == {"reason": "run_failed"}


@on_a_service()
async def test_the_backend_crashes_in_the_middle(service: EmbeddedService) -> None:
    stream = await begun(service)
    service.backend.turn.give(TextDelta("Half an "))
    await service.settle()
    service.backend.turn.crash(RuntimeError("a defect of the backend"))
    end = ["message.incomplete", "run.step.failed", "run.failed"]
    await ends(service, stream, *SPEAKING, SAID, *end)


@pytest.mark.parametrize("calls", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_incomplete(tmp_path: Any, text: bool, calls: bool) -> None:
    """Cut off at a limit: the message is incomplete, calls were never wanted."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        stream = await begun(service)
        turn = service.backend.turn
        expected = []
        if text:
            turn.give(TextDelta("Half an "))
            expected += [*SPEAKING, SAID]
        if calls:
            turn.give(ToolCallDelta(0, "f", '{"a'))
            expected += [*CALLING, CALLED]
        turn.play(Finished("max_completion_tokens", Usage(3, 2)))
        if text:
            expected += ["message.incomplete", "run.step.completed"]
        if calls:
            expected += ["run.step.cancelled"]
        await ends(service, stream, *expected, "run.incomplete")
        assert run_of(stream)["incomplete_details"] == {"reason": "max_completion_tokens"}

    story(tmp_path)


@on_a_service()
async def test_cancelled_in_the_middle(service: EmbeddedService) -> None:
    """What was streamed by then is stored: incomplete, since the run was cancelled."""
    stream = await begun(service)
    service.backend.turn.give(TextDelta("Half an "), TextDelta("ans"))
    await service.settle()
    await service.cancel(run_of(stream)["id"])
    end = ["run.cancelling", "message.incomplete", "run.step.cancelled", "run.cancelled"]
    await ends(service, stream, *SPEAKING, SAID, SAID, *end)
    said = (await service.messages(run_of(stream)["thread_id"]))[-1]
    assert (said.status, said.incomplete_reason) == ("incomplete", "run_cancelled")
    assert said.content[0].text.value == "Half an ans"  # type: ignore[union-attr]


@on_a_service()
async def test_cancelled_before_a_word(service: EmbeddedService) -> None:
    stream = await begun(service)
    await service.cancel(run_of(stream)["id"])
    await ends(service, stream, "run.cancelling", "run.cancelled")
    assert len(await service.messages(run_of(stream)["thread_id"])) == 1


@on_a_service()
async def test_cancelled_while_calls_grow(service: EmbeddedService) -> None:
    stream = await begun(service)
    service.backend.turn.give(ToolCallDelta(0, "f", '{"a'))
    await service.settle()
    await service.cancel(run_of(stream)["id"])
    end = ["run.cancelling", "run.step.cancelled", "run.cancelled"]
    await ends(service, stream, *CALLING, CALLED, *end)


@on_a_service(cancel_grace=10.0)
async def test_a_model_that_cannot_be_stopped(service: EmbeddedService) -> None:
    """Its run is ended by force, with what it had said by then; what it says later is not heard."""
    stream = await begun(service)
    turn = service.backend.turn
    turn.stubborn = True
    turn.give(TextDelta("I will "))
    await service.settle()
    await service.cancel(run_of(stream)["id"])
    turn.give(TextDelta("not "))
    await service.advance(10)
    turn.give(TextDelta("stop"))
    await service.settle()
    end = ["message.incomplete", "run.step.cancelled", "run.cancelled"]
    await ends(service, stream, *SPEAKING, SAID, "run.cancelling", SAID, *end)
    turn.say(" at all")
    await service.settle()
    said = await service.messages(run_of(stream)["thread_id"])
    assert [m.content[0].text.value for m in said] == ["Hello", "I will not "]  # type: ignore[union-attr]


@pytest.mark.parametrize("stubborn", [False, True])
def test_expired_in_the_middle(tmp_path: Any, stubborn: bool) -> None:
    """What was streamed by then is stored: incomplete, since the run has expired."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        stream = await begun(service, expires_after=60)
        service.backend.turn.stubborn = stubborn
        service.backend.turn.give(TextDelta("Half an "), ToolCallDelta(0, "f", "{"))
        await service.advance(60)
        end = ["message.incomplete", "run.step.expired", "run.step.expired", "run.expired"]
        await ends(service, stream, *SPEAKING, SAID, *CALLING, CALLED, *end)
        said = (await service.messages(run_of(stream)["thread_id"]))[-1]
        assert (said.status, said.incomplete_reason) == ("incomplete", "run_expired")

    story(tmp_path)


@on_a_service()
async def test_nothing_is_told_that_came_too_late_to_be_stored(service: EmbeddedService) -> None:
    """Between the end of the time and its commit, a model that can't be stopped talks on."""
    stream = await begun(service, expires_after=60)
    service.backend.turn.stubborn = True
    service.backend.turn.give(TextDelta("In time."))
    await service.settle()
    async with writer_held(service.store):
        service.clock.advance(60)
        while not service.backend.turn.stopped:
            await asyncio.sleep(0)
        service.backend.turn.give(TextDelta(" Too late."))
        for _ in range(10):
            await asyncio.sleep(0)
    end = ["message.incomplete", "run.step.expired", "run.expired"]
    await ends(service, stream, *SPEAKING, SAID, *end)


@on_a_service()
async def test_expired_while_the_database_is_away(service: EmbeddedService) -> None:
    """An answer that could not be stored in time is stored as broken off, not lost."""
    stream = await begun(service, expires_after=60)
    service.backend.turn.give(TextDelta("Too late."))
    await service.settle()
    service.store.away = True
    service.backend.turn.play(STOP)
    await service.advance(59.9)
    service.store.away = False
    service.clock.advance(0.1)
    await service.advance(5)
    await stream.answered()
    # Whichever came first to the database that was back: the outcome, or the end of the time.
    assert stream.names[-4:-1] in (
        ["message.completed", "run.step.completed", "run.completed"],
        ["message.incomplete", "run.step.expired", "run.expired"],
    )
    await told_is_stored(service, stream.events)


@on_a_service()
async def test_a_run_that_waits_its_turn(service: EmbeddedService) -> None:
    """Is streamed from its creation on, and goes on when the thread is free."""
    thread = await service.thread("Hello")
    first = await service.run(thread, "first")
    await service.settle()
    stream = Web(service).stream(thread, "second", on_active_run="enqueue")
    await service.settle()
    assert stream.names == BEGUN[:2]
    service.backend.turn.say("one")
    await service.settle()
    assert (await service.status(first), stream.names) == ("completed", BEGUN)
    service.backend.turn.say("two")
    end = ["message.completed", "run.step.completed", "run.completed"]
    await ends(service, stream, *SPEAKING, SAID, *end)


@on_a_service()
async def test_a_run_that_is_cancelled_while_it_waits_its_turn(service: EmbeddedService) -> None:
    thread = await service.thread("Hello")
    await service.run(thread)
    stream = Web(service).stream(thread, on_active_run="enqueue")
    await service.settle()
    await service.cancel(run_of(stream)["id"])
    await stream.answered()
    assert stream.names == [*BEGUN[:2], "run.cancelled", "done"]


@on_a_service()
async def test_the_thread_is_deleted(service: EmbeddedService) -> None:
    """The run is cancelled first: streams end as they do then."""
    thread = await service.thread("Hello")
    stream = Web(service).stream(thread)
    await service.settle()
    await threads.delete(service.ctx, service.project, thread)
    await stream.answered()
    assert stream.names == [*BEGUN, "run.cancelling", "run.cancelled", "done"]


@on_a_service()
async def test_two_who_follow_one_run(service: EmbeddedService) -> None:
    """Each gets everything from when it came; the one does not disturb the other."""
    stream = await begun(service)
    other = service.ctx.live.follow(run_of(stream)["id"])
    heard = aiter(other)
    service.backend.turn.play(TextDelta("Hello "), TextDelta("you"), STOP)
    told = []
    async for each in heard:
        told.append(each.event.removeprefix("thread."))
        if each.event == "thread.run.completed":
            break
    end = ["message.completed", "run.step.completed", "run.completed"]
    assert told == [*SPEAKING, SAID, SAID, *end]
    assert service.ctx.live.following == 1
    other.close()
    await ends(service, stream, *SPEAKING, SAID, SAID, *end)


@on_a_service()
async def test_outputs_can_be_streamed_by_one_alone(service: EmbeddedService) -> None:
    """Outputs are accepted once: who comes second is refused, and follows nothing."""
    run = await service.run(await service.thread("Hello"))
    await service.settle()
    service.backend.turn.call(("f", "{}"))
    await service.settle()
    web = Web(service)
    call = (await service.find(run)).tool_calls[0].id
    body = {"tool_outputs": [{"tool_call_id": call, "output": "o"}], "stream": True}
    path = f"{await web.path_of(run)}/submit_tool_outputs"
    one, two = web.post(path, body), web.post(path, body)
    await two.answered()
    assert (two.status, two.headers["content-type"]) == (400, "application/json")
    assert two.json()["error"]["message"].startswith('Runs in status "queued" do not accept')
    assert service.ctx.live.following == 1
    await service.settle()
    service.backend.turn.say("done")
    await one.answered()
    put_together(one.events)
    assert web.nothing_held()


@on_a_service()
async def test_errors_before_the_stream_are_errors(service: EmbeddedService) -> None:
    """They have a status and a body of JSON, as without `stream`."""
    web, thread = Web(service), await service.thread("Hello")
    busy = await service.thread("Hello")
    held = await service.run(busy)
    await service.settle()
    path = await web.path_of(held)
    outputs = {"tool_outputs": [{"tool_call_id": "call_x", "output": "o"}], "stream": True}
    refused = [
        (404, web.stream("thread_none")),
        (400, web.stream(thread, model="gpt-4o")),
        (400, web.stream(thread, nonsense=1)),
        (400, web.stream(busy)),
        (400, web.post(f"{path}/submit_tool_outputs", outputs)),
        (404, web.post(f"{path}x/submit_tool_outputs", outputs)),
        (401, web.send("POST", f"/v1/threads/{thread}/runs", {"stream": True}, key="sk-no")),
    ]
    for status, exchange in refused:
        await exchange.answered()
        assert (exchange.status, exchange.headers["content-type"]) == (status, "application/json")
        assert exchange.json()["error"]["message"]
    service.store.away = True
    away = await web.stream(thread).answered()
    assert (away.status, away.json()["error"]["code"]) == (503, "service_unavailable")
    service.store.away = False
    assert web.nothing_held()


@on_a_service()
async def test_nobody_listens(service: EmbeddedService) -> None:
    """Where nobody streams a run, nothing is made for streams."""
    run = await service.run(await service.thread("Hello"))
    await service.settle()
    service.backend.turn.give(TextDelta("Hi"))
    await service.settle()
    assert service.ctx.live.following == 0
    service.backend.turn.play(STOP)
    await service.settle()
    assert await service.status(run) == "completed"
    (step,) = await service.steps(run)
    found = await runs.retrieve_step(
        service.ctx, service.project, step.thread_id, step.run_id, step.id
    )
    assert found == step
