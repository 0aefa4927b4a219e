"""How a streamed answer becomes the pieces of a turn, whatever the server makes of the format."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final, Literal

from runbell.errors import ModelError
from runbell.runs import Usage
from runbell.service.backends.base import Finished, ModelRequest, Piece, TextDelta
from runbell.service.backends.upstream.calls import CallReader
from runbell.service.backends.upstream.chunks import Chunk, Delta
from runbell.service.backends.upstream.failures import CallFailed, Secret, error_in_stream
from runbell.service.backends.upstream.size import likely_tokens
from runbell.service.backends.upstream.text import PairedText
from runbell.service.logs import having

__all__ = ["AnswerReader"]

logger = logging.getLogger("runbell.models")

Ending = Literal["stop", "length", "filter", "failure"]

_ENDINGS: Final[dict[str, Ending]] = {
    "stop": "stop",
    "tool_calls": "stop",
    "function_call": "stop",
    "eos": "stop",
    "eos_token": "stop",
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "length": "length",
    "max_tokens": "length",
    "model_length": "length",
    "content_filter": "filter",
    "safety": "filter",
    "recitation": "filter",
    "refusal": "filter",
    "error": "failure",
    "abort": "failure",
    "cancelled": "failure",
    "insufficient_system_resource": "failure",
}
"""What OpenAI's reasons for an ending mean, and those of servers that use their own."""


class AnswerReader:
    """Reads one answer, chunk by chunk.

    Args:
        prompt_size: bytes that were sent, for an estimate where the server counts no tokens.
        secret: what an error in the stream may not show.
        upstream: the name of the model server, for logs.

    Attributes:
        began: something of the answer, or of the thinking before it, has come.
        ended: the server said that the answer is over; only a count of tokens may follow.
    """

    def __init__(
        self, request: ModelRequest, prompt_size: int, secret: Secret, upstream: str
    ) -> None:
        config = request.config
        taken = (call.id for step in request.steps for call in step.tool_calls)
        self._request = request
        self._prompt_size = prompt_size
        self._secret = secret
        self._upstream = upstream
        self._calls = CallReader(taken, single=not config.parallel_tool_calls)
        self._text = PairedText()
        self._size = 0
        self._spoke = False
        self._ending: Ending | None = None
        self._announced = ""
        self._usage: Usage | None = None
        self.began = False

    @property
    def ended(self) -> bool:
        return self._ending is not None

    def read(self, chunk: Chunk) -> Iterator[Piece]:
        """The pieces that a chunk brings.

        Raises:
            CallFailed: it brings an error.
        """
        if chunk.error:
            raise error_in_stream(chunk.error, self._secret)
        self._usage = _usage(chunk.usage) or self._usage
        for choice in (chunk.choices or ())[:1]:
            delta = choice.delta or choice.message
            if delta is not None:
                yield from self._read(delta)
            if isinstance(choice.finish_reason, str) and choice.finish_reason:
                self.began = True
                self._end_with(choice.finish_reason)

    def end(self, *, told: bool) -> Iterator[Piece]:
        """The last pieces, when no more chunks come.

        Args:
            told: the server has said that this is the end, with `[DONE]` or by a whole document.

        Raises:
            CallFailed: the answer is not whole.
            ModelError: it is whole, and no answer.
        """
        if not self.began or not (told or self.ended):
            raise CallFailed("server_error", "The model server's answer broke off.", again=True)
        if self._ending == "filter":
            message = "The model server's content filter stopped the answer."
            raise ModelError("invalid_prompt", message)
        if self._ending == "failure":
            message = f"The model server gave up in the middle of its answer ({self._announced})."
            raise CallFailed("server_error", message, again=True)
        if rest := self._text.end():
            yield TextDelta(rest)
        if self._ending != "length":
            yield from self._whole_calls()
        yield self._finished()

    def _read(self, delta: Delta) -> Iterator[Piece]:
        for thought in (delta.reasoning_content, delta.reasoning):
            if isinstance(thought, str) and thought:
                self.began = True
                self._size += len(thought.encode(errors="replace"))
                break
        for said in (delta.content, delta.refusal):
            if text := self._text.add(_text(said)):
                self.began = self._spoke = True
                self._size += len(text.encode())
                yield TextDelta(text)
        parts = delta.tool_calls if isinstance(delta.tool_calls, list) else []
        if isinstance(delta.function_call, dict):
            parts = [*parts, {"function": delta.function_call, "index": 0}]
        for part in parts:
            self.began = True
            yield from self._calls.add(part)

    def _end_with(self, reason: str) -> None:
        self._announced = reason
        ending = _ENDINGS.get(reason.lower())
        if ending is None:
            fields = {"upstream": self._upstream, **self._request.ids}
            logger.warning("unknown finish_reason %.40r", reason, extra=having(fields))
        self._ending = ending or "stop"

    def _whole_calls(self) -> Iterator[Piece]:
        if self._calls.nameless:
            message = "The model asked for a function call without the name of a function."
            raise ModelError("server_error", message)
        announced = self._announced in ("tool_calls", "function_call")
        if announced and not len(self._calls) and not self._spoke:
            message = "The model server announced function calls and sent none."
            raise CallFailed("server_error", message, again=True)
        yield from self._calls.end()

    def _finished(self) -> Finished:
        counted = self._usage is not None
        usage = self._usage or Usage(
            likely_tokens(self._prompt_size), likely_tokens(self._size + self._calls.size)
        )
        # A limit that the server took no notice of, or has no name for, is kept here.
        prompt, completion = self._request.max_prompt_tokens, self._request.max_completion_tokens
        if counted and prompt is not None and usage.prompt_tokens > prompt:
            return Finished("max_prompt_tokens", usage)
        too_long = completion is not None and counted and usage.completion_tokens > completion
        cut = self._ending == "length" or too_long
        return Finished("max_completion_tokens" if cut else "stop", usage)


def _text(said: Any) -> str:
    """Text; some servers send a list of parts, of which those that are no text are thoughts."""
    if isinstance(said, list):
        return "".join(_text(part.get("text")) for part in said if isinstance(part, dict))
    return said if isinstance(said, str) else ""


def _usage(counted: Any) -> Usage | None:
    """The tokens that the server counted; None where it has not counted them."""
    if not isinstance(counted, dict):
        return None
    prompt, completion = (
        _count(counted.get(f"{name}_tokens")) for name in ("prompt", "completion")
    )
    if not prompt and not completion:
        return None
    return Usage(prompt or 0, completion or 0)


def _count(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < 2**31 else None
