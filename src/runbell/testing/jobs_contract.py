"""What every engine for jobs has to pass: one suite of tests, to be run on each.

An engine's test module inherits the suite and says how a store and an engine on it are made:

    @pytest.fixture(scope="module")
    def houses() -> Houses:
        return lambda: ...

    class TestEmbedded(JobsContract):
        pass

Engines have clocks that no test can move, such as a database's: here time is real, and short.
Nothing is slept away; every test waits for what it promises, for `LIMIT` seconds at the most. Needs
`pytest`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, cast

import pytest

from runbell.clock import SystemClock, VirtualClock
from runbell.errors import StorageUnavailable
from runbell.service.jobs import Job, JobKind, Stopping
from runbell.service.settings import Settings
from runbell.storage.store import Store, Transaction
from runbell.testing.backends import ScriptedBackend
from runbell.testing.embedded import EmbeddedService, Engine

__all__ = ["House", "Houses", "JobsContract", "in_a_house", "stopped_in_a_handler"]

Self = TypeVar("Self")
Houses = Callable[[], AbstractAsyncContextManager[tuple[Store, Engine]]]
"""Opens a store without rows, and says what makes an engine on it."""

LIMIT = 60.0
"""Seconds that something may take which is to happen at once."""


class House:
    """A service whose handlers belong to the test.

    Attributes:
        begun: the keys of all jobs, in the order in which they were handed out.
        ended: those whose handlers have returned.
        cancelled: those whose handlers were cancelled.
        most: how many were being handled at the same time.
        busy: says which jobs are at work until they are released.
        errors: what the handler of a key raises, one after the other.
    """

    def __init__(self, store: Store, engine: Engine, **settings: Any) -> None:
        # The service does not ask what time it is here, but moves with it.
        clock = cast(VirtualClock, SystemClock())
        made = Settings(**settings)
        self.service = EmbeddedService(store, clock, made, ScriptedBackend(), engine)
        self.begun: list[str] = []
        self.ended: list[str] = []
        self.cancelled: list[str] = []
        self.most = 0
        self.busy: Callable[[str], bool] = lambda key: False
        self.errors: dict[str, list[Exception]] = {}
        self._held: dict[str, asyncio.Event] = {}

    async def handle(self, key: str, turn: int | None = None) -> None:
        """Do a job, as the test says."""
        self.begun.append(key)
        self.most = max(self.most, len(self.begun) - len(self.ended))
        try:
            if self.errors.get(key):
                raise self.errors[key].pop(0)
            if self.busy(key):
                self._held[key] = asyncio.Event()
                await self._held[key].wait()
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise
        finally:
            self.ended.append(key)

    def start(self, *kinds: JobKind) -> None:
        """Hand out jobs of these kinds (all of them, where none is named) to `handle`."""
        self.service.jobs.start(
            {kind: self.handle if kind in (kinds or JobKind) else _ignore for kind in JobKind}
        )

    def release(self, key: str) -> None:
        """Let a job end that is at work."""
        self._held.pop(key).set()

    async def run(self, **fields: Any) -> str:
        """A new run on a thread of its own."""
        return await self.service.run(await self.service.thread("Hello"), **fields)

    async def put(self, *jobs: Job) -> None:
        """Enqueue jobs."""

        async def work(tx: Transaction) -> None:
            for job in jobs:
                await self.service.jobs.enqueue(tx, job)

        await self.service.store.write(work)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when the condition holds."""
        async with asyncio.timeout(LIMIT):
            while not condition():  # noqa: ASYNC110 - it may depend on anything
                await asyncio.sleep(0.005)

    async def until_status(self, run: str, status: str) -> None:
        """Return when a run has this status."""
        async with asyncio.timeout(LIMIT):
            while await self.service.status(run) != status:  # noqa: ASYNC110 - a row tells nobody
                await asyncio.sleep(0.01)


async def _ignore(key: str, turn: int | None = None) -> None:
    pass


async def stopped_in_a_handler(house: House) -> None:
    """Stop, while an endpoint's handler is at work that says so in the end."""
    go_on = asyncio.Event()

    async def deliver(key: str) -> None:
        house.begun.append(key)
        await go_on.wait()
        raise Stopping

    jobs = house.service.jobs
    jobs.start({kind: deliver if kind is JobKind.DELIVER else _ignore for kind in JobKind})
    await house.put(Job(JobKind.DELIVER, "we_1"))
    await house.until(lambda: bool(house.begun))
    stopping = asyncio.create_task(jobs.stop(LIMIT))
    await asyncio.sleep(0)
    go_on.set()
    await stopping


