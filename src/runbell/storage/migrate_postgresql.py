"""How a PostgreSQL database gets its schema: the same migrations, in one transaction, by whoever of
several processes comes first.

Beside the tables there is what gives the feed its order. SQLite has one writer, so its numbers are
the order of the commits. Here a number says which transaction an event belongs to, and the feed is
read up to a horizon: the oldest transaction that has not ended yet. Whatever will be committed
later is behind that horizon, so that nothing can appear in front of an event that was read.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from runbell.errors import ConfigurationError
from runbell.storage.migrate import SERVICE, Lineage

if TYPE_CHECKING:
    import asyncpg

__all__ = [
    "CHANGING",
    "LOCK",
    "bring_forward",
    "require_current_revision",
    "revision",
    "statements",
    "stay_ahead",
    "tend",
    "upgrade_postgresql",
]

LOCK = 0x52756E62656C6C
"""The advisory lock of who changes a schema: "Runbell" in ASCII."""

_OFFSET = """
CREATE OR REPLACE FUNCTION runbell_feed_offset() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT {offset}::bigint'
"""
"""Not immutable, although it hardly ever changes: sessions that are open would keep the old value,
which is then a constant in their plans."""

_MAY_CHANGE = """
SELECT provolatile <> 'i' FROM pg_proc WHERE oid = to_regproc('runbell_feed_offset')
"""

_FUNCTIONS = """
CREATE OR REPLACE FUNCTION runbell_feed_position() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    low bigint := (pg_current_xact_id()::text::bigint + runbell_feed_offset()) << 16;
    high bigint;
BEGIN
    SELECT max(position) INTO high FROM events WHERE position >= low AND position < low + 65536;
    RETURN coalesce(high + 1, low);
END $$;
CREATE OR REPLACE FUNCTION runbell_feed_horizon() RETURNS bigint
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT (pg_snapshot_xmin(pg_current_snapshot())::text::bigint + runbell_feed_offset()) << 16
$$;
ALTER TABLE events ALTER COLUMN position SET DEFAULT runbell_feed_position();
"""
"""A position is a transaction's number, and behind that the event's within it. Numbers of
transactions grow; but a database that was restored elsewhere begins with low ones again, which is
what the offset is for."""

_NEXT = """
SELECT runbell_feed_offset(), runbell_feed_horizon(),
    (pg_snapshot_xmax(pg_current_snapshot())::text::bigint + runbell_feed_offset()) << 16
"""
"""The offset, the horizon, and where the next transaction's position will be at the least. The
horizon may be far behind the newest event: any transaction that is open holds it, also one in
another database of the server."""

_REFERENCES = """
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', conrelid::regclass, conname)
FROM pg_constraint WHERE contype = 'f' AND connamespace = current_schema()::regnamespace
AND confrelid = to_regclass('projects')
"""
"""Projects are never removed, so nothing is kept together by these; but each row that is added
would lock its project's one row, beside all others who do so at this moment."""

_LIMITS = """
CREATE UNLOGGED TABLE IF NOT EXISTS runbell_limits (
    key_id TEXT PRIMARY KEY,
    full_at DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50)
"""
"""What the keys of all processes have asked for: when the bucket of each is full again."""

CHANGING = {
    "autovacuum_vacuum_scale_factor": "0.02",
    "autovacuum_vacuum_threshold": "1000",
    "autovacuum_analyze_scale_factor": "0.02",
}
"""Rows that are changed several times each: by default a fifth of the table would have to be dead
before it is vacuumed, which of a million runs is a day's work, with indexes to match."""

_GROWING = {
    "autovacuum_vacuum_scale_factor": "0.05",
    "autovacuum_analyze_scale_factor": "0.05",
}
"""Rows that are written once, and removed at the table's beginning: what is removed today is room
for what comes tomorrow."""

_VACUUM = {
    **dict.fromkeys(("runs", "deliveries", "run_steps", "idempotency_keys"), CHANGING),
    **dict.fromkeys(("events", "attempts", "messages"), _GROWING),
}
_OPTIONS = """
SELECT EXISTS (SELECT FROM pg_class WHERE oid = to_regclass($1)
               AND array_to_string(reloptions, ' ') LIKE '%autovacuum%')
"""


