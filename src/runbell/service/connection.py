"""How bytes come in and go out: what uvicorn leaves open about heads, writes and leaving."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from runbell.errors import RequestRefused
from runbell.service.operations.ids import new_request_id
from runbell.service.wire.objects import encode, error_body

__all__ = ["HEAD_SECONDS", "MAX_HEAD", "Connection"]

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
        self._late: asyncio.TimerHandle | None = None
        self._await_head()

    def data_received(self, data: bytes) -> None:
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
        self._await_head()

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        self._in_head = False
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

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
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
        super()._start_asgi_task(cycle, app)

    def _await_head(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        self._late = None
        if not self.transport.is_closing():
            self.transport.close()

    def _leave_behind(self) -> None:
        """The process stops: a client that does not read must not hold it up."""
        if self in self.connections and self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