def in_a_house(
    **settings: Any,
) -> Callable[[Callable[[Self, House], Awaitable[None]]], Callable[[Self, Houses], None]]:
    """Make a test of an async method that is given a house; `settings` are the service's."""

    def decorate(
        story: Callable[[Self, House], Awaitable[None]],
    ) -> Callable[[Self, Houses], None]:
        async def telling(self: Self, houses: Houses) -> None:
            async with houses() as (store, engine):
                house = House(store, engine, **settings)
                await house.service.prepare()
                try:
                    await story(self, house)
                finally:
                    await house.service.jobs.stop(0)

        # Not `functools.wraps`: pytest would look for a fixture of the wrapped signature's name.
        def test(self: Self, houses: Houses) -> None:
            asyncio.run(telling(self, houses))

        test.__doc__ = story.__doc__
        return test

    return decorate


class JobsContract:
    """What `Jobs` promises, whoever keeps them."""

    @in_a_house()
    async def test_a_run_is_handed_out_when_it_is_committed(self, house: House) -> None:
        """Once."""
        house.start(JobKind.RUN)
        house.busy = lambda key: True
        run = await house.run()
        await house.until(lambda: bool(house.begun))
        other = await house.run()
        await house.until(lambda: len(house.begun) == 2)
        assert house.begun == [run, other]

    @in_a_house()
    async def test_a_job_is_visible_with_its_transaction_or_not_at_all(self, house: House) -> None:
        """A unit that fails has enqueued nothing."""
        house.start(JobKind.RUN)

        async def fails(tx: Transaction) -> None:
            await house.service.jobs.enqueue(tx, Job(JobKind.RUN, "run_of_nobody", model="echo"))
            raise ValueError("after all not")

        with pytest.raises(ValueError, match="after all not"):
            await house.service.store.write(fails)
        run = await house.run()
        await house.until(lambda: run in house.begun)
        assert "run_of_nobody" not in house.begun

    @in_a_house()
    async def test_what_was_put_before_the_start_is_handed_out(self, house: House) -> None:
        """By a process that has put it and ended, for example; in the order of creation."""
        runs = [await house.run() for _ in range(3)]
        house.start(JobKind.RUN)
        await house.until(lambda: len(house.begun) == 3)
        assert house.begun == runs

    @in_a_house(max_concurrent_runs=3)
    async def test_no_more_runs_are_executed_than_are_allowed(self, house: House) -> None:
        """The others follow in their order as places become free."""
        house.busy = lambda key: True
        house.start(JobKind.RUN)
        runs = [await house.run() for _ in range(7)]
        await house.until(lambda: len(house.begun) == 3)
        for number in range(7):
            await house.until(lambda number=number: len(house.begun) > number)  # type: ignore[misc]
            # Its row says that it has ended, so that no look into the tables offers it again.
            await house.service.cancel(house.begun[number])
            house.release(house.begun[number])
        await house.until(lambda: len(house.ended) == 7)
        assert house.begun == runs
        assert house.most == 3

    @in_a_house()
    async def test_a_turn_that_follows_waits_for_the_end_of_the_one_before(
        self, house: House
    ) -> None:
        """It is handled, and never at the same time."""
        house.busy = lambda key: True
        house.start(JobKind.RUN)
        run = await house.run()
        await house.until(lambda: house.begun == [run])
        await house.put(Job(JobKind.RUN, run, model="scripted", turn=2))
        other = await house.run()
        await house.until(lambda: other in house.begun)
        assert house.begun == [run, other]
        house.release(run)
        await house.until(lambda: house.begun == [run, other, run])

    @in_a_house()
    async def test_a_deadline_is_handled_when_it_is_due_and_not_before(self, house: House) -> None:
        """Also the nearer one that comes while the engine waits for a later one."""
        house.start(JobKind.EXPIRE)
        clock = house.service.clock
        began_ms = clock.now_ms()
        late = await house.run(expires_after=0.8)
        soon = await house.run(expires_after=0.3)
        await house.until(lambda: bool(house.begun))
        assert clock.now_ms() - began_ms >= 300
        await house.until(lambda: late in house.begun)
        assert clock.now_ms() - began_ms >= 800
        assert house.begun[0] == soon

    @in_a_house(cancel_grace=0.2)
    async def test_a_cancel_is_finished_after_its_grace(self, house: House) -> None:
        """Where its worker does not answer."""
        house.service.start()
        run = await house.run()
        await house.until(lambda: bool(house.service.backend.turns))
        house.service.backend.turn.stubborn = True
        await house.service.cancel(run)
        await house.until_status(run, "cancelled")
        house.service.backend.turn.stubborn = False

    @in_a_house()
    async def test_a_handler_that_fails_is_tried_again(self, house: House) -> None:
        """For a defect as for a database that is away."""
        run = await house.run()
        house.errors[run] = [RuntimeError("a defect"), StorageUnavailable("locked")]
        house.start(JobKind.RUN)
        await house.until(lambda: house.begun == [run] * 3)

    @in_a_house()
    async def test_an_endpoint_has_one_handler_and_is_looked_at_again(self, house: House) -> None:
        """What is owed while its handler is at work is found by that, or by the next one."""
        house.busy = lambda key: True
        house.start(JobKind.DELIVER)
        await house.put(Job(JobKind.DELIVER, "we_1"), Job(JobKind.DELIVER, "we_1"))
        await house.until(lambda: house.begun == ["we_1"])
        await house.put(Job(JobKind.DELIVER, "we_1"), Job(JobKind.DELIVER, "we_2"))
        await house.until(lambda: len(house.begun) == 2)
        assert house.begun == ["we_1", "we_2"]
        house.release("we_1")
        await house.until(lambda: house.ended == ["we_1"])
        # What it has done by then is over: what is owed from now on is a new job's.
        while house.begun.count("we_1") == 1:
            await house.put(Job(JobKind.DELIVER, "we_1"))
            await asyncio.sleep(0.01)
        assert house.most == 2

    @in_a_house()
    async def test_stopping_lets_handlers_finish_and_hands_out_nothing_more(
        self, house: House
    ) -> None:
        """Those that take too long are cancelled."""
        house.busy = lambda key: True
        house.start(JobKind.RUN)
        quick, slow = [await house.run() for _ in range(2)]
        await house.until(lambda: len(house.begun) == 2)
        stopping = asyncio.create_task(house.service.jobs.stop(0.2))
        await asyncio.sleep(0)
        house.release(quick)
        await house.run()
        await stopping
        assert house.begun == [quick, slow]
        assert house.cancelled == [slow]

    @in_a_house()
    async def test_a_handler_that_says_that_the_process_stops_has_not_failed(
        self, house: House
    ) -> None:
        """It is not called again, and nothing is logged as a defect."""
        hears = _Hears(logging.ERROR)
        logger = logging.getLogger("runbell")
        logger.addHandler(hears)
        try:
            await stopped_in_a_handler(house)
        finally:
            logger.removeHandler(hears)
        assert house.begun == ["we_1"]
        assert hears.messages == []

    @in_a_house()
    async def test_the_next_process_goes_on_with_what_was_not_finished(self, house: House) -> None:
        """At once, and with nothing that was."""
        house.busy = lambda key: True
        house.start(JobKind.RUN)
        done, undone = [await house.run() for _ in range(2)]
        await house.until(lambda: len(house.begun) == 2)
        await house.service.cancel(done)
        house.release(done)
        await house.until(lambda: house.ended == [done])
        await house.service.jobs.stop(0)
        before = len(house.begun)
        house.service.build()
        house.start(JobKind.RUN)
        await house.until(lambda: len(house.begun) > before)
        assert house.begun[before:] == [undone]

    @in_a_house()
    async def test_it_says_whether_jobs_are_handed_out(self, house: House) -> None:
        """Readiness asks this: not before the start, not after the stop; stopping twice is
        harmless."""
        seen = [house.service.jobs.alive]
        house.start()
        seen.append(house.service.jobs.alive)
        await house.service.jobs.stop(0)
        seen.append(house.service.jobs.alive)
        await house.service.jobs.stop(0)
        assert seen == [False, True, False]

    @in_a_house()
    async def test_a_lane_without_room_holds_up_no_other(self, house: House) -> None:
        """Its runs stay queued, and come in their order when it says that it has room again."""
        closed, named = _Lane(0), _Lanes()
        named.lanes["scripted"] = closed
        service = house.service
        service.jobs = service.engine(service.store, service.clock, named, service.settings)
        service.ctx = dataclasses.replace(service.ctx, jobs=service.jobs)
        house.busy = lambda key: True
        house.start(JobKind.RUN)
        models = ("scripted", "echo", "scripted", "echo")
        a, b, c, d = [await house.run(model=model) for model in models]
        await house.until(lambda: len(house.begun) == 2)
        assert house.begun == [b, d]
        closed.room = 1
        named.room()
        await house.until(lambda: len(house.begun) == 3)
        await service.cancel(a)
        house.release(a)
        await house.until(lambda: len(house.begun) == 4)
        assert house.begun == [b, d, a, c]


class _Hears(logging.Handler):
    """Keeps what is logged."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class _Lane:
    """A lane that has as much room as the test says."""

    def __init__(self, room: int) -> None:
        self.room = room

    def takes(self, running: int) -> bool:
        return running < self.room


class _Lanes:
    """Each model has the lane that the test gives it; the others share one."""

    def __init__(self) -> None:
        self.lanes: dict[str, _Lane] = {"echo": _Lane(1_000)}
        self.room: Callable[[], None] = lambda: None

    def lane(self, model: str) -> _Lane:
        return self.lanes[model]

    def models(self) -> list[str]:
        return list(self.lanes)

    def subscribe(self, room: Callable[[], None], moved: Callable[[], None]) -> None:
        self.room = room
