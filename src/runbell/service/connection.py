"""How bytes come in and go out: what uvicorn leaves open about heads, and about writes."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

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
