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
class _Hold:
    """A run that this process is taking up or executing, so that its model call can be stopped."""

    attempt: int | None = None
    call: asyncio.Task[Answer] | None = None
    stopped: bool = False

    def stop(self) -> None:
        self.stopped = True
        if self.call is not None:
            self.call.cancel()


class Executor:
    """Executes runs in this process; one that changes elsewhere loses its model call."""

    def __init__(self, ctx: Context, rng: random.Random | None = None) -> None:
        self._ctx = ctx
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.05, cap=2.0)
        self._holds: dict[str, _Hold] = {}
        ctx.changes.subscribe(self._hear)

    async def execute(self, run_id: str) -> None:
        """Do one turn of a run, if there is one to do. The handler of `run` jobs."""
        # Held before it is claimed: a cancel that is committed together with the claim is heard.
        hold = self._holds[run_id] = _Hold()
        try:
            turn = await turns.claim(self._ctx, run_id)
            if turn is None:
                return
            hold.attempt = turn.run.attempt
            faults.hit("executor.claimed")
            outcome = await self._call_model(turn, hold)
        finally:
            del self._holds[run_id]
        interrupted = isinstance(outcome, Interrupted)
        faults.hit("executor.cancelling" if interrupted else "executor.answered")
        await self._settle(turn, outcome)
        faults.hit("executor.settled")

    async def _call_model(self, turn: Turn, hold: _Hold) -> Outcome:
        if hold.stopped:
            return Interrupted()
        # A task of its own: what stops the model call must never hit the settling behind it.
        listening = hold.call = asyncio.create_task(self._listen(turn))
        try:
            await asyncio.wait([listening])
        finally:
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
        collected = _Collector(self._ctx)
        async with aclosing(self._ctx.backends.answer(turn.request)) as pieces:
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

    def _hear(self, run: Run) -> None:
        """Stop the model call of a run that is not to go on, or that another worker has now."""
        hold = self._holds.get(run.id)
        if hold is None:
            return
        ending = run.status.is_terminal or run.status is RunStatus.CANCELLING
        if ending or (hold.attempt is not None and run.attempt != hold.attempt):
            hold.stop()


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
