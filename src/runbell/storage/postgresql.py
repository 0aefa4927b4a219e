"""PostgreSQL: a transaction a unit of work, on a few connections that all units share.

Many processes write at the same time, on READ COMMITTED: each statement sees the latest commits.
What a unit reads in order to change it, it locks (`Statement.locks`), so that between the two
nobody else does; what two units must not do both, a unique key decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import asyncpg

from runbell import faults
from runbell.errors import Conflict, StorageUnavailable
from runbell.storage import together
from runbell.storage.connections import Connections
from runbell.storage.statements import PostgresqlText, Statement
from runbell.storage.store import Row, Work

__all__ = [
    "PostgresqlStore",
    "PostgresqlTransaction",
    "PostgresqlView",
    "connect",
    "unavailable",
]

T = TypeVar("T")
Connection = asyncpg.Connection

logger = logging.getLogger(__name__)

CONNECTIONS = 10
"""Connections of a process that its units share: more than a process can keep busy."""

WAIT_SECONDS = 5.0
"""How long a unit waits for a connection before it is turned away."""

MAX_WAITING = 10_000
"""Units that may wait for a connection before further ones are turned away."""

TRIES = 5
"""How often a unit is executed that the database itself has ended in favour of another."""

STATEMENTS = 1_000
"""Statements that a connection keeps prepared: more than there are."""

CURSOR_ROWS = 20
"""Rows that are asked for at once, where it is their size that bounds them too."""

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
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
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
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def open(cls, url: str, connections: int = CONNECTIONS) -> PostgresqlStore:
        """Open a database whose schema is up to date.

        Raises:
            StorageUnavailable: it can't be reached.
        """
        shared = Connections(lambda: connect(url), connections, WAIT_SECONDS)
        engines = Connections(lambda: connect(url, **PLANNED_ONCE), ENGINES, WAIT_SECONDS)
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
                with contextlib.suppress(*_ENDED):
                    return await self._try(work)
            return await self._try(work)

    async def _try(self, work: Work[T]) -> T:
        began = self._loop.time()
        async with self._connections.one() as connection:
            transaction = PostgresqlTransaction(connection)
            await connection.execute("BEGIN")
            try:
                result = await work(transaction)
                for last in transaction.lasts:
                    await last()
                await transaction.flush()
                faults.hit("storage.group.executed")
                await connection.execute("COMMIT")
            except BaseException:
                # What is wrong with a connection that was lost is not that it can't roll back.
                with contextlib.suppress(OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                    await connection.execute("ROLLBACK")
                raise
        faults.hit("storage.group.committed")
        self.on_commit(1, self._loop.time() - began)
        for callback in transaction.callbacks:
            try:
                callback()
            except Exception:
                logger.exception("what was to happen after a commit failed")
        return result


@dataclass(slots=True)
class _Waiting:
    """A write that is told with what comes next.

    Attributes:
        missed: what to raise where it has not touched one row; None where its caller sees to that.
        skipped: what to do where it has touched none.
    """

    statement: Statement
    args: list[Any]
    missed: Exception | None
    skipped: Callable[[], None] | None = None


class PostgresqlView:
    """A connection as a `Transaction` that reads."""

    __slots__ = ("connection",)
    _writes = False

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def fetch_one(self, statement: Statement, params: Mapping[str, Any]) -> Row | None:
        this = statement.postgresql
        args = [params[name] for name in this.names]
        return cast(Row | None, await self.connection.fetchrow(self._text(this), *args))

    async def fetch_all(
        self, statement: Statement, params: Mapping[str, Any], max_bytes: int | None = None
    ) -> list[Row]:
        this = statement.postgresql
        args = [params[name] for name in this.names]
        if max_bytes is None:
            return cast(list[Row], await self.connection.fetch(self._text(this), *args))
        # Most lists are short: a cursor, and a transaction for it, cost more than they do.
        limit = this.names.index("limit")
        few = [*args[:limit], min(args[limit], CURSOR_ROWS), *args[limit + 1 :]]
        rows = cast(list[Row], await self.connection.fetch(self._text(this), *few))
        if len(rows) < CURSOR_ROWS:
            return _up_to(max_bytes, rows)
        async with self._cursors():
            return await self._fetch_up_to(max_bytes, self._text(this), args)

    async def fetch(self, text: str, *args: Any) -> list[Row]:
        """Execute a statement of an engine that brings its own."""
        return cast(list[Row], await self.connection.fetch(text, *args))

    async def _fetch_up_to(self, max_bytes: int, text: str, args: list[Any]) -> list[Row]:
        rows: list[Row] = []
        size = 0
        async for record in self.connection.cursor(text, *args, prefetch=CURSOR_ROWS):
            row = cast(Row, record)
            rows.append(row)
            size += _size(row)
            if size >= max_bytes:
                break
        return rows

    @contextlib.asynccontextmanager
    async def _cursors(self) -> AsyncIterator[None]:
        # Only a transaction can have a cursor.
        async with self.connection.transaction():
            yield

    def _text(self, this: PostgresqlText) -> str:
        return this.text

    async def fetch_first(self, *reads: tuple[Statement, Mapping[str, Any]]) -> list[Row | None]:
        statements = tuple(statement for statement, _ in reads)
        args = [params[name] for statement, params in reads for name in statement.postgresql.names]
        text = together.firsts(statements, self._writes)
        row = cast(Row, await self.connection.fetchrow(text, *args))
        found: list[Row | None] = []
        begin = 0
        for statement in statements:
            end = begin + 1 + statement.width
            found.append(row[begin + 1 : end] if row[begin] else None)
            begin = end
        return found

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        raise StorageUnavailable(f"{statement.name}: this unit of work only reads")

    async def later(
        self, statement: Statement, params: Mapping[str, Any], missed: Exception | None = None
    ) -> None:
        await self.execute(statement, params)

    def after_commit(self, callback: Callable[[], None]) -> None:
        raise TypeError("nothing is committed by a unit of work that only reads")


class PostgresqlTransaction(PostgresqlView):
    """A transaction that writes.

    Attributes:
        callbacks: what follows the commit.
        lasts: what is still to be done in the transaction when its unit has ended.
        carried: what parts of the service collect for that, each under a key of its own.
    """

    __slots__ = ("_waiting", "callbacks", "carried", "lasts")
    _writes = True

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._waiting: list[_Waiting] = []
        self.callbacks: list[Callable[[], None]] = []
        self.lasts: list[Callable[[], Awaitable[None]]] = []
        self.carried: dict[object, Any] = {}

    async def fetch_one(self, statement: Statement, params: Mapping[str, Any]) -> Row | None:
        if self._waiting:
            if statement.apart:
                rows = await self._fetch_apart(statement, params)
                return rows[0] if rows else None
            await self.flush()
        return await super().fetch_one(statement, params)

    async def fetch_all(
        self, statement: Statement, params: Mapping[str, Any], max_bytes: int | None = None
    ) -> list[Row]:
        if self._waiting:
            if statement.apart and max_bytes is None:
                return await self._fetch_apart(statement, params)
            await self.flush()
        return await super().fetch_all(statement, params, max_bytes)

    async def fetch_first(self, *reads: tuple[Statement, Mapping[str, Any]]) -> list[Row | None]:
        await self.flush()
        return await super().fetch_first(*reads)

    async def fetch(self, text: str, *args: Any) -> list[Row]:
        await self.flush()
        return await super().fetch(text, *args)

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        this = statement.postgresql
        if this.refusable:
            await self.flush()
            args = [_storable(params[name]) for name in this.names]
            count = await self._refusable(statement.name, this.text, args)
        else:
            await self._wait_with(statement, params, None)
            count = (await self._send(None, ()))[0][-1]
        if this.inserts and not count:
            raise Conflict(f"{statement.name}: a unique key is taken")
        return count

    async def later(
        self, statement: Statement, params: Mapping[str, Any], missed: Exception | None = None
    ) -> None:
        if missed is None and statement.postgresql.inserts:
            missed = Conflict(f"{statement.name}: a unique key is taken")
        await self._wait_with(statement, params, missed)

    async def put(
        self,
        statement: Statement,
        params: Mapping[str, Any],
        skipped: Callable[[], None] | None = None,
    ) -> None:
        """As `later`, for a row that may be there already; `skipped` is called where it is."""
        await self._wait_with(statement, params, None, skipped)

    async def _wait_with(
        self,
        statement: Statement,
        params: Mapping[str, Any],
        missed: Exception | None,
        skipped: Callable[[], None] | None = None,
    ) -> None:
        if self._waiting and not together.apart(
            (waiting.statement for waiting in self._waiting), statement
        ):
            await self.flush()
        args = [_storable(params[name]) for name in statement.postgresql.names]
        self._waiting.append(_Waiting(statement, args, missed, skipped))

    async def flush(self) -> None:
        """Execute the writes that wait."""
        if self._waiting:
            await self._send(None, ())

    async def _fetch_apart(self, statement: Statement, params: Mapping[str, Any]) -> list[Row]:
        args = [params[name] for name in statement.postgresql.names]
        counts, rows = await self._send(statement, args)
        there = len(counts)
        return [row[there + 1 :] for row in rows if row[there]]

    async def _send(
        self, read: Statement | None, more: Sequence[Any]
    ) -> tuple[list[int], list[Row]]:
        """Execute the writes that wait, and a read with them: how many rows each has touched, and
        the rows of all, as `together.written` says."""
        waiting, self._waiting = self._waiting, []
        args = [arg for each in waiting for arg in each.args]
        if read is None and len(waiting) == 1:
            text = waiting[0].statement.postgresql.text
            counts, rows = [_count(await self.connection.execute(text, *args))], []
        else:
            text = together.written(tuple(each.statement for each in waiting), read)
            rows = cast(list[Row], await self.connection.fetch(text, *args, *more))
            counts = list(rows[0][: len(waiting)])
        for each, count in zip(waiting, counts, strict=True):
            if each.missed is not None and count != 1:
                raise each.missed
            if each.skipped is not None and not count:
                each.skipped()
        return counts, rows

    async def _refusable(self, name: str, text: str, args: list[Any]) -> int:
        # Few statements are of this kind: an insert needs no savepoint.
        await self.connection.execute("SAVEPOINT refusable")
        try:
            return _count(await self.connection.execute(text, *args))
        except asyncpg.UniqueViolationError as error:
            await self.connection.execute("ROLLBACK TO refusable")
            raise Conflict(f"{name}: {error}") from None

    def after_commit(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    @contextlib.asynccontextmanager
    async def _cursors(self) -> AsyncIterator[None]:
        yield

    def _text(self, this: PostgresqlText) -> str:
        return this.writing


async def connect(url: str, **settings: str) -> asyncpg.Connection:
    """A connection of one's own.

    Args:
        settings: more of its session's.

    Raises:
        StorageUnavailable: the database can't be reached.
    """
    with unavailable():
        return await asyncpg.connect(
            url,
            server_settings={**SESSION, **settings},
            statement_cache_size=STATEMENTS,
            timeout=WAIT_SECONDS,
        )


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Turn what is said of a database that can't be used now into our own error."""
    try:
        yield
    except _UNAVAILABLE as error:
        if isinstance(error, ValueError):
            # A value that no column could hold: a defect of ours.
            raise
        raise StorageUnavailable(
            f"the database cannot be used now: {str(error) or type(error).__name__}"
        ) from error


def _up_to(max_bytes: int, rows: list[Row]) -> list[Row]:
    size = 0
    for number, row in enumerate(rows, 1):
        size += _size(row)
        if size >= max_bytes:
            return rows[:number]
    return rows


def _size(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def _storable(value: Any) -> Any:
    # PostgreSQL's texts cannot hold the character 0. In JSON, as most of ours are, it is escaped.
    if isinstance(value, str) and "\x00" in value:
        return value.replace("\x00", "\ufffd")
    return value


def _count(status: str) -> int:
    return int(status.rpartition(" ")[2])


def _unobserved(units: int, seconds: float) -> None:
    """Nobody wants to know."""
