"""The embedded engine for jobs: what is due is handed out, once, in order, whatever gets lost."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, update

from runbell.errors import StorageUnavailable
from runbell.service.jobs import Handler, Job, JobKind
from runbell.service.jobs import embedded as engine
from runbell.service.jobs.embedded import EmbeddedJobs
from runbell.service.operations import runs
from runbell.storage import schema
from runbell.storage.statements import Statement
from runbell.storage.store import Transaction
from runbell.testing.embedded import EmbeddedService, on_a_service


class Worker:
    """A handler whose jobs take as long as the test wants, and that says what it was handed.

    Attributes:
        begun: the keys in the order in which they were handed out, again and again.
        most: how many were being handled at the same time.
    """

    def __init__(self, service: EmbeddedService) -> None:
        self.service = service
        self.begun: list[str] = []
        self.times: list[float] = []
        self.done: list[str] = []
        self.cancelled: list[str] = []
        self.failing: dict[str, list[Exception]] = {}
        self.most = 0
        self.busy: Callable[[str], bool] = lambda key: False
        self._release: dict[str, asyncio.Event] = {}

    async def handle(self, key: str) -> None:
        self.begun.append(key)
        self.times.append(self.service.clock.monotonic())
        self.most = max(self.most, len(self.begun) - len(self.done))
        if errors := self.failing.get(key):
            raise errors.pop(0)
        try:
            if self.busy(key):
                self._release[key] = asyncio.Event()
                await self._release[key].wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.done.append(key)

    def release(self, *keys: str) -> None:
        for key in keys or list(self._release):
            self._release.pop(key).set()

    def start(self, **others: Handler) -> None:
        """Start the service's jobs with this worker for its runs."""
        self.service.jobs.start(
            {
                JobKind.RUN: self.handle,
                JobKind.EXPIRE: others.get("expire", _ignore),
                JobKind.FINISH_CANCEL: others.get("finish_cancel", _ignore),
            }
        )


async def _ignore(key: str) -> None:
    pass


async def queued(service: EmbeddedService, count: int, **fields: Any) -> list[str]:
    """So many runs, each on a thread of its own."""
    return [await service.run(await service.thread("Hello"), **fields) for _ in range(count)]


# Ready runs.


@on_a_service(started=False)
async def test_a_run_is_handed_out_when_it_is_committed(service: EmbeddedService) -> None:
    """At once, without any time passing, and once."""
    worker = Worker(service)
    worker.start()
    await service.settle()
    (run,) = await queued(service, 1)
    await service.settle()
    assert worker.begun == [run]
    await service.advance(100)
    assert worker.begun[1:] == [run] * 3, "it is still queued, so each sweep offers it again"


@on_a_service(started=False)
async def test_a_job_is_visible_with_its_transaction_or_not_at_all(
    service: EmbeddedService,
) -> None:
    """A unit that fails has enqueued nothing."""
    worker = Worker(service)
    worker.start()
    await service.settle()

    async def fails(tx: Transaction) -> None:
        await service.jobs.enqueue(tx, Job(JobKind.RUN, "run_of_nobody"))
        raise ValueError("after all not")

    with pytest.raises(ValueError, match="after all not"):
        await service.store.write(fails)
    await service.settle()
    assert worker.begun == []


@on_a_service(started=False)
async def test_what_an_earlier_process_left_is_handed_out_first(service: EmbeddedService) -> None:
    """Runs that a lost worker held, then those that are queued, each in the order of creation."""
    lost = await queued(service, 2)
    service.start()
    await service.settle()
    await service.crash()
    waiting = await queued(service, 3)
    service.build()
    worker = Worker(service)
    worker.start()
    await service.settle()
    assert worker.begun == [*lost, *waiting]


BREAK = Statement(
    "runs.break",
    "A run that nobody can read any more.",
    update(schema.runs)
    .values(config=bindparam("broken"))
    .where(schema.runs.c.id == bindparam("run")),
)


