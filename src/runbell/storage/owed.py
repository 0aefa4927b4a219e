"""What is owed to endpoints: from the event of a status change to the attempts to deliver it.

A new delivery is due at 0, in front of every retry, so that first attempts begin in the order in
which events were committed. How somebody looks at deliveries, and owes them anew, is in
`deliveries`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import bindparam, func, literal_column, select, text

from runbell.runs import Event
from runbell.storage import schema
from runbell.storage.deliveries import AT_ONCE, Attempt, DeliveryStatus
from runbell.storage.statements import Statement, insert_row, limited, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "Due",
    "Undelivered",
    "due",
    "due_by_endpoint",
    "next_due",
    "owe",
    "record",
    "undelivered",
]

MAX_BYTES = 1_000_000
"""Bodies of each kind that one look for what is due brings along: it ends with the one that
reaches this."""

_d = schema.deliveries.c
_e = schema.events.c
_w = schema.webhook_endpoints.c
_pending = text("deliveries.status = 'pending'")

INSERT = Statement("deliveries.owe", "An event is owed.", insert_row(schema.deliveries))
_DUE_COLUMNS = (
    _d.position,
    _d.id,
    _d.run_id,
    _d.type,
    _d.created_at_ms,
    _d.attempts,
    _d.failures,
    _d.since_ms,
    _d.next_at_ms,
)
NEW = Statement(
    "deliveries.new",
    "What an endpoint is owed and was not sent yet, in the order in which it was committed.",
    limited(
        select(*_DUE_COLUMNS)
        .where(
            _d.endpoint_id == bindparam("endpoint"),
            _pending,
            _d.next_at_ms == literal_column(str(AT_ONCE)),
        )
        .order_by(_d.position)
    ),
)
RETRIES = Statement(
    "deliveries.retries",
    "What is to be sent to an endpoint again, the longest due first.",
    limited(
        select(*_DUE_COLUMNS)
        .where(
            _d.endpoint_id == bindparam("endpoint"),
            _pending,
            _d.next_at_ms > literal_column(str(AT_ONCE)),
            _d.next_at_ms <= bindparam("now_ms"),
        )
        .order_by(_d.next_at_ms, _d.position)
    ),
)
BODY = Statement(
    "events.body", "The bytes of an event.", select(_e.body).where(_e.id == bindparam("key"))
)
NEXT_DUE = Statement(
    "deliveries.next_due",
    "When the next delivery to an endpoint is due, if that is enabled.",
    limited(
        select(_d.next_at_ms)
        .select_from(schema.deliveries.join(schema.webhook_endpoints, _w.id == _d.endpoint_id))
        .where(
            _d.endpoint_id == bindparam("endpoint"),
            _pending,
            _d.next_at_ms > bindparam("after_ms"),
            text("enabled"),
        )
        .order_by(_d.next_at_ms)
    ),
)
_soonest = (
    select(_d.next_at_ms)
    .where(_d.endpoint_id == _w.id, _pending)
    .order_by(_d.next_at_ms)
    .limit(literal_column("1"))
    .offset(literal_column("0"))
    .scalar_subquery()
)
DUE_BY_ENDPOINT = Statement(
    "deliveries.due_by_endpoint",
    "When the next delivery is due, for each enabled endpoint.",
    select(_w.id, _soonest).where(text("enabled")),
)
_oldest = (
    select(_d.created_at_ms)
    .where(_d.endpoint_id == _w.id, _pending, text("deliveries.status <> 'succeeded'"))
    .order_by(_d.position)
    .limit(literal_column("1"))
    .offset(literal_column("0"))
    .scalar_subquery()
)
_overdue = (
    select(func.count())
    .where(_d.endpoint_id == _w.id, _pending, _d.next_at_ms <= bindparam("now_ms"))
    .scalar_subquery()
)
UNDELIVERED = Statement(
    "deliveries.undelivered",
    "For each enabled endpoint: how many deliveries are due, the oldest that is pending, and when "
    "the first is due.",
    select(_overdue, _oldest, _soonest)
    .select_from(schema.webhook_endpoints)
    .where(text("enabled")),
)
RECORD = Statement(
    "deliveries.record",
    "What became of a delivery, if nobody has recorded this attempt, and it was not owed anew.",
    update_row(
        schema.deliveries, "status", "attempts", "failures", "next_at_ms", "settled_at_ms"
    ).where(
        _d.position == bindparam("delivery"),
        _pending,
        _d.attempts == bindparam("was_attempts"),
        _d.since_ms <= bindparam("owed_until_ms"),
    ),
)
COUNT = Statement(
    "deliveries.count",
    "One attempt more of a delivery that was owed anew meanwhile, if nobody has recorded it.",
    update_row(schema.deliveries, "attempts").where(
        _d.position == bindparam("delivery"), _pending, _d.attempts == bindparam("was_attempts")
    ),
)
ATTEMPT = Statement("attempts.insert", "One POST.", insert_row(schema.attempts))


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that is to be tried now, with the bytes to send."""

    position: int
    id: str
    run_id: str
    type: str
    created_at_ms: int
    attempts: int
    failures: int
    since_ms: int
    next_at_ms: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Undelivered:
    """What is owed to enabled endpoints.

    Attributes:
        due: deliveries whose time has come.
        due_since_ms: the time of the first of them; of one not tried yet, that of its event.
        oldest_ms: the time of the oldest event that is owed, due or not.
    """

    due: int
    due_since_ms: int | None
    oldest_ms: int | None


