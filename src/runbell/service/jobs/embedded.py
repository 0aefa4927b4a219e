"""Jobs of a single process: no queue at all, just what is due in the tables.

A commit that makes a run ready leaves its id here as a hint, which saves the look into the table.
Hints are bounded and may be lost with the process: at start, when too many came, and every
`SWEEP_SECONDS` the tables are asked instead. What is due later is never held in memory; the next
due time is looked up by an index.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from itertools import count

from runbell import faults
from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.service.jobs import Handler, Job, JobKind
from runbell.service.jobs.owed import OwedEndpoints
from runbell.storage import runs
from runbell.storage.store import Store, Transaction

__all__ = ["EmbeddedJobs"]

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 30.0
"""How often the tables are searched for what a lost wake-up left behind."""

MAX_HINTS = 1_000
"""Ready runs that are remembered by id; beyond that, that there are more is enough."""

MAX_FAILURES = 20
"""How often a run may fail with a defect before its slot goes to others, until the next sweep."""

BATCH = 100
"""Deferred jobs that are handled at the same time."""


class EmbeddedJobs:
    """The embedded engine.

    Args:
        concurrency: how many runs may be executed at the same time.
        cancel_grace: seconds from the start of a cancel to its end by force.
    """

    def __init__(
        self,
        store: Store,
        clock: Clock,
        *,
        concurrency: int,
        cancel_grace: float,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._clock = clock
        self._concurrency = concurrency
        self._cancel_grace_ms = round(cancel_grace * 1000)
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.1, cap=5.0)
        self._handlers: Mapping[JobKind, Handler] = {}
        self._hints: deque[str] = deque()
        self._more_ready = True
        self._running: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()
        self._ready_wake = asyncio.Event()
        self._deferred_wake = asyncio.Event()
        self._next_due_ms = 0
        self._held_back: dict[str, tuple[int, int]] = {}
        self._loops: list[asyncio.Task[None]] = []
        self._owed = OwedEndpoints(store, clock, self._backoff, self._rng)

    async def enqueue(self, tx: Transaction, job: Job) -> None:
        if job.kind is JobKind.RUN:
            tx.after_commit(lambda: self._hint(job.key))
        elif job.kind is JobKind.DELIVER:
            tx.after_commit(lambda: self._owed.expect(job.key, job.due_ms))
        else:
            tx.after_commit(lambda: self._expect(job.due_ms or 0))

    def start(self, handlers: Mapping[JobKind, Handler]) -> None:
        self._handlers = handlers
        self._owed.start(handlers[JobKind.DELIVER])
        self._ready_wake.set()
        self._loops = [
            asyncio.create_task(self._forever(self._hand_out_ready), name="jobs-ready"),
            asyncio.create_task(self._forever(self._hand_out_deferred), name="jobs-deferred"),
            asyncio.create_task(self._forever(self._sweep), name="jobs-sweep"),
            asyncio.create_task(self._forever(self._owed.hand_out), name="jobs-owed"),
        ]

    @property
    def alive(self) -> bool:
        return bool(self._loops) and not any(loop.done() for loop in self._loops)

    @property
    def idle(self) -> bool:
        """No handler is running and none is about to."""
        return not (self._running or self._hints or self._more_ready or self._owed.running)

    async def stop(self, grace: float) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []
        self._owed.stop()
        running = [*self._running.values(), *self._owed.running]
        if running:
            _, late = await asyncio.wait(running, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _hint(self, run_id: str) -> None:
        if self._more_ready or len(self._hints) >= MAX_HINTS:
            # From here on the table has the order: a hint that were taken now would overtake the
            # runs that are known to the table alone.
            self._more_ready = True
        else:
            self._hints.append(run_id)
        self._ready_wake.set()

    def _expect(self, due_ms: int) -> None:
        if due_ms < self._next_due_ms:
            self._deferred_wake.set()

    async def _forever(self, step: Callable[[], Awaitable[None]]) -> None:
        failures = 0
        while True:
            try:
                await step()
                failures = 0
            except StorageUnavailable as error:
                failures += 1
                logger.warning("jobs wait for the database: %s", error)
                await self._clock.sleep(self._backoff.delay(failures, self._rng))
            except Exception:
                failures += 1
                logger.exception("handing out jobs failed; it is tried again")
                await self._clock.sleep(self._backoff.delay(failures, self._rng))

    # Runs: due at once, as many at a time as are allowed.

    async def _hand_out_ready(self) -> None:
        await self._ready_wake.wait()
        self._ready_wake.clear()
        faults.hit("jobs.woken")
        while len(self._running) < self._concurrency:
            if self._hints:
                self._execute(self._hints.popleft())
            elif self._more_ready:
                await self._look_for_ready()
            else:
                return

    async def _look_for_ready(self) -> None:
        limit = self._concurrency + MAX_HINTS
        # Before the look: what becomes ready while it goes on has to be remembered.
        self._more_ready = False
        try:
            # By an index, and never behind somebody's long list.
            ready = await self._store.read(lambda tx: runs.ready(tx, limit))
            held = await self._store.read(lambda tx: runs.in_progress(tx, limit))
        except Exception:
            self._more_ready = True
            self._ready_wake.set()
            raise
        # In this engine nobody else executes runs: one in progress that is not ours was lost.
        found = [run_id for run_id in (*held, *ready) if run_id not in self._running]
        if len(ready) == limit or len(held) == limit:
            self._more_ready = True
        known = set(self._hints)
        self._hints.extend(run_id for run_id in found if run_id not in known)

    def _execute(self, run_id: str) -> None:
        if run_id in self._running:
            # It became ready again before its last turn had quite finished.
            self._again.add(run_id)
            return
        self._running[run_id] = asyncio.create_task(self._handle(run_id), name=run_id)

    async def _handle(self, run_id: str) -> None:
        handler = self._handlers[JobKind.RUN]
        defects = 0
        try:
            for failures in count(1):
                try:
                    await handler(run_id)
                    return
                except StorageUnavailable as error:
                    logger.warning("%s waits for the database: %s", run_id, error)
                except Exception:
                    logger.exception("executing %s failed; it is tried again", run_id)
                    defects += 1
                    if defects == MAX_FAILURES:
                        return
                await self._clock.sleep(self._backoff.delay(failures, self._rng))
        finally:
            del self._running[run_id]
            if run_id in self._again:
                self._again.discard(run_id)
                self._hint(run_id)
            elif self._hints or self._more_ready:
                self._ready_wake.set()

    # Deadlines: due later, found by index.

    async def _hand_out_deferred(self) -> None:
        self._deferred_wake.clear()
        now_ms = self._clock.now_ms()
        limit = BATCH + len(self._held_back)
        expiring = await self._store.read(lambda tx: runs.expiring(tx, limit))
        cancelling = await self._store.read(lambda tx: runs.cancelling_since(tx, limit))
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
                logger.error("%s of %s failed; it is tried again", kind, run_id, exc_info=result)
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
        self._more_ready = True
        self._ready_wake.set()
        self._owed.look_again()
