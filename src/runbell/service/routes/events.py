"""Routes: the feed of events, in pages or live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from runbell.errors import UnknownCursor
from runbell.runs import EVENT_TYPES
from runbell.service.operations import refusals
from runbell.service.routes.routing import Answer, Call, EventStream, Route
from runbell.service.wire.objects import encode
from runbell.service.wire.pages import EventQuery, event_query
from runbell.storage import events

__all__ = ["ROUTES"]

HEARTBEAT_SECONDS = 15.0
"""How often a live feed says that it is still there, where nothing happens."""

LIVE_PAGE = 100
"""Events that a live feed reads at once: bounds what a slow reader holds."""


async def _list(call: Call[None, EventQuery]) -> Answer | EventStream:
    if "text/event-stream" in (call.header(b"accept") or ""):
        return await _live(call)
    rows, more = await _page(call, call.query.after, call.query.limit)
    # The events' own bytes, as they were stored: everybody sees the same ones.
    return Answer(
        200,
        b'{"object":"list","data":[%b],"first_id":%b,"last_id":%b,"has_more":%b}'
        % (
            b",".join(body for _, _, body in rows),
            encode(rows[0][0] if rows else None),
            encode(rows[-1][0] if rows else None),
            encode(more),
        ),
    )


async def _page(
    call: Call[None, EventQuery], after: str | None, limit: int
) -> tuple[list[events.FeedRow], bool]:
    types = call.query.types
    try:
        return await call.ctx.store.scan(
            lambda tx: events.page(tx, call.project, after=after, types=types, limit=limit)
        )
    except UnknownCursor as error:
        raise refusals.unknown_cursor("event", error) from None


async def _live(call: Call[None, EventQuery]) -> EventStream:
    """The feed behind a cursor, or from now on, for as long as the client listens."""
    after = call.header(b"last-event-id") or call.query.after
    if after is None:
        after = await call.ctx.store.read(lambda tx: events.latest(tx, call.project))
    else:
        await _page(call, after, 1)  # an unknown cursor is a 404, not a broken stream
    ended = asyncio.Event()
    return EventStream(_frames(call, after, ended), ended.set)


async def _frames(
    call: Call[None, EventQuery], after: str | None, ended: asyncio.Event
) -> AsyncIterator[bytes]:
    # At once: a client, and every proxy between, sees that the feed is open.
    yield b": open\n\n"
    with call.ctx.changes.watch([call.project]) as watch:
        while not (ended.is_set() or call.ctx.changes.closed):
            rows, more = await _page(call, after, LIVE_PAGE)
            for key, kind, body in rows:
                after = key
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (key.encode(), kind.encode(), body)
            if not more and not await _woken(call, watch.changed(), ended):
                yield b": heartbeat\n\n"


async def _woken(
    call: Call[None, EventQuery], changed: Coroutine[Any, Any, None], ended: asyncio.Event
) -> bool:
    """Wait until something has happened; False where only time has passed."""
    timer = asyncio.ensure_future(call.ctx.clock.sleep(HEARTBEAT_SECONDS))
    news = asyncio.ensure_future(changed)
    end = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((timer, news, end), return_when=asyncio.FIRST_COMPLETED)
        return not timer.done() or news.done() or end.done()
    finally:
        for task in (timer, news, end):
            task.cancel()


ROUTES = (
    Route(
        "GET",
        "/v1/events",
        _list,
        "List events, oldest first, or follow them",
        query=lambda params: event_query(params, EVENT_TYPES),
    ),
)
