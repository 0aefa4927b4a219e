"""Both engines for jobs pass the contract of every engine."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from itertools import count

import pytest

from runbell.clock import Clock
from runbell.service.jobs import Jobs, Lanes
from runbell.service.jobs.engine import CHANNEL
from runbell.service.jobs.pgqueuer import PgQueuerJobs
from runbell.service.settings import Settings
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.store import Store
from runbell.testing.databases import ObservedStore, migrated_sqlite, opened
from runbell.testing.embedded import Engine, embedded_engine
from runbell.testing.jobs_contract import Houses, JobsContract
from runbell.testing.postgresql import database, emptied


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
