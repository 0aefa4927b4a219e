"""The connections of a process to PostgreSQL, which its units of work share.

asyncpg's own pool makes a task for each return of a connection and a timer for each loan: more CPU
than most statements take.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg

from runbell.errors import StorageUnavailable

__all__ = ["Connections"]


class Connections:
    """Lends connections, the one that was used last first, to who asks first; makes them where
    there are none.

    Args:
        connect: makes one.
        most: how many there may be.
        patience: seconds to wait for one that is in use.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[asyncpg.Connection]], most: int, patience: float
    ) -> None:
        self._connect = connect
        self._most = most
        self._patience = patience
        self._free: list[asyncpg.Connection] = []
        self._lent: set[asyncpg.Connection] = set()
        self._making = 0
        self._waiting: deque[asyncio.Future[asyncpg.Connection | None]] = deque()

    @contextlib.asynccontextmanager
    async def one(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection for a block. One that is left in the middle of a statement, or of a
        transaction, is not lent again, and neither is one to a server that only reads now: another
        has taken over from it.

        Raises:
            StorageUnavailable: all are in use, for too long.
            Exception: whatever prevents that one is made.
        """
        connection = await self._borrow()
        try:
            yield connection
        except (asyncio.CancelledError, asyncpg.ReadOnlySQLTransactionError):
            # Where it was cancelled, its statement may still be under way.
            connection.terminate()
            raise
        finally:
            self._give_back(connection)

    def drop(self) -> None:
        """Let go of all connections: who uses one hears that it was lost. New ones are made."""
        dropped, self._free = [*self._free, *self._lent], []
        for connection in dropped:
            connection.terminate()

    async def close(self) -> None:
        """Close them all, those in use too."""
        connections, self._free = [*self._free, *self._lent], []
        if not connections:
            return
        closing = [asyncio.ensure_future(each.close()) for each in connections]
        _, late = await asyncio.wait(closing, timeout=self._patience)
        for each in late:
            each.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        for connection in connections:
            connection.terminate()

    async def _borrow(self) -> asyncpg.Connection:
        while True:
            while self._free:
                connection = self._free.pop()
                if not connection.is_closed():
                    self._lent.add(connection)
                    return connection
            if len(self._lent) + self._making < self._most:
                return await self._make()
            given = await self._wait()
            if given is not None:
                return given

    async def _make(self) -> asyncpg.Connection:
        self._making += 1
        try:
            connection = await self._connect()
        except BaseException:
            self._making -= 1
            self._pass_on(None)
            raise
        self._making -= 1
        self._lent.add(connection)
        return connection

    async def _wait(self) -> asyncpg.Connection | None:
        """A connection that somebody gives back; None where one may be made instead."""
        turn: asyncio.Future[asyncpg.Connection | None]
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            # Not `wait_for`, which can say that the time is over and keep what came just then.
            await asyncio.wait((turn,), timeout=self._patience)
        except asyncio.CancelledError:
            if turn.done():
                connection = turn.result()
                if connection is None:
                    self._pass_on(None)
                else:
                    self._give_back(connection)
            raise
        finally:
            # Its place in the line goes when it is reached.
            turn.cancel()
        if turn.cancelled():
            raise StorageUnavailable(
                f"none of {self._most} connections became free within {self._patience:g} s"
            )
        return turn.result()

    def _give_back(self, connection: asyncpg.Connection) -> None:
        self._lent.discard(connection)
        if not connection.is_closed() and connection.is_in_transaction():
            # Whoever had it could not end what it had begun.
            connection.terminate()
        self._pass_on(None if connection.is_closed() else connection)

    def _pass_on(self, connection: asyncpg.Connection | None) -> None:
        """Give a connection, or the room for one, to who waits longest."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                if connection is not None:
                    self._lent.add(connection)
                turn.set_result(connection)
                return
        if connection is not None:
            self._free.append(connection)
