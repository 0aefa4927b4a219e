"""How bytes leave: what is written in one turn of the event loop goes out in one system call.

uvicorn writes an answer's headers and its body apart. On loopback and in a data centre a write is
the dearest part of a small answer, and the second one doubles it.
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

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type] # as one
