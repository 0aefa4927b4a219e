"""What PostgreSQL tells a process: one connection that listens, and comes back when it was lost.

Whatever is told while it is away is lost: who listens hears that there was a gap, and looks at the
rows.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

import asyncpg

from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.storage.postgresql import connect

__all__ = ["Listener"]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How often the connection is tried: a network may lose it without a word."""


class Listener:
    """Listens on channels, each for those who subscribed to it.

    Args:
        url: of the database.
    """

    def __init__(self, url: str, rng: random.Random | None = None) -> None:
        self._url = url
        self._rng = rng or random.Random()
        self._backoff = RetryBackoff(start=0.05, cap=1.0)
        self._channels: dict[str, list[Callable[[str], None]]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._connection: asyncpg.Connection | None = None
        self._keeping: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, hear: Callable[[str], None]) -> None:
        """Have `hear` called with what is told on a channel. Before `start`."""
        self._channels.setdefault(channel, []).append(hear)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when it listens again, and may have missed something."""
        self._gaps.append(callback)

    @property
    def listens(self) -> bool:
        """There is a connection."""
        return self._connection is not None and not self._connection.is_closed()

    async def start(self, *channels: str) -> None:
        """Begin to listen on these channels; returns when it does.

        Raises:
            StorageUnavailable: the database can't be reached.
        """
        for channel in channels:
            self._channels.setdefault(channel, [])
        lost = await self._listen()
        self._keeping = asyncio.create_task(self._keep(lost), name="listener")

    async def close(self) -> None:
        """Listen no more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _listen(self) -> asyncio.Event:
        """Connect; an event that is set when the connection is lost."""
        connection = await connect(self._url, "listener")
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        for channel in self._channels:
            await connection.add_listener(channel, self._hear)
        self._connection = connection
        return lost

    async def _keep(self, lost: asyncio.Event) -> None:
        while True:
            await self._until_lost(lost)
            logger.warning("the connection that listens was lost")
            failures = 0
            while True:
                try:
                    lost = await self._listen()
                    break
                except (StorageUnavailable, asyncpg.PostgresError) as error:
                    failures += 1
                    logger.warning("cannot listen: %s", error)
                    await asyncio.sleep(self._backoff.delay(failures, self._rng))
            for callback in self._gaps:
                callback()

    async def _until_lost(self, lost: asyncio.Event) -> None:
        assert self._connection is not None
        while not lost.is_set():
            try:
                await asyncio.wait_for(lost.wait(), CHECK_SECONDS)
            except TimeoutError:
                try:
                    await self._connection.fetchval("SELECT 1", timeout=CHECK_SECONDS)
                except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    self._connection.terminate()
                    return

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        for hear in tuple(self._channels.get(channel, ())):
            hear(str(payload))
