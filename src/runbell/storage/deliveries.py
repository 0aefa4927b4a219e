"""Deliveries: events that are owed to endpoints, and the attempts to deliver them.

A delivery's id is its event's: what a receiver sees as `webhook-id`. A new delivery is due at 0,
in front of every retry, so that first attempts begin in the order in which events were committed.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import bindparam, case, func, literal_column, null, select, text, update

from runbell.runs import Event
from runbell.storage import schema
from runbell.storage.paging import Page, PagedList
from runbell.storage.statements import Statement, insert_row, limited, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "AT_ONCE",
    "Attempt",
    "Delivery",
    "DeliveryFilter",
    "DeliveryStatus",
    "Due",
    "Undelivered",
    "attempts_of",
    "begin_anew",
    "due",
    "due_by_endpoint",
    "failed_since",
    "get",
    "next_due",
    "owe",
    "page",
    "pending_behind",
    "record",
    "recover",
    "send_again",
    "undelivered",
]

DeliveryStatus = Literal["pending", "succeeded", "failed"]

AT_ONCE = 0
"""When a delivery that was not tried yet is due."""

MAX_BYTES = 1_000_000
"""Bodies of each kind that one look for what is due brings along: it ends with the one that
reaches this."""

_d = schema.deliveries.c
_a = schema.attempts.c
_e = schema.events.c
_w = schema.webhook_endpoints.c
_pending = text("deliveries.status = 'pending'")
_one = (_d.endpoint_id == bindparam("endpoint"), _d.id == bindparam("key"))

INSERT = Statement("deliveries.owe", "An event is owed.", insert_row(schema.deliveries))
GET = Statement(
    "deliveries.get", "One delivery.", select(schema.deliveries).where(*_one), locks=True
)

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
ATTEMPTS = Statement(
    "attempts.list",
    "The attempts of a delivery, the latest one first.",
    limited(
        select_row(schema.attempts, "delivery")
        .where(_a.delivery == bindparam("delivery"))
        .order_by(_a.number.desc())
    ),
)
SEND_AGAIN = Statement(
    "deliveries.send_again",
    "Owe a delivery anew.",
    update_row(
        schema.deliveries, "status", "failures", "since_ms", "next_at_ms", "settled_at_ms"
    ).where(_d.position == bindparam("delivery")),
)
RECOVER = Statement(
    "deliveries.recover",
    "Owe a delivery anew that has failed.",
    update_row(
        schema.deliveries, "status", "failures", "since_ms", "next_at_ms", "settled_at_ms"
    ).where(_d.position == bindparam("delivery"), text("deliveries.status = 'failed'")),
)
FAILED_SINCE = Statement(
    "deliveries.failed_since",
    "Deliveries to an endpoint behind a position that have failed, of events since a time.",
    limited(
        select(_d.position)
        .where(
            _d.endpoint_id == bindparam("endpoint"),
            text("deliveries.status = 'failed'"),
            # In the words of the partial index.
            text("deliveries.status <> 'succeeded'"),
            _d.position > bindparam("low"),
            _d.created_at_ms >= bindparam("since_ms"),
        )
        .order_by(_d.position)
    ),
)
_span = (
    _d.endpoint_id == bindparam("endpoint"),
    _pending,
    # In the words of the partial index.
    text("deliveries.status <> 'succeeded'"),
    _d.position > bindparam("low"),
)
PENDING_BEHIND = Statement(
    "deliveries.pending_behind",
    "Deliveries to an endpoint behind a position that are pending.",
    limited(select(_d.position).where(*_span).order_by(_d.position)),
)
_until_high = (*_span, _d.position <= bindparam("high"))
GIVE_UP_OLD = Statement(
    "deliveries.give_up_old",
    "Deliveries of a span that are pending, of events before a time, have failed.",
    update(schema.deliveries)
    .values(status=literal_column("'failed'"), next_at_ms=null(), settled_at_ms=bindparam("now_ms"))
    .where(*_until_high, _d.created_at_ms < bindparam("since_ms")),
)
BEGIN_ANEW = Statement(
    "deliveries.begin_anew",
    "Owe the deliveries of a span anew that are pending; the new ones stay in front.",
    update(schema.deliveries)
    .values(
        failures=literal_column("0"),
        since_ms=case(
            (_d.since_ms >= bindparam("now_ms"), _d.since_ms + literal_column("1")),
            else_=bindparam("now_ms"),
        ),
        next_at_ms=case(
            (_d.next_at_ms == literal_column(str(AT_ONCE)), literal_column(str(AT_ONCE))),
            else_=bindparam("now_ms"),
        ),
    )
    .where(*_until_high),
)
_of_endpoint = _d.endpoint_id == bindparam("endpoint")
_created = (
    _d.created_at_ms >= bindparam("created_from"),
    _d.created_at_ms < bindparam("created_before"),
)


def _pages(name: str, *conditions: str) -> PagedList:
    return PagedList(name, schema.deliveries, _of_endpoint, *map(text, conditions), *_created)


# The second condition is in the words of the partial index.
_unsettled = "deliveries.status <> 'succeeded'"
_PAGES: dict[DeliveryStatus | None, PagedList] = {
    None: _pages("deliveries.list"),
    "succeeded": _pages("deliveries.list_succeeded", "deliveries.status = 'succeeded'"),
    "pending": _pages("deliveries.list_pending", "deliveries.status = 'pending'", _unsettled),
    "failed": _pages("deliveries.list_failed", "deliveries.status = 'failed'", _unsettled),
}
LISTS = tuple(_PAGES.values())
OF_RUN = PagedList(
    "deliveries.list_run",
    schema.deliveries,
    _of_endpoint,
    _d.run_id == bindparam("run"),
    _d.status.in_([bindparam(f"status{slot}") for slot in range(3)]),
    *_created,
    few=True,
)
_STATUSES: tuple[DeliveryStatus, ...] = ("pending", "succeeded", "failed")
_ALWAYS_MS = 2**62


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event that is owed to one endpoint.

    Attributes:
        id: of the event, and of the delivery at its endpoint.
        created_at_ms: when the event happened.
        attempts: how many there were; the number of the latest.
        failures: failed attempts since it was last owed anew; the place in the schedule.
        since_ms: since when it is owed: its event, or when it was last owed anew; later each
            time, so that it tells what was asked for before an attempt from what came after.
        next_at_ms: when it is tried next; `AT_ONCE` for the first time; None when it is settled.
    """

    position: int
    endpoint_id: str
    id: str
    run_id: str
    type: str
    created_at_ms: int
    status: DeliveryStatus = "pending"
    attempts: int = 0
    failures: int = 0
    since_ms: int = 0
    next_at_ms: int | None = AT_ONCE
    settled_at_ms: int | None = None


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
class Attempt:
    """What came of one POST.

    Attributes:
        status_code: of the answer; None where there was none.
        error: why there was no answer, or why it was no success; None for a success.
        excerpt: the beginning of the answer's body, as text.
    """

    number: int
    at_ms: int
    duration_ms: int
    status_code: int | None
    error: str | None
    excerpt: str | None


