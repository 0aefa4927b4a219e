"""How an installation moves from one kind of database to another, with nobody in it meanwhile."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runbell.errors import ConfigurationError, StorageUnavailable
from runbell.service.databases import named_server
from runbell.service.settings import Settings, sqlite_path
from runbell.storage.backup import damage, partial_file, put_in_place, sync
from runbell.storage.copying import Content, Source, SqliteRows, copy
from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import require_current, upgrade_sqlite

if TYPE_CHECKING:
    import asyncpg

__all__ = ["Copied", "move"]


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied.

    Attributes:
        tables: what each holds, by its name: the same on both sides.
        jobs: how many were put for what is to go on; where the engine needs none, None.
    """

    tables: Mapping[str, Content]
    jobs: int | None


async def move(settings: Settings, target: str) -> Copied:
    """Copy the installation whose database the settings name into an empty one.

    Nobody may use either meanwhile. The source is not changed.

    Args:
        target: the URL of the other database.

    Raises:
        ConfigurationError: one of them can't be used, is in use, or the target is not empty; or the
            copy is not the same. The target has no rows then.
        StorageUnavailable: one of them can't be reached, or was lost.
    """
    if settings.database.startswith("sqlite:") and target.startswith("sqlite:"):
        raise ConfigurationError("a SQLite file is copied into another with runbell backup")
    async with _opened_source(settings.database) as source:
        if target.startswith("sqlite:"):
            return Copied(await _into_sqlite(source, sqlite_path(target)), None)
        return await _into_postgresql(source, target, settings)


@contextlib.asynccontextmanager
async def _opened_source(url: str) -> AsyncIterator[Source]:
    if url.startswith("sqlite:"):
        with _locked_file(sqlite_path(url)) as connection:
            yield SqliteRows(connection)
        return
    async with _session(url, changes=False) as connection:
        from runbell.storage.copying_postgresql import PostgresqlRows
        from runbell.storage.postgresql import others

        if users := await others(connection):
            raise ConfigurationError(
                f"the source is in use, by {users} sessions of Runbell: stop its services and "
                "workers first"
            )
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            yield PostgresqlRows(connection)


@contextlib.contextmanager
def _locked_file(path: Path) -> Iterator[sqlite3.Connection]:
    """A SQLite file that nobody serves meanwhile, at one moment."""
    if not path.exists():
        raise ConfigurationError(f"there is no file {path}")
    require_current(path)
    lock = InstallationLock(path)
    with lock.held() as held:
        if not held:
            raise ConfigurationError(
                f"{path} is in use by a runbell service (process {lock.holder()}): stop it first"
            )
        # Not `mode=ro`: that cannot open a database in WAL mode which nobody has open.
        connection = sqlite3.connect(path, isolation_level=None)
        with contextlib.closing(connection), _usable(path):
            connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            yield connection


@contextlib.contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Turn what SQLite says of a file into our own errors."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise StorageUnavailable(f"{path} cannot be used now: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ConfigurationError(f"{path} is damaged ({error}): runbell check says more") from error


async def _into_sqlite(source: Source, path: Path) -> dict[str, Content]:
    """Into a new file, which appears under its name when it is whole."""
    with partial_file(path) as partial:
        upgrade_sqlite(partial, InstallationLock(partial))
        connection = sqlite3.connect(partial, isolation_level=None)
        with contextlib.closing(connection), _usable(partial):
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            copied = await copy(source, SqliteRows(connection))
            connection.execute("COMMIT")
        problems = damage(partial)
        if problems:
            raise ConfigurationError(f"the copy is damaged: {'; '.join(problems[:3])}")
        sync(partial)
        put_in_place(partial, path)
        sync(path.parent)
        return copied


async def _into_postgresql(source: Source, url: str, settings: Settings) -> Copied:
    async with _session(url, changes=True) as connection:
        from runbell.service.jobs.putting import put_missing
        from runbell.storage.copying_postgresql import PostgresqlRows, lock_empty
        from runbell.storage.postgresql import PostgresqlTransaction, now_ms

        async with connection.transaction():
            await lock_empty(connection)
            tables = await copy(source, PostgresqlRows(connection))
            jobs = await put_missing(
                PostgresqlTransaction(connection),
                await now_ms(connection),
                round(settings.cancel_grace * 1000),
            )
        # Before its first service asks anything of them.
        await connection.execute("ANALYZE")
        return Copied(tables, jobs)


@contextlib.asynccontextmanager
async def _session(url: str, *, changes: bool) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database with today's schema, on which no service starts meanwhile.

    Args:
        changes: make or change the schema where it is not today's.
    """
    with named_server(url, beside=True, create=changes) as (server, _):
        from runbell.service.postgresql import as_it_is, migrating
        from runbell.storage.postgresql import unavailable

        async with (migrating if changes else as_it_is)(server) as connection:
            with unavailable():
                # The other database may take its time.
                await connection.execute("SET idle_in_transaction_session_timeout = 0")
                yield connection
