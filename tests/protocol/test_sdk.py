"""The stock `openai` SDK by `base_url` alone: all it has for assistants, sync, async and Azure's.

Each scenario is written once and driven with every kind of client: what a synchronous one returns
is a value, what an asynchronous one returns is awaited.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.protocol.scenario import calls_of, fields, function_tool, outputs_for, text_of
from tests.served import Served

CLIENTS = ("sync", "async", "azure", "async azure", "prefix")

Scenario = Callable[[Any], Awaitable[None]]


async def done(result: Any) -> Any:
    """What a call of either kind of client gives."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def stock(served: Served, kind: str) -> AsyncIterator[Any]:
    if kind == "async":
        async with served.async_client() as client:
            yield client
    elif kind == "async azure":
        async with served.async_azure_client() as azure:
            yield azure
    elif kind == "azure":
        yield served.azure_client()
    else:
        prefix = f"{served.root}/openai/v1" if kind == "prefix" else None
        yield served.client(base_url=prefix)


@pytest.fixture(params=CLIENTS)
def drive(request: pytest.FixtureRequest, served: Served) -> Callable[[Scenario], None]:
    """Run a scenario with one kind of client."""

    async def driven(scenario: Scenario) -> None:
        async with stock(served, request.param) as client:
            await scenario(client)

    return lambda scenario: asyncio.run(driven(scenario))


def user(text: str) -> Any:
    return {"role": "user", "content": text}


def test_assistants(drive: Callable[[Scenario], None]) -> None:
    """Create, retrieve, update, list and delete assistants."""

    async def scenario(client: Any) -> None:
        assistants = client.beta.assistants
        made = await done(
            assistants.create(model="gpt-4o", name="Ada", instructions="Be brief.", temperature=0.2)
        )
        assert (made.name, made.model, made.temperature) == ("Ada", "gpt-4o", 0.2)
        assert fields(await done(assistants.retrieve(made.id))) == fields(made)
        changed = await done(assistants.update(made.id, name="Grace"))
        assert (changed.name, changed.instructions) == ("Grace", "Be brief.")
        page = await done(assistants.list(limit=100))
        assert made.id in [assistant.id for assistant in page.data]
        gone = await done(assistants.delete(made.id))
        assert (gone.id, gone.deleted) == (made.id, True)

    drive(scenario)


def test_threads_and_messages(drive: Callable[[Scenario], None]) -> None:
    """Create, retrieve, update, list and delete threads and their messages."""

    async def scenario(client: Any) -> None:
        threads = client.beta.threads
        thread = await done(threads.create(messages=[user("one")], metadata={"k": "v"}))
        assert thread.metadata == {"k": "v"}
        assert fields(await done(threads.retrieve(thread.id))) == fields(thread)
        thread = await done(threads.update(thread.id, metadata={"k": "w"}))
        assert thread.metadata == {"k": "w"}
        two = await done(threads.messages.create(thread.id, role="user", content="two"))
        assert text_of(two) == "two"
        same = await done(threads.messages.retrieve(two.id, thread_id=thread.id))
        assert fields(same) == fields(two)
        changed = await done(
            threads.messages.update(two.id, thread_id=thread.id, metadata={"n": "2"})
        )
        assert changed.metadata == {"n": "2"}
        page = await done(threads.messages.list(thread.id))
        assert [text_of(message) for message in page.data] == ["two", "one"]
        gone = await done(threads.messages.delete(two.id, thread_id=thread.id))
        assert gone.deleted
        page = await done(threads.messages.list(thread.id))
        assert [text_of(message) for message in page.data] == ["one"]
        assert (await done(threads.delete(thread.id))).deleted

    drive(scenario)


def test_a_run_from_its_creation_to_its_answer(drive: Callable[[Scenario], None]) -> None:
    """`create`, `poll`, `update`, `list`, the steps and the answer of a run."""

    async def scenario(client: Any) -> None:
        assistant = await done(client.beta.assistants.create(model="echo"))
        thread = await done(client.beta.threads.create(messages=[user("What is 2+2?")]))
        runs = client.beta.threads.runs
        run = await done(runs.create(thread.id, assistant_id=assistant.id))
        assert run.status == "queued"
        run = await done(runs.poll(run.id, thread_id=thread.id, poll_interval_ms=10))
        assert run.status == "completed"
        assert run.usage.completion_tokens == 3
        run = await done(runs.update(run.id, thread_id=thread.id, metadata={"seen": "yes"}))
        assert run.metadata == {"seen": "yes"}
        assert [each.id for each in (await done(runs.list(thread.id))).data] == [run.id]
        (step,) = (await done(runs.steps.list(run.id, thread_id=thread.id))).data
        same = await done(runs.steps.retrieve(step.id, thread_id=thread.id, run_id=run.id))
        assert fields(same) == fields(step)
        answer = await done(
            client.beta.threads.messages.retrieve(
                step.step_details.message_creation.message_id, thread_id=thread.id
            )
        )
        assert (answer.role, text_of(answer)) == ("assistant", "What is 2+2?")
        assert (answer.run_id, answer.assistant_id) == (run.id, assistant.id)

    drive(scenario)


