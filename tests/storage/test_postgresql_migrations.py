"""Migrations on PostgreSQL: from every released schema to today's, by one of those who start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from itertools import count

import asyncpg
import pytest
from sqlalchemy import create_mock_engine

from runbell.errors import ConfigurationError
from runbell.service.postgresql import migrate
from runbell.storage.migrate import HEAD
from runbell.storage.migrate_postgresql import statements, upgrade_postgresql
from runbell.storage.schema import metadata
from runbell.testing.postgresql import server

RELEASED = [f"{number:04}" for number in range(1, int(HEAD) + 1)]

_numbers = count()

COLUMNS = """
SELECT table_name, column_name, data_type, is_nullable,
       CASE WHEN column_default LIKE 'nextval%' OR column_default LIKE 'runbell%'
            THEN 'numbered' ELSE column_default END
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name NOT LIKE 'pgqueuer%' AND table_name <> 'runbell_limits'
AND table_name <> 'alembic_version'
"""
INDEXES = """
SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
AND tablename NOT LIKE 'pgqueuer%' AND tablename NOT IN ('runbell_limits', 'alembic_version')
"""
KEYS = """
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('n', 'f')
AND conrelid::regclass::text NOT LIKE 'pgqueuer%'
AND conrelid::regclass::text <> 'runbell_limits'
AND conrelid::regclass::text <> 'alembic_version'
"""

REFERENCES = "SELECT conname FROM pg_constraint WHERE contype = 'f'"
"""Those to projects, of which none is ever removed, are for SQLite alone."""


@contextlib.asynccontextmanager
async def empty() -> AsyncIterator[tuple[asyncpg.Connection, str]]:
    """A connection to a database without anything in it, and its URL."""
    name = f"empty_{next(_numbers)}"
    admin = await asyncpg.connect(server().url())
    await admin.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
    connection = await asyncpg.connect(server().url(name))
    try:
        yield connection, server().url(name)
    finally:
        await connection.close()
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await admin.close()


async def shape(connection: asyncpg.Connection) -> set[tuple[str, ...]]:
    """What a database looks like: columns, indexes and keys."""
    return {
        tuple(map(str, row))
        for query in (COLUMNS, INDEXES, KEYS)
        for row in await connection.fetch(query)
    }


def declared() -> str:
    """The statements that make what `schema` says."""
    made: list[str] = []
    engine = create_mock_engine(
        "postgresql://", lambda sql, *_, **__: made.append(str(sql.compile(dialect=engine.dialect)))
    )
    metadata.create_all(engine, checkfirst=False)
    return ";\n".join(made)


def test_every_released_schema_becomes_what_is_declared() -> None:
    """What was in it stays; and what is today's already stays as it is."""

    async def story() -> None:
        async with empty() as (connection, _):
            await connection.execute(declared())
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
    monkeypatch.setattr("runbell.storage.migrate_postgresql.statements", lambda _: broken)

    async def story() -> None:
        async with empty() as (connection, _):
            with pytest.raises(asyncpg.DivisionByZeroError):
                await upgrade_postgresql(connection)
            assert await shape(connection) == set()

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
