"""An answer as it grows: put together for the settling, and told to those who stream the run."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from runbell.errors import ModelError
from runbell.runs import Run, ToolCall, Usage
from runbell.service.backends import Finished, Piece, TextDelta, ToolCallDelta
from runbell.service.live import Delta
from runbell.service.operations.context import Context
from runbell.service.operations.turns import (
    Answer,
    calls_step,
    message_begun,
    message_step_begun,
)
from runbell.service.wire.objects import message_object, step_object
from runbell.service.wire.streams import message_delta, tool_call_delta

__all__ = ["Draft"]

MAX_ANSWER_CHARS = 4_000_000
"""Text and arguments of one turn; a model that says more is stopped, to bound memory."""


@dataclass(slots=True)
class _GrowingCall:
    """A call of which more may come: in parts, since adding to a long text copies all of it."""

    number: int
    id: str
    name: list[str] = field(default_factory=list)
    arguments: list[str] = field(default_factory=list)

    def whole(self) -> ToolCall:
        return ToolCall(self.id, "".join(self.name), "".join(self.arguments))


class Draft:
    """The answer of one turn, from its first piece to its last."""

    def __init__(self, ctx: Context, run: Run) -> None:
        self._ctx = ctx
        self._run = run
        self._text: list[str] = []
        self._calls: dict[int, _GrowingCall] = {}
        self._size = 0
        self._speaks = False
        self._closed = False
        self._answer = Answer(
            text="",
            calls=(),
            reason="stop",
            usage=Usage(),
            began_at_ms=max(ctx.clock.now_ms(), run.updated_at_ms),
            message_id=ctx.new_id("msg"),
            message_step_id=ctx.new_id("step"),
            calls_step_id=ctx.new_id("step"),
            speaks=False,
        )

    @property
    def said(self) -> Answer:
        """What was said so far."""
        calls = tuple(call.whole() for call in self._calls.values())
        return replace(self._answer, text="".join(self._text), calls=calls, speaks=self._speaks)

    def close(self) -> None:
        """Add nothing more, whatever the model goes on to say: what was said is being stored."""
        self._closed = True

    def add(self, piece: Piece) -> Answer | None:
        """Add a piece; the answer, once it is whole.

        Raises:
            ModelError: the answer is too long.
        """
        if self._closed:
            return None
        match piece:
            case TextDelta(text=""):
                pass
            case TextDelta(text=text):
                self._add_text(text)
            case ToolCallDelta():
                self._add_call(piece)
            case Finished(reason=reason, usage=usage):
                if reason == "stop" and not self._calls:
                    # An empty message too, where that is all that the model had to say.
                    self._begin_message()
                return replace(self.said, reason=reason, usage=usage)
        if self._size > MAX_ANSWER_CHARS:
            raise ModelError(
                "server_error", f"The model's answer has more than {MAX_ANSWER_CHARS} characters."
            )
        return None

    def _add_text(self, text: str) -> None:
        self._begin_message()
        self._text.append(text)
        self._size += len(text)
        message = self._answer.message_id
        self._tell(
            "thread.message.delta",
            lambda: Delta((message,), [text], lambda all_: message_delta(message, all_)),
        )

    def _begin_message(self) -> None:
        if self._speaks:
            return
        self._speaks = True
        run, answer = self._run, self._answer
        if not self._ctx.live.followed(run.id):
            return
        step = step_object(message_step_begun(run, answer))
        message = message_object(message_begun(run, answer))
        for event, data in (
            ("thread.run.step.created", step),
            ("thread.run.step.in_progress", step),
            ("thread.message.created", message),
            ("thread.message.in_progress", message),
        ):
            self._ctx.live.tell(run.id, event, lambda data=data: data)  # type: ignore[misc]

    def _add_call(self, piece: ToolCallDelta) -> None:
        if not self._calls:
            self._begin_calls()
        call = self._calls.get(piece.index)
        first = call is None
        if call is None:
            # Calls stand in the order in which they began, whatever numbers the model gives them.
            key = piece.id or self._ctx.new_id("call")
            call = self._calls[piece.index] = _GrowingCall(len(self._calls), key)
        call.name.append(piece.name)
        call.arguments.append(piece.arguments)
        self._size += len(piece.name) + len(piece.arguments)
        step, index, key = self._answer.calls_step_id, call.number, call.id
        if first:
            self._tell(
                "thread.run.step.delta",
                lambda: tool_call_delta(step, index, piece.arguments, key, piece.name),
            )
            return
        if piece.name:
            self._tell(
                "thread.run.step.delta", lambda: tool_call_delta(step, index, "", name=piece.name)
            )
        if piece.arguments:
            self._tell(
                "thread.run.step.delta",
                lambda: Delta(
                    (step, index),
                    [piece.arguments],
                    lambda all_: tool_call_delta(step, index, all_),
                ),
            )

    def _begin_calls(self) -> None:
        self._tell("thread.run.step.created", lambda: self._calls_begun())
        self._tell("thread.run.step.in_progress", lambda: self._calls_begun())

    def _calls_begun(self) -> object:
        return step_object(calls_step(self._run, self._answer))

    def _tell(self, event: str, data: object) -> None:
        self._ctx.live.tell(self._run.id, event, data)  # type: ignore[arg-type]