@dataclass(frozen=True, slots=True)
class DeliveryFilter:
    """Which deliveries of an endpoint are wanted.

    Attributes:
        created_from_ms: of events of this moment or later, in milliseconds since the epoch.
        created_before_ms: of events before this moment.
    """

    status: DeliveryStatus | None = None
    run_id: str | None = None
    created_from_ms: int | None = None
    created_before_ms: int | None = None


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


async def get(tx: Transaction, endpoint_id: str, event_id: str) -> Delivery | None:
    """One delivery."""
    row = await tx.fetch_one(GET, {"endpoint": endpoint_id, "key": event_id})
    return _delivery(row) if row is not None else None


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
        "owed_until_ms": _ALWAYS_MS if status == "succeeded" else due.since_ms,
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


async def attempts_of(tx: Transaction, delivery: Delivery, limit: int) -> list[Attempt]:
    """The latest attempts of a delivery, in their order."""
    rows = await tx.fetch_all(ATTEMPTS, {"delivery": delivery.position, "limit": limit})
    return [Attempt(*row) for row in reversed(rows)]


async def send_again(tx: Transaction, delivery: Delivery, now_ms: int) -> None:
    """Owe a delivery anew, from the beginning of the schedule; its attempts stay.

    One whose first attempt has not ended keeps its place in front of every retry.
    """
    new = delivery.next_at_ms == AT_ONCE
    since_ms = max(now_ms, delivery.since_ms + 1)
    anew = _anew(delivery.position, since_ms, AT_ONCE if new else now_ms)
    await tx.execute(SEND_AGAIN, anew)


