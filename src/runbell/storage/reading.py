"""A service's database as a command reads it that looks back: at one moment, whichever kind it is,
beside a service that is at work. Nothing is made and nothing is changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from runbell.errors import ConfigurationError, MissingExtra
from runbell.storage.migrate import Lineage, require_current
from runbell.storage.sqlite import read_only
from runbell.storage.store import Work
from runbell.storage.urls import EMBEDDED, check_readable, embedded_folder, without_password

__all__ = ["look_back"]

T = TypeVar("T")


def look_back(place: Path | str, work: Work[T], lineage: Lineage) -> T:
    """Execute a unit of work that reads, from one moment's view.

    Args:
        place: a SQLite file, or the URL of a database on PostgreSQL.
        lineage: its migrations, and the option that has named it.

    Raises:
        ConfigurationError: it is no database of ours, or of another version.
        MissingExtra: what PostgreSQL needs is not installed.
        StorageUnavailable: it can't be reached, or read now.
    """
    if isinstance(place, Path):
        require_current(place, lineage)
        return read_only(place, work)
    with _required(lineage.option):
        from runbell.storage.migrate_postgresql import require_current_revision
        from runbell.storage.postgresql import PostgresqlView, connect, unavailable

    async def look(url: str) -> T:
        connection = await connect(url, "history")
        try:
            with unavailable():
                await require_current_revision(connection, without_password(place), lineage)
                async with connection.transaction(isolation="repeatable_read", readonly=True):
                    return await work(PostgresqlView(connection))
        finally:
            connection.terminate()

    check_readable(place)
    with _server(place, lineage.option) as url:
        return asyncio.run(look(url))


@contextlib.contextmanager
def _required(option: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "asyncpg":
            raise
        raise MissingExtra(f"{option} postgresql://…", "postgresql") from None


@contextlib.contextmanager
def _server(place: str, option: str) -> Iterator[str]:
    """Where the database can be reached meanwhile."""
    if not place.startswith(EMBEDDED):
        yield place
        return
    from runbell.storage.private_postgresql import PrivatePostgresql

    folder = embedded_folder(place)
    server = PrivatePostgresql(folder)
    if not server.has_data:
        raise ConfigurationError(
            f"there is no PostgreSQL of Runbell's in {folder}: name yours with {option} "
            f"{EMBEDDED}:///FOLDER"
        )
    served = server.url_of_running()
    if served is not None:  # a service has started it, and needs it longer than we do
        yield served
        return
    server.start()
    try:
        yield server.url()
    finally:
        server.stop()
