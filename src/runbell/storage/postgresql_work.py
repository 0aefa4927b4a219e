"""A unit of work's view of PostgreSQL: what it reads is asked at once; what it writes waits for
what comes next, and is told together with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import asyncpg

from runbell.errors import Conflict, StorageUnavailable
from runbell.storage import together
from runbell.storage.statements import PostgresqlText, Statement
from runbell.storage.store import Row

__all__ = ["Connection", "PostgresqlTransaction", "PostgresqlView", "storable"]

Read = tuple[Statement, Mapping[str, Any]]
"""What is asked, and with which values."""

Connection = Any
"""A connection of asyncpg; a transaction has none before its unit is executed."""

CURSOR_ROWS = 20
"""Rows that are asked for at once, where it is their size that bounds them too."""


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

    async def fetch_first(self, *reads: Read) -> list[Row | None]:
        text = together.firsts(tuple(statement for statement, _ in reads), self._writes)
        row = cast(Row, await self.connection.fetchrow(text, *_args(reads)))
        return _apart(reads, row)

    async def fetch_both(self, several: Read, first: Read) -> tuple[list[Row], Row | None]:
        return await self.fetch_all(*several), await self.fetch_one(*first)

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
        id: its number at PostgreSQL, as soon as a row was written; empty before.
        committing: its commit was asked for, and not answered yet.
        result: what its unit has returned.
    """

    __slots__ = ("_waiting", "callbacks", "carried", "committing", "id", "lasts", "result")
    _writes = True

    def __init__(self, connection: Connection = None) -> None:
        super().__init__(connection)
        self._waiting: list[_Waiting] = []
        self.callbacks: list[Callable[[], None]] = []
        self.lasts: list[Callable[[], Awaitable[None]]] = []
        self.carried: dict[object, Any] = {}
        self.id = ""
        self.committing = False
        self.result: Any = None

    @property
    def unanswered(self) -> bool:
        """It wrote rows, and may be committed."""
        return self.committing and bool(self.id)

    async def fetch_one(self, statement: Statement, params: Mapping[str, Any]) -> Row | None:
        if self._waiting:
            if statement.apart:
                _, rows = await self._send((statement, params))
                return rows[0][0]
            await self.flush()
        return await super().fetch_one(statement, params)

    async def fetch_all(
        self, statement: Statement, params: Mapping[str, Any], max_bytes: int | None = None
    ) -> list[Row]:
        if self._waiting:
            if statement.apart and max_bytes is None:
                _, rows = await self._send((statement, params))
                return [row for (row,) in rows if row is not None]
            await self.flush()
        return await super().fetch_all(statement, params, max_bytes)

    async def fetch_first(self, *reads: Read) -> list[Row | None]:
        await self.flush()
        return await super().fetch_first(*reads)

    async def fetch_both(self, several: Read, first: Read) -> tuple[list[Row], Row | None]:
        if not self._waiting:
            return await super().fetch_both(several, first)
        _, rows = await self._send(several, first)
        return [row for row, _ in rows if row is not None], rows[0][1]

    async def fetch(self, text: str, *args: Any) -> list[Row]:
        await self.flush()
        return await super().fetch(text, *args)

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        this = statement.postgresql
        if this.refusable:
            await self.flush()
            args = [storable(params[name]) for name in this.names]
            count = await self._refusable(statement.name, this, args)
        else:
            await self._wait_with(statement, params, None)
            count = (await self._send())[0][-1]
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
        args = [storable(params[name]) for name in statement.postgresql.names]
        self._waiting.append(_Waiting(statement, args, missed, skipped))

    async def flush(self) -> None:
        """Execute the writes that wait."""
        if self._waiting:
            await self._send()

    async def _send(self, *reads: Read) -> tuple[list[int], list[list[Row | None]]]:
        """Execute the writes that wait, and reads with them: how many rows each write has touched,
        and what each row has of each read. There is one row at the least."""
        waiting, self._waiting = self._waiting, []
        args = [arg for each in waiting for arg in each.args]
        found: list[list[Row | None]] = []
        if not reads and len(waiting) == 1:
            this = waiting[0].statement.postgresql
            written = cast(list[Row], await self.connection.fetch(this.text, *args))
            counts = [self._count(this, written)]
        else:
            text = together.written(
                tuple(each.statement for each in waiting),
                tuple(statement for statement, _ in reads),
            )
            rows = cast(list[Row], await self.connection.fetch(text, *args, *_args(reads)))
            self.id = rows[0][0]
            behind = len(waiting) + 1
            counts = list(rows[0][1:behind])
            found = [_apart(reads, row[behind:]) for row in rows]
        for each, count in zip(waiting, counts, strict=True):
            if each.missed is not None and count != 1:
                raise each.missed
            if each.skipped is not None and not count:
                each.skipped()
        return counts, found

    async def _refusable(self, name: str, this: PostgresqlText, args: list[Any]) -> int:
        # Few statements are of this kind: an insert needs no savepoint.
        await self.connection.execute("SAVEPOINT refusable")
        try:
            return self._count(this, await self.connection.fetch(this.text, *args))
        except asyncpg.UniqueViolationError as error:
            await self.connection.execute("ROLLBACK TO refusable")
            raise Conflict(f"{name}: {error}") from None

    def _count(self, this: PostgresqlText, written: list[Row]) -> int:
        if this.deletes:
            ((count, id_),) = written
        else:
            count, id_ = len(written), written[0][0] if written else None
        self.id = id_ or self.id
        return int(count)

    def after_commit(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)

    @contextlib.asynccontextmanager
    async def _cursors(self) -> AsyncIterator[None]:
        yield

    def _text(self, this: PostgresqlText) -> str:
        return this.writing


def _args(reads: Sequence[Read]) -> list[Any]:
    return [params[name] for statement, params in reads for name in statement.postgresql.names]


def _apart(reads: Sequence[Read], row: Row) -> list[Row | None]:
    """What one row has of each of several reads, as `together` joins them."""
    found: list[Row | None] = []
    begin = 0
    for statement, _ in reads:
        end = begin + 1 + statement.width
        found.append(row[begin + 1 : end] if row[begin] else None)
        begin = end
    return found


def _up_to(max_bytes: int, rows: list[Row]) -> list[Row]:
    size = 0
    for number, row in enumerate(rows, 1):
        size += _size(row)
        if size >= max_bytes:
            return rows[:number]
    return rows


def _size(row: Row) -> int:
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def storable(value: Any) -> Any:
    """What is stored of a value: PostgreSQL's texts cannot hold the character 0.

    In JSON, as most of ours are, it is escaped.
    """
    if isinstance(value, str) and "\x00" in value:
        return value.replace("\x00", "\ufffd")
    return value
