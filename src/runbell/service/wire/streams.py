"""What a stream says: server-sent events, with the deltas of messages and of run steps."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from runbell.runs import EVENT_TYPES
from runbell.service.wire.objects import (
    ErrorDetails,
    MessageObject,
    RunObject,
    RunStepObject,
    ThreadObject,
    encode,
)

__all__ = [
    "DONE",
    "RUN_EVENTS",
    "THREAD_EVENTS",
    "broken_off",
    "frame",
    "message_delta",
    "tool_call_delta",
]

BROKEN_OFF = "The service is stopping; the run goes on: retrieve it."
"""Why a stream ends before its run does."""

DONE = b"event: done\ndata: [DONE]\n\n"
"""The last event of every stream."""


def frame(event: str, data: Any) -> bytes:
    """One event of a stream."""
    # The data is one line: JSON escapes every line feed.
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encode(data))


class StreamErrorObject(Struct, frozen=True, kw_only=True):
    """Why a stream ends early: OpenAI's schema has it flat, its SDK raises on what is below
    `error`."""

    message: str
    type: str = "server_error"
    param: str | None = None
    code: str | None = "server_error"
    error: ErrorDetails


def broken_off(message: str = BROKEN_OFF) -> bytes:
    """The end of a stream that ends before its run does."""
    details = ErrorDetails(message=message, type="server_error", param=None, code="server_error")
    return frame("error", StreamErrorObject(message=message, error=details)) + DONE


class TextDeltaValue(Struct, frozen=True, kw_only=True):
    value: str
    annotations: tuple[()] = ()


class TextDeltaPart(Struct, frozen=True, kw_only=True):
    index: int
    type: Literal["text"] = "text"
    text: TextDeltaValue


class MessageDelta(Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: tuple[TextDeltaPart, ...]


class MessageDeltaObject(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["thread.message.delta"] = "thread.message.delta"
    delta: MessageDelta


def message_delta(message_id: str, text: str) -> MessageDeltaObject:
    """More of a message's text."""
    part = TextDeltaPart(index=0, text=TextDeltaValue(value=text))
    return MessageDeltaObject(id=message_id, delta=MessageDelta(content=(part,)))


class FunctionDelta(Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str | UnsetType = UNSET
    arguments: str
    output: UnsetType | None = UNSET


class ToolCallDeltaPart(Struct, frozen=True, kw_only=True, omit_defaults=True):
    index: int
    id: str | UnsetType = UNSET
    # Always there: it tells apart the kinds of calls.
    type: str
    function: FunctionDelta


class StepDetailsDelta(Struct, frozen=True, kw_only=True):
    type: Literal["tool_calls"] = "tool_calls"
    tool_calls: tuple[ToolCallDeltaPart, ...]


class StepDelta(Struct, frozen=True, kw_only=True):
    step_details: StepDetailsDelta


class RunStepDeltaObject(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["thread.run.step.delta"] = "thread.run.step.delta"
    delta: StepDelta


def tool_call_delta(
    step_id: str,
    index: int,
    arguments: str,
    call_id: str | UnsetType = UNSET,
    name: str | UnsetType = UNSET,
) -> RunStepDeltaObject:
    """More of a call's arguments; its id and name come with the first of it."""
    first = call_id is not UNSET
    part = ToolCallDeltaPart(
        index=index,
        id=call_id,
        type="function",
        function=FunctionDelta(name=name, arguments=arguments, output=None if first else UNSET),
    )
    return RunStepDeltaObject(
        id=step_id, delta=StepDelta(step_details=StepDetailsDelta(tool_calls=(part,)))
    )


RUN_EVENTS: dict[str, type[Struct]] = {
    **dict.fromkeys(EVENT_TYPES, RunObject),
    "thread.run.step.created": RunStepObject,
    "thread.run.step.in_progress": RunStepObject,
    "thread.run.step.delta": RunStepDeltaObject,
    "thread.run.step.completed": RunStepObject,
    "thread.run.step.failed": RunStepObject,
    "thread.run.step.cancelled": RunStepObject,
    "thread.run.step.expired": RunStepObject,
    "thread.message.created": MessageObject,
    "thread.message.in_progress": MessageObject,
    "thread.message.delta": MessageDeltaObject,
    "thread.message.completed": MessageObject,
    "thread.message.incomplete": MessageObject,
    "error": StreamErrorObject,
}
"""The events of a run's stream, with the types of their data."""

THREAD_EVENTS = {"thread.created": ThreadObject, **RUN_EVENTS}
"""The same, of a run that was created together with its thread."""