async def recover(tx: Transaction, position: int, now_ms: int) -> bool:
    """Owe a delivery anew that has failed; False where it has not, or not any more."""
    return await tx.execute(RECOVER, _anew(position, now_ms, now_ms)) == 1


async def pending_behind(tx: Transaction, endpoint_id: str, position: int, limit: int) -> list[int]:
    """Positions of an endpoint's pending deliveries behind one, in their order."""
    params = {"endpoint": endpoint_id, "low": position, "limit": limit}
    return [row[0] for row in await tx.fetch_all(PENDING_BEHIND, params)]


async def begin_anew(
    tx: Transaction, endpoint_id: str, span: tuple[int, int], since_ms: int, now_ms: int
) -> None:
    """Owe what is pending anew, from the beginning of the schedule; give up what is too old.

    Args:
        span: positions: behind the first, up to the second.
        since_ms: events before this time are too old.
    """
    low, high = span
    which = {"endpoint": endpoint_id, "low": low, "high": high, "now_ms": now_ms}
    await tx.execute(GIVE_UP_OLD, {**which, "since_ms": since_ms})
    await tx.execute(BEGIN_ANEW, which)


def _anew(position: int, since_ms: int, next_at_ms: int) -> dict[str, Any]:
    return {
        "delivery": position,
        "status": "pending",
        "failures": 0,
        "since_ms": since_ms,
        "next_at_ms": next_at_ms,
        "settled_at_ms": None,
    }


async def failed_since(
    tx: Transaction, endpoint_id: str, since_ms: int, limit: int, *, low: int = 0
) -> list[int]:
    """Positions of deliveries that have failed, of events since a time, oldest first.

    Args:
        low: behind this position.
    """
    params = {"endpoint": endpoint_id, "since_ms": since_ms, "low": low, "limit": limit}
    return [row[0] for row in await tx.fetch_all(FAILED_SINCE, params)]


async def page(
    tx: Transaction, endpoint_id: str, page: Page, wanted: DeliveryFilter
) -> tuple[list[Delivery], bool]:
    """A page of an endpoint's deliveries, and whether there are more."""
    latest = wanted.created_before_ms
    owner: dict[str, Any] = {
        "endpoint": endpoint_id,
        "created_from": wanted.created_from_ms or 0,
        "created_before": _ALWAYS_MS if latest is None else latest,
    }
    if wanted.run_id is None:
        rows, more = await _PAGES[wanted.status].fetch(tx, page, owner)
    else:
        statuses = _STATUSES if wanted.status is None else (wanted.status,) * len(_STATUSES)
        owner |= {f"status{slot}": status for slot, status in enumerate(statuses)}
        rows, more = await OF_RUN.fetch(tx, page, {**owner, "run": wanted.run_id})
    found = [await get(tx, endpoint_id, row[1]) for row in rows]
    return [each for each in found if each is not None], more


def _delivery(row: Row) -> Delivery:
    return Delivery(*row)
