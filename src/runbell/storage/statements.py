"""One source of SQL text: statements that are written once and compiled once for each database."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.sql import ClauseElement, bindparam, insert, literal_column, select, update
from sqlalchemy.sql.dml import Insert, Update
from sqlalchemy.sql.selectable import Select

__all__ = ["Statement", "insert_row", "limited", "select_row", "update_row"]


class Statement:
    """A SQL statement with a name and a sentence that says what it is for.

    Args:
        name: for logs and metrics, `table.verb`.
        purpose: what the statement does, in a sentence.
        clause: the statement itself; every value in it is a `bindparam` with a name.
    """

    __slots__ = ("__dict__", "clause", "name", "purpose")

    def __init__(self, name: str, purpose: str, clause: ClauseElement) -> None:
        self.name = name
        self.purpose = purpose
        self.clause = clause

    def __repr__(self) -> str:
        return f"<Statement {self.name}>"

    @cached_property
    def sqlite(self) -> str:
        """The text for SQLite, with `:name` parameters."""
        compiled = self.clause.compile(dialect=sqlite.dialect(paramstyle="named"))
        hidden = [name for name, value in compiled.params.items() if value is not None]
        if hidden:
            raise TypeError(f"{self.name} has values that are no named parameters: {hidden}")
        return str(compiled)


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
