"""Events: appended in the transaction of their change, read in commit order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, literal_column, select, text

from runbell.errors import UnknownCursor
from runbell.runs import Event
from runbell.storage import schema
from runbell.storage.statements import Statement, insert_row, limited
from runbell.storage.store import Row, Transaction

__all__ = ["BEGINNING", "FeedRow", "append", "behind", "head", "newest", "page", "position", "tail"]

BEGINNING = "evt_0"
"""The cursor in front of every event: what a feed that has none yet goes on behind."""

_e = schema.events.c

INSERT = Statement("events.append", "One status change of one run.", insert_row(schema.events))
CURSOR = Statement(
    "events.cursor",
    "Where in the feed an event stands.",
    select(_e.position).where(_e.project_id == bindparam("project"), _e.id == bindparam("key")),
)
_after = (_e.project_id == bindparam("project"), _e.position > bindparam("low"))
# Behind the horizon is what has been committed, and what comes in front of it may not have been.
_SETTLED = text("events.position < runbell_feed_horizon()")
_newest = (
    select(_e.position, _e.id)
    .where(_e.project_id == bindparam("project"))
    .order_by(_e.position.desc())
    .limit(literal_column("1"))
    .offset(literal_column("0"))
)
NEWEST = Statement(
    "events.newest",
    "The project's newest event, and where in the feed it stands.",
    _newest,
    postgresql=_newest.where(_SETTLED),
)
_page = limited(select(_e.id, _e.type, _e.body, _e.position).where(*_after).order_by(_e.position))
PAGE = Statement(
    "events.page",
    "The project's events behind a position, in commit order.",
    _page,
    postgresql=_page.where(_SETTLED),
)
# A fixed number of slots, so that the text is compiled once; unused slots repeat.
_page_of_types = _page.where(_e.type.in_([bindparam(f"type{slot}") for slot in range(10)]))
PAGE_OF_TYPES = Statement(
    "events.page_of_types",
    "The same, of certain types alone.",
    _page_of_types,
    postgresql=_page_of_types.where(_SETTLED),
)


FeedRow = tuple[str, str, bytes]
"""An event's id, type and bytes."""


async def newest(tx: Transaction, project: str) -> int:
    """The position of the project's newest event; 0 where there is none."""
    row = await tx.fetch_one(NEWEST, {"project": project})
    return row[0] if row is not None else 0


async def head(tx: Transaction, project: str) -> tuple[int, str]:
    """The position of the project's newest event, and its id; `BEGINNING` where there is none."""
    row = await tx.fetch_one(NEWEST, {"project": project})
    return (row[0], row[1]) if row is not None else (0, BEGINNING)


async def position(tx: Transaction, project: str, event_id: str) -> int:
    """The position of an event. Raises UnknownCursor where the project's feed has no such event."""
    if event_id == BEGINNING:
        return 0
    row = await tx.fetch_one(CURSOR, {"project": project, "key": event_id})
    if row is None:
        raise UnknownCursor(event_id)
    return int(row[0])


async def append(tx: Transaction, event: Event) -> None:
    """Add an event. Raises Conflict where its run has an event of this number."""
    await tx.later(
        INSERT,
        {
            "project_id": event.project_id,
            "id": event.id,
            "run_id": event.run_id,
            "sequence": event.sequence,
            "type": event.type,
            "created_at_ms": event.created_at_ms,
            "body": event.body,
        },
    )


async def page(
    tx: Transaction,
    project: str,
    *,
    after: str | None,
    types: frozenset[str] | None,
    limit: int,
) -> tuple[list[FeedRow], bool]:
    """The events behind `after`, in commit order, and whether there are more.

    Args:
        after: the id of an event; None begins with the oldest that is kept.
        types: only events of these types; None for all.
        limit: how many at the most.

    Raises:
        UnknownCursor: the project's feed has no such event.
    """
    low = 0 if after is None else await position(tx, project, after)
    rows = await _rows(tx, project, low, types, limit)
    return [_feed_row(row) for row in rows[:limit]], len(rows) > limit


async def behind(
    tx: Transaction, project: str, *, low: int, types: frozenset[str] | None, limit: int
) -> tuple[list[FeedRow], int, bool]:
    """The events behind a position: themselves, up to where they were read, whether there are more.

    Who reads on from that position sees each event once, and does not look again at those of other
    types; nor does it matter that an event which was read is not kept any more.
    """
    # Asked before the rows: what is committed between the two statements is not passed over.
    seen = await newest(tx, project)
    rows = await _rows(tx, project, low, types, limit)
    more = len(rows) > limit
    rows = rows[:limit]
    last = rows[-1][3] if rows else low
    return [_feed_row(row) for row in rows], last if more else max(last, seen), more


async def tail(
    tx: Transaction, project: str, *, low: int, limit: int
) -> tuple[list[tuple[int, FeedRow]], bool]:
    """The events behind a position, each with its own, and whether there are more."""
    rows = await _rows(tx, project, low, None, limit)
    return [(row[3], _feed_row(row)) for row in rows[:limit]], len(rows) > limit


async def _rows(
    tx: Transaction, project: str, low: int, types: frozenset[str] | None, limit: int
) -> list[Row]:
    params: dict[str, Any] = {"project": project, "low": low, "limit": limit + 1}
    statement = PAGE
    if types:
        statement = PAGE_OF_TYPES
        wanted = sorted(types)
        params |= {f"type{slot}": wanted[min(slot, len(wanted) - 1)] for slot in range(10)}
    return await tx.fetch_all(statement, params)


def _feed_row(row: Row) -> FeedRow:
    return (row[0], row[1], row[2])
