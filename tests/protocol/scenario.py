"""What the tests do with runs over and over, in a few words each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from openai.types.beta import Assistant
from openai.types.beta.threads import Message, Run

from tests.served import eventually

__all__ = [
    "SETTLED",
    "TERMINAL",
    "answer_of",
    "ask",
    "calls_of",
    "create_run",
    "fields",
    "function_tool",
    "messages_of",
    "occupied",
    "outputs_for",
    "say",
    "text_of",
    "until",
]

TERMINAL = ("completed", "failed", "cancelled", "expired", "incomplete")
SETTLED = (*TERMINAL, "requires_action")


def function_tool(name: str) -> Any:
    """A function that a run can call. As `Any`: the SDK's type for it is a union of TypedDicts."""
    return {"type": "function", "function": {"name": name}}


def say(client: OpenAI, text: str, **thread: Any) -> str:
    """A new thread with one message of the user: the thread's id."""
    messages: Any = [{"role": "user", "content": text}]
    return client.beta.threads.create(messages=messages, **thread).id


def create_run(client: OpenAI, assistant: Assistant, thread_id: str, **body: Any) -> Run:
    """A run; `body` may hold fields that the SDK does not know."""
    ours = {name: body.pop(name) for name in ("expires_after", "on_active_run") if name in body}
    run: Run = client.beta.threads.runs.create(
        thread_id, assistant_id=assistant.id, extra_body=ours or None, **body
    )
    return run


def ask(client: OpenAI, assistant: Assistant, text: str, **body: Any) -> Run:
    """A run on a new thread with one message of the user."""
    return create_run(client, assistant, say(client, text), **body)


def until(client: OpenAI, run: Run, *statuses: str) -> Run:
    """Wait until the run has one of these statuses; without any, until it settled."""
    wanted = statuses or SETTLED

    def look() -> Run | None:
        seen = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        if seen.status in wanted:
            return seen
        assert seen.status not in TERMINAL, f"{seen.status}, not {wanted}: {fields(seen)}"
        return None

    return eventually(look, f"{run.id} is {' or '.join(wanted)}")


@contextmanager
def occupied(client: OpenAI, assistant: Assistant, thread_id: str | None = None) -> Iterator[Run]:
    """A run that stays `in_progress` for as long as the block lasts, unless something ends it."""
    thread_id = thread_id or say(client, "hold on")
    message: Any = {"role": "user", "content": "sleep 600"}
    run = create_run(client, assistant, thread_id, additional_messages=[message])
    try:
        yield until(client, run, "in_progress")
    finally:
        seen = client.beta.threads.runs.retrieve(run.id, thread_id=thread_id)
        if seen.status not in (*TERMINAL, "cancelling"):
            client.beta.threads.runs.cancel(run.id, thread_id=thread_id)
        until(client, run, *TERMINAL)


def fields(item: Any) -> dict[str, Any]:
    """An SDK object as the JSON that it came from, with the fields that are ours."""
    raw: dict[str, Any] = item.to_dict(mode="json")
    return raw


def text_of(message: Message) -> str:
    """The text of a message that has one part."""
    (part,) = message.content
    assert part.type == "text"
    return part.text.value


def messages_of(client: OpenAI, thread_id: str) -> list[str]:
    """The texts of a thread's messages, oldest first."""
    return [text_of(m) for m in client.beta.threads.messages.list(thread_id, order="asc")]


def answer_of(client: OpenAI, run: Run) -> str:
    """The text of the one message that a run made."""
    (message,) = client.beta.threads.messages.list(run.thread_id, run_id=run.id)
    return text_of(message)


def calls_of(run: Run) -> list[tuple[str, str, str]]:
    """The calls that a run waits for: id, name, arguments."""
    assert run.required_action is not None, run
    calls = run.required_action.submit_tool_outputs.tool_calls
    return [(call.id, call.function.name, call.function.arguments) for call in calls]


def outputs_for(run: Run, outputs: Sequence[str]) -> list[Any]:
    """Outputs for a run's calls, in the order of the calls."""
    return [
        {"tool_call_id": call[0], "output": output}
        for call, output in zip(calls_of(run), outputs, strict=True)
    ]
