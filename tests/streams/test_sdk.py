"""The stock SDK's streams: plain iteration and event handlers, sync, async and Azure's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler, OpenAI
from openai.types.beta import Assistant
from typing_extensions import override

from tests.protocol.scenario import calls_of, fields, messages_of, outputs_for, say, text_of, until
from tests.protocol.wire import inspect_streamed
from tests.served import Served

SPOKEN = [
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    *["thread.message.delta"] * 3,
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
]


class Heard:
    """What a handler was called with, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []

    def hear(self, name: str, what: Any = None) -> None:
        self.calls.append((name, what))

    def names(self) -> list[str]:
        return [name for name, _ in self.calls]

    def of(self, name: str) -> list[Any]:
        return [what for called, what in self.calls if called == name]


class Handler(Heard, AssistantEventHandler):
    @override
    def on_event(self, event: Any) -> None:
        inspect_streamed(event.event, fields(event.data))
        self.hear("event", event.event)

    @override
    def on_text_created(self, text: Any) -> None:
        self.hear("text created")

    @override
    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.hear("text", delta.value)

    @override
    def on_text_done(self, text: Any) -> None:
        self.hear("text done", text.value)

    @override
    def on_message_done(self, message: Any) -> None:
        self.hear("message done", message)

    @override
    def on_tool_call_created(self, tool_call: Any) -> None:
        self.hear("call created", tool_call.function.name)

    @override
    def on_tool_call_done(self, tool_call: Any) -> None:
        self.hear("call done", (tool_call.function.name, tool_call.function.arguments))

    @override
    def on_run_step_done(self, run_step: Any) -> None:
        self.hear("step done", run_step.status)

    @override
    def on_exception(self, exception: Exception) -> None:
        self.hear("exception", exception)

    @override
    def on_end(self) -> None:
        self.hear("end")


class AsyncHandler(Heard, AsyncAssistantEventHandler):
    @override
    async def on_event(self, event: Any) -> None:
        inspect_streamed(event.event, fields(event.data))
        self.hear("event", event.event)

    @override
    async def on_text_created(self, text: Any) -> None:
        self.hear("text created")

    @override
    async def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.hear("text", delta.value)

    @override
    async def on_text_done(self, text: Any) -> None:
        self.hear("text done", text.value)

    @override
    async def on_message_done(self, message: Any) -> None:
        self.hear("message done", message)

    @override
    async def on_tool_call_created(self, tool_call: Any) -> None:
        self.hear("call created", tool_call.function.name)

    @override
    async def on_tool_call_done(self, tool_call: Any) -> None:
        self.hear("call done", (tool_call.function.name, tool_call.function.arguments))

    @override
    async def on_run_step_done(self, run_step: Any) -> None:
        self.hear("step done", run_step.status)

    @override
    async def on_exception(self, exception: Exception) -> None:
        self.hear("exception", exception)

    @override
    async def on_end(self) -> None:
        self.hear("end")


Streamed = tuple[Any, Any, Any, Heard]
"""The final run, messages and steps, as the handler has them, and the handler."""

Start = Callable[[Any, Any], Any]
"""Given a client and an event handler: the SDK's stream manager."""


def final(ask: Callable[[], Any]) -> Any:
    """What a handler has in the end; None where it says that there was nothing."""
    try:
        return ask()
    except RuntimeError:
        return None


def by_sync(client: Any, start: Start) -> Streamed:
    handler = Handler()
    with start(client, handler) as stream:
        stream.until_done()
        messages, steps = final(stream.get_final_messages), final(stream.get_final_run_steps)
        return stream.get_final_run(), messages, steps, handler


async def _by_async(client: Any, start: Start) -> Streamed:
    handler = AsyncHandler()

    async def last(ask: Any) -> Any:
        try:
            return await ask()
        except RuntimeError:
            return None

    async with client, start(client, handler) as stream:
        await stream.until_done()
        messages = await last(stream.get_final_messages)
        steps = await last(stream.get_final_run_steps)
        return await stream.get_final_run(), messages, steps, handler


@pytest.fixture(params=["sync", "async", "azure", "async azure"])
def handled(request: pytest.FixtureRequest, served: Served) -> Callable[[Start], Streamed]:
    """Stream with a handler, with one kind of client."""
    match request.param:
        case "sync":
            return lambda start: by_sync(served.client(), start)
        case "azure":
            return lambda start: by_sync(served.azure_client(), start)
        case "async":
            return lambda start: asyncio.run(_by_async(served.async_client(), start))
    return lambda start: asyncio.run(_by_async(served.async_azure_client(), start))


def test_a_handler_hears_a_text(
    handled: Callable[[Start], Streamed], client: OpenAI, echo: Assistant
) -> None:
    """Word by word, then the whole; `get_final_…` have what is stored."""
    thread = say(client, "one two three")
    run, messages, steps, heard = handled(
        lambda sdk, handler: sdk.beta.threads.runs.stream(
            thread_id=thread, assistant_id=echo.id, event_handler=handler
        )
    )
    assert heard.of("event") == [
        *("thread.run.created", "thread.run.queued", "thread.run.in_progress"),
        *SPOKEN,
    ]
    assert heard.of("text") == ["one ", "two ", "three"]
    assert heard.of("text done") == ["one two three"]
    assert heard.names()[-1] == "end"
    assert heard.names().count("end") == 1
    assert run.status == "completed"
    assert fields(run) == fields(client.beta.threads.runs.retrieve(run.id, thread_id=thread))
    (message,) = messages
    assert fields(message) == fields(
        client.beta.threads.messages.retrieve(message.id, thread_id=thread)
    )
    (step,) = steps
    assert step.step_details.message_creation.message_id == message.id


