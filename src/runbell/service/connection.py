"""How bytes leave, and how it is noticed that nobody takes them any more.

uvicorn writes an answer's headers and its body apart. On loopback and in a data centre a write is
the dearest part of a small answer, and the second one doubles it: here, what is written in one turn
of the event loop goes out in one system call.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["Connection"]


class _Gathering:
    """A transport that writes once a turn; everything but writing is the transport's own."""

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
            self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(HttpToolsProtocol):
    """uvicorn's HTTP/1.1 protocol, over a gathering transport."""

    _answering: Any = None
    """The request that is being answered: not the latest one, where requests are pipelined."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type] # as one

    def connection_lost(self, exc: Exception | None) -> None:
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

    def _leave_behind(self) -> None:
        """The process stops: a client that does not read must not hold it up."""
        if self in self.connections and self.transport.get_write_buffer_size() > 0:
            self.transport.abort()
