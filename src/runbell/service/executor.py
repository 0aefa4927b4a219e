"""Who executes: takes a run up, calls its model, stores what came of it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

from runbell import faults
from runbell.errors import ModelError, StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.runs import Run, RunStatus
from runbell.service.changes import Moved
from runbell.service.draft import Draft
from runbell.service.logs import having
from runbell.service.operations import runs, turns
from runbell.service.operations.context import Context
from runbell.service.operations.turns import (
    Answer,
    BrokenOff,
    Failed,
    Interrupted,
    Outcome,
    Turn,
)
from runbell.storage import runs as run_rows
from runbell.storage.runs import RunRecord

__all__ = ["Executor"]

T = TypeVar("T")
logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Hold:
    """A run that this process is taking up or executing, so that its model call can be stopped."""

    attempt: int | None = None
    draft: Draft | None = None
    call: asyncio.Task[Answer] | None = None
    _stopped: bool = False

    def was_stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        self._stopped = True
        if self.call is not None:
            self.call.cancel()

    def break_off(self) -> BrokenOff | None:
        """What was said until now; nothing is added to it, also by a call that can't be stopped."""
        self.stop()
        if self.attempt is None or self.draft is None:
            return None
        self.draft.close()
        return BrokenOff(self.attempt, self.draft.said)


class Executor:
    """Executes runs in this process; one that changes elsewhere loses its model call."""

    def __init__(self, ctx: Context, rng: random.Random | None = None) -> None:
        self._ctx = ctx
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.05, cap=2.0)
        self._holds: dict[str, _Hold] = {}
        ctx.changes.subscribe(self._hear)

    async def execute(self, run_id: str, turn: int | None = None) -> None:
        """Do one turn of a run, if there is one to do. The handler of `run` jobs.

        Args:
            turn: which of its turns is meant, as `turns.claim` says.
        """
        # Held before it is claimed: a cancel that is committed together with the claim is heard.
        hold = self._holds[run_id] = _Hold()
        try:
            record = await turns.claim(self._ctx, run_id, turn)
            if record is None:
                return
            hold.attempt = record.run.attempt
            faults.hit("executor.claimed")
            try:
                await self._do(record, hold)
            except asyncio.CancelledError:
                # The process stops; the run goes on in another. Said before its job is given back:
                # who takes it up from then on is not to count this worker as lost.
                await self._hand_back(record.run)
                raise
        finally:
            del self._holds[run_id]

    async def _do(self, record: RunRecord, hold: _Hold) -> None:
        turn = await self._stored(record.run, lambda: turns.prepare(self._ctx, record))
        outcome = await self._call_model(turn, hold)
        interrupted = isinstance(outcome, Interrupted)
        faults.hit("executor.cancelling" if interrupted else "executor.answered")
        # Still held: should the run's time be over first, its answer is not lost.
        await self._settle(turn, outcome)
        faults.hit("executor.settled")

    async def expire(self, run_id: str) -> None:
        """End a run whose time is over. The handler of `expire` jobs."""
        await runs.expire(self._ctx, run_id, self._break_off(run_id))

    async def finish_cancel(self, run_id: str) -> None:
        """End a run that does not let itself be cancelled. The handler of such jobs."""
        await runs.finish_cancel(self._ctx, run_id, self._break_off(run_id))

    def _break_off(self, run_id: str) -> BrokenOff | None:
        hold = self._holds.get(run_id)
        return hold.break_off() if hold is not None else None

    async def _hand_back(self, run: Run) -> None:
        """Tell the database that a run is given up in good order."""
        try:
            await turns.hand_back(self._ctx, run)
        except StorageUnavailable as error:
            logger.warning("a run could not be handed back: %s", error, extra=_about(run))

    async def _call_model(self, turn: Turn, hold: _Hold) -> Outcome:
        draft = hold.draft = Draft(self._ctx, turn.run)
        if hold.was_stopped():
            return Interrupted(draft.said)
        # A task of its own: what stops the model call must never hit the settling behind it.
        listening = hold.call = asyncio.create_task(self._listen(turn, draft))
        try:
            await asyncio.wait([listening])
        finally:
            listening.cancel()
        if listening.cancelled():
            if hold.was_stopped():
                return Interrupted(draft.said)
            broken = ModelError("server_error", "The model call was broken off.")
            return Failed(broken, draft.said)
        error = listening.exception()
        if error is None:
            return listening.result()
        if isinstance(error, ModelError):
            return Failed(error, draft.said)
        # A backend's own mistake ends this run, rather than the run being tried for ever.
        model = turn.request.config.model
        logger.error("the backend of %s failed", model, exc_info=error, extra=_about(turn.run))
        unexpected = ModelError("server_error", "The model's backend failed unexpectedly.")
        return Failed(unexpected, draft.said)

    async def _listen(self, turn: Turn, draft: Draft) -> Answer:
        async with aclosing(await self._ctx.backends.answer(turn.request)) as pieces:
            async for piece in pieces:
                answer = draft.add(piece)
                if answer is not None:
                    return answer
        raise ModelError("server_error", "The model's answer broke off.")

    async def _settle(self, turn: Turn, outcome: Outcome) -> None:
        try:
            await self._stored(turn.run, lambda: turns.settle(self._ctx, turn, outcome))
        except StorageUnavailable:
            raise
        except Exception:
            if isinstance(outcome, Failed):
                raise
            # What can't be stored now will not be storable later: no second answer is paid.
            logger.exception("a run's outcome cannot be stored", extra=_about(turn.run))
            error = ModelError("server_error", "The model's answer could not be stored.")
            failed = Failed(error, Draft(self._ctx, turn.run).said)
            await self._stored(turn.run, lambda: turns.settle(self._ctx, turn, failed))

    async def _stored(self, run: Run, use: Callable[[], Awaitable[T]]) -> T:
        """Use the database; where it is away it is waited for, as long as the run has time."""
        for failures in count(1):
            try:
                return await use()
            except StorageUnavailable as error:
                if self._ctx.clock.now_ms() >= run.expires_at_ms:
                    raise
                logger.warning("a run waits for the database: %s", error, extra=_about(run))
            await self._ctx.clock.sleep(self._backoff.delay(failures, self._rng))
        raise AssertionError("unreachable")

    async def look_again(self) -> None:
        """Hear of what has become of the runs that are held here: it may have been missed."""
        for run_id in list(self._holds):
            record = await self._ctx.store.read(lambda tx: run_rows.find(tx, run_id))  # noqa: B023
            if record is not None:
                self._hear(record.run)

    def _hear(self, run: Moved) -> None:
        """Stop the model call of a run that is not to go on, or that another worker has now."""
        hold = self._holds.get(run.id)
        if hold is None:
            return
        ending = run.status.is_terminal or run.status is RunStatus.CANCELLING
        # What other processes tell comes late, and so may a read that began before the claim: that
        # the run had fewer attempts once says nothing.
        if ending or (hold.attempt is not None and run.attempt > hold.attempt):
            hold.stop()


def _about(run: Run) -> dict[str, Any]:
    """The `extra` of a record about this run."""
    return having({"run_id": run.id, "thread_id": run.thread_id, "project_id": run.project_id})
