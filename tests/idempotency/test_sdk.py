"""The stock SDK with a key in `extra_headers`: its own retries, its streams, its errors."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from openai import AssistantEventHandler, AsyncAssistantEventHandler, ConflictError, OpenAI

from tests.protocol.scenario import function_tool
from tests.served import Answer, Served

THREAD: Any = {"messages": [{"role": "user", "content": "Hello to you"}]}


def key(name: str) -> dict[str, str]:
    return {"Idempotency-Key": name}


def echo(client: OpenAI) -> str:
    return client.beta.assistants.create(model="echo", tools=[function_tool("f")]).id


def test_a_retry_of_the_sdk_finds_its_first_answer(served: Served) -> None:
    """A connection that broke before the answer came: the SDK sends the same again by itself."""
    broken: list[Answer] = []

    def break_the_first(answer: Answer) -> None:
        if answer.method == "POST" and not broken:
            broken.append(answer)
            raise httpx2.ReadError("the connection broke, the answer was never read")

    client = served.client(max_retries=2, watch=break_the_first)
    made = client.beta.threads.create(**THREAD, extra_headers=key("sdk 1"))
    assert made.id == broken[0].json()["id"]
    assert len(client.beta.threads.messages.list(made.id).data) == 1


def test_a_key_that_was_used_is_a_conflict_that_is_not_retried(served: Served) -> None:
    seen: list[int] = []
    client = served.client(max_retries=2, watch=lambda answer: seen.append(answer.status))
    client.beta.threads.create(extra_headers=key("sdk 2"))
    with pytest.raises(ConflictError) as caught:
        client.beta.threads.create(metadata={"k": "v"}, extra_headers=key("sdk 2"))
    assert caught.value.code == "idempotency_key_reused"
    assert seen == [200, 409]


def test_the_raw_answer_says_that_it_was_given_before(served: Served) -> None:
    threads = served.client().beta.threads.with_raw_response
    first, again = (threads.create(extra_headers=key("sdk 3")) for _ in range(2))
    assert first.headers.get("idempotent-replayed") is None
    assert again.headers["idempotent-replayed"] == "true"
    assert first.parse().id == again.parse().id


class Heard(AssistantEventHandler):
    """What a program hears that prints an answer as it comes."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.done: list[str] = []

    def on_text_delta(self, delta: Any, snapshot: Any) -> None:
        self.text += delta.value

    def on_message_done(self, message: Any) -> None:
        self.done.append(message.content[0].text.value)


def test_the_stream_helper_hears_the_answer_again(served: Served) -> None:
    """Text, message, steps and run are what they were; there is one run."""
    client = served.client()
    assistant = echo(client)
    handlers = [Heard(), Heard()]
    for handler in handlers:
        with client.beta.threads.create_and_run_stream(
            assistant_id=assistant,
            thread=THREAD,
            event_handler=handler,
            extra_headers=key("sdk 4"),
        ) as stream:
            stream.until_done()
    first, again = handlers
    assert first.text == again.text == "Hello to you"
    assert first.done == again.done == ["Hello to you"]
    assert first.get_final_run() == again.get_final_run()
    assert first.get_final_messages() == again.get_final_messages()
    ids = [[step.id for step in handler.get_final_run_steps()] for handler in handlers]
    assert ids[0] == ids[1]
    assert len(client.beta.threads.runs.list(first.get_final_run().thread_id).data) == 1


def test_a_stream_that_wants_tools_asks_for_the_same_calls_again(served: Served) -> None:
    client = served.client()
    assistant = echo(client)
    asking: Any = {"messages": [{"role": "user", "content": 'call f {"a": 1}\ncall f {"a": 2}'}]}
    heard = []
    for _ in range(2):
        with client.beta.threads.create_and_run_stream(
            assistant_id=assistant, thread=asking, extra_headers=key("sdk 5")
        ) as stream:
            stream.until_done()
            run = stream.current_run
            assert run is not None
            assert run.required_action is not None
            (step,) = stream.get_final_run_steps()
            details: Any = step.step_details
            heard.append(
                (
                    [call.id for call in run.required_action.submit_tool_outputs.tool_calls],
                    [(call.id, call.function.arguments) for call in details.tool_calls],
                )
            )
    assert heard[0] == heard[1]
    assert [arguments for _, arguments in heard[0][1]] == ['{"a": 1}', '{"a": 2}']


def test_the_async_sdk(served: Served) -> None:
    """Many at the same time with one key: one thread, one run, and each hears the whole answer."""

    async def work() -> None:
        async with served.async_client() as client:
            assistant = await client.beta.assistants.create(model="echo")
            made = await asyncio.gather(
                *(client.beta.threads.create(extra_headers=key("sdk 6")) for _ in range(10))
            )
            assert len({thread.id for thread in made}) == 1

            async def listen() -> tuple[str, str]:
                async with client.beta.threads.create_and_run_stream(
                    assistant_id=assistant.id,
                    thread={"messages": [{"role": "user", "content": "sleep 0.3\nHello"}]},
                    event_handler=AsyncAssistantEventHandler(),
                    extra_headers=key("sdk 7"),
                ) as stream:
                    await stream.until_done()
                    (message,) = await stream.get_final_messages()
                    run = await stream.get_final_run()
                    content: Any = message.content[0]
                    return run.id, content.text.value

            heard = await asyncio.gather(*(listen() for _ in range(5)))
            assert len(set(heard)) == 1
            assert "Hello" in heard[0][1]

    asyncio.run(work())