@on_a_service(started=False)
async def test_a_run_that_is_unreadable_keeps_no_other_from_being_found(
    service: EmbeddedService,
) -> None:
    """Neither one that was lost with its worker nor one that is queued. It is handed out itself,
    so that what it fails with is said."""
    (lost,) = await queued(service, 1)
    service.start()
    await service.settle()
    await service.crash()
    broken, good = await queued(service, 2)
    keys = [lost, broken, good]

    async def breaks(tx: Transaction) -> None:
        for run in (lost, broken):
            await tx.later(BREAK, {"run": run, "broken": "{"})

    await service.store.write(breaks)
    service.build()
    worker = Worker(service)
    worker.start()
    await service.settle()
    assert worker.begun == keys
    (late,) = await queued(service, 1)
    await service.settle()
    assert worker.begun == [*keys, late]


@on_a_service(started=False, max_concurrent_runs=3)
async def test_no_more_runs_are_executed_than_are_allowed(service: EmbeddedService) -> None:
    """Three at a time; the others follow in the order of their creation as places become free."""
    worker = Worker(service)
    worker.busy = lambda key: True
    worker.start()
    keys = await queued(service, 8)
    await service.settle()
    assert worker.begun == keys[:3]
    worker.release(keys[1])
    await service.settle()
    assert worker.begun == keys[:4]
    while len(worker.done) < len(keys):
        worker.release()
        await service.settle()
    assert worker.begun == keys
    assert worker.most == 3


@on_a_service(started=False, max_concurrent_runs=2)
async def test_more_runs_than_are_remembered_are_found_in_the_table(
    service: EmbeddedService,
) -> None:
    """Beyond the hints, that there are more is enough: none is forgotten, and no time passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "MAX_HINTS", 3)
        worker = Worker(service)
        worker.busy = lambda key: True
        worker.start()
        await service.settle()
        keys = await queued(service, 20)
        while set(worker.begun) != set(keys) or len(worker.done) < len(worker.begun):
            before = len(worker.done)
            worker.release()
            await service.settle()
            assert len(worker.done) > before, "it stands still before every run had its turn"
            await end(service, worker.done)
        assert worker.most == 2
        assert service.clock.monotonic() == 0


async def end(service: EmbeddedService, keys: list[str]) -> None:
    """Let these runs be over, so that the tables do not offer them again."""
    for key in set(keys):
        if not (await service.status(key)).is_terminal:
            await service.cancel(key)


@on_a_service(started=False)
async def test_runs_that_overflow_the_hints_during_a_look_are_not_forgotten(
    service: EmbeddedService,
) -> None:
    """The look was begun before they were there, so its end must not say that all was seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "MAX_HINTS", 2)
        looked, go_on = asyncio.Event(), asyncio.Event()
        read = service.store.read

        # As a database is that is asked over a network.
        async def slow_read(work: Any) -> Any:
            found = await read(work)
            looked.set()
            await go_on.wait()
            return found

        patch.setattr(service.store, "read", slow_read)
        worker = Worker(service)
        worker.start()
        await looked.wait()
        keys = await queued(service, 5)
        go_on.set()
        await service.settle()
        assert set(worker.begun) == set(keys)


@on_a_service(started=False)
async def test_a_run_that_is_ready_again_while_it_is_handled_is_handled_again(
    service: EmbeddedService,
) -> None:
    """Once, however often it was said; never twice at the same time."""
    worker = Worker(service)
    worker.busy = lambda key: True
    worker.start()
    (run,) = await queued(service, 1)
    await service.settle()
    for _ in range(3):
        await service.store.write(lambda tx: service.jobs.enqueue(tx, Job(JobKind.RUN, run)))
    await service.settle()
    assert worker.begun == [run]
    worker.release()
    await service.settle()
    assert worker.begun == [run, run]
    worker.release()
    await service.settle()
    assert worker.begun == [run, run]
    assert worker.most == 1


# Lanes: a model server that is slow or away holds up its own runs, and no others.


class OneLane:
    """A lane that has as much room as the test says."""

    def __init__(self, room: int) -> None:
        self.room = room

    def takes(self, running: int) -> bool:
        return running < self.room


class NamedLanes:
    """Each model has the lane that the test gives it; the others share one."""

    def __init__(self, **lanes: OneLane) -> None:
        self.lanes = lanes
        self.others = OneLane(1_000)

    def lane(self, model: str) -> OneLane:
        return self.lanes.get(model, self.others)

    def models(self) -> list[str]:
        return list(self.lanes)

    def subscribe(self, room: Callable[[], None], moved: Callable[[], None]) -> None:
        self.room, self.moved = room, moved


