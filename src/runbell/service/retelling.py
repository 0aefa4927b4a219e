"""Streams of runs that another process executes: what it did is told from the rows.

Who streams a run here hears every status and every step, as soon as they are committed; of a text
that grew elsewhere, all at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from dataclasses import replace

from runbell.errors import RequestRefused, StorageUnavailable
from runbell.runs import Run, RunStatus
from runbell.service.neighbours import Neighbours, ToldRun
from runbell.service.operations import runs
from runbell.service.operations.context import Context
from runbell.service.routes.streaming import retold
from runbell.service.wire.objects import run_object
from runbell.storage.runs import RunRecord

__all__ = ["Retelling"]

logger = logging.getLogger(__name__)


MOST_EARLY = 1_000
"""Runs that nobody follows here, whose latest changes are remembered for who joins just then."""


class Retelling:
    """Tells followers here of runs that change elsewhere."""

    def __init__(self, ctx: Context, neighbours: Neighbours) -> None:
        self._ctx = ctx
        self._untold: dict[str, deque[ToldRun]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_ms: dict[str, int] = {}
        self._early: OrderedDict[str, list[ToldRun]] = OrderedDict()
        neighbours.on_change(self._hear)
        ctx.live.on_join(self._join)

    def _hear(self, told: ToldRun) -> None:
        if self._ctx.live.followed(told.id):
            self._take(told)
            return
        self._began_ms.pop(told.id, None)
        # Another process can be quicker with a run than this one hears that its commit is done.
        self._early.setdefault(told.id, []).append(told)
        if len(self._early) > MOST_EARLY:
            self._early.popitem(last=False)

    def _join(self, run_id: str, behind: int) -> None:
        for told in self._early.pop(run_id, ()):
            if told.sequence > behind:
                self._take(told)

    def _take(self, told: ToldRun) -> None:
        waiting = self._untold.get(told.id)
        if waiting is not None:
            waiting.append(told)
            return
        self._untold[told.id] = deque([told])
        task = asyncio.create_task(self._tell_all(told.id))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tell_all(self, run_id: str) -> None:
        """Tell of a run's changes, one after the other."""
        untold = self._untold[run_id]
        try:
            while untold:
                await self._tell(untold.popleft())
        except (RequestRefused, StorageUnavailable) as error:
            logger.warning("%s cannot be told of: %s", run_id, error)
        finally:
            del self._untold[run_id]

    async def _tell(self, told: ToldRun) -> None:
        ctx = self._ctx
        record = await runs.find(ctx, told.project_id, told.id)
        if told.status is RunStatus.IN_PROGRESS:
            if self._began_ms.get(told.id) == told.updated_at_ms:
                # Another worker has taken the turn over: it began when it began.
                return
            self._began_ms[told.id] = told.updated_at_ms
        elif told.status.is_settled:
            began_ms = self._began_ms.pop(told.id, told.updated_at_ms)
            for step, message in await runs.steps_with_messages(ctx, record.run):
                if step.created_at_ms >= began_ms:
                    for event, data in retold(step, message):
                        ctx.live.tell(told.id, event, lambda data=data: data)  # type: ignore[misc]
        then = RunRecord(_as_it_was(record.run, told.status), record.config)
        ctx.live.tell(told.id, f"thread.run.{told.status}", lambda: run_object(then))

    async def close(self) -> None:
        """Tell no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _as_it_was(run: Run, status: RunStatus) -> Run:
    """The run at a change that may not be its latest: without what came later."""
    if run.status is status:
        return run
    return replace(
        run,
        status=status,
        tool_calls=(),
        last_error=None,
        incomplete_reason=None,
        status_reason=None,
        completed_at_ms=None,
        failed_at_ms=None,
        cancelled_at_ms=None,
        incomplete_at_ms=None,
        expired_at_ms=None,
    )
