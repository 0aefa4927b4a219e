"""Streams of runs that another process executes: what it did is told from the rows.

Who streams a run here hears every status and every step, as soon as they are committed; of a text
that grew elsewhere, all at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict, deque
from dataclasses import replace

from runbell.errors import RequestRefused, StorageUnavailable
from runbell.runs import Run, RunStatus
from runbell.service.changes import Moved
from runbell.service.neighbours import LOOK_SECONDS, Neighbours, ToldRun
from runbell.service.operations import runs
from runbell.service.operations.context import Context
from runbell.service.routes.streaming import retold
from runbell.service.wire.objects import run_object
from runbell.storage import runs as storage
from runbell.storage.lasting import BACKOFF, lasting
from runbell.storage.runs import RunRecord

__all__ = ["Retelling"]

logger = logging.getLogger(__name__)

BEING_TOLD_MS = 1_000
"""What has only just changed is being told: a look would find the last of several changes."""

LOOK_AT_ONCE = 50
"""Runs whose rows are read by one statement."""

MOST_EARLY = 1_000
"""Runs that nobody follows here, whose latest changes are remembered for who joins just then."""


class Retelling:
    """Tells followers here of runs that change elsewhere."""

    def __init__(
        self, ctx: Context, neighbours: Neighbours, rng: random.Random | None = None
    ) -> None:
        self._ctx = ctx
        self._rng = rng or random.Random()
        self._missed = asyncio.Event()
        self._untold: dict[str, deque[Moved]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._began_ms: dict[str, int] = {}
        self._early: OrderedDict[str, list[ToldRun]] = OrderedDict()
        neighbours.on_change(self._hear)
        neighbours.on_gap(self._missed.set)
        ctx.live.on_join(self._join)

    def start(self) -> None:
        """Begin to look for what nobody told."""
        looking = lasting("looking at runs that are streamed", self._look_next, self._rng)
        self._tasks.add(asyncio.create_task(looking, name="retelling-looks"))

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

    def _take(self, told: Moved) -> None:
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
        untold, failures = self._untold[run_id], 0
        try:
            while untold and self._ctx.live.followed(run_id):
                try:
                    await self._tell(untold[0])
                except StorageUnavailable as error:
                    failures += 1
                    logger.warning("%s cannot be told of yet: %s", run_id, error)
                    await self._ctx.clock.sleep(BACKOFF.delay(failures, self._rng))
                else:
                    failures = 0
                    untold.popleft()
        except RequestRefused:
            # Deleted: nothing more will be told of it.
            self._ctx.live.end(run_id)
        except Exception:
            logger.exception("%s cannot be told of", run_id)
        finally:
            del self._untold[run_id]

    async def _tell(self, told: Moved) -> None:
        ctx = self._ctx
        latest = ctx.live.latest(told.id)
        if told.sequence <= latest.sequence:
            # Heard of and found, or overtaken: no stream goes back.
            return
        record = await runs.find(ctx, told.project_id, told.id)
        # Where this hears of a turn for the first time when it is under way, or even over, its
        # steps are those since the run was queued.
        queued_ms = latest.at_ms if latest.status is RunStatus.QUEUED else told.updated_at_ms
        if told.status is RunStatus.IN_PROGRESS:
            self._began_ms[told.id] = queued_ms
        elif told.status.is_settled:
            began_ms = self._began_ms.pop(told.id, queued_ms)
            for step, message in await runs.steps_with_messages(ctx, record.run):
                if step.created_at_ms >= began_ms:
                    for event, data in retold(step, message):
                        ctx.live.tell(told.id, event, lambda data=data: data)  # type: ignore[misc]
        then = RunRecord(_as_it_was(record.run, told.status), record.config)
        ctx.live.move(told, lambda: run_object(then))

    async def _look_next(self) -> None:
        """Look now and then at the rows of all runs that are followed, and at once where there was
        a gap: what nobody told of is found there."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_SECONDS):
                await self._missed.wait()
        gap = self._missed.is_set()
        self._missed.clear()
        try:
            await self.look(0 if gap else BEING_TOLD_MS)
        except BaseException:
            if gap:
                self._missed.set()
            raise

    async def look(self, age_ms: int) -> None:
        """Tell what followers were not told of, though it happened so long ago.

        Raises:
            StorageUnavailable: the rows can't be read.
        """
        ctx = self._ctx
        followed = ctx.live.runs
        for start in range(0, len(followed), LOOK_AT_ONCE):
            ids = followed[start : start + LOOK_AT_ONCE]
            standing = await ctx.store.read(lambda tx, ids=ids: storage.standing(tx, ids))  # type: ignore[misc]
            for gone in set(ids) - {each.id for each in standing}:
                ctx.live.end(gone)
            before_ms = ctx.clock.now_ms() - age_ms
            for each in standing:
                untold = each.sequence > ctx.live.latest(each.id).sequence
                if untold and each.updated_at_ms <= before_ms and ctx.live.followed(each.id):
                    self._take(each)

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
