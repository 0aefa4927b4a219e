"""Whose turn it is within a run: what the inbox knows of a run, for `order` to decide on."""

from __future__ import annotations

import contextlib
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, literal_column, select, text, true, update

from runbell.errors import Conflict
from runbell.receiver import schema
from runbell.receiver.events import Envelope
from runbell.receiver.order import Around
from runbell.storage.statements import Statement, insert_row
from runbell.storage.store import Transaction

__all__ = ["advance", "around", "wake_first"]

_e, _r = schema.events.c, schema.runs.c
_waiting = text(schema.WAITING)
_nothing: ColumnElement[int] = literal_column("0")


def _one(query: Select[Any]) -> Any:
    return query.limit(literal_column("1")).offset(_nothing).scalar_subquery()


def _behind(column: Any, *which: Any) -> Any:
    return _one(
        select(column)
        .where(
            _e.subject == bindparam("run"), _e.sequence > bindparam("sequence_no"), _waiting, *which
        )
        .order_by(_e.sequence)
    )


AROUND = Statement(
    "inbox_runs.around",
    "How far a run is handled, when the first of its events that is in front of another one, and "
    "not done with, is due; and of those behind it: until when one is held, whether one was begun, "
    "and whether somebody waits for one.",
    select(
        _one(select(_r.handled).where(_r.run_id == bindparam("run"))),
        _one(
            select(_e.due_at_ms)
            .where(_e.subject == bindparam("run"), _e.sequence < bindparam("sequence_no"), _waiting)
            .order_by(_e.sequence)
        ),
        _behind(_e.due_at_ms, _e.claim.is_not(None)),
        _behind(_e.position, _e.attempts > _nothing),
        _behind(_e.position, _e.urgent == true()),
    ),
)
ADVANCE = Statement(
    "inbox_runs.advance",
    "A run is handled up to this number.",
    update(schema.runs)
    .values(handled=bindparam("sequence_no"), updated_at_ms=bindparam("now_ms"))
    .where(_r.run_id == bindparam("run"), _r.handled < bindparam("sequence_no")),
)
BEGIN = Statement("inbox_runs.begin", "The same, of a run that is new.", insert_row(schema.runs))
WAKE = Statement(
    "inbox_events.wake",
    "It may be the turn of the run's next event.",
    update(schema.events)
    .values(due_at_ms=bindparam("now_ms"))
    .where(
        _e.position
        == _one(
            select(_e.position)
            .where(_e.subject == bindparam("run"), _e.sequence.is_not(None), _waiting)
            .order_by(_e.sequence)
        ),
        _e.claim.is_(None),
        _e.attempts == _nothing,
    ),
)


async def around(tx: Transaction, envelope: Envelope) -> Around:
    """What is known of the run of an event that has a number."""
    row = await tx.fetch_one(AROUND, {"run": envelope.subject, "sequence_no": envelope.sequence})
    handled, ahead_due_ms, held_until_ms, begun, urgent = row or (None,) * 5
    return Around(handled or 0, ahead_due_ms, held_until_ms, begun is not None, urgent is not None)


async def wake_first(tx: Transaction, run: str | None, now_ms: int) -> None:
    """Look at once at the first event of a run that is not done with."""
    await tx.execute(WAKE, {"run": run, "now_ms": now_ms})


async def advance(tx: Transaction, envelope: Envelope, now_ms: int) -> None:
    """The run's next event need not wait for this one any more."""
    if envelope.sequence is None:
        return
    place = {"run": envelope.subject, "sequence_no": envelope.sequence, "now_ms": now_ms}
    if not await tx.execute(ADVANCE, place):
        with contextlib.suppress(Conflict):  # then it is further already
            await tx.execute(
                BEGIN,
                {
                    "run_id": envelope.subject,
                    "handled": envelope.sequence,
                    "updated_at_ms": now_ms,
                },
            )
    await wake_first(tx, envelope.subject, now_ms)
