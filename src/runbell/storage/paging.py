"""How lists are cut into pages: by the position of a cursor row, in either direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Column, Table, bindparam, literal_column, select
from sqlalchemy.sql.elements import ColumnElement, TextClause

from runbell.errors import UnknownCursor
from runbell.storage.schema import LAST_MS
from runbell.storage.statements import Statement, limited, select_row
from runbell.storage.store import Row, Transaction

__all__ = ["Page", "PagedList", "created", "created_span"]

MAX_PAGE_BYTES = 16_000_000
"""A page ends early, and says that there is more, when its texts have this size."""


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a list is wanted.

    Attributes:
        limit: how many rows at the most.
        order: by time of insertion, oldest (`asc`) or newest (`desc`) first.
        after: start behind the row with this id.
        before: end in front of the row with this id: the page just before it.
    """

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


class PagedList:
    """A list of one table's rows that belong to the same owner, in order of insertion.

    Args:
        name: the statements' name, `table.list`.
        table: has columns `id` and `position`.
        owner: the conditions that make up the list, with their parameters.
        few: there are never many rows; they are found by what they are, and then sorted.
    """

    def __init__(
        self,
        name: str,
        table: Table,
        *owner: ColumnElement[bool] | TextClause,
        few: bool = False,
    ) -> None:
        position: Column[Any] = table.c.position
        self._cursor = Statement(
            f"{name}.cursor",
            "Where in the list the row with this id stands.",
            select(position).where(*owner, table.c.id == bindparam("cursor")),
        )
        rows = select_row(table).where(*owner)
        # An expression, which no index has, keeps the planner from reading all rows in their order.
        order = position + literal_column("0") if few else position
        low, high = position > bindparam("low"), position < bindparam("high")
        self._pages: dict[tuple[str, bool, bool], Statement] = {}
        for direction, ordering in (("asc", order.asc()), ("desc", order.desc())):
            for has_low in (False, True):
                for has_high in (False, True):
                    bounds = [*([low] if has_low else []), *([high] if has_high else [])]
                    self._pages[direction, has_low, has_high] = Statement(
                        f"{name}.{direction}",
                        "A page of the list.",
                        limited(rows.where(*bounds).order_by(ordering)),
                    )

    async def fetch(
        self, tx: Transaction, page: Page, owner: dict[str, Any]
    ) -> tuple[list[Row], bool]:
        """The page's rows in the order that was asked for, and whether the list goes on.

        With `before` alone, "goes on" means: towards the beginning.

        Raises:
            UnknownCursor: the list has no such row.
        """
        after = await self._position(tx, page.after, owner)
        before = await self._position(tx, page.before, owner)
        low, high = (after, before) if page.order == "asc" else (before, after)
        params = dict(owner)
        if low is not None:
            params["low"] = low
        if high is not None:
            params["high"] = high
        backwards = before is not None and after is None
        direction = page.order if not backwards else _OPPOSITE[page.order]
        params["limit"] = page.limit + 1
        statement = self._pages[direction, low is not None, high is not None]
        rows = await tx.fetch_all(statement, params, MAX_PAGE_BYTES)
        size = sum(len(value) for row in rows for value in row if isinstance(value, str | bytes))
        more = len(rows) > page.limit or size >= MAX_PAGE_BYTES
        rows = rows[: page.limit]
        if backwards:
            rows.reverse()
        return rows, more

    async def _position(
        self, tx: Transaction, cursor: str | None, owner: dict[str, Any]
    ) -> int | None:
        if cursor is None:
            return None
        row = await tx.fetch_one(self._cursor, {**owner, "cursor": cursor})
        if row is None:
            raise UnknownCursor(cursor)
        position: int = row[0]
        return position


def created(table: Table) -> tuple[ColumnElement[bool], ...]:
    """The conditions that a row was created within a `created_span`."""
    created_at_ms: Column[int] = table.c.created_at_ms
    return created_at_ms >= bindparam("created_from"), created_at_ms < bindparam("created_before")


def created_span(from_ms: int | None, before_ms: int | None) -> dict[str, int]:
    """The parameters of `created`: from a moment on, and before another; None is no bound."""
    return {
        "created_from": from_ms or 0,
        "created_before": LAST_MS if before_ms is None else before_ms,
    }


_OPPOSITE = {"asc": "desc", "desc": "asc"}
