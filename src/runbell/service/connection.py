"""How bytes come in and go out: what uvicorn leaves open about heads, writes and leaving."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runbell.errors import RequestRefused
from runbell.service.operations.ids import new_request_id
from runbell.service.wire.objects import encode, error_body

__all__ = ["AT_ONCE", "HEAD_SECONDS", "MAX_HEAD", "AnswerAtOnce", "Connection"]

AT_ONCE = "runbell.at_once"
"""Where a request's scope has a function that answers it with a 200 whose headers and body are
there: `AnswerAtOnce`. What ASGI knows is a message for each, and uvicorn looks at every header
twice; of a small read that is a twentieth."""

AnswerAtOnce = Callable[[list[tuple[bytes, bytes]], bytes], bool]
"""Answers, or says that it can't: then nothing was sent."""

HEAD_SECONDS = 30.0
"""How long a connection may take until the head of its first request, or of the next, is there
once it has begun; idle connections between requests are uvicorn's."""

MAX_HEAD = 65_536
"""Bytes that the head of a request may have: its line and its headers."""


class _Gathering:
    """A transport that writes once a turn of the event loop.

    uvicorn writes an answer's headers and its body apart. On loopback and in a data centre a write
    is the dearest part of a small answer, and the second one doubles it.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._gathered: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._gathered:
            self._loop.call_soon(self._flush)
        self._gathered.append(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._gathered:
            data, self._gathered = b"".join(self._gathered), []
            # The client may have gone away since; a closed transport raises.
            if not self._transport.is_closing():
                self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, over a gathering transport, with limits on heads of requests.

    Without them anybody, with no key, holds connections for ever or fills the memory.
    """

    _answering: Any = None
    """The request that is being answered: not the latest one, where requests are pipelined."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type] # as one
        self._head = 0
        self._in_head = True
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._begun, self._hurried = False, True
        self._close_in(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        self._read(data)
        if self._begun and not self._hurried:
            # Of most heads there is nothing to wait for: they are read at once.
            self._hurried = True
            self._close_in(HEAD_SECONDS)

    def _read(self, data: bytes) -> None:
        # What is read at once may hold a body too, or a whole request and the next one's head.
        while data and self._in_head and not self.transport.is_closing():
            room = MAX_HEAD - self._head
            if room <= 0:
                self.send_400_response("The request's head is too large.")
                return
            piece, data = data[:room], data[room:]
            self._head += len(piece)
            super().data_received(piece)
        if data and not self.transport.is_closing():
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = True

    def on_headers_complete(self) -> None:
        self._begun = self._hurried = self._in_head = False
        self._until = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._head, self._in_head = 0, True

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP as every other request is refused, and close."""
        body = encode(error_body(RequestRefused(400, msg)))
        headers = [
            *self.server_state.default_headers,
            (b"x-request-id", new_request_id().encode()),
            (b"openai-processing-ms", b"0"),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"HTTP/1.1 400 Bad Request", *(b"%b: %b" % header for header in headers)]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        self.transport.close()

    def on_response_complete(self) -> None:
        """Go on with the next request; as uvicorn does, but for its timer."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self._hurried:
            self._close_in(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # uvicorn tells the latest request alone that its client has left. Where another one is
        # pipelined behind it, the one that waits or streams would go on for nobody.
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        grace = self.config.timeout_graceful_shutdown or 0
        self.loop.call_later(grace / 2, self._leave_behind)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self._answering = cycle
        cycle.scope[AT_ONCE] = partial(self._answer_at_once, cycle)
        super()._start_asgi_task(cycle, app)

    def _answer_at_once(self, cycle: Any, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Do what `cycle.send` does of the two messages, for the connection that is kept."""
        if (
            not cycle.keep_alive
            or cycle.disconnected
            or self.flow.write_paused
            or cycle.scope["method"] == "HEAD"
        ):
            return False
        every = self.server_state.default_headers + headers
        head = b"HTTP/1.1 200 OK\r\n%b\r\n" % b"".join([b"%b: %b\r\n" % each for each in every])
        if not head.count(b"\n") == head.count(b"\r") == len(every) + 2:
            # A value with a line break: uvicorn refuses to send it.
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(head + body)
        cycle.on_response()
        return True

    def _close_in(self, seconds: float) -> None:
        """Close, unless a head is complete by then, or more time is given.

        A timer that is set for an earlier moment is left as it is, and looks again: two that are
        set and taken back for each request cost a twentieth of a small one.
        """
        self._until = self.loop.time() + seconds
        if self._timer is not None:
            if self._timer.when() <= self._until:
                return
            self._timer.cancel()
        self._timer = self.loop.call_at(self._until, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._until is None or self.transport.is_closing():
            return
        if self.loop.time() < self._until:
            self._timer = self.loop.call_at(self._until, self._look)
        else:
            self.transport.close()

    def _leave_behind(self) -> None:
        """The process stops: a client that does not read must not hold it up."""
        if self in self.connections and self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
