"""Who holds a thread: one run at a time, and behind it those that wait for their turn."""

from __future__ import annotations

from sqlalchemy import bindparam, func, literal_column, select, text

from runbell.errors import StaleWrite
from runbell.storage import runs, schema
from runbell.storage.codec import JsonColumn
from runbell.storage.records import Message
from runbell.storage.runs import RunRecord
from runbell.storage.statements import Statement, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "active",
    "live",
    "next_waiting",
    "pending_messages",
    "readable",
    "take_turn",
    "waiting",
]

_r = schema.runs.c
_live = text(schema.LIVE)

ACTIVE = Statement(
    "runs.active",
    "The run that holds a thread.",
    select(_r.id).where(_r.thread_id == bindparam("thread"), text(schema.ACTIVE)),
    locks=True,
)
NEXT_WAITING = Statement(
    "runs.next_waiting",
    "The run whose turn comes when the thread's active run ends.",
    # As text, in the words of the partial index.
    runs.ROW.where(_r.thread_id == bindparam("thread"), text("waits_turn"), _live)
    .order_by(_r.position)
    .limit(literal_column("1"))
    .offset(literal_column("0")),
)
TAKE_TURN = Statement(
    "runs.take_turn",
    "Let a waiting run hold its thread.",
    update_row(schema.runs, "waits_turn", "pending_messages").where(
        _r.id == bindparam("key"), _r.waits_turn, _live
    ),
    refusable=True,
)
PENDING_MESSAGES = Statement(
    "runs.pending_messages",
    "The messages that a waiting run will add.",
    select(_r.pending_messages).where(_r.id == bindparam("key")),
)
LIVE_OF_THREAD = Statement(
    "runs.live",
    "A thread's runs that have not ended, the waiting ones first.",
    runs.ROW.where(_r.thread_id == bindparam("thread"), _live).order_by(
        _r.waits_turn.desc(), _r.position
    ),
)
WAITING = Statement(
    "runs.waiting",
    "How many runs wait for a thread.",
    select(func.count())
    .select_from(schema.runs)
    # As text, in the words of the partial index.
    .where(_r.thread_id == bindparam("thread"), text("waits_turn"), _live),
)

_messages = JsonColumn(tuple[Message, ...])


async def active(tx: Transaction, thread_id: str) -> str | None:
    """The id of the run that holds the thread."""
    row = await tx.fetch_one(ACTIVE, {"thread": thread_id})
    return row[0] if row is not None else None


async def next_waiting(tx: Transaction, thread_id: str) -> RunRecord | None:
    """The run whose turn it is when the thread becomes free."""
    row = await tx.fetch_one(NEXT_WAITING, {"thread": thread_id})
    return await readable(tx, thread_id, row)


async def readable(tx: Transaction, thread_id: str, row: Row | None) -> RunRecord | None:
    """What the row of `NEXT_WAITING` says. Where nobody can read that, the next run that can be
    read has its turn: a row that is broken keeps neither the run in front of it from ending nor
    those behind it from beginning."""
    if row is None:
        return None
    found = list(runs.readable((row,)))
    if not found:
        rows = await tx.fetch_all(LIVE_OF_THREAD, {"thread": thread_id})
        found = [record for record in runs.readable(rows) if record.run.waits_turn]
    return found[0] if found else None


async def pending_messages(tx: Transaction, run_id: str) -> tuple[Message, ...]:
    """The messages that a waiting run adds when its turn comes."""
    row = await tx.fetch_one(PENDING_MESSAGES, {"key": run_id})
    if row is None or row[0] is None:
        return ()
    messages: tuple[Message, ...] = _messages.decode(row[0])
    return messages


async def take_turn(tx: Transaction, run_id: str) -> None:
    """Let a waiting run hold its thread.

    Raises:
        Conflict: the thread is held.
        StaleWrite: the run does not wait any more.
    """
    params = {"key": run_id, "waits_turn": False, "pending_messages": None}
    if await tx.execute(TAKE_TURN, params) != 1:
        raise StaleWrite(f"{run_id} does not wait for its turn any more")


async def live(tx: Transaction, thread_id: str) -> list[RunRecord]:
    """A thread's runs that have not ended, the waiting ones first."""
    rows = await tx.fetch_all(LIVE_OF_THREAD, {"thread": thread_id})
    return [runs.record_of(row) for row in rows]


async def waiting(tx: Transaction, thread_id: str) -> int:
    """How many runs wait for a thread."""
    row = await tx.fetch_one(WAITING, {"thread": thread_id})
    return int(row[0]) if row is not None else 0