def in_lanes(service: EmbeddedService, **lanes: OneLane) -> tuple[Worker, NamedLanes]:
    """A worker whose runs never end by themselves, behind an engine with these lanes."""
    named = NamedLanes(**lanes)
    service.jobs = EmbeddedJobs(
        service.store,
        service.clock,
        named,
        concurrency=service.settings.max_concurrent_runs,
        cancel_grace=1,
    )
    service.ctx = dataclasses.replace(service.ctx, jobs=service.jobs)
    worker = Worker(service)
    worker.busy = lambda key: True
    return worker, named


async def mixed(service: EmbeddedService, *models: str) -> list[str]:
    """Runs of these models."""
    return [key for model in models for key in await queued(service, 1, model=model)]


@on_a_service(started=False)
async def test_a_lane_without_room_holds_up_no_other(service: EmbeddedService) -> None:
    """Its runs stay queued, and come in their order when it says that it has room again."""
    closed = OneLane(0)
    worker, named = in_lanes(service, scripted=closed)
    worker.start()
    a, b, c, d = await mixed(service, "scripted", "echo", "scripted", "echo")
    await service.settle()
    assert worker.begun == [b, d]
    closed.room = 1
    named.room()
    await service.settle()
    assert worker.begun == [b, d, a]
    worker.release(a)
    await service.settle()
    assert worker.begun == [b, d, a, c]


@on_a_service(started=False, max_concurrent_runs=2)
async def test_each_lane_has_its_own_number_of_runs(service: EmbeddedService) -> None:
    worker, _ = in_lanes(service, scripted=OneLane(1_000))
    worker.start()
    keys = await mixed(service, *["scripted"] * 4, *["echo"] * 3)
    await service.settle()
    assert worker.begun == [*keys[:2], *keys[4:6]]
    worker.release(keys[4])
    await service.settle()
    assert worker.begun[4:] == [keys[6]]


