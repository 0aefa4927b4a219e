"""What programs do with the SDK, for any of its versions: needs nothing but `openai` (and, for the
waiter, the sources of `runbell`).

    python scenarios.py VERSION BASE_URL API_KEY

Each scenario is written once and driven with every kind of client: what a synchronous one returns
is a value, what an asynchronous one returns is awaited. Prints a line for each that has failed and
exits with 1, or says how many have passed.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import traceback
import warnings
from typing import Any

import openai

import runbell

warnings.simplefilter("ignore", DeprecationWarning)

AZURE_API_VERSION = "2024-05-01-preview"
POLL = {"poll_interval_ms": 20}
TOOLS: Any = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get-weather", "look_up")
]


async def done(result: Any) -> Any:
    """What a call of either kind of client gives."""
    return await result if inspect.isawaitable(result) else result


async def each(result: Any) -> list[Any]:
    """What a page or a stream of either kind of client has."""
    if hasattr(result, "__aiter__"):
        return [item async for item in result]
    return list(result)


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def text_of(message: Any) -> str:
    return "".join(part.text.value for part in message.content)


class Story:
    """One client, and an assistant for it."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.threads = client.beta.threads
        self.runs = client.beta.threads.runs
        self.asynchronous = isinstance(client, openai.AsyncOpenAI)

    async def begin(self) -> None:
        made = self.client.beta.assistants.create(model="echo", tools=TOOLS)
        self.assistant = (await done(made)).id

    async def thread(self, *texts: str) -> str:
        return (await done(self.threads.create(messages=[user(text) for text in texts]))).id

    async def run(self, text: str, **options: Any) -> Any:
        thread = await self.thread(text)
        return await done(self.runs.create(thread, assistant_id=self.assistant, **options))

    async def until_done(self, manager: Any) -> tuple[Any, Any, Any]:
        """Consume a stream with its handler: the final run, messages and steps; None for none."""
        if self.asynchronous:
            async with manager as stream:
                await stream.until_done()
                return await self._final(stream)
        with manager as stream:
            stream.until_done()
            return await self._final(stream)

    async def _final(self, stream: Any) -> tuple[Any, Any, Any]:
        final = []
        for ask in (stream.get_final_run, stream.get_final_messages, stream.get_final_run_steps):
            try:
                final.append(await done(ask()))
            except RuntimeError:  # the SDK's way to say that there was none
                final.append(None)
        return final[0], final[1], final[2]


