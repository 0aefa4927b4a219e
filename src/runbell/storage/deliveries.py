"""Deliveries, for those who look after endpoints: what became of each event, and owing it anew.

A delivery is one event that is owed to one endpoint; its id is its event's: what a receiver sees as
`webhook-id`. How it comes to be owed, and is delivered, is in `owed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import bindparam, case, literal_column, null, select, text, update

from runbell.storage import schema
from runbell.storage.paging import Page, PagedList, created, created_span
from runbell.storage.statements import Statement, limited, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "AT_ONCE",
    "Attempt",
    "Delivery",
    "DeliveryFilter",
    "DeliveryStatus",
    "attempts_of",
    "begin_anew",
    "failed_since",
    "get",
    "page",
    "pending_behind",
    "recover",
    "send_again",
]

DeliveryStatus = Literal["pending", "succeeded", "failed"]

AT_ONCE = 0
"""When a delivery that was not tried yet is due."""

_d = schema.deliveries.c
_a = schema.attempts.c
_pending = text("deliveries.status = 'pending'")
_one = (_d.endpoint_id == bindparam("endpoint"), _d.id == bindparam("key"))

GET = Statement(
    "deliveries.get", "One delivery.", select(schema.deliveries).where(*_one), locks=True
)
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
_created = created(schema.deliveries)


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


async def get(tx: Transaction, endpoint_id: str, event_id: str) -> Delivery | None:
    """One delivery."""
    row = await tx.fetch_one(GET, {"endpoint": endpoint_id, "key": event_id})
    return _delivery(row) if row is not None else None


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
    owner: dict[str, Any] = created_span(wanted.created_from_ms, wanted.created_before_ms)
    owner["endpoint"] = endpoint_id
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
