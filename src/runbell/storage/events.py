"""Events: appended in the transaction of their change, read in commit order."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, literal_column, select

from runbell.errors import UnknownCursor
from runbell.runs import Event
from runbell.storage import schema
from runbell.storage.statements import Statement, insert_row, limited
from runbell.storage.store import Transaction

__all__ = ["FeedRow", "append", "latest", "page"]

_e = schema.events.c

INSERT = Statement("events.append", "One status change of one run.", insert_row(schema.events))
CURSOR = Statement(
    "events.cursor",
    "Where in the feed an event stands.",
    select(_e.position).where(_e.project_id == bindparam("project"), _e.id == bindparam("key")),
)
_after = (_e.project_id == bindparam("project"), _e.position > bindparam("low"))
LATEST = Statement(
    "events.latest",
    "The project's newest event.",
    select(_e.id)
    .where(_e.project_id == bindparam("project"))
    .order_by(_e.position.desc())
    .limit(literal_column("1"))
    .offset(literal_column("0")),
)
PAGE = Statement(
    "events.page",
    "The project's events behind a position, in commit order.",
    limited(select(_e.id, _e.type, _e.body).where(*_after).order_by(_e.position)),
)
PAGE_OF_TYPES = Statement(
    "events.page_of_types",
    "The same, of certain types alone.",
    limited(
        select(_e.id, _e.type, _e.body)
        .where(
            *_after,
            # A fixed number of slots, so that the text is compiled once; unused slots repeat.
            _e.type.in_([bindparam(f"type{slot}") for slot in range(10)]),
        )
        .order_by(_e.position)
    ),
)


FeedRow = tuple[str, str, bytes]
"""An event's id, type and bytes."""


async def latest(tx: Transaction, project: str) -> str | None:
    """The id of the project's newest event."""
    row = await tx.fetch_one(LATEST, {"project": project})
    return row[0] if row is not None else None


async def append(tx: Transaction, event: Event) -> None:
    """Add an event. Raises Conflict where its run has an event of this number."""
    await tx.execute(
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
    low = 0
    if after is not None:
        row = await tx.fetch_one(CURSOR, {"project": project, "key": after})
        if row is None:
            raise UnknownCursor(after)
        low = row[0]
    params: dict[str, Any] = {"project": project, "low": low, "limit": limit + 1}
    statement = PAGE
    if types:
        statement = PAGE_OF_TYPES
        wanted = sorted(types)
        params |= {f"type{slot}": wanted[min(slot, len(wanted) - 1)] for slot in range(10)}
    rows = await tx.fetch_all(statement, params)
    return [(row[0], row[1], row[2]) for row in rows[:limit]], len(rows) > limit