def test_a_handler_hears_calls_and_what_comes_after(
    handled: Callable[[Start], Streamed], client: OpenAI, echo: Assistant
) -> None:
    """The stream ends at `requires_action`; submitting the outputs streams the rest."""
    thread = say(client, 'call get-weather {"city": "Oslo"}\ncall look_up {"q": "rain"}')
    run, messages, steps, heard = handled(
        lambda sdk, handler: sdk.beta.threads.runs.stream(
            thread_id=thread, assistant_id=echo.id, event_handler=handler
        )
    )
    assert run.status == "requires_action"
    assert messages is None
    assert heard.of("call created") == ["get-weather", "look_up"]
    wanted = [(name, arguments) for _, name, arguments in calls_of(run)]
    assert wanted == [("get-weather", '{"city": "Oslo"}'), ("look_up", '{"q": "rain"}')]
    assert heard.of("call done") == wanted
    (step,) = steps
    assert [call.id for call in step.step_details.tool_calls] == [
        call for call, *_ in calls_of(run)
    ]
    ended, messages, _, heard = handled(
        lambda sdk, handler: sdk.beta.threads.runs.submit_tool_outputs_stream(
            thread_id=thread,
            run_id=run.id,
            tool_outputs=outputs_for(run, ["rain and", "wind"]),
            event_handler=handler,
        )
    )
    assert (ended.id, ended.status) == (run.id, "completed")
    assert heard.of("event") == [
        *("thread.run.step.completed", "thread.run.queued", "thread.run.in_progress"),
        *SPOKEN,
    ]
    assert [text_of(message) for message in messages] == ["rain and\nwind"]
    assert messages_of(client, thread)[-1] == "rain and\nwind"


def test_a_handler_of_a_thread_and_its_run(
    handled: Callable[[Start], Streamed], client: OpenAI, echo: Assistant
) -> None:
    run, messages, _, heard = handled(
        lambda sdk, handler: sdk.beta.threads.create_and_run_stream(
            assistant_id=echo.id,
            thread={"messages": [{"role": "user", "content": "one two three"}]},
            event_handler=handler,
        )
    )
    assert heard.of("event")[:2] == ["thread.created", "thread.run.created"]
    assert [text_of(message) for message in messages] == ["one two three"]
    assert messages_of(client, run.thread_id) == ["one two three"] * 2


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("fail rate_limit_exceeded Not now.", "failed", None),
        ("one two\nincomplete\nthree", "incomplete", "one two"),
        ("sleep 30", "expired", None),
    ],
)
def test_a_handler_hears_how_a_run_ends(
    handled: Callable[[Start], Streamed],
    client: OpenAI,
    echo: Assistant,
    text: str,
    status: str,
    said: str | None,
) -> None:
    thread = say(client, text)
    run, messages, _, heard = handled(
        lambda sdk, handler: sdk.beta.threads.runs.stream(
            thread_id=thread,
            assistant_id=echo.id,
            event_handler=handler,
            extra_body={"expires_after": 1} if status == "expired" else None,
        )
    )
    assert heard.of("event")[-1] == f"thread.run.{status}"
    assert heard.of("exception") == []
    assert run.status == status
    assert run.status_reason
    assert [text_of(message) for message in messages or []] == ([] if said is None else [said])


def test_a_cancel_ends_a_stream(served: Served, client: OpenAI, echo: Assistant) -> None:
    thread = say(client, "sleep 600")
    told = []
    stream = client.beta.threads.runs.create(thread, assistant_id=echo.id, stream=True)
    for event in stream:
        told.append(event.event)
        if event.event == "thread.run.in_progress":
            client.beta.threads.runs.cancel(event.data.id, thread_id=thread)
    assert told[-3:] == ["thread.run.in_progress", "thread.run.cancelling", "thread.run.cancelled"]


def test_text_deltas(client: OpenAI, echo: Assistant) -> None:
    """The shortest way to print an answer as it comes."""
    thread = say(client, "one two three")
    runs = client.beta.threads.runs
    with runs.stream(thread_id=thread, assistant_id=echo.id) as stream:
        assert list(stream.text_deltas) == ["one ", "two ", "three"]


def test_a_refusal_is_the_sdks_own_error(client: OpenAI, echo: Assistant) -> None:
    thread = say(client, "sleep 600")
    runs = client.beta.threads.runs
    with runs.stream(thread_id=thread, assistant_id=echo.id) as stream:
        for event in stream:
            if event.event == "thread.run.in_progress":
                break
        with (
            pytest.raises(Exception, match="already has an active run") as refused,
            runs.stream(thread_id=thread, assistant_id=echo.id),
        ):
            pass
        assert refused.value.status_code == 400  # type: ignore[attr-defined]
        run = stream.current_run
        assert run is not None
    # Closing the stream was no cancel.
    assert until(client, run, "in_progress").status == "in_progress"
    runs.cancel(run.id, thread_id=thread)


@pytest.mark.parametrize("beta", ["assistants=v2", "assistants=v1", None])
def test_any_openai_beta_header_will_do(served: Served, echo: Assistant, beta: str | None) -> None:
    api = served.api()
    body = {
        "assistant_id": echo.id,
        "thread": {"messages": [{"role": "user", "content": "hi"}]},
        "stream": True,
    }
    headers = {"OpenAI-Beta": beta} if beta else {}
    answer = api.post("/v1/threads/runs", body, headers=headers)
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.body.endswith(b"event: done\ndata: [DONE]\n\n")
