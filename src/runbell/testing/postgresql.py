"""PostgreSQL for tests: one private server a process, and databases that are ready in no time.

The server keeps nothing: it does not even flush what is committed, unless a test asks for one that
does. A database is made once, by the migrations; each user of one gets it without rows.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from runbell.service.jobs.queries import install
from runbell.storage.migrate_postgresql import upgrade_postgresql
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.private_postgresql import PrivatePostgresql

__all__ = [
    "FORGETFUL",
    "database",
    "emptied",
    "opened_postgresql",
    "own_server",
    "server",
    "without_tables",
]

FORGETFUL = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # It would hold the feed's horizon back at moments of its own choice.
    "autovacuum": "off",
    "shared_buffers": "32MB",
}
"""Settings of a server whose data need not survive it."""

_numbers = count()
_free: list[str] = []


@cache
def server() -> PrivatePostgresql:
    """The server of this process; it ends with that."""
    folder = Path(tempfile.mkdtemp(prefix="runbell-test-"))
    # Where we are root, the server is somebody else.
    folder.chmod(0o711)
    started = PrivatePostgresql(folder, FORGETFUL)
    started.start()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    atexit.register(started.stop)
    return started


@contextlib.contextmanager
def own_server() -> Iterator[PrivatePostgresql]:
    """A server for one user alone, which keeps what was committed until the end of the block."""
    with tempfile.TemporaryDirectory(prefix="runbell-test-") as name:
        # Where we are root, the server is somebody else.
        Path(name).chmod(0o711)
        server = PrivatePostgresql(Path(name))
        server.start()
        try:
            yield server
        finally:
            server.stop()


async def database() -> str:
    """The URL of a database that has today's schema and no rows."""
    if not _free:
        template = await _template()
        name = f"test_{os.getpid()}_{next(_numbers)}"
        await _execute("postgres", f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        _free.append(server().url(name))
    return _free.pop()


async def without_tables() -> str:
    """The URL of a database that has nothing at all."""
    name = f"bare_{os.getpid()}_{next(_numbers)}"
    await _execute("postgres", f"CREATE DATABASE {name}")
    return server().url(name)


async def emptied(url: str) -> None:
    """Give a database back that `database` gave; its rows go."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(await _emptying(connection))
    finally:
        await connection.close()
    _free.append(url)


@contextlib.asynccontextmanager
async def opened_postgresql() -> AsyncIterator[PostgresqlStore]:
    """A store in a database of its own, without rows; closed at the end."""
    url = await database()
    store = await PostgresqlStore.open(url)
    try:
        yield store
    finally:
        if store.is_closed:
            await emptied(url)
        else:
            # On a connection that is there: making one takes longer than the rows do.
            async with store._connections.one() as connection:
                await connection.execute(await _emptying(connection))
            await store.close()
            _free.append(url)


_templates: list[str] = []
_emptyings: list[str] = []


async def _template() -> str:
    if not _templates:
        name = f"template_{os.getpid()}"
        await _execute("postgres", f"CREATE DATABASE {name}")
        connection = await asyncpg.connect(server().url(name))
        try:
            await upgrade_postgresql(connection)
            await install(connection)
        finally:
            await connection.close()
        _templates.append(name)
    return _templates[0]


async def _emptying(connection: Any) -> str:
    """What removes every row: by deletion, since there are few, and truncating makes files anew."""
    if not _emptyings:
        rows = await connection.fetch(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' "
            "AND tablename <> 'alembic_version'"
        )
        statements = "; ".join(f"DELETE FROM {row[0]}" for row in rows)  # noqa: S608 - its own names
        _emptyings.append(f"SET session_replication_role = replica; {statements}")
    return _emptyings[0]


async def _execute(database_: str, statement: str) -> None:
    connection = await asyncpg.connect(server().url(database_))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()
