"""What is old: runs that ended long ago, found along the feed, and removed piece by piece.

No index is needed for this: every run has events, their positions are the order of the commits, and
so whatever is old lies at the feed's beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, literal_column, or_, select, text

from runbell.runs import RunStatus
from runbell.storage import holding, schema
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["Old", "events_behind", "gone_endpoint", "remove", "remove_of_endpoint"]

_e, _r, _s = schema.events.c, schema.runs.c, schema.run_steps.c
_d, _a, _w = schema.deliveries.c, schema.attempts.c, schema.webhook_endpoints.c

BEHIND = Statement(
    "events.behind",
    "Events of all projects behind a position, in commit order.",
    limited(
        select(_e.position, _e.run_id, _e.created_at_ms)
        .where(_e.position > bindparam("low"))
        .order_by(_e.position)
    ),
)
LATEST = Statement(
    "events.latest_of_run",
    "When a run changed for the last time.",
    limited(
        select(_e.created_at_ms).where(_e.run_id == bindparam("run")).order_by(_e.sequence.desc())
    ),
)
RUN = Statement(
    "runs.where_it_stands",
    "A run's thread and status.",
    select(_r.thread_id, _r.status).where(_r.id == bindparam("run")),
)
DELETE_RUN = Statement(
    "runs.delete", "Forget a run.", delete(schema.runs).where(_r.id == bindparam("run"))
)
DELETE_STEPS = Statement(
    "run_steps.delete_some",
    "Forget the first steps of a run.",
    delete(schema.run_steps).where(
        _s.position.in_(
            limited(
                select(_s.position).where(_s.run_id == bindparam("run")).order_by(_s.position)
            ).scalar_subquery()
        )
    ),
)
DELETE_EVENTS = Statement(
    "events.delete_some",
    "Forget the first events of a run.",
    delete(schema.events).where(
        _e.position.in_(
            limited(
                select(_e.position).where(_e.run_id == bindparam("run")).order_by(_e.sequence)
            ).scalar_subquery()
        )
    ),
)
STILL_OWED = Statement(
    "deliveries.still_owed",
    "Whether an event of the run is owed to an endpoint that is enabled, or may soon be again.",
    limited(
        select(_d.position)
        .select_from(schema.deliveries.join(schema.webhook_endpoints, _w.id == _d.endpoint_id))
        .where(
            _d.run_id == bindparam("run"),
            _d.status == literal_column("'pending'"),
            or_(text("enabled"), _w.owed_until_ms > bindparam("now_ms")),
        )
    ),
)
NEXT_ENDPOINT = Statement(
    "deliveries.next_endpoint",
    "The next endpoint that has deliveries, and whether it is there.",
    limited(
        select(_d.endpoint_id, select(_w.id).where(_w.id == _d.endpoint_id).scalar_subquery())
        .where(_d.endpoint_id > bindparam("after"))
        .order_by(_d.endpoint_id)
    ),
)


OF_RUN = Statement(
    "deliveries.some_of_run",
    "Where some deliveries of a run's events are.",
    limited(select(_d.position).where(_d.run_id == bindparam("run"))),
)
OF_ENDPOINT = Statement(
    "deliveries.some_of_endpoint",
    "Where the first deliveries to an endpoint are.",
    limited(
        select(_d.position).where(_d.endpoint_id == bindparam("endpoint")).order_by(_d.position)
    ),
)
DELETE_ATTEMPTS = Statement(
    "attempts.delete",
    "Forget the attempts of a delivery.",
    delete(schema.attempts).where(_a.delivery == bindparam("delivery")),
)
DELETE_DELIVERY = Statement(
    "deliveries.delete",
    "Forget a delivery.",
    delete(schema.deliveries).where(_d.position == bindparam("delivery")),
)


@dataclass(frozen=True, slots=True)
class Old:
    """An event, as far as it matters here."""

    position: int
    run_id: str
    created_at_ms: int


async def events_behind(tx: Transaction, position: int, limit: int) -> list[Old]:
    """Events of all projects, in commit order."""
    rows = await tx.fetch_all(BEHIND, {"low": position, "limit": limit})
    return [Old(*row) for row in rows]


async def remove(
    tx: Transaction, run_ids: Sequence[str], before_ms: int, limit: int, *, now_ms: int
) -> int:
    """Remove of these runs what may go: steps, the run itself, deliveries, events, in this order.

    A run may go when it ended before a time, no run of its thread is live, and no event of it is
    owed to an endpoint that is enabled, or for which events are kept; one whose thread was deleted,
    when its last event is older. What is left of a run that has more rows than `limit` are the last
    of its events: they are found again.

    Args:
        before_ms: that time, in milliseconds since the epoch.
        limit: how many rows at the most, and what is left of one delivery's attempts.

    Returns:
        How many rows were removed.
    """
    removed = 0
    for run_id in run_ids:
        if removed >= limit:
            break
        if await _may_go(tx, run_id, before_ms, now_ms):
            removed += await _remove(tx, run_id, limit - removed)
    return removed


async def _may_go(tx: Transaction, run_id: str, before_ms: int, now_ms: int) -> bool:
    latest = await tx.fetch_one(LATEST, {"run": run_id, "limit": 1})
    if latest is None or latest[0] >= before_ms:
        return False
    # Its body would be gone. An endpoint that is disabled counts for so long as events are kept for
    # it: it may stay so for ever.
    if await tx.fetch_one(STILL_OWED, {"run": run_id, "now_ms": now_ms, "limit": 1}) is not None:
        return False
    row = await tx.fetch_one(RUN, {"run": run_id})
    if row is None:
        return True
    thread_id, status = row
    # A run that waits its turn does so behind an active one, so that this is enough.
    return RunStatus(status).is_terminal and await holding.active(tx, thread_id) is None


async def _remove(tx: Transaction, run_id: str, limit: int) -> int:
    removed = await tx.execute(DELETE_STEPS, {"run": run_id, "limit": limit})
    if removed < limit:
        # Steps never stand without their run; events do, as after the deletion of a thread.
        removed += await tx.execute(DELETE_RUN, {"run": run_id})
        removed += await _remove_deliveries(tx, OF_RUN, {"run": run_id}, max(0, limit - removed))
        # Deliveries never stand without their event.
        if removed < limit:
            params = {"run": run_id, "limit": limit - removed}
            removed += await tx.execute(DELETE_EVENTS, params)
    return removed


async def _remove_deliveries(
    tx: Transaction, some: Statement, owner: dict[str, str], limit: int
) -> int:
    """Remove deliveries, each with its attempts, until that were `limit` rows or more.

    What is gone is not passed again: a unit costs as much at the end of a million as at its
    beginning.
    """
    removed = 0
    for (position,) in await tx.fetch_all(some, {**owner, "limit": limit}):
        if removed >= limit:
            break
        for statement in (DELETE_ATTEMPTS, DELETE_DELIVERY):
            removed += await tx.execute(statement, {"delivery": position})
    return removed


async def gone_endpoint(tx: Transaction, after: str) -> str | None:
    """The next endpoint, by its id, that was deleted and has deliveries left; None for none."""
    while True:
        row = await tx.fetch_one(NEXT_ENDPOINT, {"after": after, "limit": 1})
        if row is None:
            return None
        after, there = row
        if there is None:
            return after


async def remove_of_endpoint(tx: Transaction, endpoint_id: str, limit: int) -> int:
    """Remove what was owed to an endpoint that was deleted: how many rows, at the most `limit` and
    what is left of one delivery's attempts."""
    return await _remove_deliveries(tx, OF_ENDPOINT, {"endpoint": endpoint_id}, limit)
