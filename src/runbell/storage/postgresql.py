"""PostgreSQL: a transaction a unit of work, on a few connections that all units share.

Many processes write at the same time, on READ COMMITTED: each statement sees the latest commits.
What a unit reads in order to change it, it locks (`Statement.locks`), so that between the two
nobody else does; what two units must not do both, a unique key decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar, cast

import asyncpg

from runbell import faults
from runbell.errors import OutcomeUnknown, Overtaken, StorageUnavailable
from runbell.storage.connections import Connections
from runbell.storage.postgresql_work import (
    Connection,
    PostgresqlTransaction,
    PostgresqlView,
    storable,
)
from runbell.storage.store import Row, Work
from runbell.storage.urls import place, readable

__all__ = [
    "PostgresqlStore",
    "PostgresqlTransaction",
    "PostgresqlView",
    "connect",
    "now_ms",
    "others",
    "storable",
    "unavailable",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)

CONNECTIONS = 10
"""Connections of a process that its units share: more than a process can keep busy."""

WAIT_SECONDS = 5.0
"""How long a unit waits for a connection before it is turned away."""

ROW_SECONDS = 2.0
"""How long it waits for a row that somebody holds. Units of ours hold one for milliseconds."""

HASTY_ROW_SECONDS = 0.25
HASTE_SECONDS = 5.0
"""The same for units that begin so soon after another was turned away: somebody keeps a row, and
those who want it come again and again. They must not have all connections all the time."""

UNIT_SECONDS = 20.0
"""How long a transaction may take at the most, where the server can tell (PostgreSQL 17). What ours
take is far below; this ends one whose process was stopped between the two requests that a new
statement takes, which to the server is not idle, and would keep its rows."""

CAN_END_TRANSACTIONS = 17
"""The server's version."""

SILENT_SECONDS = 10
"""How long the other end of a connection may be away before the connection is given up."""

KEEPALIVE_SECONDS = 5
"""How often an idle one is asked whether it is there."""

MAX_WAITING = 10_000
"""Units that may wait for a connection before further ones are turned away."""

TRIES = 5
"""How often a unit is executed that had to end in favour of another."""

STATEMENTS = 1_000
"""Statements that a connection keeps prepared: more than there are."""
AGAIN_SECONDS = 0.05
"""From one question about a commit to the next, while it can't be answered."""

OUTCOME = "SELECT pg_xact_status($1::text::xid8)"
"""`committed`, `aborted`, `in progress`. A server that has taken over from another answers for
itself: of what it was not sent in time it does not know, and may use the number again."""

ELSEWHERE = "in the future"
"""Of a number that such a server has not given to anybody yet."""

NOT_KNOWN = "the database was lost during a commit, which may have happened or not"

SESSION = {
    "application_name": "runbell",
    # Our statements read a few rows; compiling one costs more than executing it a hundred times.
    "jit": "off",
    # A process that is stopped in the middle of a transaction must not hold its rows for ever.
    "idle_in_transaction_session_timeout": "10s",
}

ENGINES = 2
"""Further connections, for engines that bring their own statements."""

PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}
"""What engines ask is long, and planned anew it would cost ten times as much as to execute it."""
OTHERS = f"""
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid()
AND application_name LIKE '{SESSION["application_name"]}%'
"""  # noqa: S608 - a constant

_ENDED = (asyncpg.SerializationError, asyncpg.DeadlockDetectedError)
"""The database has undone the unit: it may be tried again at once."""

_UNAVAILABLE = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    # Said of a connection that was lost between two statements.
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    asyncpg.ReadOnlySQLTransactionError,
    # Said by a database that takes no connections, or no locks, at the moment.
    asyncpg.ObjectNotInPrerequisiteStateError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InvalidAuthorizationSpecificationError,
    *_ENDED,
)


