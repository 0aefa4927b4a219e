"""How an installation moves: every row of every table into another database, and the proof of it.

Rows go in batches, so that memory does not grow with the tables, and into one transaction of the
target, so that a copy which was broken off has put nothing there. Before that is committed, the
target is read again: of each table, both sides have the same number of rows and the same checksum.

What only wakes somebody up is not copied: jobs are derived from the rows, and what keys have asked
for within the last minute is forgotten, as at a restart.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgspec
from sqlalchemy import Boolean, Table

from runbell.errors import ConfigurationError
from runbell.storage import schema

__all__ = ["TABLES", "Content", "Source", "SqliteRows", "Target", "copy"]

_OF_A_DATABASE = (schema.probes, schema.key_checks)
TABLES = tuple(each for each in schema.metadata.sorted_tables if each not in _OF_A_DATABASE)
"""What an installation is, in the order of the references between its tables. Which key the secrets
are encrypted with is said by these, and in the other database by the first to start there."""

BATCH_ROWS = 500
BATCH_BYTES = 1 << 20
"""What is held at a time: so many rows, or texts of this size and one row more."""

Values = tuple[Any, ...]


class Source(Protocol):
    """A database at one moment."""

    def rows(self, table: Table) -> AsyncIterator[Values]:
        """Every row of a table, in any order, with its columns in theirs."""
        ...

    async def end_of_feed(self) -> int:
        """A number that no position in the feed has reached, or will be in front of."""
        ...


class Target(Source, Protocol):
    """A database into which rows are put, in one transaction that is its owner's."""

    def stored(self, row: Values) -> Values:
        """What becomes of a row: where this database can't hold a text as it is."""
        ...

    async def add(self, table: Table, rows: Sequence[Values]) -> None:
        """Put rows into a table, with their positions.

        Raises:
            ConfigurationError: one of them can't be there.
        """
        ...

    async def go_on_behind(self, end_of_feed: int) -> None:
        """Let every number that the database gives from now on be behind those of the rows."""
        ...


@dataclass(slots=True)
class Content:
    """What a table holds, whatever the order of its rows.

    Attributes:
        rows: how many.
        replaced: how many of them the target holds otherwise than the source.
    """

    rows: int = 0
    replaced: int = 0
    _sum: int = 0

    def add(self, row: Values) -> None:
        """Count a row."""
        self.rows += 1
        self._sum += int.from_bytes(hashlib.sha256(_encode(row)).digest(), "big")

    @property
    def checksum(self) -> str:
        """The sum of the rows' SHA-256, in hexadecimal.

        A sum, since two databases sort the same texts in different orders; it tells apart what a
        mistake or a broken disk makes of rows, not what somebody forges.
        """
        return f"{self._sum % (1 << 256):064x}"


_encode = msgspec.msgpack.Encoder().encode


async def copy(source: Source, target: Target) -> dict[str, Content]:
    """Copy every table and read it again; what each holds, by its name.

    Raises:
        ConfigurationError: a row can't be in the target, or what is there now is not what was
            sent. Its owner does not commit, then.
    """
    sent = {table.name: await _copy_table(source, target, table) for table in TABLES}
    for table in TABLES:
        _compare(table.name, sent[table.name], await _content(target, table))
    await target.go_on_behind(await source.end_of_feed())
    return sent


async def _copy_table(source: Source, target: Target, table: Table) -> Content:
    content = Content()
    batch: list[Values] = []
    size = 0
    async for row in source.rows(table):
        stored = target.stored(row)
        content.add(stored)
        content.replaced += stored != row
        batch.append(stored)
        size += sum(len(value) for value in stored if isinstance(value, str | bytes))
        if len(batch) == BATCH_ROWS or size >= BATCH_BYTES:
            await target.add(table, batch)
            batch, size = [], 0
    if batch:
        await target.add(table, batch)
    return content


async def _content(source: Source, table: Table) -> Content:
    content = Content()
    async for row in source.rows(table):
        content.add(row)
    return content


def _compare(table: str, sent: Content, there: Content) -> None:
    if sent.rows != there.rows:
        raise ConfigurationError(
            f"{sent.rows} rows of {table} were copied, and {there.rows} are there: something in "
            "the target adds or leaves out rows; nothing was kept"
        )
    if sent.checksum != there.checksum:
        raise ConfigurationError(
            f"the {sent.rows} rows of {table} are not what was copied (their checksum is "
            f"{there.checksum[:16]}…, not {sent.checksum[:16]}…): something in the target changes "
            "rows; nothing was kept"
        )


class SqliteRows:
    """A SQLite file, inside a transaction of the caller's, as a source or as a target."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    async def rows(self, table: Table) -> AsyncIterator[Values]:
        columns = ", ".join(f'"{column.name}"' for column in table.c)
        # SQLite's booleans are numbers.
        switches = [n for n, column in enumerate(table.c) if isinstance(column.type, Boolean)]
        for row in self._connection.execute(f"SELECT {columns} FROM {table.name}"):  # noqa: S608 - ours
            if switches:
                values = list(row)
                for number in switches:
                    values[number] = bool(values[number])
                row = tuple(values)
            yield row

    async def end_of_feed(self) -> int:
        found = self._connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        row = found.fetchone()
        return cast(int, row[0]) + 1 if row is not None else 1

    def stored(self, row: Values) -> Values:
        return row

    async def add(self, table: Table, rows: Sequence[Values]) -> None:
        columns = ", ".join(f'"{column.name}"' for column in table.c)
        marks = ", ".join("?" * len(table.c))
        statement = f"INSERT INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608 - ours
        try:
            self._connection.executemany(statement, rows)
        except sqlite3.IntegrityError as error:
            raise ConfigurationError(f"a row of {table.name} cannot be there: {error}") from None

    async def go_on_behind(self, end_of_feed: int) -> None:
        self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
        self._connection.execute(
            "INSERT INTO sqlite_sequence (name, seq) VALUES ('events', ?)", (end_of_feed - 1,)
        )
