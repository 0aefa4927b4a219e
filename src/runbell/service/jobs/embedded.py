"""Jobs of a single process: no queue at all, just what is due in the tables.

A commit that makes a run ready leaves its id here as a hint, which saves the look into the table.
Runs stand in lanes, one for each model server: those that cannot begin yet stay queued, in nobody
else's way. Lines are bounded and may be lost with the process: at start, when one has become too
long, and every `SWEEP_SECONDS` the tables are asked instead. What is due later is never held in
memory; the next due time is looked up by an index.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from runbell import faults
from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.service.jobs import Handler, Job, JobKind, Lane, Lanes
from runbell.service.jobs.looping import forever
from runbell.service.jobs.owed import OwedEndpoints
from runbell.service.logs import having
from runbell.storage import deadlines, workable
from runbell.storage.store import Store, Transaction
from runbell.storage.workable import Workable

__all__ = ["EmbeddedJobs"]

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0
"""How often the tables are searched for what a lost wake-up left behind."""

MAX_HINTS = 1_000
"""Ready runs of a lane that are remembered; beyond that, that there are more is enough."""

PAGE = 250
"""Ready runs that are read at once: what else happens in the process waits for no more."""

MAX_FAILURES = 20
"""How often a run may fail with a defect before its slot goes to others, until the next sweep."""

BATCH = 100
"""Deferred jobs that are handled at the same time."""


@dataclass(slots=True, eq=False)
class _Line:
    """The runs of one lane.

    Attributes:
        waiting: ids and models of those that are remembered, in the order of their turns.
        running: how many are under way.
        behind: there are more in the table, behind those that are remembered.
    """

    waiting: deque[tuple[str, str]] = field(default_factory=deque)
    running: int = 0
    behind: bool = False

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= MAX_HINTS


class EmbeddedJobs:
    """The embedded engine.

    Args:
        lanes: where runs stand in line.
        concurrency: how many runs of a lane may be executed at the same time.
        cancel_grace: seconds from the start of a cancel to its end by force.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        lanes: Lanes,
        *,
        concurrency: int,
        cancel_grace: float,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._lanes = lanes
        self._concurrency = concurrency
        self._cancel_grace_ms = round(cancel_grace * 1000)
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.1, cap=5.0)
        self._handlers: Mapping[JobKind, Handler] = {}
        self._lines: dict[Lane, _Line] = {}
        self._remembered: set[str] = set()
        self._moved = False
        self._look_at_all = True
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: dict[str, str] = {}
        self._ready_wake = asyncio.Event()
        self._deferred_wake = asyncio.Event()
        self._next_due_ms = 0
        self._held_back: dict[str, tuple[int, int]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._owed = OwedEndpoints(store, clock, self._backoff, self._rng)

    async def enqueue(self, tx: Transaction, job: Job) -> None:
        if job.kind is JobKind.RUN:
            tx.after_commit(lambda: self._hint(job.key, job.model))
        elif job.kind is JobKind.DELIVER:
            tx.after_commit(lambda: self._owed.expect(job.key, job.due_ms))
        else:
            tx.after_commit(lambda: self._expect(job.due_ms or 0))

    async def forget(self, tx: Transaction, job: Job) -> None:
        # What is due is asked of the tables, which know.
        pass

    def start(self, handlers: Mapping[JobKind, Handler]) -> None:
        self._handlers = handlers
        self._owed.start(handlers.get(JobKind.DELIVER))
        self._lanes.subscribe(self._ready_wake.set, self._sort_again)
        self._ready_wake.set()
        steps = {
            "jobs-ready": self._hand_out_ready,
            "jobs-deferred": self._hand_out_deferred,
            "jobs-sweep": self._sweep,
            "jobs-owed": self._owed.hand_out,
        }
        self._loops = [
            asyncio.create_task(forever(step, self._pause), name=name)
            for name, step in steps.items()
        ]

    @property
    def alive(self) -> bool:
        return bool(self._loops) and not any(loop.done() for loop in self._loops)

    async def held(self, tx: Transaction) -> Mapping[JobKind, int]:
        # What fails is found again by the next look into the tables.
        return dict.fromkeys(JobKind, 0)

    async def stop(self, grace: float) -> None:
        self._owed.stop()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        running = [*self._running.values(), *self._owed.running]
        if running:
            _, late = await asyncio.wait(running, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _hint(self, run_id: str, model: str) -> None:
        self._remember(run_id, model)
        self._ready_wake.set()

    def _remember(self, run_id: str, model: str) -> None:
        if run_id in self._remembered:
            return
        lane = self._lanes.lane(model)
        line = self._lines.setdefault(lane, _Line())
        if line.behind or line.is_full:
            # From here on the table has the order: a hint that were taken now would overtake the
            # runs that are known to the table alone.
            line.behind = True
            return
        line.waiting.append((run_id, model))
        self._remembered.add(run_id)
        if not lane.takes(0):
            logger.info("a run waits for a server that has %r", model, extra=_about(run_id))

    def _sort_again(self) -> None:
        self._moved = True
        self._ready_wake.set()

    def _expect(self, due_ms: int) -> None:
        if due_ms < self._next_due_ms:
            self._deferred_wake.set()

    async def _pause(self, failures: int) -> None:
        await self._clock.sleep(self._backoff.delay(failures, self._rng))

    # Runs: due at once, as many at a time as each lane takes.

    async def _hand_out_ready(self) -> None:
        await self._ready_wake.wait()
        self._ready_wake.clear()
        faults.hit("jobs.woken")
        if self._moved:
            self._sort()
        if self._look_at_all:
            self._look_at_all = False
            await self._look_for_ready(None)
        while True:
            self._begin_all()
            short = [
                line
                for lane, line in self._lines.items()
                if line.behind and not line.waiting and self._has_room(lane, line)
            ]
            if not short:
                return
            await self._look_for_ready(short)

    def _begin_all(self) -> None:
        for lane, line in self._lines.items():
            while line.waiting and self._has_room(lane, line):
                run_id, model = line.waiting.popleft()
                self._remembered.discard(run_id)
                self._execute(run_id, model, line)

    def _has_room(self, lane: Lane, line: _Line) -> bool:
        return line.running < self._concurrency and lane.takes(line.running)

    def _sort(self) -> None:
        """Put every run that waits into the lane that it belongs into now."""
        self._moved = False
        waiting = [run for line in self._lines.values() for run in line.waiting]
        if any(line.behind for line in self._lines.values()):
            # Who is known to the table alone may belong elsewhere too.
            self._look_at_all = True
        self._remembered.clear()
        for line in self._lines.values():
            line.waiting.clear()
            line.behind = False
        for run_id, model in waiting:
            self._remember(run_id, model)

    async def _look_for_ready(self, short: list[_Line] | None) -> None:
        """Ask the table for ready runs: for all, or until these lines are full."""
        # Before the look: what becomes ready while it goes on has to be remembered.
        for line in self._lines.values() if short is None else short:
            line.behind = False
        try:
            # In this engine nobody else executes runs: one in progress that is not ours was lost.
            for find in (workable.in_progress, workable.ready):
                if await self._read_on(find, short):
                    return
        except Exception:
            self._look_at_all = True
            self._ready_wake.set()
            raise

    async def _read_on(
        self,
        find: Callable[[Transaction, int, int], Awaitable[list[Workable]]],
        short: list[_Line] | None,
    ) -> bool:
        """Remember what is found, page by page; whether it was enough before the last page."""
        after = 0
        while True:
            # By an index, and never behind somebody's long list.
            page = await self._store.read(lambda tx, after=after: find(tx, PAGE, after))  # type: ignore[misc]
            for found in page:
                if found.id not in self._running:
                    self._remember(found.id, found.model)
            if len(page) < PAGE:
                return False
            if short is not None and all(line.is_full for line in short):
                for line in short:
                    line.behind = True
                return True
            after = page[-1].position
            await asyncio.sleep(0)

    def _execute(self, run_id: str, model: str, line: _Line) -> None:
        if run_id in self._running:
            # It became ready again before its last turn had quite finished.
            self._again[run_id] = model
            return
        line.running += 1
        self._running[run_id] = asyncio.create_task(self._handle(run_id, line), name=run_id)

    async def _handle(self, run_id: str, line: _Line) -> None:
        handler = self._handlers[JobKind.RUN]
        defects = 0
        try:
            for failures in count(1):
                try:
                    await handler(run_id)
                    return
                except StorageUnavailable as error:
                    logger.warning("a run waits for the database: %s", error, extra=_about(run_id))
                except Exception:
                    logger.exception("executing failed; it is tried again", extra=_about(run_id))
                    defects += 1
                    if defects == MAX_FAILURES:
                        return
                await self._pause(failures)
        finally:
            del self._running[run_id]
            line.running -= 1
            if (model := self._again.pop(run_id, None)) is not None:
                self._hint(run_id, model)
            elif line.waiting or line.behind:
                self._ready_wake.set()

    # Deadlines: due later, found by index.

    async def _hand_out_deferred(self) -> None:
        self._deferred_wake.clear()
        now_ms = self._clock.now_ms()
        limit = BATCH + len(self._held_back)
        expiring = await self._store.read(lambda tx: deadlines.expiring(tx, limit))
        cancelling = await self._store.read(lambda tx: deadlines.cancelling_since(tx, limit))
        every = [
            *((JobKind.EXPIRE, run_id, at_ms) for run_id, at_ms in expiring),
            *(
                (JobKind.FINISH_CANCEL, run_id, since_ms + self._cancel_grace_ms)
                for run_id, since_ms in cancelling
            ),
        ]
        due = [
            (kind, run_id, max(at_ms, self._held_back.get(run_id, (0, 0))[1]))
            for kind, run_id, at_ms in every
        ]
        ripe = [(kind, run_id) for kind, run_id, at_ms in due if at_ms <= now_ms]
        if ripe:
            faults.hit("jobs.woken")
            await self._handle_deferred(ripe)
            return
        self._next_due_ms = min(
            (at_ms for _, _, at_ms in due), default=now_ms + round(SWEEP_SECONDS * 1000)
        )
        seconds = min((self._next_due_ms - now_ms) / 1000, SWEEP_SECONDS)
        await self._sleep_unless(self._deferred_wake, seconds)

    async def _handle_deferred(self, ripe: list[tuple[JobKind, str]]) -> None:
        results = await asyncio.gather(
            *(self._handlers[kind](run_id) for kind, run_id in ripe), return_exceptions=True
        )
        away: StorageUnavailable | None = None
        for (kind, run_id), result in zip(ripe, results, strict=True):
            if isinstance(result, StorageUnavailable):
                away = result
            elif isinstance(result, Exception):
                logger.error(
                    "%s failed; it is tried again", kind, exc_info=result, extra=_about(run_id)
                )
                self._hold_back(run_id)
            else:
                self._held_back.pop(run_id, None)
        if away is not None:
            # Raised, so that the next look waits; the rows still say what is due.
            raise away

    def _hold_back(self, run_id: str) -> None:
        """Keep a deadline that failed out of everybody's way for a while."""
        failures = self._held_back.get(run_id, (0, 0))[0] + 1
        pause = self._backoff.delay(failures, self._rng)
        self._held_back[run_id] = (failures, self._clock.now_ms() + round(pause * 1000))

    async def _sleep_unless(self, event: asyncio.Event, seconds: float) -> None:
        tasks = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(event.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    async def _sweep(self) -> None:
        await self._clock.sleep(SWEEP_SECONDS)
        self._look_at_all = True
        self._ready_wake.set()
        self._owed.look_again()


def _about(run_id: str) -> dict[str, Any]:
    """The `extra` of a record about a run of which no more is known here."""
    return having({"run_id": run_id})
