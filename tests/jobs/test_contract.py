"""Both engines for jobs pass the contract of every engine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from itertools import count

import pytest

from runbell.clock import Clock
from runbell.service.jobs import Job, JobKind, Jobs, Lanes, pgqueuer
from runbell.service.jobs.held import HeldJob, held_jobs, release
from runbell.service.jobs.pgqueuer import PgQueuerJobs
from runbell.service.jobs.queries import CHANNEL
from runbell.service.settings import Settings
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore, PostgresqlView
from runbell.storage.store import Store, Transaction
from runbell.testing.databases import ObservedStore, migrated_sqlite, opened
from runbell.testing.embedded import Engine, embedded_engine
from runbell.testing.jobs_contract import (
    House,
    Houses,
    JobsContract,
    in_a_house,
    stopped_in_a_handler,
)
from runbell.testing.postgresql import database, emptied

TAKEN = "SELECT entrypoint FROM pgqueuer WHERE status = 'picked' AND entrypoint LIKE 'run:%'"
LEFT = "SELECT entrypoint, status::text, attempts, execute_after <= now() FROM pgqueuer"


class TestEmbedded(JobsContract):
    """The engine of a single process, on SQLite."""

    @pytest.fixture
    def houses(self, tmp_path_factory: pytest.TempPathFactory) -> Houses:
        directory = tmp_path_factory.mktemp("jobs")
        numbers = count()

        @contextlib.asynccontextmanager
        async def open_one() -> AsyncIterator[tuple[Store, Engine]]:
            path = migrated_sqlite(directory / f"{next(numbers)}.db")
            async with opened(path, durable=False) as store:
                yield store, embedded_engine

        return open_one


class TestPgQueuer(JobsContract):
    """The engine of several processes, on PostgreSQL."""

    @in_a_house()
    async def test_what_always_fails_is_held_once_and_can_be_released(self, house: House) -> None:
        """However often its endpoint is owed something; then it is handed out as a new one."""

        async def held() -> list[HeldJob]:
            return await house.service.store.scan(held_jobs)

        async def until_held_behind(job_id: int) -> HeldJob:
            async with asyncio.timeout(60):
                while not (found := await held()) or found[-1].id <= job_id:
                    await asyncio.sleep(0.01)
            (job,) = found
            return job

        house.errors["we_1"] = [ValueError("a secret") for _ in range(4)]
        house.start(JobKind.DELIVER)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pgqueuer, "MAX_FAILURES", 2)
            await house.put(Job(JobKind.DELIVER, "we_1"))
            first = await until_held_behind(0)
            await house.put(Job(JobKind.DELIVER, "we_1"), Job(JobKind.DELIVER, "we_2"))
            second = await until_held_behind(first.id)
        assert (second.kind, second.key) == (JobKind.DELIVER, "we_1")
        assert second.why == "it failed 2 times: ValueError"
        counts = await house.service.store.scan(house.service.jobs.held)
        assert counts == {**dict.fromkeys(JobKind, 0), JobKind.DELIVER: 1}
        assert await house.service.store.write(lambda tx: release(tx, [first.id, second.id])) == 1
        await house.until(lambda: house.begun.count("we_1") == 5)
        assert await held() == []
        assert "we_2" in house.ended

    @in_a_house()
    async def test_what_a_worker_that_stops_gives_back_is_anothers_at_once(
        self, house: House
    ) -> None:
        """And no failure of the job, of which there may be few."""
        await stopped_in_a_handler(house)

        async def left(tx: Transaction) -> list[tuple[object, ...]]:
            assert isinstance(tx, PostgresqlView)
            return [tuple(row) for row in await tx.fetch(LEFT)]

        assert await house.service.store.scan(left) == [("deliver", "queued", 0, True)]

    @in_a_house(max_concurrent_runs=2)
    async def test_a_worker_takes_no_more_than_it_has_room_for(self, house: House) -> None:
        """What it would only keep waiting is left to others."""

        async def names(tx: Transaction) -> list[str]:
            assert isinstance(tx, PostgresqlView)
            return [row[0] for row in await tx.fetch(TAKEN)]

        house.busy = lambda key: True
        runs = [await house.run() for _ in range(5)]
        house.start(JobKind.RUN)
        await house.until(lambda: len(house.begun) == 2)
        assert await house.service.store.scan(names) == ["run:scripted"] * 2
        house.release(runs[0])
        await house.until(lambda: house.begun == runs[:3])

    @in_a_house()
    async def test_runs_whose_server_is_not_known_leave_their_places_to_others(
        self, house: House
    ) -> None:
        """However many they are, and whether they are there at all: each waits in a line of its
        model's, which is looked at when the server has said that it is its."""
        service, lanes = house.service, _Undecided()
        service.jobs = service.engine(service.store, service.clock, lanes, service.settings)
        service.ctx = dataclasses.replace(service.ctx, jobs=service.jobs)

        async def left(tx: Transaction) -> list[tuple[object, ...]]:
            assert isinstance(tx, PostgresqlView)
            return [tuple(row) for row in await tx.fetch(f"{LEFT} WHERE entrypoint LIKE 'run:%'")]

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pgqueuer, "MAX_UNPLACED", 2)
            await house.put(Job(JobKind.RUN, "run_gone", model="echo", turn=1))
            never = [await house.run(model="echo") for _ in range(3)]
            good = await house.run(model="scripted")
            house.start(JobKind.RUN)
            await asyncio.wait_for(lanes.looked_at["scripted"].wait(), 20)
            lanes.decided["scripted"] = True
            lanes.moved()
            await house.until(lambda: good in house.ended)
            # It has no line: it waits here.
            await house.put(Job(JobKind.RUN, never[0], turn=9))
            await asyncio.wait_for(lanes.looked_at[""].wait(), 20)
            async with asyncio.timeout(20):
                await service.jobs.stop(3_600)
        assert house.begun == [good]
        waiting = [("run:echo", "queued", 0, True)] * 3
        assert sorted(await service.store.scan(left)) == [("run:*", "queued", 0, True), *waiting]
        await service.cancel(never[1])
        assert len(await service.store.scan(left)) == 3, "who ends takes the job along"

    @pytest.fixture
    def houses(self) -> Houses:
        @contextlib.asynccontextmanager
        async def open_one() -> AsyncIterator[tuple[Store, Engine]]:
            url = await database()
            store, listener = await PostgresqlStore.open(url), Listener(url)
            await listener.start(CHANNEL)

            def engine(observed: ObservedStore, clock: Clock, lanes: Lanes, s: Settings) -> Jobs:
                return PgQueuerJobs(
                    store,
                    listener,
                    clock,
                    lanes,
                    concurrency=s.max_concurrent_runs,
                    cancel_grace=s.cancel_grace,
                )

            try:
                yield store, engine
            finally:
                await listener.close()
                await store.close()
                await emptied(url)

        return open_one


class _Undecided:
    """Lanes of servers that have not said yet which models they have.

    Attributes:
        looked_at: models whose runs were told that they have no place yet.
        decided: models of which it is known whose they are.
    """

    def __init__(self) -> None:
        self.looked_at: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.decided: defaultdict[str, bool] = defaultdict(bool)
        self.moved: Callable[[], None] = lambda: None

    def lane(self, model: str) -> _Undecided | _Open:
        if self.decided[model]:
            return _OPEN
        self.looked_at[model].set()
        return self

    def takes(self, running: int) -> bool:
        return False

    def models(self) -> list[str]:
        return [model for model, is_known in self.decided.items() if is_known]

    def subscribe(self, room: Callable[[], None], moved: Callable[[], None]) -> None:
        self.moved = moved


class _Open:
    def takes(self, running: int) -> bool:
        return True


_OPEN = _Open()
