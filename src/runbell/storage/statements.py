"""One source of SQL text: statements that are written once and compiled once for each database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.sql import ClauseElement, bindparam, insert, literal_column, select, update
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.dml import Delete, Insert, Update, UpdateBase
from sqlalchemy.sql.selectable import Select

TRANSACTION = "pg_current_xact_id()::text"
"""What rows that are written tell: in which transaction. To ask for it costs nothing here, and
a request at each commit; it is needed when a commit was not answered."""

__all__ = ["PostgresqlText", "Statement", "insert_row", "limited", "select_row", "update_row"]


@dataclass(frozen=True, slots=True)
class PostgresqlText:
    """A statement as PostgreSQL takes it.

    Attributes:
        text: with `$1`, `$2`, … for its parameters.
        writing: the same for a unit of work that writes: with the lock on what it reads, if it
            is to have one.
        names: of the parameters, in the order of their numbers.
        inserts: it adds a row, or none where a unique key is taken.
        deletes: it returns how many rows it has deleted, in which transaction.
        refusable: it changes a row, and a unique key may be in its way.
        bare: the text without what it tells of the rows: to be part of a larger one.
    """

    text: str
    writing: str
    names: tuple[str, ...]
    inserts: bool
    deletes: bool
    refusable: bool
    bare: str


class Statement:
    """A SQL statement with a name and a sentence that says what it is for.

    Args:
        name: for logs and metrics, `table.verb`.
        purpose: what the statement does, in a sentence.
        clause: the statement itself; every value in it is a `bindparam` with a name.
        postgresql: the same where PostgreSQL needs it in other words.
        locks: what a unit that writes reads with this, it is about to change: until it has ended,
            others that would do so too have to wait. SQLite has one writer, and needs no lock.
        refusable: a row that is changed may come into conflict with another's unique key.
        apart: what the unit itself has written does not change what is read: it may be asked
            together with the writes that wait.
    """

    __slots__ = ("__dict__", "apart", "clause", "locks", "name", "other", "purpose", "refusable")

    def __init__(
        self,
        name: str,
        purpose: str,
        clause: ClauseElement,
        *,
        postgresql: ClauseElement | None = None,
        locks: bool = False,
        refusable: bool = False,
        apart: bool = False,
    ) -> None:
        self.name = name
        self.purpose = purpose
        self.clause = clause
        self.other = postgresql
        self.locks = locks
        self.refusable = refusable
        self.apart = apart

    def __repr__(self) -> str:
        return f"<Statement {self.name}>"

    @cached_property
    def sqlite(self) -> str:
        """The text for SQLite, with `:name` parameters."""
        compiled = self.clause.compile(dialect=sqlite.dialect(paramstyle="named"))
        self._check(compiled.params)
        return str(compiled)

    @cached_property
    def postgresql(self) -> PostgresqlText:
        """The text for PostgreSQL, with numbered parameters."""
        clause = self.clause if self.other is None else self.other
        if isinstance(clause, Insert):
            # Without it, SQLAlchemy would have the database's own values returned.
            clause = clause.inline()
        dialect = PGDialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call] # theirs
        compiled = cast(SQLCompiler, clause.compile(dialect=dialect))
        self._check(compiled.params)
        text = str(compiled)
        # One that changes the row which is there already says so itself.
        inserts = isinstance(clause, Insert) and " ON CONFLICT " not in text
        if inserts:
            # A violated key would end the whole transaction, and the unit may go on.
            text += " ON CONFLICT DO NOTHING"
        bare = text
        if isinstance(clause, Insert | Update):
            text += f" RETURNING {TRANSACTION}"
        elif isinstance(clause, Delete):
            # Of any number of rows one is returned.
            text = (
                f"WITH gone AS ({text} RETURNING 1) "  # noqa: S608 - compiled from ours
                f"SELECT count(*), CASE WHEN count(*) > 0 THEN {TRANSACTION} END FROM gone"
            )
        return PostgresqlText(
            text,
            f"{text} FOR NO KEY UPDATE" if self.locks else text,
            tuple(compiled.positiontup or ()),
            inserts,
            isinstance(clause, Delete),
            self.refusable,
            bare,
        )

    @cached_property
    def width(self) -> int:
        """How many columns are read."""
        assert isinstance(self.clause, Select), f"{self.name} does not read"
        return len(self.clause.selected_columns)

    @cached_property
    def table(self) -> str:
        """The table that is written."""
        assert isinstance(self.clause, UpdateBase), f"{self.name} only reads"
        return str(self.clause.table)

    def _check(self, params: Mapping[str, Any]) -> None:
        hidden = [name for name, value in params.items() if value is not None]
        if hidden:
            raise TypeError(f"{self.name} has values that are no named parameters: {hidden}")


def insert_row(table: Table) -> Insert:
    """An insert of every column but the database's own `position`."""
    return insert(table).values(
        {column.name: bindparam(column.name) for column in table.c if column.name != "position"}
    )


def select_row(table: Table, *without: str) -> Select[Any]:
    """A select of every column but `position`, in the order of the table."""
    return select(*(c for c in table.c if c.name != "position" and c.name not in without))


def update_row(table: Table, *columns: str) -> Update:
    """An update that sets these columns from parameters of the same name."""
    return update(table).values({name: bindparam(name) for name in columns})


def limited(query: Select[Any]) -> Select[Any]:
    """The query with a parameter `limit`."""
    # SQLAlchemy would otherwise add an offset as a parameter with a name of its own.
    return query.limit(bindparam("limit")).offset(literal_column("0"))
