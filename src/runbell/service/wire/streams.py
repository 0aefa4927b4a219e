"""What a stream says: server-sent events, with the deltas of messages and of run steps."""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

from runbell.service.wire.objects import encode

__all__ = ["DONE", "frame", "message_delta", "tool_call_delta"]

DONE = b"event: done\ndata: [DONE]\n\n"
"""The last event of every stream."""


def frame(event: str, data: Any) -> bytes:
    """One event of a stream."""
    # The data is one line: JSON escapes every line feed.
    return b"event: %b\ndata: %b\n\n" % (event.encode(), encode(data))


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