async def tend(connection: asyncpg.Connection, table: str, options: Mapping[str, str]) -> None:
    """Say how a table is vacuumed, unless somebody has said so already."""
    if not await connection.fetchval(_OPTIONS, table):
        settings = ", ".join(f"{name} = {value}" for name, value in options.items())
        await connection.execute(f"ALTER TABLE {table} SET ({settings})")


async def upgrade_postgresql(connection: asyncpg.Connection) -> None:
    """Create the schema of a service's database or bring it up to `HEAD`; see `bring_forward`."""
    async with connection.transaction():
        await bring_forward(connection, SERVICE)
        if await connection.fetchval("SELECT to_regproc('runbell_feed_position')") is None:
            await connection.execute(_OFFSET.format(offset=0))
            await connection.execute(_FUNCTIONS)
        elif not await connection.fetchval(_MAY_CHANGE):
            await connection.execute("ALTER FUNCTION runbell_feed_offset() STABLE")
        await connection.execute(_LIMITS)
        for (drop,) in await connection.fetch(_REFERENCES):
            await connection.execute(drop)
        for table, options in _VACUUM.items():
            await tend(connection, table, options)
        await stay_ahead(connection)


async def bring_forward(connection: asyncpg.Connection, lineage: Lineage) -> None:
    """Create a schema or bring it up to the lineage's head, in the transaction that is open.

    Others that would do so too wait until it has ended.

    Raises:
        ConfigurationError: the database is newer than this version, or another program's.
    """
    await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
    current = await revision(connection, lineage)
    if current is not None and current > lineage.head:
        raise ConfigurationError(
            f"the {lineage.what} was written by a newer version of Runbell (schema {current}, this "
            f"version has {lineage.head}): upgrade with pip install -U runbell"
        )
    if current != lineage.head:
        await connection.execute(statements(current, lineage=lineage))


async def stay_ahead(connection: asyncpg.Connection, end_of_feed: int = 0) -> None:
    """Let the next position be behind every event, also of those that came from elsewhere.

    Where all of them were written here nothing is changed, whoever writes at this moment: a unit
    that is under way has its position by the offset that there is. It would be committed in front
    of a horizon that moves.

    Args:
        end_of_feed: what it is not to be in front of, besides.
    """
    latest = await connection.fetchval("SELECT coalesce(max(position), 0) FROM events")
    latest = max(latest, end_of_feed)
    # Asked behind that: whatever was seen and has a number of this server's has a lower one.
    ((offset, horizon, ahead),) = await connection.fetch(_NEXT)
    if latest >= ahead:
        missing = ((latest - horizon) >> 16) + 1
        await connection.execute(_OFFSET.format(offset=offset + missing))


async def revision(connection: asyncpg.Connection, lineage: Lineage = SERVICE) -> str | None:
    """The schema's revision; None for a database that has none of our tables.

    Raises:
        ConfigurationError: it has tables that look like ours, of another program.
    """
    known, landmark = [
        await connection.fetchval("SELECT to_regclass($1)", table)
        for table in (lineage.version_table, lineage.landmark)
    ]
    if known is None and landmark is None:
        return None
    if known is None or landmark is None:
        raise ConfigurationError(
            "the database has tables of another program: name one of Runbell's own with "
            f"{lineage.option}"
        )
    found: str | None = await connection.fetchval(
        f"SELECT version_num FROM {lineage.version_table}"  # noqa: S608 - a constant
    )
    return found


async def require_current_revision(
    connection: asyncpg.Connection, name: str, lineage: Lineage = SERVICE
) -> None:
    """Make sure that a database is one of this version; it is not changed.

    Args:
        name: what it is called in messages; without a password.

    Raises:
        ConfigurationError: it is none of ours, or of another version.
    """
    current = await revision(connection, lineage)
    if current != lineage.head:
        raise ConfigurationError(
            f"{name} has schema {current or 'none'}, this version of Runbell has {lineage.head}: "
            f"name another with {lineage.option}, or see runbell migrate"
        )


def statements(current: str | None, target: str = "head", *, lineage: Lineage = SERVICE) -> str:
    """What brings a database forward.

    Args:
        current: its revision; None for one without tables.
        target: the revision that it is to have.
    """
    # Imported here: a database that is up to date starts without Alembic.
    from alembic import command
    from alembic.config import Config

    written = io.StringIO()
    config = Config(output_buffer=written)
    config.set_main_option("script_location", str(lineage.folder))
    command.upgrade(config, target if current is None else f"{current}:{target}", sql=True)
    return written.getvalue()
