"""The embedded service behind HTTP, in the test's own process: models and time are the test's.

`Web` calls the application itself, without sockets: the test decides when a client reads, leaves,
or does neither. `listening` is the real server on a real socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import json as jsonlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import quote

import uvicorn

from runbell.service.app import App
from runbell.service.connection import Connection
from runbell.service.operations.access import Access
from runbell.testing.embedded import EmbeddedService

__all__ = ["KEY", "Exchange", "Web", "listening", "parsed", "unchunked"]

KEY = "sk-test-0123456789abcdef"

Streamed = tuple[str, Any]
"""An event of a stream: its name, and its data, decoded where it is JSON."""


class Exchange:
    """One request to the application, and what comes back; begins at once.

    Attributes:
        reading: while it is clear, the client takes nothing: whoever sends has to wait.
        chunks: the pieces of the body, as they were sent.
        leave_after: how many pieces the client takes before it goes away; None for all.
    """

    def __init__(
        self, app: App, method: str, path: str, body: bytes, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.ended = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.leave_after: int | None = None
        self._body: bytes | None = body
        self._left = asyncio.Event()
        self._news = asyncio.Event()
        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "client": ("127.0.0.1", 40_000),
            "server": ("127.0.0.1", 8_100),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))
        self.task.add_done_callback(lambda _: self._news.set())

    def leave(self) -> None:
        """Go away, whatever was answered by then."""
        self._left.set()

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    def json(self) -> Any:
        return jsonlib.loads(self.body)

    @property
    def events(self) -> list[Streamed]:
        """The events of the stream so far."""
        return parsed(self.body)

    @property
    def names(self) -> list[str]:
        """Their names, without the prefix that all of them have."""
        return [name.removeprefix("thread.") for name, _ in self.events]

    async def answered(self) -> Exchange:
        """Return when the answer is there, or the application has ended without one."""
        await self.task
        return self

    async def until(self, enough: Callable[[Exchange], Any]) -> Exchange:
        """Return when what came is enough."""
        while not enough(self):
            assert not self.task.done(), (self.status, self.body)
            self._news.clear()
            await self._news.wait()
        return self

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if not self.reading.is_set():
            waits = [asyncio.ensure_future(e.wait()) for e in (self.reading, self._left)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._left.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {k.decode().lower(): v.decode() for k, v in message["headers"]}
        else:
            if message.get("body"):
                self.chunks.append(message["body"])
            self.ended = not message.get("more_body", False)
        if self.leave_after is not None and len(self.chunks) >= self.leave_after:
            self._left.set()
        self._news.set()


class Web:
    """A client of an embedded service, without sockets."""

    def __init__(self, service: EmbeddedService) -> None:
        self.service = service
        self.app = App(service.ctx, Access(service.store, KEY, service.project))

    def send(
        self,
        method: str,
        path: str,
        json: Any = None,
        headers: Iterable[tuple[str, str]] = (),
        key: str = KEY,
    ) -> Exchange:
        """Begin a request."""
        given = [(b"authorization", f"Bearer {key}".encode())]
        given += [(name.lower().encode(), value.encode()) for name, value in headers]
        body = b"" if json is None else jsonlib.dumps(json).encode()
        return Exchange(self.app, method, path, body, given)

    def get(self, path: str, *headers: tuple[str, str], **options: Any) -> Exchange:
        return self.send("GET", path, headers=headers, **options)

    def post(self, path: str, json: Any = None, *headers: tuple[str, str]) -> Exchange:
        return self.send("POST", path, json, headers=headers)

    def stream(self, thread: str, label: str = "", **fields: Any) -> Exchange:
        """Create a run on a thread and stream it."""
        assistant = self.service.assistant
        body = {"assistant_id": assistant, "instructions": label, "stream": True, **fields}
        return self.post(f"/v1/threads/{thread}/runs", body)

    async def path_of(self, run: str) -> str:
        """Where a run is."""
        thread = (await self.service.find(run)).thread_id
        return f"/v1/threads/{quote(thread)}/runs/{quote(run)}"

    def nothing_held(self) -> bool:
        """Nobody is waited for or followed any more."""
        return self.service.ctx.changes.waiting == 0 and self.service.ctx.live.following == 0


def parsed(body: bytes) -> list[Streamed]:
    """The events in the bytes of a stream, comments left out."""
    found: list[Streamed] = []
    for block in body.decode().split("\n\n")[:-1]:
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue
        fields = dict(line.split(": ", 1) for line in lines)
        assert set(fields) <= {"id", "event", "data"}, block
        if set(fields) == {"id"}:
            # Where a feed begins: no event.
            continue
        data = fields["data"]
        found.append((fields["event"], data if data == "[DONE]" else jsonlib.loads(data)))
    return found


def unchunked(body: bytes) -> bytes:
    """A body as it was, before it was sent in chunks."""
    whole = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        whole, body = whole + body[: int(size, 16)], body[int(size, 16) + 2 :]
    return whole


@contextlib.asynccontextmanager
async def listening(service: EmbeddedService) -> AsyncIterator[tuple[str, uvicorn.Server]]:
    """The service on a loopback port: its base URL, and the server."""
    web = Web(service)
    config = uvicorn.Config(
        web.app,
        port=0,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=2,
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.001)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", server
    finally:
        web.app.stop()
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield
