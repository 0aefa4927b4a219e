"""A receiver of webhooks that misbehaves on demand: raw HTTP on loopback, in a thread of its own.

    with Receiver() as receiver:
        receiver.will(status(500), trickle(), reset())
        ...  # send to receiver.url
        assert [each.header("webhook-id") for each in receiver.wait_for(3)] == ["evt_1"] * 3

Nothing checks what it sends: an answer can be late, endless, cut, or no HTTP at all. With `tls` it
speaks TLS first; `runbell.testing.certificates` makes certificates, also bad ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

__all__ = [
    "Answer",
    "Received",
    "Receiver",
    "Wire",
    "closed_port",
    "endless",
    "gzip_bomb",
    "hang_up",
    "huge_headers",
    "informational",
    "lying_length",
    "raw",
    "redirect",
    "reset",
    "silent",
    "status",
    "trickle",
]


TURNS = 10
"""Of the event loop, which is more than anything of its own takes."""


@dataclass(frozen=True)
class Received:
    """One request, as it came.

    Attributes:
        headers: names as they were written, in their order.
        connection: the number of its connection, from 1.
        at: when all of it was there, in seconds of `time.monotonic`.
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    connection: int
    at: float = field(default_factory=time.monotonic)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        """The value of a header; fails where it is there twice."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} is there {len(values)} times"
        return values[0] if values else None


class Wire:
    """The connection that an answer is written to."""

    def __init__(self, request: Received, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send bytes, and wait until they are on their way."""
        self._writer.write(data)
        await self._writer.drain()

    def reset(self) -> None:
        """End the connection with RST, as a process does that was killed."""
        plain: socket.socket = self._writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def close(self) -> None:
        """End the connection with FIN."""
        self._writer.close()


Answer = Callable[[Wire], Awaitable[None]]
"""How a request is answered. It may also return without having answered."""


def raw(*pieces: bytes, pause: float = 0.0) -> Answer:
    """Exactly these bytes, with a pause in seconds before each but the first."""

    async def answer(wire: Wire) -> None:
        for number, piece in enumerate(pieces):
            if number and pause:
                await asyncio.sleep(pause)
            await wire.send(piece)

    return answer


def status(
    code: int, body: bytes = b"", headers: Iterable[tuple[str, str]] = (), after: float = 0.0
) -> Answer:
    """A proper answer, `after` so many seconds."""

    async def answer(wire: Wire) -> None:
        await asyncio.sleep(after)
        await wire.send(_head(code, [*headers, ("Content-Length", str(len(body)))]) + body)

    return answer


def redirect(location: str, code: int = 302) -> Answer:
    """A redirection."""
    return status(code, headers=[("Location", location)])


def silent() -> Answer:
    """No answer, and no end."""

    async def answer(wire: Wire) -> None:
        await asyncio.Event().wait()

    return answer


def trickle(every: float = 1.0, code: int = 200, length: int = 1_000) -> Answer:
    """An answer of which one byte comes every so many seconds, from the first one on."""
    data = _head(code, [("Content-Length", str(length))]) + b"." * length

    async def answer(wire: Wire) -> None:
        for byte in data:
            await wire.send(bytes([byte]))
            await asyncio.sleep(every)

    return answer


def endless(code: int = 200) -> Answer:
    """A body that does not end, as fast as it is read."""

    async def answer(wire: Wire) -> None:
        await wire.send(_head(code, [("Transfer-Encoding", "chunked")]))
        while True:
            await wire.send(b"1000\r\n%b\r\n" % (b"." * 0x1000))

    return answer


def reset(before: bytes = b"") -> Answer:
    """These bytes, then RST."""

    async def answer(wire: Wire) -> None:
        if before:
            await wire.send(before)
            # RST throws away what the other side has not read yet.
            await asyncio.sleep(0.05)
        wire.reset()

    return answer


def hang_up(before: bytes = b"") -> Answer:
    """These bytes, then the end of the connection."""

    async def answer(wire: Wire) -> None:
        await wire.send(before)
        wire.close()

    return answer


def lying_length(claimed: int = 1_000, sent: bytes = b"short") -> Answer:
    """A 200 that ends before the length that it claims."""
    return hang_up(_head(200, [("Content-Length", str(claimed))]) + sent)


def huge_headers(size: int = 1_000_000) -> Answer:
    """A header of so many bytes."""
    return status(200, headers=[("X-Huge", "x" * size)])


def informational(code: int = 103, every: float = 0.01) -> Answer:
    """Interim answers without end."""

    async def answer(wire: Wire) -> None:
        while True:
            await wire.send(_head(code, []))
            await asyncio.sleep(every)

    return answer


def gzip_bomb(size: int = 100_000_000) -> Answer:
    """A small body that says that it is a large one, compressed."""
    # Members one after another are one file, so that no thread has to compress all of it.
    part = gzip.compress(b"\0" * 1_000_000)
    return status(200, part * (size // 1_000_000), [("Content-Encoding", "gzip")])


def closed_port() -> int:
    """A port on 127.0.0.1 at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Receiver:
    """The server; it listens inside `with`.

    Args:
        port: to listen on; 0 takes a free one.
        tls: speaks TLS with it.
        host: the name in its URL, which has to lead to 127.0.0.1.

    Attributes:
        requests: every request that came whole, the oldest first.
        connections: how many were opened.
        otherwise: how it answers when nothing else is planned.
    """

    def __init__(
        self, *, port: int = 0, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.port = port
        self.host = host
        self.requests: list[Received] = []
        self.connections = 0
        self.otherwise: Answer = status(200, b"ok")
        self._tls = tls
        self._planned: deque[Answer] = deque()
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def will(self, *answers: Answer) -> None:
        """Answer the next requests so, one after another."""
        self._planned.extend(answers)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}/hooks"

    def wait_for(self, count: int, limit_s: float = 60.0) -> list[Received]:
        """The first `count` requests; fails when they are not there in time."""
        deadline = time.monotonic() + limit_s
        while len(self.requests) < count:
            assert time.monotonic() < deadline, (
                f"{len(self.requests)} of {count} requests came within {limit_s:g} s"
            )
            time.sleep(0.002)
        return self.requests[:count]

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(
            self._accept, "127.0.0.1", self.port, ssl=self._tls, backlog=1024
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        # A connection that comes just now is taken first: asyncio forgets one that it has accepted
        # when the server is closed before it has become a transport.
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._server.close()
        # What is aborted closes its socket in the next turn of the loop.
        for _ in range(TURNS):
            for task, writer in self._tasks.items():
                task.cancel()
                writer.transport.abort()
            await asyncio.sleep(0)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks[task] = writer
        self.connections += 1
        number = self.connections
        try:
            while (request := await _request(reader, number)) is not None:
                answer = self._planned.popleft() if self._planned else self.otherwise
                self.requests.append(request)
                await answer(Wire(request, writer))
                if writer.is_closing():
                    break
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            # What is closed is gone only a moment later; the end of the server waits for it.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()
            self._tasks.pop(task)


def _head(code: int, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {code} As Asked", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


async def _request(reader: asyncio.StreamReader, connection: int) -> Received | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, path, _ = first.split(" ")
    pairs = [line.split(": ", 1) for line in lines]
    headers = tuple((name, value) for name, value in pairs)
    length = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
    body = await reader.readexactly(length)
    return Received(method, path, headers, body, connection)
