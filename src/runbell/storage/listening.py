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

from runbell.storage.lasting import lasting
from runbell.storage.postgresql import connect, unavailable

__all__ = ["Listener"]

logger = logging.getLogger(__name__)

CHECK_SECONDS = 5.0
"""How often the connection is tried: a network may lose it without a word."""

DEAF_SECONDS = 15.0
"""After how long without a connection a process does not know enough to be asked."""


class Listener:
    """Listens on channels, each for those who subscribed to it.

    Args:
        url: of the database.
    """

    def __init__(self, url: str, rng: random.Random | None = None) -> None:
        self._url = url
        self._rng = rng or random.Random()
        self._channels: dict[str, list[Callable[[str], None]]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._silences: list[Callable[[], None]] = []
        self._lost = asyncio.Event()
        self._lost_at: float | None = None
        self._connection: asyncpg.Connection | None = None
        self._keeping: asyncio.Task[None] | None = None

    def subscribe(self, channel: str, hear: Callable[[str], None]) -> None:
        """Have `hear` called with what is told on a channel. Before `start`."""
        self._channels.setdefault(channel, []).append(hear)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when it listens again, and may have missed something."""
        self._gaps.append(callback)

    def on_silence(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when its connection gives no answer any more, though nobody has
        ended it: others to the same server may lead nowhere too."""
        self._silences.append(callback)

    @property
    def deaf(self) -> bool:
        """Nobody has listened for so long that something is wrong."""
        if self._lost_at is None:
            return False
        return asyncio.get_running_loop().time() - self._lost_at > DEAF_SECONDS

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
        await self._listen()
        keeping = lasting("listening to the database", self._keep, self._rng)
        self._keeping = asyncio.create_task(keeping, name="listener")

    async def close(self) -> None:
        """Listen no more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _listen(self) -> None:
        """Connect, and listen.

        Raises:
            StorageUnavailable: the database can't be reached.
        """
        connection = await connect(self._url, "listener")
        lost = asyncio.Event()
        connection.add_termination_listener(lambda _: lost.set())
        try:
            with unavailable():
                async with asyncio.timeout(CHECK_SECONDS):
                    for channel in self._channels:
                        await connection.add_listener(channel, self._hear)
        except BaseException:
            connection.terminate()
            raise
        self._connection, self._lost, self._lost_at = connection, lost, None

    async def _keep(self) -> None:
        """Wait until the connection is lost, and make another."""
        if self._lost_at is None:
            await self._until_lost()
            self._lost_at = asyncio.get_running_loop().time()
            logger.warning("the connection that listens was lost")
        await self._listen()
        _call(self._gaps)

    async def _until_lost(self) -> None:
        assert self._connection is not None
        while not self._lost.is_set():
            try:
                await asyncio.wait_for(self._lost.wait(), CHECK_SECONDS)
            except TimeoutError:
                if not await self._answers(self._connection):
                    self._connection.terminate()
                    return

    async def _answers(self, connection: asyncpg.Connection) -> bool:
        try:
            await connection.fetchval("SELECT 1", timeout=CHECK_SECONDS)
        except TimeoutError:
            _call(self._silences)
            return False
        except Exception as error:  # noqa: BLE001 - whatever it is, this one is of no use
            logger.info("the connection that listens does not work: %s", error)
            return False
        return True

    def _hear(self, connection: object, pid: int, channel: str, payload: object) -> None:
        for hear in tuple(self._channels.get(channel, ())):
            hear(str(payload))


def _call(callbacks: list[Callable[[], None]]) -> None:
    for callback in callbacks:
        try:
            callback()
        except Exception:
            logger.exception("what follows a lost connection failed")
