"""What is old goes on PostgreSQL too, in pieces that are in nobody's way; and so does what its
engine for jobs writes down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runbell.clock import VirtualClock
from runbell.service import retention
from runbell.service.jobs import missing
from runbell.service.jobs.missing import prune_log
from runbell.service.settings import Settings
from runbell.storage.check import check
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction
from runbell.storage.store import Transaction
from runbell.testing.backends import ScriptedBackend
from runbell.testing.embedded import EmbeddedService
from runbell.testing.postgresql import opened_postgresql
from tests.delivery.house import register, run_once

HOUR = 3600.0
LEFT_BEHIND = """
SELECT position FROM attempts
WHERE NOT EXISTS (SELECT FROM deliveries d WHERE d.position = attempts.delivery)
"""


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[EmbeddedService, PostgresqlStore]]:
    """A service in virtual time, which keeps runs for an hour."""
    settings = Settings(retain_days=1 / 24)
    async with opened_postgresql() as store:
        service = EmbeddedService(store, VirtualClock(), settings, ScriptedBackend())
        await service.prepare()
        service.start()
        try:
            yield service, store
        finally:
            await service.crash()


def test_old_runs_go_in_pieces_and_nobody_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their steps, events, deliveries and attempts. In the middle of each piece, before it is
    committed, others begin runs and read the feed."""
    monkeypatch.setattr(retention, "ROWS", 12)

    async def story() -> None:
        async with serving() as (service, store):
            await register(service)
            for _ in range(4):
                await run_once(service)
            service.clock.advance(2 * HOUR)
            young = await run_once(service)
            busy = await service.thread("busy")
            sizes: list[int] = []
            write = store.write

            async def accompanied(work: Callable[[Transaction], Awaitable[Any]]) -> Any:
                async def both(tx: Transaction) -> Any:
                    done = await work(tx)
                    if isinstance(done, int) and done:
                        sizes.append(done)
                        await asyncio.wait_for(service.run(busy, on_active_run="enqueue"), 60)
                        await asyncio.wait_for(service.feed(), 60)
                    return done

                return await write(both)

            removing = asyncio.create_task(retention.remove_old(service.ctx))
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(store, "write", accompanied)
                while not removing.done():
                    await service.advance(retention.PAUSE_SECONDS)
            # Of each run: itself, a step, three events, three deliveries with an attempt each.
            assert await removing == sum(sizes) == 4 * 11
            # And what is left of a delivery that was begun.
            assert 12 <= max(sizes) <= 13
            kept = {event["data"]["id"] for event in await service.feed()}
            assert young in kept
            assert len(kept) == 1 + len(sizes)
            assert not (await store.scan(check)).problems
            assert await store.fetch(LEFT_BEHIND) == []

    asyncio.run(story())


def test_the_log_of_the_jobs_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than ten minutes, many lines at a time; why a job is held stays as long as it
    is."""
    monkeypatch.setattr(missing, "PRUNED_AT_ONCE", 20)

    async def fill(tx: Transaction) -> None:
        assert isinstance(tx, PostgresqlTransaction)
        await tx.fetch(
            "INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority, created, traceback) "
            "SELECT number, 'queued', 'run:echo', 0, now() - interval '11 minutes', '{}' "
            "FROM generate_series(1, 70) AS numbers (number)"
        )
        await tx.fetch(
            "WITH held AS (INSERT INTO pgqueuer (priority, status, entrypoint) "
            "VALUES (0, 'failed', 'expire') RETURNING id) "
            "INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority, created, traceback) "
            "SELECT id, 'failed'::pgqueuer_status, 'expire', 0, now() - interval '1 day', "
            "'{}'::jsonb FROM held "
            "UNION ALL SELECT 5, 'failed', 'expire', 0, now() - interval '1 day', '{}' "
            "UNION ALL SELECT 6, 'queued', 'expire', 0, now() - interval '9 minutes', '{}'"
        )

    async def story() -> None:
        async with opened_postgresql() as store:
            await store.write(fill)
            again = [await store.write(prune_log) for _ in range(4)]
            assert again == [True, True, True, False]
            left = await store.fetch("SELECT job_id = 6, status::text FROM pgqueuer_log ORDER BY 1")
            assert [tuple(row) for row in left] == [(False, "failed"), (True, "queued")]

    asyncio.run(story())


def test_tables_are_vacuumed_as_they_are_used() -> None:
    """What somebody has set himself stays."""
    query = "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"

    async def story() -> None:
        async with opened_postgresql() as store:
            found = {row[0]: row[1] for row in await store.fetch(query)}
            for table in ("runs", "events", "deliveries", "pgqueuer", "pgqueuer_log"):
                assert any("autovacuum_vacuum_scale_factor" in each for each in found[table])

    asyncio.run(story())
