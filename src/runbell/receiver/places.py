"""Where an inbox is: what its URL names.

A SQLite file is shared by the processes of one machine, a PostgreSQL database by any number. What
the `Place` is for a file is here, for a database in `postgresql`; nobody else asks which it is.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from runbell.clock import SystemClock
from runbell.errors import ConfigurationError, MissingExtra
from runbell.receiver import arrivals, desk
from runbell.receiver.arrivals import Arrival, Stored
from runbell.receiver.ports import (
    FRESH_AT_ONCE,
    LINGER_SECONDS,
    PAGE,
    Audience,
    Idle,
    OpenInbox,
    Place,
)
from runbell.receiver.schema import INBOX, prepare
from runbell.storage.migrate import require_current
from runbell.storage.sqlite import Observer, SQLiteStore
from runbell.storage.store import Store

__all__ = ["SQLitePlace", "place_of"]


LOOK_SECONDS: Final = 0.02
"""How often a file is looked at while somebody waits: what was stored is known 10 ms later on
average. A look that finds nothing costs a few µs."""


class SQLitePlace:
    """A file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[OpenInbox]:
        """See `Place`. Other processes look at the file by themselves."""
        await asyncio.to_thread(prepare, self.path)
        store = await SQLiteStore.open(self.path)

        def take_in(arrival: Arrival) -> Awaitable[Stored]:
            # The store commits many at a time by itself.
            return store.write(lambda tx: arrivals.store(tx, arrival))

        try:
            yield OpenInbox(store, take_in, _say_nothing, SystemClock())
        finally:
            await store.close()

    @contextlib.asynccontextmanager
    async def open_existing(self) -> AsyncIterator[Store]:
        """See `Place`."""
        require_current(self.path, INBOX)
        store = await SQLiteStore.open(self.path)
        try:
            yield store
        finally:
            await store.close()

    def follow(self, audience: Audience) -> None:
        """See `Place`."""
        require_current(self.path, INBOX)
        with contextlib.closing(Observer(self.path)) as observer:
            position = observer.read(desk.newest)
            idle = Idle()
            while True:
                _tell_fresh(observer, audience)
                if observer.changed():
                    position = _tell_behind(observer, audience, position)
                if audience.is_over(idle=idle.for_long(audience)):
                    return
                # A subscription ends the pause; without one there is nothing to look for.
                audience.rest(LINGER_SECONDS if idle.since else LOOK_SECONDS)


def place_of(url: str) -> Place:
    """What an inbox's URL names.

    Raises:
        ConfigurationError: the URL is not one that this version can use.
        MissingExtra: PostgreSQL's driver is not installed.
    """
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgresql", "postgres") and separator:
        try:
            from runbell.receiver.postgresql import PostgresqlPlace
        except ModuleNotFoundError as error:
            if error.name != "asyncpg":
                raise
            raise MissingExtra("an inbox on PostgreSQL", "postgresql") from None
        return PostgresqlPlace(url)
    name = unquote(rest[1:])
    if not separator or scheme != "sqlite" or not rest.startswith("/") or "?" in rest:
        # Not shown: it may be the URL of a server, with a password in it.
        raise ConfigurationError(
            "the inbox has to be sqlite:///inbox.db (beside you), sqlite:////var/lib/inbox.db "
            "(from the root), or postgresql://USER@HOST/DATABASE"
        )
    if not name or name == ":memory:" or name.endswith("/"):
        raise ConfigurationError(
            "the inbox has to be a file, so that events survive a restart: sqlite:///inbox.db"
        )
    return SQLitePlace(Path(name))


def _tell_fresh(observer: Observer, audience: Audience) -> None:
    """What came before somebody subscribed; some of it, so that news does not wait for all."""
    for subject, deliver in audience.fresh(FRESH_AT_ONCE):
        for body, _ in observer.read(lambda tx: desk.of_subject(tx, subject)):  # noqa: B023
            audience.tell_one(subject, deliver, body)
        audience.served(1)


def _tell_behind(observer: Observer, audience: Audience, position: int) -> int:
    """What was stored behind a position; one writer numbers the events in the order of commits."""
    while True:
        found = observer.read(lambda tx: desk.news(tx, position, PAGE))  # noqa: B023
        for place, subject in found:
            if audience.wants(subject):
                body = observer.read(lambda tx: desk.body_at(tx, place))  # noqa: B023
                if body is not None:
                    audience.tell(subject, body)
            position = place
        if len(found) < PAGE:
            return position


def _say_nothing(subject: str | None) -> None:
    """Nobody has to be told."""
