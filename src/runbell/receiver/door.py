"""Who may come in: verify → deduplicate → store → 200. An ASGI application for any server.

It answers 200 only when the event is committed, and never holds more of a body than it would store.
A request that is refused leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any, Final

from runbell import faults
from runbell.clock import Clock
from runbell.errors import (
    InvalidSignature,
    StaleTimestamp,
    StorageUnavailable,
)
from runbell.receiver.arrivals import Arrival, Stored
from runbell.receiver.checks import Head, Keys, Refused, head_of, later, too_large
from runbell.receiver.events import Unreadable, read
from runbell.receiver.numbers import Numbers
from runbell.receiver.ports import TakeIn
from runbell.receiver.settings import Options
from runbell.webhooks import verify

__all__ = ["Door"]

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOUD_EVERY_SECONDS: Final = 60.0
"""How often the same trouble is written to the log."""

UNCOUNTED: Final = 65_536
"""Bytes of a body that may come before they count against `max_bodies`. Servers buffer as many for
every connection, and no proper event has more: so whoever fills the room with large bodies, which
takes no secret, keeps no event out."""


class _Left(Exception):
    """Whoever sent this has gone; nobody reads an answer."""


class Door:
    """The application. It is shut until `open` is called.

    Args:
        on_stored: is told of each event that is new, when it is committed.
    """

    def __init__(
        self,
        keys: Keys,
        options: Options,
        clock: Clock,
        numbers: Numbers,
        on_stored: Callable[[Arrival], None],
    ) -> None:
        self._keys = keys
        self._options = options
        self._clock = clock
        self._numbers = numbers
        self._on_stored = on_stored
        self._take_in: TakeIn | None = None
        self._reading = _Room(options.max_bodies)
        self._storing = _Room(options.max_bodies)
        self._quiet_until: dict[str, float] = {}

    def open(self, take_in: TakeIn, clock: Clock) -> None:
        """Let events in: `take_in` stores them, and `clock` is that of the inbox from now on."""
        self._take_in, self._clock = take_in, clock

    def shut(self) -> None:
        """Let nobody in: senders come again."""
        self._take_in = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            await self._admit(scope, receive)
        except _Left:
            self._numbers.rejected.labels("cut_off").inc()
        except Refused as refused:
            self._numbers.rejected.labels(refused.reason).inc()
            answer = {"error": {"code": refused.reason, "message": str(refused)}}
            await _answer(send, refused.status, json.dumps(answer).encode(), refused.headers)
        else:
            # Made anew each time: middleware adds headers to it.
            start = {"type": "http.response.start", "status": 200}
            await send({**start, "headers": list(_RECEIVED_HEADERS)})
            await send({"type": "http.response.body", "body": _RECEIVED})

    async def accept(self, arrival: Arrival) -> Stored:
        """Store what is its sender's; returns when it is committed.

        Raises:
            StorageUnavailable: it is not stored.
        """
        if self._take_in is None:
            raise StorageUnavailable("the receiver is not running")
        stored = await self._take_in(arrival)
        faults.hit("receiver.committed")
        if stored == "accepted":
            self._on_stored(arrival)
        elif stored == "unreadable":
            self._numbers.unreadable.inc()
            self._loudly(
                "unreadable", "%s is validly signed and no event: %s", arrival.id, arrival.error
            )
        elif stored == "other":
            self._numbers.quarantined.inc()
            self._loudly(
                "other",
                "another body came under the id %s, validly signed: it is kept, and not handled",
                arrival.id,
            )
        return stored

    async def _admit(self, scope: Message, receive: Receive) -> None:
        if self._take_in is None:
            self._loudly("not_running", "a webhook came before the receiver was started: %s", _HINT)
            raise later("not_running", "the receiver is not running")
        head = head_of(scope["method"], scope["headers"], self._options.max_body)
        body = await self._body(head, receive)
        now_ms = self._clock.now_ms()
        arrival, skew = self._verified(scope["headers"], body, now_ms)
        faults.hit("receiver.verified")
        try:
            with self._storing.holding(len(body)):
                stored = await self.accept(arrival)
        except StorageUnavailable as error:
            self._loudly(
                "storage", "a webhook cannot be stored, its sender is asked to wait: %s", error
            )
            raise later("storage", "the event cannot be stored now") from None
        if stored == "accepted":
            self._numbers.pushed(skew)
        elif stored == "duplicate":
            self._numbers.duplicates.labels("push").inc()

    def _verified(
        self, headers: Sequence[tuple[bytes, bytes]], body: bytes, now_ms: int
    ) -> tuple[Arrival, float]:
        try:
            verified = verify(
                self._keys.good(now_ms),
                headers,
                body,
                now_ms=now_ms,
                tolerance=self._options.tolerance,
            )
        except StaleTimestamp as error:
            # It is validly signed: either somebody plays it again, or a clock is wrong, and then
            # nothing comes in at all.
            self._numbers.skew.set(error.skew)
            self._loudly(
                error.reason,
                "a validly signed webhook was refused: its stamp is %d s %s this clock; unless it "
                "is a replay, set the clock here or at the sender",
                abs(error.skew),
                "ahead of" if error.skew > 0 else "behind",
            )
            raise Refused(error.status, error.reason, str(error)) from None
        except InvalidSignature as error:
            self._loudly(error.reason, "a webhook was refused: %s", error)
            raise Refused(error.status, error.reason, str(error)) from None
        skew = verified.timestamp - now_ms / 1000
        try:
            return Arrival(verified.id, body, read(body), now_ms), skew
        except Unreadable as error:
            return Arrival(verified.id, body, None, now_ms, error=str(error)), skew

    async def _body(self, head: Head, receive: Receive) -> bytes:
        """The bytes of the body, as they came; never more than the limit."""
        pieces = _Pieces(self._reading, self._options.max_body)
        try:
            async with asyncio.timeout(self._options.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Left
                    pieces.add(message.get("body", b""))
                    if not message.get("more_body", False):
                        break
        except TimeoutError:
            raise Refused(
                408,
                "too_slow",
                f"the body did not arrive within {self._options.body_timeout:g} s",
                close=True,
            ) from None
        finally:
            pieces.let_go()
        body = pieces.whole
        if head.length is not None and head.length != len(body):
            raise Refused(
                400,
                "malformed_length",
                "the body is not as long as Content-Length says",
                close=True,
            )
        return body

    def _loudly(self, what: str, message: str, *arguments: object) -> None:
        """Write it to the log, the same trouble not more than once a minute."""
        now = self._clock.monotonic()
        if now >= self._quiet_until.get(what, now):
            self._quiet_until[what] = now + LOUD_EVERY_SECONDS
            level = logging.ERROR if what in _GRAVE else logging.WARNING
            logger.log(level, message, *arguments)


class _Room:
    """How many bytes are held at a time, by all requests together."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.held = 0

    def take(self, size: int) -> None:
        if self.held + size > self._most:
            raise later("busy", "too many webhooks are coming in at once")
        self.held += size

    def give_back(self, size: int) -> None:
        self.held -= size

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        self.take(size)
        try:
            yield
        finally:
            self.give_back(size)


class _Pieces:
    """A body as it comes in, counted with all others that are coming in.

    Counted is what has come, not what was announced, and only behind the first `UNCOUNTED` bytes.
    """

    def __init__(self, room: _Room, most: int) -> None:
        self._room = room
        self._most = most
        self._pieces: list[bytes] = []
        self._size = 0
        self._counted = 0

    def add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._most:
            raise too_large(self._most)
        more = self._size - UNCOUNTED - self._counted
        if more > 0:
            self._room.take(more)
            self._counted += more
        self._pieces.append(piece)

    @property
    def whole(self) -> bytes:
        return b"".join(self._pieces) if len(self._pieces) != 1 else bytes(self._pieces[0])

    def let_go(self) -> None:
        self._room.give_back(self._counted)
        self._counted = 0


_RECEIVED = b'{"received":true}'
_RECEIVED_HEADERS = (
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_RECEIVED)).encode()),
)

_GRAVE = frozenset({"too_old", "too_new", "storage", "not_running"})
_HINT = (
    "use FastAPI(lifespan=receiver.lifespan), receiver.asgi(), or `async with receiver.running()`"
)


async def _answer(
    send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]]
) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body})