def test_tools_with_the_helpers_that_poll(drive: Callable[[Scenario], None]) -> None:
    """`create_and_poll` ends at `requires_action`, `submit_tool_outputs_and_poll` at the answer."""

    async def scenario(client: Any) -> None:
        assistant = await done(
            client.beta.assistants.create(model="echo", tools=[function_tool("get-weather")])
        )
        thread = await done(client.beta.threads.create())
        runs = client.beta.threads.runs
        run = await done(
            runs.create_and_poll(
                thread_id=thread.id,
                assistant_id=assistant.id,
                additional_messages=[user('call get-weather {"city": "Oslo"}')],
                poll_interval_ms=10,
            )
        )
        assert run.status == "requires_action"
        ((call_id, name, arguments),) = calls_of(run)
        assert (name, arguments) == ("get-weather", '{"city": "Oslo"}')
        run = await done(
            runs.submit_tool_outputs_and_poll(
                thread_id=thread.id,
                run_id=run.id,
                tool_outputs=[{"tool_call_id": call_id, "output": "rain"}],
                poll_interval_ms=10,
            )
        )
        assert run.status == "completed"
        page = await done(client.beta.threads.messages.list(thread.id, run_id=run.id))
        assert [text_of(message) for message in page.data] == ["rain"]

    drive(scenario)


def test_outputs_without_polling(drive: Callable[[Scenario], None]) -> None:
    """`submit_tool_outputs` answers the run, queued for its next turn."""

    async def scenario(client: Any) -> None:
        assistant = await done(
            client.beta.assistants.create(model="echo", tools=[function_tool("get-weather")])
        )
        thread = await done(client.beta.threads.create(messages=[user("call get-weather {}")]))
        runs = client.beta.threads.runs
        run = await done(
            runs.create_and_poll(
                thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=10
            )
        )
        resumed = await done(
            runs.submit_tool_outputs(
                run.id, thread_id=thread.id, tool_outputs=outputs_for(run, ["sun"])
            )
        )
        assert resumed.status == "queued"
        ended = await done(runs.poll(run.id, thread_id=thread.id, poll_interval_ms=10))
        assert ended.status == "completed"

    drive(scenario)


def test_thread_and_run_at_once(drive: Callable[[Scenario], None]) -> None:
    """`create_and_run` and `create_and_run_poll` make the thread with its messages and the run."""

    async def scenario(client: Any) -> None:
        assistant = await done(client.beta.assistants.create(model="echo"))
        threads = client.beta.threads
        run = await done(
            threads.create_and_run(assistant_id=assistant.id, thread={"messages": [user("hello")]})
        )
        assert run.status == "queued"
        run = await done(
            threads.create_and_run_poll(
                assistant_id=assistant.id,
                thread={"messages": [user("hello")], "metadata": {"k": "v"}},
                poll_interval_ms=10,
            )
        )
        assert run.status == "completed"
        thread = await done(threads.retrieve(run.thread_id))
        assert thread.metadata == {"k": "v"}
        page = await done(threads.messages.list(thread.id, order="asc"))
        assert [text_of(message) for message in page.data] == ["hello", "hello"]

    drive(scenario)


def test_cancel(drive: Callable[[Scenario], None]) -> None:
    """`cancel`, then `poll` until the run is cancelled."""

    async def scenario(client: Any) -> None:
        assistant = await done(client.beta.assistants.create(model="echo"))
        threads = client.beta.threads
        run = await done(
            threads.create_and_run(
                assistant_id=assistant.id, thread={"messages": [user("sleep 600")]}
            )
        )
        answered = await done(threads.runs.cancel(run.id, thread_id=run.thread_id))
        assert answered.status in ("cancelling", "cancelled")
        ended = await done(threads.runs.poll(run.id, thread_id=run.thread_id, poll_interval_ms=10))
        assert ended.status == "cancelled"

    drive(scenario)


def test_models(drive: Callable[[Scenario], None]) -> None:
    """`models.list` has what is served, `models.retrieve` one of them."""

    async def scenario(client: Any) -> None:
        page = await done(client.models.list())
        assert "echo" in [model.id for model in page.data]
        assert (await done(client.models.retrieve("echo"))).id == "echo"

    drive(scenario)


def test_pages_are_fetched_one_after_another(drive: Callable[[Scenario], None]) -> None:
    """Iterating over a list follows `has_more` and the last id until everything was seen."""
    texts = [f"message {number}" for number in range(25)]

    async def scenario(client: Any) -> None:
        thread = await done(client.beta.threads.create(messages=[user(text) for text in texts]))
        pages = client.beta.threads.messages.list(thread.id, order="asc", limit=10)
        if inspect.isawaitable(pages):
            seen = [text_of(message) async for message in pages]  # type: ignore[attr-defined]
        else:
            seen = [text_of(message) for message in pages]
        assert seen == texts

    drive(scenario)


@pytest.mark.parametrize("beta", ["assistants=v2", "assistants=v1", None])
def test_any_openai_beta_header_will_do(served: Served, beta: str | None) -> None:
    """Clients send `OpenAI-Beta` in version 2, in version 1, or not at all."""
    headers = {"OpenAI-Beta": beta} if beta else {}
    assert served.api().get("/v1/assistants?limit=1", headers=headers).status == 200
