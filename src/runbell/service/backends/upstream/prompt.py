"""What a model is told: the thread and this run's own turns, as messages of a chat completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import msgspec

from runbell.errors import ModelError
from runbell.service.backends.base import ModelRequest
from runbell.service.backends.upstream.size import careful_tokens, least_tokens, weight
from runbell.storage.records import (
    ContentPart,
    FunctionTool,
    ImageUrlPart,
    JsonSchemaFormat,
    Message,
    RefusalPart,
    RunConfig,
    RunStep,
    TextPart,
)

__all__ = ["Prompt", "functions", "prompt_of"]

ChatMessage = dict[str, Any]


@dataclass(frozen=True)
class Prompt:
    """The messages of one call.

    Attributes:
        system: the instructions, if there are any.
        thread: the thread's messages, the oldest first; what is too much is dropped here.
        turns: what this run did so far.
        around: the size of what is sent beside the messages: functions and schema.
    """

    system: tuple[ChatMessage, ...]
    thread: tuple[ChatMessage, ...]
    turns: tuple[ChatMessage, ...]
    around: int = 0

    @property
    def messages(self) -> list[ChatMessage]:
        return [*self.system, *self.thread, *self.turns]

    @cached_property
    def size(self) -> int:
        """Bytes of everything that the model reads."""
        return self.around + sum(map(weight, self.messages))

    def within(self, tokens: int, *, drop: bool) -> Prompt | None:
        """As much of it as fits into so many tokens; None where its smallest part won't.

        Args:
            drop: the oldest messages may be left out; else all of it has to fit.
        """
        start, size = 0, self.size
        for start, size in self._cuts() if drop else ():
            if careful_tokens(size) <= tokens:
                return self._cut(start)
        # The smallest part is sent if it may fit: the server counts exactly.
        return self._cut(start) if least_tokens(size) <= tokens else None

    def halved(self) -> Prompt | None:
        """With half of the thread at most; None where there is nothing to drop."""
        half = sum(map(weight, self.thread)) / 2
        cuts = [start for start, _ in self._cuts()]
        enough = [start for start, size in self._cuts() if self.size - size >= half]
        start = next(iter([*enough, *cuts[-1:]]), 0)
        return self._cut(start) if start else None

    def _cuts(self) -> Iterator[tuple[int, int]]:
        """Where the thread may begin, from its first message on, and the size that is left then.

        A user's message comes first, since models are trained so and some insist on it; the last
        one is never dropped.
        """
        size = self.size
        for start, message in enumerate(self.thread):
            if start == 0 or message["role"] == "user":
                yield start, size
            size -= weight(message)

    def _cut(self, start: int) -> Prompt:
        return replace(self, thread=self.thread[start:]) if start else self


def prompt_of(request: ModelRequest) -> Prompt:
    """The whole prompt of a turn.

    Raises:
        ModelError: a message holds what cannot be sent.
    """
    config = request.config
    own = {step.message_id for step in request.steps if step.message_id is not None}
    system = ({"role": "system", "content": config.instructions},) if config.instructions else ()
    said = (message for message in request.messages if message.id not in own)
    beside: list[Any] = list(functions(config))
    if isinstance(config.response_format, JsonSchemaFormat):
        beside.append(config.response_format.json_schema)
    return Prompt(
        system,
        tuple(_thread(said)),
        tuple(_turns(request.steps, {m.id: m for m in request.messages if m.id in own})),
        len(msgspec.json.encode(beside)) if beside else 0,
    )


def functions(config: RunConfig) -> Iterator[dict[str, Any]]:
    """The functions that the model may call, in the form of a chat completion."""
    if config.tool_choice == "none":
        # Not all servers know the word; without functions, no model calls one.
        return
    for tool in config.tools:
        if isinstance(tool, FunctionTool):
            function: dict[str, Any] = msgspec.to_builtins(tool.function)
            # Some servers refuse a function without parameters.
            function.setdefault("parameters", {"type": "object", "properties": {}})
            yield {"type": "function", "function": function}


def _thread(messages: Iterable[Message]) -> Iterator[ChatMessage]:
    for message in messages:
        content = _content(message.content)
        # An answer that was empty says nothing, and servers refuse a message without content.
        if content or message.role == "user":
            yield {"role": message.role, "content": content}


def _content(parts: Sequence[ContentPart]) -> str | list[dict[str, Any]]:
    """Text as a string, which every server takes; a list only where there is an image."""
    said = [_part(part) for part in parts]
    if all(part["type"] == "text" for part in said):
        return "\n".join(part["text"] for part in said)
    return said


def _part(part: ContentPart) -> dict[str, Any]:
    match part:
        case TextPart():
            return {"type": "text", "text": part.text.value}
        case RefusalPart():
            return {"type": "text", "text": part.refusal}
        case ImageUrlPart():
            image: dict[str, Any] = {"url": part.image_url.url}
            if part.image_url.detail != "auto":
                image["detail"] = part.image_url.detail
            return {"type": "image_url", "image_url": image}
    raise ModelError("invalid_prompt", "A message holds an image file, which no model server has.")


def _turns(steps: Iterable[RunStep], own: dict[str, Message]) -> Iterator[ChatMessage]:
    """What the model said and called in this run, each call followed by its output."""
    said = ""
    for step in steps:
        if step.message_id is not None:
            message = own.get(step.message_id)
            text = _content(message.content) if message is not None else ""
            said += text if isinstance(text, str) else ""
            continue
        yield {
            "role": "assistant",
            "content": said or None,
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in step.tool_calls
            ],
        }
        said = ""
        for call in step.tool_calls:
            yield {"role": "tool", "tool_call_id": call.id, "content": call.output or ""}
    if said:
        yield {"role": "assistant", "content": said}
