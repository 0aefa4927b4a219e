"""Routes: the feed of events."""

from __future__ import annotations

from runbell.errors import UnknownCursor
from runbell.runs import EVENT_TYPES
from runbell.service.operations import refusals
from runbell.service.routes.routing import Answer, Call, Route
from runbell.service.wire.objects import encode
from runbell.service.wire.pages import EventQuery, event_query
from runbell.storage import events

__all__ = ["ROUTES"]


async def _list(call: Call[None, EventQuery]) -> Answer:
    query = call.query
    try:
        rows, more = await call.ctx.store.scan(
            lambda tx: events.page(
                tx, call.project, after=query.after, types=query.types, limit=query.limit
            )
        )
    except UnknownCursor as error:
        raise refusals.unknown_cursor("event", error) from None
    # The events' own bytes, as they were stored: everybody sees the same ones.
    return Answer(
        200,
        b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}'
        % (
            b",".join(body for _, body in rows),
            encode(rows[0][0] if rows else None),
            encode(rows[-1][0] if rows else None),
            encode(more),
        ),
    )


ROUTES = (
    Route(
        "GET",
        "/v1/events",
        _list,
        "List events, oldest first",
        query=lambda params: event_query(params, EVENT_TYPES),
    ),
)
