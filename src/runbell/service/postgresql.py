"""A PostgreSQL database, and how the processes on it work together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from runbell.clock import Clock
from runbell.errors import ConfigurationError
from runbell.service.database import Database
from runbell.service.jobs import Jobs, Lanes, queries
from runbell.service.jobs.pgqueuer import PgQueuerJobs
from runbell.service.neighbours import CHANNEL, Neighbours, SharedChanges
from runbell.service.operations.context import Context
from runbell.service.retelling import Retelling
from runbell.service.settings import Settings, location
from runbell.service.shared_limits import SharedLimits
from runbell.storage.listening import Listener
from runbell.storage.migrate import SERVICE
from runbell.storage.migrate_postgresql import LOCK, revision, upgrade_postgresql
from runbell.storage.postgresql import PostgresqlStore, connect, unavailable
from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.storage.shared_clock import SharedClock
from runbell.storage.urls import embedded_folder, without_password

if TYPE_CHECKING:
    import asyncpg

__all__ = [
    "PostgresqlDatabase",
    "as_it_is",
    "migrate",
    "migrating",
    "open_existing",
    "open_postgresql",
    "private_server",
]

logger = logging.getLogger(__name__)

LOCK_SECONDS = 1
"""How long a change of the schema waits for a table, and others behind it, before it lets them:
shorter than a request waits."""

FEW = 2
"""Connections of a command."""

OLDEST = 14
"""The oldest PostgreSQL that it is tested with, and has what the feed needs."""


class PostgresqlDatabase(Database):
    """One process's share in a database."""

    def __init__(self, store: PostgresqlStore, listener: Listener, name: str) -> None:
        super().__init__(store, name, None)
        self._own = store
        self._listener = listener
        self._neighbours: Neighbours | None = None
        self._retelling: Retelling | None = None
        self._jobs: PgQueuerJobs | None = None
        self.shared_changes = self.changes = SharedChanges(store, listener)
        self.shared_clock = self.clock = SharedClock(store)
        listener.on_silence(store.drop)

    def jobs(self, clock: Clock, lanes: Lanes, settings: Settings) -> Jobs:
        self._jobs = PgQueuerJobs(
            self._own,
            self._listener,
            clock,
            lanes,
            concurrency=settings.max_concurrent_runs,
            cancel_grace=settings.cancel_grace,
        )
        return self._jobs

    def limits(self, rpm: int) -> SharedLimits:
        return SharedLimits(self._own, rpm)

    async def join(self, ctx: Context, missed: Callable[[], Awaitable[None]]) -> None:
        neighbours = self._neighbours = Neighbours(
            self._own, self._listener, ctx.clock, self.shared_changes, ctx.feeds, missed
        )
        if self._jobs is not None:
            neighbours.on_work(self._jobs.look)
        neighbours.on_change(ctx.hints.heard)
        self._retelling = Retelling(ctx, neighbours)
        self._retelling.start()
        neighbours.start()
        self.shared_changes.start()
        self.shared_clock.start()
        await self._listener.start(CHANNEL, queries.CHANNEL)

    async def close(self) -> None:
        if self._retelling is not None and self._neighbours is not None:
            await self._retelling.close()
            await self._neighbours.close()
        await self.shared_changes.stop()
        await self.shared_clock.stop()
        await self._listener.close()
        await super().close()


@contextlib.asynccontextmanager
async def open_postgresql(url: str, name: str | None) -> AsyncIterator[PostgresqlDatabase]:
    """A database whose schema is brought up to date first; closed at the end.

    Args:
        name: for messages; by default the URL's own, without its password.

    Raises:
        ConfigurationError: it can't be used.
        StorageUnavailable: it can't be reached.
    """
    await migrate(url)
    database = PostgresqlDatabase(
        await PostgresqlStore.open(url), Listener(url), name or location(url)
    )
    try:
        await database.shared_clock.set()
        yield database
    finally:
        await database.close()