class PostgresqlStore:
    """The store in one PostgreSQL database. Made by `open`, on the event loop that will use it.

    Attributes:
        on_commit: is told of each unit that was committed: 1, and in how many seconds.
    """

    def __init__(self, shared: Connections, engines: Connections, connections: int) -> None:
        self.on_commit: Callable[[int, float], None] = _unobserved
        self._connections = shared
        # Of their own, so that nobody who tells or asks for work stands behind units that wait.
        self._engines = engines
        # Lists never take the connections that everybody else needs.
        self._scanning = asyncio.Semaphore(max(1, connections // 2))
        self._closed = False
        self._asked = 0
        self._hasty_until = float("-inf")
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, url: str, connections: int = CONNECTIONS) -> PostgresqlStore:
        """Open a database whose schema is up to date.

        Raises:
            StorageUnavailable: it can't be reached.
        """

        async def one(**settings: str) -> asyncpg.Connection:
            connection = await connect(url, lock_timeout=f"{ROW_SECONDS * 1000:.0f}ms", **settings)
            if connection.get_server_version().major >= CAN_END_TRANSACTIONS:
                with unavailable():
                    await connection.execute(
                        f"SET transaction_timeout = '{UNIT_SECONDS * 1000:.0f}ms'"
                    )
            return connection

        shared = Connections(one, connections, WAIT_SECONDS)
        engines = Connections(partial(one, **PLANNED_ONCE), ENGINES, WAIT_SECONDS)
        async with shared.one():
            return cls(shared, engines, connections)

    @property
    def is_closed(self) -> bool:
        """It was closed."""
        return self._closed

    @property
    def waiting(self) -> int:
        """Units of work that have been asked for and have not ended."""
        return self._asked

    async def write(self, work: Work[T]) -> T:
        with self._asking():
            # Whoever asked may leave: what was begun is finished, and what follows it follows.
            return await asyncio.shield(self._loop.create_task(self._write(work)))

    async def read(self, work: Work[T]) -> T:
        with self._asking():
            return await self._read(work)

    async def scan(self, work: Work[T]) -> T:
        with self._asking():
            async with self._scanning:
                return await self._read(work)

    async def fetch(self, text: str, *args: Any) -> list[Row]:
        """Execute a statement in a transaction of its own: for engines that bring their own."""
        with self._asking(), unavailable():
            async with self._engines.one() as connection:
                return cast(list[Row], await connection.fetch(text, *args))

    def drop(self) -> None:
        """Let go of all connections, which were found to lead nowhere."""
        self._connections.drop()
        self._engines.drop()

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._idle.wait()
            await self._connections.close()
            await self._engines.close()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        if self._closed:
            raise StorageUnavailable("the database is closed")
        if self._asked >= MAX_WAITING:
            raise StorageUnavailable("too many units of work are waiting")
        self._asked += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._asked -= 1
            if not self._asked:
                self._idle.set()

    async def _read(self, work: Work[T]) -> T:
        with unavailable():
            async with self._connections.one() as connection:
                return await work(PostgresqlView(connection))

    async def _write(self, work: Work[T]) -> T:
        with unavailable():
            for _ in range(TRIES - 1):
                with contextlib.suppress(Overtaken, *_ENDED):
                    return await self._try(work)
            return await self._try(work)

    async def _try(self, work: Work[T]) -> T:
        began = self._loop.time()
        transaction = PostgresqlTransaction()
        try:
            async with self._connections.one() as connection:
                result = await self._execute(work, transaction, connection)
        except _UNAVAILABLE as error:
            # Here, where it has given its connection back: many may ask at a time.
            if not transaction.unanswered:
                raise
            logger.warning("a commit was not answered: %s", error)
            if not await self._was_committed(transaction.id):
                raise
            result = cast(T, transaction.result)
        faults.hit("storage.group.committed")
        self.on_commit(1, self._loop.time() - began)
        for callback in transaction.callbacks:
            try:
                callback()
            except Exception:
                logger.exception("what was to happen after a commit failed")
        return result

    async def _execute(
        self, work: Work[T], transaction: PostgresqlTransaction, connection: Connection
    ) -> T:
        transaction.connection = connection
        await connection.execute(self._begin())
        try:
            result = transaction.result = await work(transaction)
            for last in transaction.lasts:
                await last()
            await transaction.flush()
            faults.hit("storage.group.executed")
            transaction.committing = True
            await connection.execute("COMMIT")
            transaction.committing = False
        except BaseException as error:
            if isinstance(error, asyncpg.LockNotAvailableError):
                self._hasty_until = self._loop.time() + HASTE_SECONDS
            # What is wrong with a connection that was lost is not that it can't roll back.
            with contextlib.suppress(OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                await connection.execute("ROLLBACK")
            raise
        return result

    def _begin(self) -> str:
        if self._loop.time() >= self._hasty_until:
            return "BEGIN"
        return f"BEGIN; SET LOCAL lock_timeout = '{HASTY_ROW_SECONDS * 1000:.0f}ms'"

    async def _was_committed(self, transaction_id: str) -> bool:
        deadline = self._loop.time() + WAIT_SECONDS
        while True:
            with contextlib.suppress(StorageUnavailable, *_UNAVAILABLE):
                status = await self._outcome(transaction_id)
                if status in ("committed", "aborted"):
                    return status == "committed"
                if status == ELSEWHERE:
                    # Asked again, it may speak of another that was given the same number.
                    deadline = 0.0
                # The server may not have noticed yet that nobody waits for its answer.
            if self._loop.time() >= deadline:
                raise OutcomeUnknown(NOT_KNOWN)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _outcome(self, transaction_id: str) -> str | None:
        async with self._connections.one() as connection:
            try:
                return cast(str | None, await connection.fetchval(OUTCOME, transaction_id))
            except asyncpg.InvalidParameterValueError:
                return ELSEWHERE


async def connect(url: str, purpose: str = "", **settings: str) -> asyncpg.Connection:
    """A connection of one's own.

    Args:
        purpose: a word for who looks at the server's sessions.
        settings: more of its session's.

    Raises:
        ConfigurationError: the URL can't be read.
        StorageUnavailable: the database can't be reached.
    """
    with readable():
        there = place(url)
    # Whatever the server says, it takes no connection.
    with unavailable(there, asyncpg.PostgresError), readable():
        name = f"{SESSION['application_name']} {purpose}".rstrip()
        connection = await asyncpg.connect(
            url,
            server_settings={**SESSION, "application_name": name, **settings},
            statement_cache_size=STATEMENTS,
            timeout=WAIT_SECONDS,
        )
    _notice_silence(connection)
    return connection


def _notice_silence(connection: asyncpg.Connection) -> None:
    """Have the system end a connection whose other end is gone without a word: else a statement
    waits for a quarter of an hour, and an idle connection for two hours."""
    # asyncpg has no name of its own for it.
    transport: asyncio.Transport | None = getattr(connection, "_transport", None)
    line = None if transport is None else transport.get_extra_info("socket")
    if line is None or line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    for level, option, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_SECONDS),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_SECONDS),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", SILENT_SECONDS // KEEPALIVE_SECONDS),
        # Linux's own: of what was sent and is not acknowledged, in milliseconds.
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", SILENT_SECONDS * 1000),
    ):
        if hasattr(socket, option):
            with contextlib.suppress(OSError):
                line.setsockopt(level, getattr(socket, option), value)


async def now_ms(connection: asyncpg.Connection) -> int:
    """The database's time, in milliseconds since the epoch."""
    query = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    now: int = await connection.fetchval(query)
    return now


async def others(connection: asyncpg.Connection) -> int:
    """How many other sessions of Runbell's the database has: services, workers and commands."""
    count: int = await connection.fetchval(OTHERS)
    return count


@contextlib.contextmanager
def unavailable(where: str = "", *also: type[Exception]) -> Iterator[None]:
    """Turn what is said of a database that can't be used now into our own error.

    Args:
        where: the database, as `place` names it.
        also: more errors that say so.
    """
    try:
        yield
    except _UNAVAILABLE + also as error:
        if isinstance(error, ValueError):
            # A value that no column could hold: a defect of ours.
            raise
        name = f"the database {where}".rstrip()
        said = str(error)
        if not said:
            no_answer = isinstance(error, TimeoutError)
            said = "no answer in time" if no_answer else type(error).__name__
        raise StorageUnavailable(f"{name} cannot be used now: {said}") from error


def _unobserved(units: int, seconds: float) -> None:
    """Nobody wants to know."""
