"""Migrations on PostgreSQL: from every released schema to today's, by one of those who start."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from runbell.errors import ConfigurationError
from runbell.service import postgresql
from runbell.service.postgresql import migrate
from runbell.storage.migrate import HEAD
from runbell.storage.migrate_postgresql import statements, upgrade_postgresql
from runbell.storage.schema import metadata
from tests.storage.shapes import declared, empty, shape

RELEASED = [f"{number:04}" for number in range(1, int(HEAD) + 1)]

REFERENCES = "SELECT conname FROM pg_constraint WHERE contype = 'f'"
"""Those to projects, of which none is ever removed, are for SQLite alone."""


def test_every_released_schema_becomes_what_is_declared() -> None:
    """What was in it stays; and what is today's already stays as it is."""

    async def story() -> None:
        async with empty() as (connection, _):
            await connection.execute(declared(metadata))
            wanted = await shape(connection)
        for released in RELEASED:
            async with empty() as (connection, _):
                await connection.execute(statements(None, released))
                await connection.execute("INSERT INTO projects VALUES ('p', 'mine', 1)")
                for _ in range(2):
                    await upgrade_postgresql(connection)
                    assert await shape(connection) == wanted
                    assert await connection.fetch(REFERENCES) == []
                assert await connection.fetchval("SELECT name FROM projects") == "mine"
                assert await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD

    asyncio.run(story())


def test_of_several_that_start_one_makes_the_schema() -> None:
    """The others wait for it, and find it made: also that of the jobs."""

    async def story() -> None:
        async with empty() as (connection, url):
            await asyncio.gather(*(migrate(url) for _ in range(4)))
            for table in ("runs", "pgqueuer"):
                assert await connection.fetchval("SELECT to_regclass($1)", table) is not None

    asyncio.run(story())


def test_a_migration_that_fails_halfway_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction is around all of it."""
    broken = statements(None) + ";SELECT 1/0"
    monkeypatch.setattr("runbell.storage.migrate_postgresql.statements", lambda *_, **__: broken)

    async def story() -> None:
        async with empty() as (connection, _):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await upgrade_postgresql(connection)
            assert await shape(connection) == set()

    asyncio.run(story())


def test_writers_do_not_wait_behind_a_change_that_waits_for_a_backup(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lets them, and is made when the backup is done."""
    monkeypatch.setattr(postgresql, "LOCK_SECONDS", 0.05)
    rename = "UPDATE webhook_endpoints SET url = url"

    async def story() -> None:
        async with empty() as (connection, url):
            await connection.execute(statements(None, "0003"))
            backup = await asyncpg.connect(url)
            async with backup.transaction():
                await backup.execute("LOCK TABLE webhook_endpoints IN ACCESS SHARE MODE")
                migration = asyncio.create_task(migrate(url))
                async with asyncio.timeout(60):
                    while not caplog.records:
                        await asyncio.sleep(0.01)
                    await connection.execute(rename)
                assert not migration.done()
            await migration
            assert await connection.fetchval("SELECT version_num FROM alembic_version") == HEAD
            await backup.close()

    asyncio.run(story())


def test_what_is_not_ours_or_not_ours_yet_is_refused() -> None:
    """A newer schema, and another program that uses Alembic; nothing is changed."""

    async def story() -> None:
        async with empty() as (connection, _):
            await connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
            with pytest.raises(ConfigurationError, match="another program"):
                await upgrade_postgresql(connection)
            assert await shape(connection) == set()
        async with empty() as (connection, _):
            await upgrade_postgresql(connection)
            await connection.execute("UPDATE alembic_version SET version_num = '9999'")
            with pytest.raises(ConfigurationError, match=r"newer version of Runbell \(schema 9999"):
                await upgrade_postgresql(connection)

    asyncio.run(story())
