"""Routes: the feed of events, in pages or live."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from runbell.errors import UnknownCursor
from runbell.runs import EVENT_TYPES, RunEvent
from runbell.service.changes import Watch
from runbell.service.operations import refusals
from runbell.service.routes.routing import Answer, Call, EventStream, Route
from runbell.service.wire.objects import ListPage, encode
from runbell.service.wire.pages import EventQuery, event_query
from runbell.service.wire.parameters import AFTER, LAST_EVENT_ID, LIMIT, TYPES
from runbell.storage import events
from runbell.storage.store import Transaction

__all__ = ["ROUTES"]

HEARTBEAT_SECONDS = 15.0
"""After how long without an event a live feed says that it is still there."""

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

    async def begin(tx: Transaction) -> tuple[int, str]:
        if after is None:
            return await events.head(tx, call.project)
        return await events.position(tx, call.project, after), after

    try:
        low, cursor = await call.ctx.store.read(begin)
    except UnknownCursor as error:
        raise refusals.unknown_cursor("event", error) from None
    listening = _Listening()
    return EventStream(_frames(call, low, cursor, listening), listening.end)


class _Listening:
    """Whether a live feed is still listened to."""

    def __init__(self) -> None:
        self.ended = False
        self.watch: Watch | None = None

    def end(self) -> None:
        self.ended = True
        if self.watch is not None:
            self.watch.wake()


async def _frames(
    call: Call[None, EventQuery], low: int, cursor: str, listening: _Listening
) -> AsyncGenerator[bytes, None]:
    # At once: a client, and every proxy between, sees that the feed is open. With the id, one that
    # comes back goes on here also where it has had no event yet.
    yield b": open\nid: %b\n\n" % cursor.encode()
    ctx, types = call.ctx, call.query.types
    with ctx.changes.watch([call.project]) as watch, ctx.feeds.following(call.project):
        listening.watch = watch
        quiet_since = ctx.clock.monotonic()
        while not (listening.ended or ctx.changes.closed):
            rows, low, more = await ctx.feeds.behind(
                call.project, low=low, types=types, limit=LIVE_PAGE
            )
            for key, kind, body in rows:
                yield b"id: %b\nevent: %b\ndata: %b\n\n" % (key.encode(), kind.encode(), body)
            if rows:
                quiet_since = ctx.clock.monotonic()
            if more:
                continue
            # Events of other types wake this feed too, and don't count: nothing is sent for them.
            reads = ctx.feeds.reads(call.project)
            left = quiet_since + HEARTBEAT_SECONDS - ctx.clock.monotonic()
            if left <= 0 or not await watch.changed(ctx.clock, left):
                yield b": heartbeat\n\n"
                quiet_since = ctx.clock.monotonic()
                if ctx.feeds.reads(call.project) == reads:
                    # A process that was killed has told nobody of its last commit. One of all
                    # followers looks, and the others find what it has read.
                    ctx.feeds.look_again(call.project)


ROUTES = (
    Route(
        "GET",
        "/v1/events",
        _list,
        "List events, oldest first, or follow them",
        query=lambda params: event_query(params, EVENT_TYPES),
        operation="listEvents",
        answer=ListPage[RunEvent],
        parameters=(LIMIT, AFTER, TYPES, LAST_EVENT_ID),
        stream=dict.fromkeys(EVENT_TYPES, RunEvent),
        about="Without `after`, a page begins with the oldest event that is kept. With `Accept: "
        "text/event-stream` the feed goes on for as long as you listen; without `after` it begins "
        "with what happens next.",
        ours=True,
    ),
)