@pytest.mark.parametrize("hints", [1, 3, 1_000])
def test_a_long_line_is_in_nobodys_way_in_the_table(
    hints: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many runs of a lane without room stand in front, and after a restart."""
    monkeypatch.setattr(engine, "MAX_HINTS", hints)
    monkeypatch.setattr(engine, "PAGE", 4)

    @on_a_service(started=False, max_concurrent_runs=2)
    async def story(service: EmbeddedService) -> None:
        closed = OneLane(0)
        stuck = await mixed(service, *["scripted"] * 30)
        keys = await mixed(service, *["echo"] * 10)
        worker, named = in_lanes(service, scripted=closed)
        worker.start()
        await service.settle()
        assert worker.begun == keys[:2]
        keys += await mixed(service, *["echo"] * 5)
        while set(worker.done) != set(keys):
            before = len(worker.done)
            await end(service, worker.begun)
            worker.release()
            await service.settle()
            assert len(worker.done) > before, "it stands still"
        assert worker.begun == keys
        closed.room = 1
        named.room()
        for _ in stuck:
            await service.settle()
            await end(service, worker.begun[-1:])
            worker.release()
        assert worker.begun[len(keys) :] == stuck
        assert service.clock.monotonic() == 0, "nothing waited for a sweep"

    story(tmp_path)


@pytest.mark.parametrize("hints", [2, 1_000])
def test_runs_change_their_lane_when_their_model_does(
    hints: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that are known to the table alone."""
    monkeypatch.setattr(engine, "MAX_HINTS", hints)

    @on_a_service(started=False)
    async def story(service: EmbeddedService) -> None:
        worker, named = in_lanes(service, scripted=OneLane(0))
        worker.start()
        keys = await mixed(service, *["scripted"] * 5)
        await service.settle()
        assert worker.begun == []
        named.lanes["scripted"] = OneLane(4)
        named.moved()
        await service.settle()
        assert worker.begun == keys[:4]

    story(tmp_path)


def check_pauses(worker: Worker, run: str) -> None:
    """Each is twice as long as the one before, half of it by chance, and 5 s at the most."""
    tries = [time for key, time in zip(worker.begun, worker.times, strict=True) if key == run]
    for number, (before, after) in enumerate(pairwise(tries)):
        longest = min(5.0, 0.1 * 2**number)
        assert longest / 2 <= after - before <= longest + 1e-9


def test_a_handler_that_fails_is_tried_again_and_then_makes_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ever later, on a place of its own; after so many failures others get the place, and the next
    sweep finds it again."""
    monkeypatch.setattr(engine, "MAX_FAILURES", 8)

    @on_a_service(started=False, max_concurrent_runs=1)
    async def story(service: EmbeddedService) -> None:
        worker = Worker(service)
        run, other = await queued(service, 2)
        worker.failing[run] = [RuntimeError("a defect")] * 8
        worker.start()
        await service.advance(29.0)
        assert worker.begun == [run] * 8 + [other], "it kept its place meanwhile, and then no more"
        check_pauses(worker, run)
        await service.advance(2.0)
        assert worker.begun[9:] == [run, other], "both are queued still, so the sweep offers them"

    story(tmp_path)


@on_a_service(started=False, max_concurrent_runs=1)
async def test_a_handler_that_waits_for_the_database_is_tried_without_end(
    service: EmbeddedService,
) -> None:
    """Ever later, and without counting: that the database is away is no fault of the run."""
    worker = Worker(service)
    run, other = await queued(service, 2)
    worker.failing[run] = [StorageUnavailable("locked") for _ in range(engine.MAX_FAILURES + 5)]
    worker.start()
    await service.advance(300.0)
    first = worker.begun.index(other)
    assert worker.begun[:first] == [run] * (engine.MAX_FAILURES + 6)
    worker.begun = worker.begun[:first]
    worker.times = worker.times[:first]
    check_pauses(worker, run)


@on_a_service(started=False)
async def test_the_sweep_finds_what_no_wake_up_announced(service: EmbeddedService) -> None:
    """A wake-up that is lost costs 30 s, not the run."""
    worker = Worker(service)
    worker.start()
    await service.settle()
    deaf = EmbeddedJobs(
        service.store, service.clock, service.ctx.backends, concurrency=1, cancel_grace=1
    )
    service.ctx = dataclasses.replace(service.ctx, jobs=deaf)
    (run,) = await queued(service, 1)
    await service.advance(29.9)
    assert worker.begun == []
    await service.advance(0.2)
    assert worker.begun == [run]


# Deadlines.


class Deadlines:
    """Handlers of deadlines: they note when they were called (ms), and do what the service does."""

    def __init__(self, service: EmbeddedService) -> None:
        self.service = service
        self.expired: list[tuple[str, int]] = []
        self.finished: list[tuple[str, int]] = []
        self.poison = ""
        self.start_ms = service.clock.now_ms()

    async def expire(self, key: str) -> None:
        self.expired.append((key, self.service.clock.now_ms() - self.start_ms))
        if key == self.poison:
            raise RuntimeError("a defect")
        await runs.expire(self.service.ctx, key)

    async def finish_cancel(self, key: str) -> None:
        self.finished.append((key, self.service.clock.now_ms() - self.start_ms))
        await runs.finish_cancel(self.service.ctx, key)

    def start(self) -> None:
        Worker(self.service).start(expire=self.expire, finish_cancel=self.finish_cancel)


@on_a_service(started=False)
async def test_a_deadline_is_handled_when_it_is_due_and_not_before(
    service: EmbeddedService,
) -> None:
    """Also the nearer one that comes while the engine sleeps until a later one."""
    deadlines = Deadlines(service)
    deadlines.start()
    (late,) = await queued(service, 1, expires_after=20.0)
    await service.advance(1.0)
    (soon,) = await queued(service, 1, expires_after=5.0)
    await service.advance(4.999)
    assert deadlines.expired == []
    await service.advance(0.002)
    assert deadlines.expired == [(soon, 6_000)]
    await service.advance(100.0)
    assert deadlines.expired[1:] == [(late, 20_000)]


@on_a_service(started=False, cancel_grace=7.0)
async def test_a_cancel_is_finished_after_its_grace(service: EmbeddedService) -> None:
    """Also that of a worker which was lost together with its process."""
    service.start()
    (run,) = await queued(service, 1)
    await service.settle()
    service.backend.turn.stubborn = True
    await service.cancel(run)
    await service.settle()
    deadlines = Deadlines(service)
    await service.crash()
    service.build()
    deadlines.start()
    await service.advance(6.9)
    assert deadlines.finished == []
    await service.advance(0.2)
    assert deadlines.finished == [(run, 7_000)]
    assert await service.status(run) == "cancelled"


@on_a_service(started=False)
async def test_more_deadlines_than_are_looked_up_at_a_time_are_all_handled(
    service: EmbeddedService,
) -> None:
    """Batch after batch, without waiting for anything in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "BATCH", 4)
        deadlines = Deadlines(service)
        deadlines.start()
        keys = await queued(service, 11, expires_after=5.0)
        await service.advance(5.0)
        assert Counter(key for key, _ in deadlines.expired) == Counter(keys)
        assert [await service.status(key) for key in keys] == ["expired"] * 11


