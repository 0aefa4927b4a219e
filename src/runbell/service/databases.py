"""Where everything is kept: what `--database` names, opened.

A SQLite file has one process, which does everything. A PostgreSQL database has any number, all
alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from runbell.errors import ConfigurationError, MissingExtra
from runbell.service.database import Database
from runbell.service.settings import EMBEDDED, Settings, location, sqlite_path
from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import upgrade_sqlite
from runbell.storage.sqlite import SQLiteStore
from runbell.storage.store import Store

__all__ = ["Database", "named_server", "open_database", "open_store"]


@contextlib.asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The database that the settings name, its schema up to date; closed at the end.

    Raises:
        ConfigurationError: it can't be used; says what to change.
        StorageUnavailable: it can't be reached, or is locked.
    """
    url = settings.database
    if url.startswith("sqlite:"):
        async with _open_sqlite(sqlite_path(url)) as database:
            yield database
        return
    with named_server(url) as (server, name):
        from runbell.service.postgresql import open_postgresql

        async with open_postgresql(server, name) as database:
            yield database


@contextlib.contextmanager
def named_server(
    url: str, *, beside: bool = False, create: bool = True
) -> Iterator[tuple[str, str]]:
    """A PostgreSQL database where it can be reached, and what it is called in messages; the server
    of `postgresql-embedded` runs meanwhile.

    Args:
        beside: where a service runs that server already, that one will do.
        create: make its data where there is none.

    Raises:
        ConfigurationError: the server is in use, or does not start; or there is no data.
        MissingExtra: what it needs is not installed.
    """
    try:
        from runbell.service.postgresql import private_server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("asyncpg", "pgqueuer"):
            raise
        raise MissingExtra("a PostgreSQL database", "postgresql") from None
    if url.startswith(EMBEDDED):
        with private_server(url, beside=beside, create=create) as (private, folder):
            yield private, f"the PostgreSQL in {folder}"
        return
    yield url, location(url)


@contextlib.asynccontextmanager
async def open_store(settings: Settings, *, create: bool = True) -> AsyncIterator[Store]:
    """The store alone, also beside a running service, its schema up to date.

    Args:
        create: make an installation where there is none.

    Raises:
        ConfigurationError: the database can't be used; or there is no installation.
        StorageUnavailable: it is locked, or can't be reached.
    """
    if not settings.database.startswith("sqlite:"):
        with named_server(settings.database, beside=True, create=create) as (server, name):
            from runbell.service.postgresql import open_existing, open_postgresql

            if create:
                async with open_postgresql(server, name) as database:
                    yield database.store
            else:
                async with open_existing(server, name) as existing:
                    yield existing
        return
    path = sqlite_path(settings.database)
    if not create and not path.exists():
        raise ConfigurationError(f"there is no database at {path}: name it with --database")
    upgrade_sqlite(path, InstallationLock(path))
    store = await SQLiteStore.open(path)
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def _open_sqlite(path: Path) -> AsyncIterator[Database]:
    lock = InstallationLock(path)
    if not lock.acquire():
        raise ConfigurationError(
            f"{path} is in use by another runbell service (process {lock.holder()}): "
            "stop that one, or name another file with --database"
        )
    try:
        upgrade_sqlite(path, lock)
        database = Database(await SQLiteStore.open(path), str(path.resolve()), path.resolve())  # noqa: ASYNC240
        try:
            yield database
        finally:
            await database.close()
    finally:
        lock.release()
