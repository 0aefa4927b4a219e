"""Jobs of several processes: PgQueuer's, put in the transaction of the change.

It hands out, notices when a worker is lost, defers, tries again, and keeps aside what fails for
good. What is ours is the words between it and the port: which job is the same as another, in whose
line a run stands, and the slow sweep that finds what got lost.

A run's job is named after its model, so that a model server without room holds up its own runs
alone: a worker asks for those jobs only that it has a place for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job as PickedJob

from runbell import faults
from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.runs import Run
from runbell.service.jobs import Handler, Job, JobKind, Lane, Lanes, Stopping
from runbell.service.jobs.drivers import PooledDriver
from runbell.service.jobs.engine import Manager, Place
from runbell.service.jobs.held import count_held, forget_earlier
from runbell.service.jobs.looping import forever
from runbell.service.jobs.missing import MAX_MODELS, models_in_line, prune_log, sweep_once
from runbell.service.jobs.putting import (
    ANY_MODEL,
    LATER,
    SLACK_MS,
    Put,
    named,
    own_line,
    put,
    turn_of,
)
from runbell.service.jobs.queries import FORGET, PUT, NotYet, queries
from runbell.storage import owed, runs
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction
from runbell.storage.store import Transaction

__all__ = ["PgQueuerJobs"]

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 4.0
"""After so long without a sign of life a worker is lost, and its jobs are handed out again."""

POLL_SECONDS = 1.0
"""How often a worker looks without having been told: lost workers tell nothing."""

FEW = 4
"""Jobs of this process, below which it looks at once for those that it has put itself."""

OTHERS_SECONDS = 0.01
"""How long it otherwise lets others look first."""

BATCH = 10
"""Jobs that a worker takes at once, where it has room for as many."""

SWEEP_SECONDS = 30.0
"""How often the tables are searched for what has no job."""

LAST_SECONDS = 2.0
"""How long PgQueuer has, at the end, to write down what became of its jobs."""

MAX_FAILURES = 20
"""How often a job may fail with a defect before it is kept aside."""

MAX_DEADLINES = 50
"""Deadlines, and endpoints of one process, that are handled at the same time."""

MAX_UNPLACED = 50
"""Runs of models that nobody had listed, which are looked at at a time: each gets a line then."""

DEFERRED = frozenset((JobKind.EXPIRE.value, JobKind.FINISH_CANCEL.value, LATER))
"""Jobs that wait for their time."""

LINE_UP = "UPDATE pgqueuer SET entrypoint = $3 WHERE id = $1 AND queue_manager_id = $2"
RELEASE = "UPDATE pgqueuer SET dedupe_key = NULL WHERE id = $1 AND queue_manager_id = $2"


class PgQueuerJobs:
    """The engine of several processes.

    Args:
        listener: hears what PgQueuer tells.
        lanes: where runs stand in line.
        concurrency: how many runs of a lane this process may execute at the same time.
        cancel_grace: seconds from the start of a cancel to its end by force.
    """

    def __init__(
        self,
        store: PostgresqlStore,
        listener: Listener,
        clock: Clock,
        lanes: Lanes,
        *,
        concurrency: int,
        cancel_grace: float,
        rng: random.Random | None = None,
    ) -> None:
        self._store = store
        self._driver = PooledDriver(store, listener)
        self._clock = clock
        self._lanes = lanes
        self._concurrency = concurrency
        self._cancel_grace_ms = round(cancel_grace * 1000)
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.1, cap=5.0)
        self._handlers: Mapping[JobKind, Handler] = {}
        self._manager: Manager | None = None
        self._loops: list[asyncio.Task[None]] = []
        self._stopping = False
        self._running: set[asyncio.Task[Any]] = set()
        self._busy: Counter[object] = Counter()
        self._room = asyncio.Event()
        self._turns: dict[str, asyncio.Event] = {}
        self._found: frozenset[str] = frozenset()
        self._looking: asyncio.TimerHandle | None = None
        self._owed: set[str] = set()
        self._owing = asyncio.Event()

    # Putting.

    async def enqueue(self, tx: Transaction, job: Job) -> None:
        if job.kind is JobKind.DELIVER and job.due_ms is not None:
            # The endpoint's own job, which is at work, looks for that when it ends.
            return
        wanted = self._named(job)
        if job.kind is JobKind.DELIVER:
            self._put_last(tx, wanted)
            return
        assert isinstance(tx, PostgresqlTransaction), "jobs are where the runs are"
        await tx.put(PUT, _params(wanted))
        if wanted.delay <= timedelta(0):
            tx.after_commit(self._look_for_own)

    async def forget(self, tx: Transaction, job: Job) -> None:
        await tx.later(FORGET, {"dedupe_key": self._named(job).key})

    def _named(self, job: Job) -> Put:
        """What the job is called, and what it is the same as."""
        return named(job, self._clock.now_ms(), lambda model: model in self._lanes.models())

    def _put_last(self, tx: Transaction, wanted: Put) -> None:
        """Put an endpoint's job at the end of the transaction, with others that it brings: in one
        order everywhere, since who puts the same job at this moment is waited for."""
        assert isinstance(tx, PostgresqlTransaction), "jobs are where the runs are"
        batch: dict[str, Put] | None = tx.carried.get(self)
        if batch is None:
            batch = tx.carried[self] = {}
            tx.lasts.append(lambda: self._put_all(tx, batch))
            tx.after_commit(self._look_for_own)
        batch[wanted.key] = wanted

    async def _put_all(self, tx: PostgresqlTransaction, batch: Mapping[str, Put]) -> None:
        for wanted in sorted(batch.values(), key=lambda each: each.key):
            endpoint_id = wanted.payload.decode()
            await tx.put(
                PUT,
                _params(wanted),
                lambda endpoint_id=endpoint_id: tx.after_commit(lambda: self._owe(endpoint_id)),  # type: ignore[misc]
            )

    def _owe(self, endpoint_id: str) -> None:
        """Put an endpoint's job once more: the one that was there when this was owed may have
        looked before it was committed, and have ended since."""
        self._owed.add(endpoint_id)
        self._owing.set()

    async def _put_owed(self) -> None:
        await self._owing.wait()
        self._owing.clear()
        owed, self._owed = self._owed, set()
        try:
            await self._put_now(Job(JobKind.DELIVER, endpoint_id) for endpoint_id in owed)
        except BaseException:
            self._owed |= owed
            self._owing.set()
            raise

    async def _put_now(self, jobs: Iterable[Job]) -> int:
        """Put jobs; how many were not there."""
        puts = [self._named(job) for job in jobs]

        async def work(tx: Transaction) -> int:
            assert isinstance(tx, PostgresqlTransaction)
            return len(puts) - len(await put(tx, puts))

        if not puts:
            return 0
        count = await self._store.write(work)
        self.look()
        return count

    def look(self) -> None:
        """There may be new jobs."""
        self._driver.wake()

    def _look_for_own(self) -> None:
        """This process has put a job. It knows so before all others: where it has several, it lets
        them look first, and what comes meanwhile is taken in one go."""
        if len(self._running) < FEW:
            self.look()
        elif self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(OTHERS_SECONDS, self._look_now)

    def _look_now(self) -> None:
        self._looking = None
        self.look()

    # Handing out.

    def start(self, handlers: Mapping[JobKind, Handler]) -> None:
        self._handlers = handlers
        self._lanes.subscribe(self._have_room, self._have_room)
        steps = {
            "jobs-manager": self._manage,
            "jobs-owed": self._put_owed,
            "jobs-sweep": self._sweep,
        }
        self._loops = [
            asyncio.create_task(forever(step, self._pause, lambda: self._stopping), name=name)
            for name, step in steps.items()
        ]

    @property
    def alive(self) -> bool:
        return bool(self._loops) and not any(loop.done() for loop in self._loops)

    async def held(self, tx: Transaction) -> Mapping[JobKind, int]:
        return await count_held(tx)

    async def stop(self, grace: float) -> None:
        self._stopping = True
        for loop in self._loops[1:]:
            loop.cancel()
        if self._manager is not None:
            self._manager.shutdown.set()
        # Who waits for a place gives its job back at once.
        self._room.set()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            # Each gives its job back: another worker goes on with it.
            for task in late:
                task.cancel()
        if self._loops and self._manager is not None:
            # It writes down what became of its jobs. A database that is away is not waited for.
            await asyncio.wait(self._loops[:1], timeout=LAST_SECONDS)
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        self._loops = []

    async def _pause(self, failures: int) -> None:
        await self._clock.sleep(self._backoff.delay(failures, self._rng))

    async def _manage(self) -> None:
        """Let PgQueuer hand out jobs, until this is stopped."""
        lost_after = timedelta(seconds=HEARTBEAT_SECONDS)
        ahead = queries(self._driver)
        ahead.look_for(self.wanted, lost_after)
        manager = self._manager = Manager(ahead)
        manager.attach(ahead, self._driver, self.places, self.handle, DEFERRED)
        try:
            await manager.run(
                batch_size=BATCH,
                dequeue_timeout=timedelta(seconds=POLL_SECONDS),
                heartbeat_timeout=lost_after,
                log_aggregation_interval=timedelta(0),
            )
        finally:
            self._manager = None

    def wanted(self) -> set[str]:
        """The jobs that this process has a place for, by their names at PgQueuer."""
        return {name for place in self.places() for name in place.names}

    def places(self) -> list[Place]:
        """The same, by the lines in which they stand, and how many of each it has room for."""
        if self._stopping:
            return []
        limits: dict[str, int] = dict.fromkeys(
            (JobKind.EXPIRE, JobKind.FINISH_CANCEL, JobKind.DELIVER, LATER), MAX_DEADLINES
        )
        limits[ANY_MODEL] = MAX_UNPLACED
        places = [
            Place(frozenset((str(name),)), limit - self._busy[name])
            for name, limit in limits.items()
        ]
        lines: dict[Lane, set[str]] = {}
        for model in (*self._lanes.models(), *self._found):
            lines.setdefault(self._lanes.lane(model), set()).add(f"run:{model}")
        places += [Place(frozenset(names), self._room_of(lane)) for lane, names in lines.items()]
        return [place for place in places if place.room > 0]

    def _room_of(self, lane: Lane) -> int:
        """How many more runs of a lane may begin; of more than a batch it is not asked."""
        running = self._busy[lane]
        most = min(BATCH, self._concurrency - running)
        return next((room for room in range(most) if not lane.takes(running + room)), max(0, most))

    def _has_room(self, lane: Lane) -> bool:
        running = self._busy[lane]
        return running < self._concurrency and lane.takes(running)

    def _have_room(self) -> None:
        self._room.set()
        self._room = asyncio.Event()
        self._driver.wake()

    async def handle(self, job: PickedJob) -> None:
        """Do a job that PgQueuer has handed out.

        Raises:
            RetryRequested: it is to be handed out again, later or, where this process stops, now.
        """
        if self._stopping:
            # It was asked for before that.
            raise NotYet(timedelta(0), "its worker stops")
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        name = job.entrypoint
        place = ANY_MODEL if name == ANY_MODEL else name
        self._busy[place] += 1
        faults.hit("jobs.woken")
        try:
            await self._tried(job)
        except asyncio.CancelledError:
            if self._stopping:
                raise NotYet(timedelta(0), "its worker stops") from None
            raise
        except Stopping:
            # Nothing has failed: another worker goes on with it, or the next start.
            raise NotYet(timedelta(0), "its worker stops") from None
        except RetryRequested:
            raise
        except Exception as error:
            if job.attempts + 1 >= MAX_FAILURES:
                logger.exception("%s failed too often and is kept aside", name)
                await self._forget_earlier(job)
                raise RuntimeError(
                    f"it failed {MAX_FAILURES} times: {type(error).__name__}"
                ) from None
            logger.exception("%s failed; it is tried again", name)
            delay = self._backoff.delay(job.attempts + 1, self._rng)
            # Without the error itself: what PgQueuer notes of it is kept, and read by others.
            raise RetryRequested(timedelta(seconds=delay), type(error).__name__) from None
        finally:
            self._busy[place] -= 1
            self._running.discard(task)

    async def _forget_earlier(self, job: PickedJob) -> None:
        payload = job.payload or b""
        with contextlib.suppress(StorageUnavailable):
            await self._store.write(lambda tx: forget_earlier(tx, job.entrypoint, payload, job.id))

    async def _tried(self, job: PickedJob) -> None:
        """Do a job; where the database is away it is waited for."""
        failures = 0
        while True:
            try:
                await self._do(job)
                return
            except StorageUnavailable as error:
                failures += 1
                logger.warning("%s waits for the database: %s", job.entrypoint, error)
            await self._pause(failures)

    async def _do(self, job: PickedJob) -> None:
        key = (job.payload or b"").decode()
        match job.entrypoint:
            case JobKind.EXPIRE:
                await self._expire(key)
            case JobKind.FINISH_CANCEL:
                await self._handlers[JobKind.FINISH_CANCEL](key)
            case JobKind.DELIVER:
                await self._deliver(key, job)
            case name if name == LATER:
                await self._put_now([Job(JobKind.DELIVER, key)])
            case _:
                run_id, turn, model = turn_of(key)
                await self._run(job, run_id, turn, model)

    async def _run(self, job: PickedJob, run_id: str, turn: int, model: str) -> None:
        # A turn that follows at once waits here for the end of the one before.
        while (before := self._turns.get(run_id)) is not None:
            await before.wait()
        ended = self._turns[run_id] = asyncio.Event()
        try:
            lane = await self._lane_with_room(job, run_id, model)
            if lane is None:
                return
            self._busy[lane] += 1
            try:
                await self._handlers[JobKind.RUN](run_id, turn)
            finally:
                was_full = not self._has_room(lane)
                self._busy[lane] -= 1
                if was_full:
                    self._have_room()
        finally:
            del self._turns[run_id]
            ended.set()

    async def _lane_with_room(self, job: PickedJob, run_id: str, model: str) -> Lane | None:
        """The lane of a run, when it has room; None where the run has ended.

        Raises:
            NotYet: the job waits elsewhere.
        """
        while not self._has_room(lane := self._lanes.lane(model)):
            if self._stopping:
                raise NotYet(timedelta(0), "its worker stops")
            room = self._room
            if job.entrypoint == ANY_MODEL:
                if await self._not_ended(run_id) is None:
                    return None
                await self._line_up(job, model)
            await room.wait()
        return lane

    async def _line_up(self, job: PickedJob, model: str) -> None:
        """Let a job wait in its own model's line, in the table, and others have its place here.

        Raises:
            NotYet: it does; a model that has no line waits where it is.
        """
        name = own_line(model)
        if name is None:
            return
        await self._driver.fetch(LINE_UP, job.id, job.queue_manager_id, name)
        if len(self._found) < MAX_MODELS:
            self._found |= {model}
        raise NotYet(timedelta(0), "its server is not known yet")

    async def _not_ended(self, run_id: str) -> Run | None:
        record = await self._store.read(lambda tx: runs.find(tx, run_id))
        return None if record is None or record.run.status.is_terminal else record.run

    async def _expire(self, run_id: str) -> None:
        run = await self._not_ended(run_id)
        if run is None:
            return
        early_ms = run.expires_at_ms - self._clock.now_ms()
        if early_ms > 0:
            raise NotYet(timedelta(milliseconds=early_ms + SLACK_MS), "it is early")
        await self._handlers[JobKind.EXPIRE](run_id)

    async def _deliver(self, endpoint_id: str, job: PickedJob) -> None:
        await self._handlers[JobKind.DELIVER](endpoint_id)
        # From here on, what is owed puts a job of its own. What was owed before is found by the
        # look behind this: nothing falls between the two.
        await self._driver.fetch(RELEASE, job.id, job.queue_manager_id)
        due_ms = await self._store.read(lambda tx: owed.next_due(tx, endpoint_id))
        if due_ms is not None:
            later = due_ms if due_ms > self._clock.now_ms() else None
            await self._put_now([Job(JobKind.DELIVER, endpoint_id, due_ms=later)])

    # The sweep.

    async def _sweep(self) -> None:
        """Put what the tables owe and has no job, now and again; forget old lines of its log."""
        now_ms = self._clock.now_ms()
        found = await self._store.write(lambda tx: sweep_once(tx, now_ms, self._cancel_grace_ms))
        if found is not None:
            await self._put_missing(found)
        # Models that only another process knows: who has them in line is not left waiting.
        self._found = await self._store.scan(models_in_line)
        self._have_room()
        while await self._store.write(prune_log):
            pass
        await self._clock.sleep(SWEEP_SECONDS * (0.9 + 0.2 * self._rng.random()))

    async def _put_missing(self, jobs: list[Job]) -> None:
        if count := await self._put_now(jobs):
            logger.info("%d jobs were owed and not there: the sweep has put them", count)


def _params(wanted: Put) -> dict[str, object]:
    return {
        "entrypoint": wanted.entrypoint,
        "payload": wanted.payload,
        "dedupe_key": wanted.key,
        "delay": wanted.delay,
    }