@on_a_service(started=False)
async def test_a_deadline_that_fails_is_tried_again_and_holds_up_no_other(
    service: EmbeddedService,
) -> None:
    """The rows say what is due: nothing is lost by a failure, and the next look comes later."""
    deadlines = Deadlines(service)
    deadlines.start()
    poison, other = await queued(service, 2, expires_after=5.0)
    deadlines.poison = poison
    await service.advance(5.01)
    assert await service.status(other) == "expired"
    assert await service.status(poison) == "queued"
    await service.advance(10.0)
    tries = sum(key == poison for key, _ in deadlines.expired)
    assert 3 <= tries <= 12, "neither given up nor tried without a pause"
    deadlines.poison = ""
    await service.advance(6.0)
    assert await service.status(poison) == "expired"


# Trouble, and the end.


@on_a_service(started=False)
async def test_a_look_that_fails_is_repeated_soon(service: EmbeddedService) -> None:
    """Whatever it fails of: what it was to find does not wait for the next sweep."""
    keys = await queued(service, 2)
    errors: list[Exception] = [RuntimeError("a defect"), StorageUnavailable("locked")] * 3
    read = service.store.read

    async def failing_read(work: Any) -> Any:
        if errors:
            raise errors.pop()
        return await read(work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.store, "read", failing_read)
        worker = Worker(service)
        worker.start()
        await service.advance(5.0)
        assert worker.begun == keys


@on_a_service(started=False)
async def test_a_database_that_is_away_stops_nothing_for_good(service: EmbeddedService) -> None:
    """The loops wait and go on: what was ready, and what came due meanwhile, is handed out."""
    deadlines = Deadlines(service)
    (expiring,) = await queued(service, 1, expires_after=30.0)
    (run,) = await queued(service, 1)
    service.build()
    service.store.unreadable = True
    worker = Worker(service)
    worker.start(expire=deadlines.expire)
    await service.advance(60)
    assert worker.begun == []
    assert deadlines.expired == []
    assert service.jobs.alive
    assert 10 < service.store.refused < 200, "it looks again, but not all the time"
    service.store.unreadable = False
    await service.advance(6)
    assert run in worker.begun
    assert [key for key, _ in deadlines.expired] == [expiring]


@on_a_service(started=False)
async def test_stopping_hands_out_nothing_more_and_lets_handlers_finish(
    service: EmbeddedService,
) -> None:
    """Those that finish in time finish; those that do not are cancelled; nothing else begins."""
    worker = Worker(service)
    worker.busy = lambda key: True
    worker.start()
    quick, slow = await queued(service, 2)
    await service.settle()
    stopping = asyncio.create_task(service.jobs.stop(0.05))
    await asyncio.sleep(0)
    worker.release(quick)
    await queued(service, 1)
    await stopping
    assert worker.begun == [quick, slow]
    assert worker.done == [quick, slow]
    assert worker.cancelled == [slow]


@on_a_service(started=False)
async def test_it_says_whether_jobs_are_handed_out(service: EmbeddedService) -> None:
    """Readiness asks this: not before the start, not after the stop; stopping twice is harmless."""
    seen = [service.jobs.alive]
    Worker(service).start()
    seen.append(service.jobs.alive)
    await service.jobs.stop(0)
    seen.append(service.jobs.alive)
    await service.jobs.stop(0)
    assert seen == [False, True, False]
