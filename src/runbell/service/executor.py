"""Who executes: takes a run up, calls its model, stores what came of it."""

from __future__ import annotations

import asyncio
import logging
import random
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count

from runbell import faults
from runbell.errors import ModelError, StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.runs import Run, RunStatus, ToolCall, Usage
from runbell.service.backends import Finished, TextDelta, ToolCallDelta
from runbell.service.operations import turns
from runbell.service.operations.context import Context
from runbell.service.operations.turns import Answer, Interrupted, Outcome, Turn

__all__ = ["Executor"]

logger = logging.getLogger(__name__)

MAX_ANSWER_CHARS = 4_000_000
"""Text and arguments of one turn; a model that says more is stopped, to bound memory."""


@dataclass(slots=True)
class _Call:
    """A model call under way, so that it can be stopped."""

    task: asyncio.Task[Answer]
    attempt: int


class Executor:
    """Executes runs in this process; one that changes elsewhere loses its model call."""

    def __init__(self, ctx: Context, rng: random.Random | None = None) -> None:
        self._ctx = ctx
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.05, cap=2.0)
        self._calls: dict[str, _Call] = {}
        ctx.changes.subscribe(self._stop_call)

    async def execute(self, run_id: str) -> None:
        """Do one turn of a run, if there is one to do. The handler of `run` jobs."""
        turn = await turns.claim(self._ctx, run_id)
        if turn is None:
            return
        faults.hit("executor.claimed")
        outcome = await self._call_model(turn)
        faults.hit(
            "executor.cancelling" if isinstance(outcome, Interrupted) else "executor.answered"
        )
        await self._settle(turn, outcome)
        faults.hit("executor.settled")

    async def _call_model(self, turn: Turn) -> Outcome:
        # A task of its own: what stops the model call must never hit the settling behind it.
        listening = asyncio.create_task(self._listen(turn))
        self._calls[turn.run.id] = _Call(listening, turn.run.attempt)
        try:
            await asyncio.wait([listening])
        finally:
            del self._calls[turn.run.id]
            listening.cancel()
        if listening.cancelled():
            return Interrupted()
        error = listening.exception()
        if error is None:
            return listening.result()
        if isinstance(error, ModelError):
            return error
        # A backend's own mistake ends this run, rather than the run being tried for ever.
        logger.error("the backend of %s failed", turn.request.config.model, exc_info=error)
        return ModelError("server_error", "The model's backend failed unexpectedly.")

    async def _listen(self, turn: Turn) -> Answer:
        backend = self._ctx.backends.find(turn.request.config.model)
        assert backend is not None, "claim has looked"
        collected = _Collector(self._ctx)
        async with aclosing(backend.answer(turn.request)) as pieces:
            async for piece in pieces:
                answer = collected.add(piece)
                if answer is not None:
                    return answer
        raise ModelError("server_error", "The model's answer broke off.")

    async def _settle(self, turn: Turn, outcome: Outcome) -> None:
        """Store the outcome; a database that is away is waited for, since the answer was paid."""
        for failures in count(1):
            try:
                await turns.settle(self._ctx, turn, outcome)
            except StorageUnavailable as error:
                if self._ctx.clock.now_ms() >= turn.run.expires_at_ms:
                    raise
                logger.warning("%s: its outcome waits for the database: %s", turn.run.id, error)
            else:
                return
            await self._ctx.clock.sleep(self._backoff.delay(failures, self._rng))

    def _stop_call(self, run: Run) -> None:
        call = self._calls.get(run.id)
        if call is None:
            return
        if run.attempt != call.attempt or run.status is not RunStatus.IN_PROGRESS:
            call.task.cancel()


class _Collector:
    """Puts the pieces of an answer together."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._text: list[str] = []
        self._calls: dict[int, ToolCall] = {}
        self._size = 0

    def add(self, piece: TextDelta | ToolCallDelta | Finished) -> Answer | None:
        """Add a piece; the answer, once it is whole."""
        match piece:
            case TextDelta(text=text):
                self._text.append(text)
                self._size += len(text)
            case ToolCallDelta():
                self._add_call(piece)
            case Finished(reason=reason, usage=usage):
                return self._answer(reason, usage)
        if self._size > MAX_ANSWER_CHARS:
            raise ModelError(
                "server_error", f"The model's answer has more than {MAX_ANSWER_CHARS} characters."
            )
        return None

    def _add_call(self, piece: ToolCallDelta) -> None:
        call = self._calls.get(piece.index)
        if call is None:
            call = ToolCall(piece.id or self._ctx.new_id("call"), "", "")
        self._calls[piece.index] = ToolCall(
            call.id, call.name + piece.name, call.arguments + piece.arguments
        )
        self._size += len(piece.name) + len(piece.arguments)

    def _answer(self, reason: object, usage: Usage) -> Answer:
        calls = tuple(self._calls[index] for index in sorted(self._calls))
        return Answer("".join(self._text), calls, reason, usage)  # type: ignore[arg-type]
