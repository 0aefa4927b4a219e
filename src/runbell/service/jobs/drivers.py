"""What PgQueuer executes on: the service's connections, or a transaction of the service."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Self

from pgqueuer.core.tm import TaskManager
from pgqueuer.ports.driver import Driver, NotifyCallback

from runbell.errors import StorageUnavailable
from runbell.service.jobs.queries import CHANNEL, SETTINGS
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction

__all__ = ["PooledDriver", "within"]

logger = logging.getLogger(__name__)

AGAIN_SECONDS = 0.2
"""From a request that found the database away to the next try."""

_NEWS = json.dumps(
    {
        "channel": CHANNEL,
        "operation": "update",
        "sent_at": "1970-01-01T00:00:00Z",
        "table": SETTINGS.queue_table,
        "type": "table_changed_event",
    }
)


class _Bare(Driver):
    """What every driver has and ours need not."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()

    async def execute(self, query: str, *args: object) -> str:
        await self.fetch(query, *args)
        return ""

    async def notify(self, channel: str, payload: str) -> None:
        await self.fetch("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        raise NotImplementedError

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class _WithinDriver(_Bare):
    """Executes in a transaction that has begun."""

    def __init__(self, tx: PostgresqlTransaction) -> None:
        self._tx = tx

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return [dict(row) for row in await self._tx.fetch(query, *args)]


def within(tx: PostgresqlTransaction) -> Driver:
    """A driver that makes what it executes part of a transaction."""
    return _WithinDriver(tx)


class PooledDriver(_Bare):
    """Executes on the store's connections, and hears on the process's one that listens.

    A database that is away is waited for: PgQueuer would give up, and with it every job that is
    under way.
    """

    def __init__(self, store: PostgresqlStore, listener: Listener) -> None:
        super().__init__()
        self._store = store
        self._callbacks: list[Callable[[str], None]] = []
        self._told = False
        listener.subscribe(CHANNEL, self._tell)
        listener.on_gap(self.wake)

    def wake(self) -> None:
        """Let PgQueuer look for jobs, as if it had been told; once until it does."""
        if not self._told:
            self._told = True
            self._tell(_NEWS)

    def looks(self) -> None:
        """PgQueuer looks for jobs now: what was committed until now is found."""
        self._told = False

    def _tell(self, payload: str) -> None:
        for callback in self._callbacks:
            callback(payload)

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        while True:
            try:
                return [dict(row) for row in await self._store.fetch(query, *args)]
            except StorageUnavailable as error:
                logger.warning("jobs wait for the database: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._callbacks.append(callback)

    async def __aexit__(self, *_: object) -> None:
        self._callbacks = []