async def streams_event_by_event(story: Story) -> None:
    thread = await story.thread("one two three")
    create = story.runs.create(thread, assistant_id=story.assistant, stream=True)
    events = await each(await done(create))
    names = [event.event for event in events]
    assert names[:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"], names
    assert names[-1] == "thread.run.completed", names
    deltas = [e.data.delta.content[0].text.value for e in events if e.event.endswith("ge.delta")]
    assert deltas == ["one ", "two ", "three"], deltas


async def streams_with_a_handler(story: Story) -> None:
    thread = await story.thread("one two three")
    base = openai.AsyncAssistantEventHandler if story.asynchronous else openai.AssistantEventHandler
    heard: list[str] = []
    if story.asynchronous:

        async def on_text_delta(self: Any, delta: Any, snapshot: Any) -> None:
            heard.append(delta.value)

        async def on_end(self: Any) -> None:
            heard.append("end")
    else:

        def on_text_delta(self: Any, delta: Any, snapshot: Any) -> None:
            heard.append(delta.value)

        def on_end(self: Any) -> None:
            heard.append("end")

    handler = type("Handler", (base,), {"on_text_delta": on_text_delta, "on_end": on_end})()
    run, messages, steps = await story.until_done(
        story.runs.stream(thread_id=thread, assistant_id=story.assistant, event_handler=handler)
    )
    assert heard == ["one ", "two ", "three", "end"], heard
    assert run.status == "completed"
    assert [text_of(message) for message in messages] == ["one two three"]
    assert [step.type for step in steps] == ["message_creation"]
    stored = await each(await done(story.threads.messages.list(thread, run_id=run.id)))
    assert [message.id for message in stored] == [message.id for message in messages]


async def streams_tool_calls_and_what_follows(story: Story) -> None:
    thread = await story.thread('call get-weather {"city": "Oslo"}\ncall look_up {"q": "rain"}')
    run, messages, steps = await story.until_done(
        story.runs.stream(thread_id=thread, assistant_id=story.assistant)
    )
    assert (run.status, messages) == ("requires_action", None)
    calls = run.required_action.submit_tool_outputs.tool_calls
    named = [(call.function.name, call.function.arguments) for call in calls]
    assert named == [("get-weather", '{"city": "Oslo"}'), ("look_up", '{"q": "rain"}')], named
    built = [
        (c.id, c.function.name, c.function.arguments) for c in steps[0].step_details.tool_calls
    ]
    assert built == [(call.id, call.function.name, call.function.arguments) for call in calls], (
        built
    )
    outputs = [{"tool_call_id": call.id, "output": call.function.name} for call in calls]
    ended, messages, _ = await story.until_done(
        story.runs.submit_tool_outputs_stream(thread_id=thread, run_id=run.id, tool_outputs=outputs)
    )
    assert (ended.id, ended.status) == (run.id, "completed")
    assert [text_of(message) for message in messages] == ["get-weather\nlook_up"]


async def streams_a_thread_and_its_run(story: Story) -> None:
    run, messages, _ = await story.until_done(
        story.threads.create_and_run_stream(
            assistant_id=story.assistant, thread={"messages": [user("hello")]}
        )
    )
    assert run.status == "completed"
    assert [text_of(message) for message in messages] == ["hello"]


async def streams_to_every_end(story: Story) -> None:
    ends = {
        "fail server_error Broken.": "failed",
        "one\nincomplete\ntwo": "incomplete",
        "sleep 30": "expired",
    }
    for text, status in ends.items():
        thread = await story.thread(text)
        run, _, _ = await story.until_done(
            story.runs.stream(
                thread_id=thread,
                assistant_id=story.assistant,
                extra_body={"expires_after": 1} if status == "expired" else None,
            )
        )
        assert run.status == status, run


async def polls(story: Story) -> None:
    thread = await story.thread("hello")
    run = await done(
        story.runs.create_and_poll(thread_id=thread, assistant_id=story.assistant, **POLL)
    )
    assert (run.status, run.usage.completion_tokens) == ("completed", 1)
    run = await done(
        story.threads.create_and_run_poll(
            assistant_id=story.assistant, thread={"messages": [user("hello")]}, **POLL
        )
    )
    assert run.status == "completed"
    run = await story.run("sleep 0.1\nhello")
    ended = await done(story.runs.poll(run.id, thread_id=run.thread_id, **POLL))
    assert ended.status == "completed"


async def polls_at_the_services_pace(story: Story) -> None:
    """Without an interval of its own, the SDK follows `openai-poll-after-ms`."""
    run = await story.run("sleep 0.1\nhello")
    ended = await done(story.runs.poll(run.id, thread_id=run.thread_id))
    assert ended.status == "completed"


async def polls_through_tool_calls(story: Story) -> None:
    thread = await story.thread("call get-weather {}\ncall look_up {}")
    run = await done(
        story.runs.create_and_poll(thread_id=thread, assistant_id=story.assistant, **POLL)
    )
    assert run.status == "requires_action"
    calls = run.required_action.submit_tool_outputs.tool_calls
    outputs = [{"tool_call_id": call.id, "output": call.function.name} for call in calls]
    run = await done(
        story.runs.submit_tool_outputs_and_poll(
            thread_id=thread, run_id=run.id, tool_outputs=outputs, **POLL
        )
    )
    assert run.status == "completed"
    page = await each(await done(story.threads.messages.list(thread, run_id=run.id)))
    assert [text_of(message) for message in page] == ["get-weather\nlook_up"]


async def pages(story: Story) -> None:
    texts = [f"message {number}" for number in range(25)]
    thread = await story.thread(*texts)
    every = story.threads.messages.list(thread, order="asc", limit=10)
    assert [text_of(message) for message in await each(every)] == texts
    first = await done(story.threads.messages.list(thread, order="asc", limit=10))
    assert (len(first.data), first.has_more) == (10, True)
    second = await done(first.get_next_page())
    assert [text_of(message) for message in second.data] == texts[10:20]


async def everything_else(story: Story) -> None:
    assistants = story.client.beta.assistants
    made = await done(assistants.create(model="gpt-4o", name="Ada", metadata={"k": "v"}))
    assert (await done(assistants.update(made.id, name="Grace"))).name == "Grace"
    assert (await done(assistants.delete(made.id))).deleted
    run = await story.run("hello", metadata={"a": "b"})
    run = await done(story.runs.poll(run.id, thread_id=run.thread_id, **POLL))
    steps = await each(await done(story.runs.steps.list(run.id, thread_id=run.thread_id)))
    step = await done(
        story.runs.steps.retrieve(steps[0].id, thread_id=run.thread_id, run_id=run.id)
    )
    assert step.step_details.type == "message_creation"
    listed = await each(await done(story.runs.list(run.thread_id)))
    assert [found.id for found in listed] == [run.id]
    run = await story.run("sleep 600")
    await done(story.runs.cancel(run.id, thread_id=run.thread_id))
    ended = await done(story.runs.poll(run.id, thread_id=run.thread_id, **POLL))
    assert ended.status == "cancelled"
    assert (await done(story.threads.delete(run.thread_id))).deleted
    assert "echo" in [model.id for model in await each(await done(story.client.models.list()))]


async def raises(kind: type[Exception], call: Any) -> Any:
    """The error of this kind that `call`, a function without arguments, raises."""
    try:
        await done(call())
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


async def errors(story: Story) -> None:
    retrieve, create = story.runs.retrieve, story.runs.create
    error = await raises(openai.NotFoundError, lambda: story.threads.retrieve("thread_x"))
    assert "No thread found with id 'thread_x'." in error.message, error.message
    run = await story.run("sleep 600")
    thread = run.thread_id
    error = await raises(
        openai.BadRequestError, lambda: create(thread, assistant_id=story.assistant)
    )
    assert f"Thread {thread} already has an active run {run.id}." in error.message
    unknown = {"nonsense": 1}
    error = await raises(
        openai.BadRequestError,
        lambda: create(thread, assistant_id=story.assistant, extra_body=unknown),
    )
    assert (error.code, error.param) == ("unknown_parameter", "nonsense")
    await done(story.runs.cancel(run.id, thread_id=thread))
    stranger = story.client.with_options(api_key="sk-nobodys-key-at-all")
    error = await raises(openai.AuthenticationError, lambda: stranger.models.retrieve("echo"))
    assert error.code == "invalid_api_key"
    taken = {"id": story.assistant}
    retrying = story.client.with_options(max_retries=3)
    error = await raises(
        openai.ConflictError,
        lambda: retrying.beta.assistants.create(model="echo", extra_body=taken),
    )
    tries = error.response.request.headers.get("x-stainless-retry-count", "0")
    assert tries == "0", "a 409 is not tried again"
    await done(story.runs.poll(run.id, thread_id=thread, **POLL))
    known = (await done(story.runs.with_raw_response.retrieve(run.id, thread_id=thread))).headers
    headers = {"If-None-Match": known["etag"]}
    error = await raises(
        openai.APIStatusError, lambda: retrieve(run.id, thread_id=thread, extra_headers=headers)
    )
    assert error.status_code == 304
    streaming = {"assistant_id": "asst_x", "stream": True}
    await raises(openai.NotFoundError, lambda: create(thread, **streaming))


async def waits_at_the_service(story: Story) -> None:
    run = await story.run("sleep 0.3\nhello")
    raw = await done(
        story.runs.with_raw_response.retrieve(
            run.id, thread_id=run.thread_id, extra_headers={"Prefer": "wait=30"}
        )
    )
    assert raw.headers["preference-applied"] == "wait=30"
    assert (await done(raw.parse())).status == "completed"


async def waits_with_the_waiter(story: Story) -> None:
    """Every kind of client, tools, many at a time, and what the server can do."""
    kind = runbell.AsyncWaiter if story.asynchronous else runbell.Waiter
    waiter = kind(story.client, timeout=60)
    called = []

    def look_up(**arguments: Any) -> dict[str, Any]:
        called.append(arguments)
        return {"found": True}

    run = await story.run('sleep 0.2\ncall look_up {"q": "rain"}')
    ended = await done(waiter.wait(run, tools=[look_up]))
    assert (runbell.raise_for_status(ended).status, called) == ("completed", [{"q": "rain"}])
    run = await story.run("call look_up {}")
    asks = await raises(runbell.ActionRequired, lambda: waiter.wait(run))
    assert [call.name for call in asks.calls] == ["look_up"]
    runs = [await story.run("sleep 0.2\nhello") for _ in range(55)]
    ended = await done(waiter.wait_all(runs))
    assert [(run.id, run.status) for run in ended] == [(run.id, "completed") for run in runs]
    cancelled = await done(waiter.cancel(await story.run("sleep 600")))
    assert cancelled.status == "cancelled"
    missing = runbell.RunRef("thread_x", "run_x")
    error = await raises(openai.NotFoundError, lambda: waiter.wait(missing))
    assert any("base_url" in note for note in error.__notes__), error.__notes__
    await done(waiter.aclose() if story.asynchronous else waiter.close())


SCENARIOS = (
    streams_event_by_event,
    streams_with_a_handler,
    streams_tool_calls_and_what_follows,
    streams_a_thread_and_its_run,
    streams_to_every_end,
    polls,
    polls_at_the_services_pace,
    polls_through_tool_calls,
    pages,
    everything_else,
    errors,
    waits_at_the_service,
    waits_with_the_waiter,
)


def clients(base_url: str, key: str) -> dict[str, Any]:
    root = base_url.removesuffix("/v1")
    options: dict[str, Any] = {"api_key": key, "max_retries": 0, "timeout": 60}
    azure = {"azure_endpoint": root, "api_version": AZURE_API_VERSION, **options}
    return {
        "sync": openai.OpenAI(base_url=base_url, **options),
        "async": openai.AsyncOpenAI(base_url=base_url, **options),
        "azure": openai.AzureOpenAI(**azure),
        "async azure": openai.AsyncAzureOpenAI(**azure),
    }


async def main() -> None:
    version, base_url, key = sys.argv[1:]
    assert openai.__version__.startswith(f"{version}."), openai.__version__
    failed = passed = 0
    for kind, client in clients(base_url, key).items():
        story = Story(client)
        await story.begin()
        for scenario in SCENARIOS:
            try:
                await scenario(story)
                passed += 1
            except Exception:  # noqa: BLE001 - the others are to be seen too
                failed += 1
                print(f"FAILED openai {openai.__version__}, {kind}: {scenario.__name__}")
                traceback.print_exc()
        await done(client.close())
    print(f"openai {openai.__version__}: {passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    asyncio.run(main())
