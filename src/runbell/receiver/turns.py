"""Whose turn it is within a run: what the inbox knows of a run, for `order` to decide on.

Whoever decides on a run, or ends one of its events, holds the run until its unit of work has ended:
nobody decides on what somebody else is about to change. SQLite has one writer, who holds all runs.
On PostgreSQL, who wants to end an event waits for the run; who looks for work passes over those
that are held, waits for nobody, and so can't be part of a deadlock.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Select,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    text,
    true,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from runbell.receiver import schema
from runbell.receiver.events import Envelope
from runbell.receiver.order import Around
from runbell.storage.codec import to_json
from runbell.storage.statements import Statement
from runbell.storage.store import Transaction

__all__ = ["advance", "around", "hold", "hold_free", "wake_first"]

_e, _r = schema.events.c, schema.runs.c
_waiting = text(schema.WAITING)
_nothing: ColumnElement[int] = literal_column("0")


def _one(query: Select[Any]) -> Any:
    return query.limit(literal_column("1")).offset(_nothing).scalar_subquery()


def _key(run: Any) -> ColumnElement[int]:
    """The number of a run's lock; the seed keeps it apart from locks of other kinds."""
    return func.hashtextextended(run, literal_column("1384147039"))


def _further(insert: Any) -> Any:
    begun = insert.values(
        {name: bindparam(name) for name in ("run_id", "handled", "updated_at_ms")}
    )
    new = begun.excluded
    return begun.on_conflict_do_update(
        index_elements=[_r.run_id],
        set_={"handled": new.handled, "updated_at_ms": new.updated_at_ms},
        where=_r.handled < new.handled,
    )


_listed = func.json_each(bindparam("runs")).table_valued("key")
_numbered = (
    func.json_array_elements_text(cast(bindparam("runs"), JSON))
    .table_valued("value", with_ordinality="number")
    .render_derived(name="listed")
)
HOLD = Statement(
    "inbox_runs.hold",
    "Hold a run until the unit of work has ended, as soon as nobody else does.",
    select(_nothing),
    postgresql=select(func.pg_advisory_xact_lock(_key(bindparam("run")))),
)
HOLD_FREE = Statement(
    "inbox_runs.hold_free",
    "Hold those of several runs that nobody holds; which these are, counted from 1.",
    select(_listed.c.key + literal_column("1")),
    postgresql=select(_numbered.c.number).where(
        func.pg_try_advisory_xact_lock(_key(_numbered.c.value))
    ),
)


def _around(number: Any, run: Any, sequence: Any) -> Select[Any]:
    def behind(column: Any, *which: Any) -> Any:
        later = (_e.subject == run, _e.sequence > sequence, _waiting, *which)
        return _one(select(column).where(*later).order_by(_e.sequence))

    ahead = (_e.subject == run, _e.sequence < sequence, _waiting)
    return select(
        number,
        _one(select(_r.handled).where(_r.run_id == run)),
        _one(select(_e.due_at_ms).where(*ahead).order_by(_e.sequence)),
        behind(_e.due_at_ms, _e.claim.is_not(None)),
        behind(_e.position, _e.attempts > _nothing),
        behind(_e.position, _e.urgent == true()),
    )


_asked = func.json_each(bindparam("asked")).table_valued("key", "value")
_asked_there = (
    func.json_array_elements(cast(bindparam("asked"), JSON))
    .table_valued("value", with_ordinality="number")
    .render_derived(name="asked")
)
AROUND = Statement(
    "inbox_runs.around",
    "Of each of several events, numbered from 1: how far its run is handled, when the first of its "
    "events that is in front of this one, and not done with, is due; and of those behind it: until "
    "when one is held, whether one was begun, and whether somebody waits for one.",
    _around(
        _asked.c.key + literal_column("1"),
        func.json_extract(_asked.c.value, literal_column("'$[0]'")),
        func.json_extract(_asked.c.value, literal_column("'$[1]'")),
    ),
    postgresql=_around(
        _asked_there.c.number,
        _asked_there.c.value.op("->>")(_nothing),
        cast(_asked_there.c.value.op("->>")(literal_column("1")), _e.sequence.type),
    ),
)
ADVANCE = Statement(
    "inbox_runs.advance",
    "A run is handled up to this number; it may be new.",
    _further(sqlite.insert(schema.runs)),
    postgresql=_further(postgresql.insert(schema.runs)),
)
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


async def hold(tx: Transaction, envelope: Envelope) -> None:
    """Hold the run of an event, if it has a number within one, until the unit of work has ended."""
    if envelope.sequence is not None:
        await tx.fetch_one(HOLD, {"run": envelope.subject})


async def hold_free(tx: Transaction, runs: Iterable[str]) -> set[str]:
    """Hold those runs that nobody holds until the unit of work has ended; which these are."""
    listed = list(dict.fromkeys(runs))
    if not listed:
        return set()
    rows = await tx.fetch_all(HOLD_FREE, {"runs": to_json(listed)})
    return {listed[row[0] - 1] for row in rows}


async def around(tx: Transaction, envelopes: Sequence[Envelope]) -> list[Around]:
    """What is known of the run of each of these events, which have numbers."""
    asked = to_json([(each.subject, each.sequence) for each in envelopes])
    rows = sorted(await tx.fetch_all(AROUND, {"asked": asked}), key=itemgetter(0))
    return [
        Around(handled or 0, ahead_due_ms, held_until_ms, begun is not None, urgent is not None)
        for _, handled, ahead_due_ms, held_until_ms, begun, urgent in rows
    ]


async def wake_first(tx: Transaction, run: str | None, now_ms: int) -> None:
    """Look at once at the first event of a run that is not done with."""
    await tx.execute(WAKE, {"run": run, "now_ms": now_ms})


async def advance(tx: Transaction, envelope: Envelope, now_ms: int) -> None:
    """The run's next event need not wait for this one any more. The run is held."""
    if envelope.sequence is None:
        return
    run, sequence = envelope.subject, envelope.sequence
    # Together with what follows: the two have nothing to do with each other's tables.
    await tx.later(ADVANCE, {"run_id": run, "handled": sequence, "updated_at_ms": now_ms})
    await wake_first(tx, envelope.subject, now_ms)
