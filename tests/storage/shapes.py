"""What a PostgreSQL database looks like, and what a schema says that it should look like."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from itertools import count

import asyncpg
from sqlalchemy import MetaData, create_mock_engine

from runbell.testing.postgresql import server

__all__ = ["declared", "empty", "shape"]

_numbers = count()

_OURS = "NOT LIKE 'pgqueuer%'"
_NEITHER = "NOT IN ('runbell_limits', 'alembic_version', 'inbox_version')"
COLUMNS = f"""
SELECT table_name, column_name, data_type, is_nullable,
       CASE WHEN column_default LIKE 'nextval%' OR column_default LIKE 'runbell%'
            THEN 'numbered' ELSE column_default END
FROM information_schema.columns
WHERE table_schema = 'public' AND table_name {_OURS} AND table_name {_NEITHER}
"""
INDEXES = f"""
SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'
AND tablename {_OURS} AND tablename {_NEITHER}
"""
KEYS = f"""
SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint
WHERE connamespace = 'public'::regnamespace AND contype NOT IN ('n', 'f')
AND conrelid::regclass::text {_OURS} AND conrelid::regclass::text {_NEITHER}
"""


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


def declared(metadata: MetaData) -> str:
    """The statements that make what a schema says."""
    made: list[str] = []
    engine = create_mock_engine(
        "postgresql://", lambda sql, *_, **__: made.append(str(sql.compile(dialect=engine.dialect)))
    )
    metadata.create_all(engine, checkfirst=False)
    return ";\n".join(made)
