"""The rules for endpoints, deliveries and attempts, held against the rows."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import bindparam, func, select

from runbell.runs import EVENT_TYPES
from runbell.storage import schema
from runbell.storage.endpoints import Endpoint, all_enabled
from runbell.storage.report import Named, Report, rows
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["check"]

_d, _a, _e, _r, _w = (
    schema.deliveries.c,
    schema.attempts.c,
    schema.events.c,
    schema.runs.c,
    schema.webhook_endpoints.c,
)
_latest = (
    select(_a.error.is_(None))
    .where(_a.delivery == _d.position, _a.number == _d.attempts)
    .scalar_subquery()
)
DELIVERIES = Statement(
    "check.deliveries",
    "Every delivery, with its event, its endpoint where that is there, and its attempts.",
    limited(
        select(
            schema.deliveries,
            _e.run_id.label("event_run"),
            _e.type.label("event_type"),
            _e.project_id.label("event_project"),
            _w.project_id.label("endpoint_project"),
            select(func.count())
            .where(_a.delivery == _d.position)
            .scalar_subquery()
            .label("attempt_rows"),
            _latest.label("went_well"),
        )
        .select_from(
            schema.deliveries.outerjoin(schema.events, _e.id == _d.id).outerjoin(
                schema.webhook_endpoints, _w.id == _d.endpoint_id
            )
        )
        .where(_d.position > bindparam("position"))
        .order_by(_d.position)
    ),
)
NOT_OWED = Statement(
    "check.not_owed",
    "Events since a time that an endpoint wants and is not owed; of runs that are kept, since "
    "retention takes deliveries before events.",
    limited(
        select(_e.position, _e.id, _e.run_id, _e.type)
        .select_from(schema.events.join(schema.runs, _r.id == _e.run_id))
        .where(
            _e.project_id == bindparam("project"),
            _e.position > bindparam("position"),
            _e.created_at_ms > bindparam("since_ms"),
            _e.type.in_([bindparam(f"type{slot}") for slot in range(len(EVENT_TYPES))]),
            ~select(_d.position)
            .where(_d.endpoint_id == bindparam("endpoint"), _d.id == _e.id)
            .exists(),
        )
        .order_by(_e.position)
    ),
)


async def check(tx: Transaction, report: Report) -> None:
    """Hold every delivery against its event and its attempts, and the events of each endpoint that
    has not been changed since against its deliveries."""
    async for delivery in rows(tx, report, "deliveries", DELIVERIES, position=0):
        told = f"{delivery['id']} to {delivery['endpoint_id']}, {delivery['status']}"
        for rule in _broken(delivery):
            report.add(rule, delivery["run_id"], told)
    for endpoint in await all_enabled(tx):
        await _check_owed(tx, report, endpoint)


def _broken(delivery: Named) -> Iterator[str]:
    """The rules that a delivery breaks."""
    status = delivery["status"]
    if delivery["event_run"] is None:
        yield "a delivery without an event"
    elif (delivery["event_run"], delivery["event_type"]) != (delivery["run_id"], delivery["type"]):
        yield "a delivery that says something else than its event"
    # What is left of an endpoint that was deleted is cleared away later.
    elif delivery["endpoint_project"] not in (None, delivery["event_project"]):
        yield "a delivery to another project"
    if status not in ("pending", "succeeded", "failed"):
        yield "a delivery whose status there is not"
    if (status == "pending") != (delivery["next_at_ms"] is not None):
        # Without it, the job that delivers it could not be derived.
        yield "a delivery that is pending without a time, or has one without being pending"
    if (status == "pending") != (delivery["settled_at_ms"] is None):
        yield "a delivery that has ended without a time, or has one without having ended"
    if delivery["attempts"] != delivery["attempt_rows"]:
        yield "a delivery that has not the attempts that it counts"
    elif status != "pending" and (status == "succeeded") != bool(delivery["went_well"]):
        yield "a delivery that ended otherwise than its last attempt"


async def _check_owed(tx: Transaction, report: Report, endpoint: Endpoint) -> None:
    wanted = endpoint.subscription
    if wanted.assistant_ids or wanted.metadata:
        # What a run's metadata was at the time, its row does not say.
        return
    types = set(EVENT_TYPES) if set(wanted.event_types) - set(EVENT_TYPES) else wanted.event_types
    slots = sorted(types)
    params = {f"type{slot}": slots[min(slot, len(slots) - 1)] for slot in range(len(EVENT_TYPES))}
    behind = {
        **params,
        "project": endpoint.project_id,
        "endpoint": endpoint.id,
        "since_ms": endpoint.updated_at_ms,
        "position": 0,
    }
    while found := await tx.fetch_all(NOT_OWED, {**behind, "limit": 500}):
        for _, event_id, run_id, kind in found:
            report.add(
                "an event that was not owed to an endpoint that wants it",
                run_id,
                f"{event_id}, {kind}, to {endpoint.id}",
            )
        behind["position"] = found[-1][0]
