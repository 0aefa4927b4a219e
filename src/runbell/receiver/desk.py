"""What an operator asks of an inbox, and how it forgets: units of work, for every database."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Text,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    null,
    select,
    text,
    true,
    update,
)

from runbell.errors import Conflict
from runbell.receiver import schema
from runbell.storage.statements import Statement, insert_row, limited
from runbell.storage.store import Row, Transaction

__all__ = [
    "Entry",
    "Load",
    "Other",
    "Removed",
    "body_at",
    "cursor",
    "entries",
    "entry",
    "load",
    "move_cursor",
    "newest",
    "news",
    "now",
    "of_subject",
    "others",
    "prune",
    "replay",
    "replay_dead",
]

_e, _o, _r, _c = schema.events.c, schema.others.c, schema.runs.c, schema.cursors.c
_once = schema.once.c
_waiting, _dead = text(schema.WAITING), text(schema.DEAD)
_nothing: ColumnElement[int] = literal_column("0")

_COLUMNS = (
    _e.position,
    _e.id,
    _e.type,
    _e.subject,
    _e.sequence,
    _e.state,
    _e.claim,
    _e.attempts,
    _e.due_at_ms,
    _e.received_at_ms,
    _e.ended_at_ms,
    _e.origin,
    _e.error,
)

LIST = Statement(
    "inbox_events.list",
    "The newest events, in all states or in one.",
    limited(
        select(*_COLUMNS)
        .where(
            # PostgreSQL has to be told of what type a parameter is that may be nothing.
            (cast(bindparam("wanted"), Text).is_(None)) | (_e.state == bindparam("wanted")),
        )
        .order_by(_e.position.desc())
    ),
)
LIST_DEAD = Statement(
    "inbox_events.list_dead",
    "The newest dead letters.",
    limited(select(*_COLUMNS).where(_dead).order_by(_e.position.desc())),
)
SHOW = Statement(
    "inbox_events.show",
    "One event with its body.",
    select(*_COLUMNS, _e.body).where(_e.id == bindparam("key")),
)
OTHERS = Statement(
    "inbox_others.list",
    "Other bodies that came under an id.",
    limited(
        select(_o.received_at_ms, _o.body).where(_o.id == bindparam("key")).order_by(_o.position)
    ),
)
_again = {
    "state": literal_column("'waiting'"),
    "claim": null(),
    "attempts": _nothing,
    "done": null(),
    "forced": true(),
    "ended_at_ms": null(),
}
NOW = Statement(
    "inbox.now",
    "What time it is: a file's machine says so, and a server, for all who use it.",
    select(literal_column("CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)")),
    postgresql=select(
        literal_column("CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)")
    ),
)
REPLAY = Statement(
    "inbox_events.replay",
    "Handle an event once more, whatever came after it; not one that is being handled.",
    update(schema.events)
    .values(**_again, due_at_ms=bindparam("now_ms"))
    .where(
        _e.id == bindparam("key"),
        _e.type.is_not(None),
        _e.claim.is_(None) | (_e.due_at_ms <= bindparam("now_ms")),
    ),
)
REPLAY_DEAD = Statement(
    "inbox_events.replay_dead",
    "The same, of every dead letter that is an event.",
    update(schema.events)
    .values(**_again, due_at_ms=bindparam("now_ms"))
    .where(_dead, _e.type.is_not(None)),
)
LOAD = Statement(
    "inbox_events.load",
    "How much waits, since when the oldest is due, and how many are dead.",
    select(
        select(func.count()).where(_waiting).select_from(schema.events).scalar_subquery(),
        select(func.min(_e.due_at_ms)).where(_waiting).scalar_subquery(),
        select(func.count()).where(_dead).select_from(schema.events).scalar_subquery(),
    ),
)
NEWEST = Statement(
    "inbox_events.newest", "Where the newest event stands.", select(func.max(_e.position))
)
NEWS = Statement(
    "inbox_events.news",
    "What was stored behind a position: about what.",
    limited(
        select(_e.position, _e.subject).where(_e.position > bindparam("low")).order_by(_e.position)
    ),
)
BODY = Statement(
    "inbox_events.body_at",
    "The bytes of an event.",
    select(_e.body).where(_e.position == bindparam("place")),
)
OF_SUBJECT = Statement(
    "inbox_events.of_subject",
    "What was stored about a run, a response or a batch, in its order.",
    limited(
        select(_e.body, _e.position)
        .where(_e.subject == bindparam("about"))
        .order_by(_e.sequence, _e.position)
    ),
)
CURSOR = Statement(
    "inbox_cursors.find",
    "How far a feed was read.",
    select(_c.event_id).where(_c.feed == bindparam("name")),
)
MOVE = Statement(
    "inbox_cursors.move",
    "A feed was read further.",
    update(schema.cursors)
    .values(event_id=bindparam("key"), updated_at_ms=bindparam("now_ms"))
    .where(_c.feed == bindparam("name")),
)
START = Statement(
    "inbox_cursors.start",
    "A feed was read for the first time.",
    insert_row(schema.cursors),
)
FORGET = Statement(
    "inbox_events.forget",
    "Remove those of the first few events that are too old. They stand in the order of their time, "
    "so that this needs no index.",
    delete(schema.events).where(
        _e.position.in_(limited(select(_e.position).order_by(_e.position))),
        _e.received_at_ms < bindparam("before_ms"),
    ),
)
UNHEARD = Statement(
    "inbox_events.unheard",
    "How many of those were never handled.",
    select(func.count()).where(
        _e.position.in_(limited(select(_e.position).order_by(_e.position))),
        _e.received_at_ms < bindparam("before_ms"),
        _waiting,
    ),
)


def _old(key: Any, at_ms: Any) -> Any:
    old = select(key).where(at_ms < bindparam("before_ms")).order_by(at_ms)
    return delete(key.table).where(key.in_(limited(old)))


FORGET_OTHERS = Statement(
    "inbox_others.forget",
    "Remove other bodies that are too old.",
    _old(_o.position, _o.received_at_ms),
)
FORGET_RUNS = Statement(
    "inbox_runs.forget",
    "Remove runs of which nothing was heard for too long.",
    _old(_r.run_id, _r.updated_at_ms),
)
FORGET_ONCE = Statement(
    "inbox_once.forget",
    "Remove side effects that happened too long ago.",
    _old(_once.key, _once.done_at_ms),
)

MOST_OF_SUBJECT = 1_000
"""Events of one run that are told to whoever begins to wait for it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One event in the inbox, as an operator sees it. Stamps are milliseconds since the epoch.

    Attributes:
        state: `waiting`, `handled`, `unhandled` (there was no handler for it), `stale` (a later
            event of its run was handled first), or `dead`.
        held: somebody handles it now.
        due_at_ms: when it is tried; while it is held, when its holder loses it.
    """

    position: int
    id: str
    type: str | None
    subject: str | None
    sequence: int | None
    state: str
    held: bool
    attempts: int
    due_at_ms: int
    received_at_ms: int
    ended_at_ms: int | None
    origin: str
    error: str | None


@dataclass(frozen=True, slots=True)
class Other:
    """Another body that came under an id, validly signed; it is kept and not handled."""

    received_at_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """How much there is to do. `oldest_due_ms` is None where nothing waits."""

    waiting: int
    oldest_due_ms: int | None
    dead: int


@dataclass(frozen=True, slots=True)
class Removed:
    """What was forgotten.

    Attributes:
        unheard: how many of the events had never been handled.
        full: there may be more that is too old.
    """

    unheard: int = 0
    full: bool = True


async def entries(tx: Transaction, *, state: str | None = None, limit: int = 50) -> list[Entry]:
    """The newest events, in all states or in one."""
    params: dict[str, Any] = {"limit": limit}
    if state == "dead":
        return [_entry(row) for row in await tx.fetch_all(LIST_DEAD, params)]
    return [_entry(row) for row in await tx.fetch_all(LIST, params | {"wanted": state})]


async def entry(tx: Transaction, event_id: str) -> tuple[Entry, bytes] | None:
    """One event and its bytes."""
    row = await tx.fetch_one(SHOW, {"key": event_id})
    return None if row is None else (_entry(row[:-1]), row[-1])


async def others(tx: Transaction, event_id: str, limit: int = 10) -> list[Other]:
    """The other bodies that came under an id."""
    rows = await tx.fetch_all(OTHERS, {"key": event_id, "limit": limit})
    return [Other(*row) for row in rows]


async def now(tx: Transaction) -> int:
    """What time it is for those who share the inbox, in milliseconds since the epoch."""
    row = await tx.fetch_one(NOW, {})
    return int(row[0]) if row is not None else 0


async def replay(tx: Transaction, event_id: str, now_ms: int) -> bool:
    """Have an event handled once more; False where there is none, it is no event, or it is held."""
    return bool(await tx.execute(REPLAY, {"key": event_id, "now_ms": now_ms}))


async def replay_dead(tx: Transaction, now_ms: int) -> int:
    """Have every dead letter handled once more; how many those are."""
    return await tx.execute(REPLAY_DEAD, {"now_ms": now_ms})


async def load(tx: Transaction) -> Load:
    row = await tx.fetch_one(LOAD, {})
    return Load(*row) if row is not None else Load(0, None, 0)


async def newest(tx: Transaction) -> int:
    """The position of the newest event; 0 where there is none."""
    row = await tx.fetch_one(NEWEST, {})
    return (row[0] or 0) if row is not None else 0


async def news(tx: Transaction, after: int, limit: int) -> list[tuple[int, str | None]]:
    """What was stored behind a position: positions, and about what."""
    rows = await tx.fetch_all(NEWS, {"low": after, "limit": limit})
    return [(row[0], row[1]) for row in rows]


async def body_at(tx: Transaction, position: int) -> bytes | None:
    """The bytes of the event at a position."""
    row = await tx.fetch_one(BODY, {"place": position})
    return None if row is None else row[0]


async def of_subject(tx: Transaction, subject: str) -> list[tuple[bytes, int]]:
    """The bytes of all events about one thing, in its order, and their positions."""
    rows = await tx.fetch_all(OF_SUBJECT, {"about": subject, "limit": MOST_OF_SUBJECT})
    return [(row[0], row[1]) for row in rows]


async def cursor(tx: Transaction, feed: str) -> str | None:
    """The id of the last event that was read from a feed."""
    row = await tx.fetch_one(CURSOR, {"name": feed})
    return None if row is None else row[0]


async def move_cursor(tx: Transaction, feed: str, event_id: str, now_ms: int) -> None:
    """A feed was read up to this event."""
    place = {"name": feed, "key": event_id, "now_ms": now_ms}
    if not await tx.execute(MOVE, place):
        first = {"feed": feed, "event_id": event_id, "updated_at_ms": now_ms}
        with contextlib.suppress(Conflict):  # somebody else reads it too, and was there first
            await tx.execute(START, first)


async def prune(tx: Transaction, *, before_ms: int, limit: int) -> Removed:
    """Forget what came before a moment, `limit` of each kind at the most."""
    first = {"before_ms": before_ms, "limit": limit}
    row = await tx.fetch_one(UNHEARD, first)
    removed = [
        await tx.execute(statement, first)
        for statement in (FORGET, FORGET_OTHERS, FORGET_RUNS, FORGET_ONCE)
    ]
    return Removed(row[0] if row is not None else 0, max(removed) == limit)


def _entry(row: Sequence[Any] | Row) -> Entry:
    position, event_id, kind, subject, sequence, state, claim, *rest = row
    held = state == "waiting" and claim is not None
    return Entry(position, event_id, kind, subject, sequence, state, held, *rest)