async def migrate(url: str) -> None:
    """Bring a database's schema up to date. Of several processes one does, and the others wait.

    Raises:
        ConfigurationError: it was written by a newer version, is another program's, or too old.
        StorageUnavailable: it can't be reached.
    """
    async with migrating(url):
        pass


@contextlib.asynccontextmanager
async def migrating(url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a database whose schema was brought up to date; while it is open, nobody
    else's is, and so no service starts.

    Raises:
        ConfigurationError: as `migrate`.
        StorageUnavailable: likewise.
    """
    connection = await connect(url)
    try:
        with unavailable():
            if connection.get_server_version().major < OLDEST:
                raise ConfigurationError(f"PostgreSQL {OLDEST} or newer is needed")
            # The session's, since PgQueuer's own statements need transactions of their own.
            await connection.execute("SELECT pg_advisory_lock($1)", LOCK + 1)
            await _upgrade(connection)
        yield connection
    finally:
        connection.terminate()


async def _upgrade(connection: asyncpg.Connection) -> None:
    """Bring the schema up to date, a few seconds of waiting for a lock at a time: behind whoever
    changes a table that others read, such as a backup, all wait who only want to write."""
    from asyncpg.exceptions import LockNotAvailableError

    await connection.execute(f"SET lock_timeout = '{LOCK_SECONDS}s'")
    while True:
        try:
            await upgrade_postgresql(connection)
            await queries.install(connection)
            break
        except LockNotAvailableError:
            logger.warning("the schema is changed when a table is free; is a backup under way?")
        await asyncio.sleep(LOCK_SECONDS)
    await connection.execute("RESET lock_timeout")


@contextlib.asynccontextmanager
async def as_it_is(url: str, name: str | None = None) -> AsyncIterator[asyncpg.Connection]:
    """A connection to an installation's database, of which nothing is changed; while it is open, no
    service starts.

    Args:
        name: for messages; by default the URL's own, without its password.

    Raises:
        ConfigurationError: it has no installation, or one of another version's.
        StorageUnavailable: it can't be used now.
    """
    connection = await connect(url)
    try:
        with unavailable():
            await connection.execute("SELECT pg_advisory_lock($1)", LOCK + 1)
            found = await revision(connection, SERVICE)
            name = name or without_password(url)
            if found is None:
                raise no_installation(name)
            if found != SERVICE.head:
                raise ConfigurationError(
                    f"{name} has schema {found}, this version of Runbell has {SERVICE.head}: "
                    + ("runbell migrate" if found < SERVICE.head else "upgrade Runbell")
                )
        yield connection
    finally:
        connection.terminate()


@contextlib.asynccontextmanager
async def open_existing(url: str, name: str) -> AsyncIterator[PostgresqlStore]:
    """The store of an installation that is there, and whose schema is this version's.

    Args:
        name: for messages.

    Raises:
        ConfigurationError: it is not.
        StorageUnavailable: it can't be used now.
    """
    async with as_it_is(url, name):
        store = await PostgresqlStore.open(url, FEW)
    try:
        yield store
    finally:
        await store.close()


def no_installation(name: str) -> ConfigurationError:
    """What to say of a database that is to be read, and has nothing of ours."""
    return ConfigurationError(
        f"there is no installation of Runbell in {name}: name yours with --database, or make one "
        "with runbell migrate"
    )


@contextlib.contextmanager
def private_server(url: str, *, beside: bool, create: bool) -> Iterator[tuple[str, Path]]:
    """A server of this process's own: the URL of its database, and where its data is.

    Args:
        beside: one that another process runs on this data will do.
        create: make the data where there is none.

    Raises:
        ConfigurationError: there is no data, it is in use, or the server does not start.
        MissingExtra: its wheel is not installed.
    """
    folder = embedded_folder(url)
    server = PrivatePostgresql(folder)
    if not create and not server.has_data:
        raise no_installation(str(folder))
    running = server.url_of_running() if beside else None
    if running is not None:
        yield running, folder
        return
    server.start()
    try:
        yield server.url(), folder
    finally:
        server.stop()
