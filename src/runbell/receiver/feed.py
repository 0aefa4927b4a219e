"""Fetching what was missed: pages of the service's feed, stored like what is pushed."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

from runbell.clock import Clock
from runbell.errors import StorageError
from runbell.receiver import desk
from runbell.receiver.arrivals import Arrival, Stored
from runbell.receiver.events import Unreadable, read
from runbell.storage.store import Store

__all__ = ["CaughtUp", "FeedClient", "catch_up"]

PAGE: Final = 100
REACH_SECONDS: Final = 7 * 86_400
"""What is older is passed over: the inbox need not know any more that it was handled."""

NOT_FOUND: Final = 404


class FeedClient(Protocol):
    """What is used of `openai.OpenAI` or `openai.AsyncOpenAI`."""

    def get(self, path: str, *, cast_to: Any, options: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """What came of reading the feed.

    Attributes:
        read: events that were read.
        new: those that were not there yet, and are handled now.
        too_old: those that were passed over, since they are older than a week.
    """

    read: int
    new: int
    too_old: int


class _Page(msgspec.Struct):
    data: list[msgspec.Raw]
    has_more: bool


class _Item(msgspec.Struct):
    id: str
    created_at: int


async def catch_up(
    client: FeedClient,
    accept: Callable[[Arrival], Awaitable[Stored]],
    store: Store,
    clock: Clock,
    types: str | None,
) -> CaughtUp:
    """Store every event of the feed behind the one that was read last.

    Args:
        types: only these, as the feed's parameter has them: separated by commas.

    Raises:
        openai.APIError: the service did not answer; what was read until then is kept.
        StorageError: the inbox can't be written, or the answer is no page of a feed.
    """
    # Two services, or two filters, are two feeds.
    feed = f"{getattr(client, 'base_url', '')}{f' {types}' if types else ''}"
    after = await store.read(lambda tx: desk.cursor(tx, feed))
    seen = new = too_old = 0
    more = True
    while more:
        page = await _page(client, after, types)
        if page is None:
            # What lay behind the cursor is not kept any more: begin with the oldest that is.
            after = None
            continue
        oldest = clock.now_ms() // 1000 - REACH_SECONDS
        arrivals = [_arrival(raw, clock.now_ms(), oldest) for raw in page.data]
        wanted = [arrival for _, arrival in arrivals if arrival is not None]
        stored = await asyncio.gather(*map(accept, wanted))
        seen, new = seen + len(arrivals), new + stored.count("accepted")
        too_old += len(arrivals) - len(wanted)
        if arrivals:
            after = arrivals[-1][0]
            await store.write(_move(feed, after, clock.now_ms()))
        more = page.has_more and bool(arrivals)
    return CaughtUp(seen, new, too_old)


async def _page(client: FeedClient, after: str | None, types: str | None) -> _Page | None:
    """One page; None where the feed has no such cursor."""
    params: dict[str, Any] = {"limit": PAGE}
    params |= {"after": after} if after is not None else {}
    params |= {"types": types} if types else {}
    try:
        # As text, since these very bytes are the event's: decoded and encoded they would be others.
        text = await _get(client, {"params": params})
    except Exception as error:
        if after is not None and getattr(error, "status_code", None) == NOT_FOUND:
            return None
        raise
    try:
        return msgspec.json.decode(text, type=_Page)
    except msgspec.DecodeError as error:
        raise StorageError(f"the answer is no page of a feed: {error}") from None


async def _get(client: FeedClient, options: dict[str, Any]) -> str:
    def get() -> Any:
        return client.get("/events", cast_to=str, options=options)

    if inspect.iscoroutinefunction(client.get):
        return str(await get())
    found = await asyncio.to_thread(get)
    return str(await found if inspect.isawaitable(found) else found)


def _arrival(raw: msgspec.Raw, now_ms: int, oldest: int) -> tuple[str, Arrival | None]:
    body = bytes(raw)
    try:
        item = msgspec.json.decode(body, type=_Item)
    except msgspec.DecodeError as error:
        raise StorageError(f"the feed holds something that is no event: {error}") from None
    if not item.id.isprintable():
        raise StorageError("the feed holds something that is no event: its id is no name")
    if item.created_at < oldest:
        return item.id, None
    try:
        return item.id, Arrival(item.id, body, read(body), now_ms, origin="feed")
    except Unreadable as error:
        return item.id, Arrival(item.id, body, None, now_ms, origin="feed", error=str(error))


def _move(feed: str, event_id: str, now_ms: int) -> Callable[[Any], Awaitable[None]]:
    return lambda tx: desk.move_cursor(tx, feed, event_id, now_ms)