async def owe(tx: Transaction, endpoint_id: str, event: Event) -> None:
    """Owe an event to an endpoint. Raises Conflict where it is owed already."""
    await tx.later(
        INSERT,
        {
            "endpoint_id": endpoint_id,
            "id": event.id,
            "run_id": event.run_id,
            "type": event.type,
            "created_at_ms": event.created_at_ms,
            "status": "pending",
            "attempts": 0,
            "failures": 0,
            "since_ms": event.created_at_ms,
            "next_at_ms": AT_ONCE,
            "settled_at_ms": None,
        },
    )


async def due(
    tx: Transaction,
    endpoint_id: str,
    now_ms: int,
    limit: int,
    *,
    besides: Collection[int] = (),
    retries: bool = True,
) -> list[Due]:
    """What is to be sent to an endpoint now: new ones in their order, and a share of retries.

    Args:
        limit: how many of each of the two kinds at the most, so that neither waits for ever
            behind the other.
        besides: positions of those that the caller has already. However many they are, and however
            large, they stand in front of nothing.
        retries: those, too.
    """
    params = {"endpoint": endpoint_id, "limit": limit + len(besides)}
    found = await tx.fetch_all(NEW, params)
    new = await _with_bodies(tx, found, besides, limit)
    if not retries:
        return new
    found = await tx.fetch_all(RETRIES, {**params, "now_ms": now_ms})
    return new + await _with_bodies(tx, found, besides, limit)


async def _with_bodies(
    tx: Transaction, rows: list[Row], besides: Collection[int], limit: int
) -> list[Due]:
    wanted = [row for row in rows if row[0] not in besides][:limit]
    found: list[Due] = []
    size = 0
    for row in wanted:
        if size >= MAX_BYTES:
            break
        event = await tx.fetch_one(BODY, {"key": row[1]})
        if event is not None:
            found.append(Due(*(*row, *event)))
            size += len(event[0])
    return found


async def next_due(tx: Transaction, endpoint_id: str, after_ms: int = -1) -> int | None:
    """When the next delivery to an endpoint is due; None where none is, or it is disabled.

    Args:
        after_ms: later than this: what is due already does not count.
    """
    params = {"endpoint": endpoint_id, "after_ms": after_ms, "limit": 1}
    row = await tx.fetch_one(NEXT_DUE, params)
    return row[0] if row is not None else None


async def due_by_endpoint(tx: Transaction) -> list[tuple[str, int]]:
    """Enabled endpoints to which something is owed, and when the first of it is due."""
    rows = await tx.fetch_all(DUE_BY_ENDPOINT, {})
    return [(row[0], row[1]) for row in rows if row[1] is not None]


async def undelivered(tx: Transaction, now_ms: int) -> Undelivered:
    """What is owed to all enabled endpoints together."""
    rows = await tx.fetch_all(UNDELIVERED, {"now_ms": now_ms})
    oldest = [row[1] for row in rows if row[1] is not None]
    since = [row[2] or row[1] for row in rows if row[0]]
    return Undelivered(
        sum(row[0] for row in rows), min(since, default=None), min(oldest, default=None)
    )


async def record(
    tx: Transaction,
    due: Due,
    attempt: Attempt,
    *,
    status: DeliveryStatus,
    next_at_ms: int | None,
) -> bool:
    """Store what came of an attempt.

    Of a delivery that was owed anew since the attempt began, a failure is noted and changes
    nothing: whoever asked for it to be sent again does not mean this attempt.

    Args:
        due: the delivery, as it was when the attempt began.
        next_at_ms: of one that stays pending: when it is tried again.

    Returns:
        False where somebody else has recorded one meanwhile, or the delivery is gone; nothing was
        written then.
    """
    settled = status != "pending"
    which = {
        "delivery": due.position,
        "was_attempts": due.attempts,
        "attempts": attempt.number,
    }
    params = {
        **which,
        "owed_until_ms": schema.LAST_MS if status == "succeeded" else due.since_ms,
        "status": status,
        "failures": due.failures + (status != "succeeded"),
        "next_at_ms": next_at_ms,
        "settled_at_ms": attempt.at_ms + attempt.duration_ms if settled else None,
    }
    if await tx.execute(RECORD, params) != 1 and await tx.execute(COUNT, which) != 1:
        return False
    await tx.execute(
        ATTEMPT,
        {
            "delivery": due.position,
            "number": attempt.number,
            "at_ms": attempt.at_ms,
            "duration_ms": attempt.duration_ms,
            "status_code": attempt.status_code,
            "error": attempt.error,
            "excerpt": attempt.excerpt,
        },
    )
    return True
