"""A model server that misbehaves on demand: raw HTTP on loopback, one scripted answer a request.

    async with ModelServer() as server:
        server.will(stream(text("Hi"), STOP))
        ...
        assert server.asked.json["model"] == "m"

Nothing checks what it sends: an answer can be cut, late, malformed or lacking in any way.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

__all__ = [
    "DONE",
    "STOP",
    "Cut",
    "Exchange",
    "ModelServer",
    "Pause",
    "chunk",
    "document",
    "finish",
    "in_a_thread",
    "refuse",
    "silent",
    "stream",
    "text",
    "tool",
    "usage",
]


@dataclass
class Exchange:
    """One request, and what became of it.

    Attributes:
        left: the client has closed the connection before the answer was over.
        over: the scripted answer has been sent, or given up.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    left: bool = False
    over: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Reply = Callable[[Exchange], Awaitable[None]]


class Pause:
    """In a stream: send no more until the test says `go`, or for ever."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self.reached = False

    def go(self) -> None:
        self._go.set()

    async def wait(self) -> None:
        self.reached = True
        while not self._go.is_set():
            await asyncio.sleep(0.002)


class Cut:
    """In a stream: break the connection off here."""


class ModelServer:
    """The server; it listens inside `async with`.

    Attributes:
        exchanges: every request, the oldest first, with those for the list of models.
        models: what GET /models answers; a reply of its own, or names.
    """

    def __init__(self, port: int = 0) -> None:
        self.port = port
        self.exchanges: list[Exchange] = []
        self.models: Reply | Iterable[str] = ("m",)
        self.otherwise: Reply = stream(text("ok"), STOP)
        self._replies: deque[Reply] = deque()
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def will(self, *replies: Reply) -> None:
        """Answer the next chat completions so, one after another."""
        self._replies.extend(replies)

    @property
    def chats(self) -> list[Exchange]:
        """The answers that it was asked for."""
        return [each for each in self.exchanges if _is_chat(each)]

    @property
    def asked(self) -> Exchange:
        """The latest of them."""
        return self.chats[-1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._connections += 1
        connection = self._connections
        try:
            while (exchange := await _request(reader, writer, connection)) is not None:
                self.exchanges.append(exchange)
                await self._answer(exchange)
                if exchange.left or writer.is_closing():
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            self._tasks.discard(task)

    async def _answer(self, exchange: Exchange) -> None:
        """Send the scripted answer, and watch for the client that leaves meanwhile."""
        answering = asyncio.ensure_future(self._reply(exchange)(exchange))
        leaving = asyncio.ensure_future(_gone(exchange.reader))
        try:
            await asyncio.wait([answering, leaving], return_when=asyncio.FIRST_COMPLETED)
            exchange.left = not answering.done()
            if answering.done():
                answering.result()
        except ConnectionError:
            exchange.left = True
        finally:
            exchange.over = True
            for task in (answering, leaving):
                task.cancel()

    def _reply(self, exchange: Exchange) -> Reply:
        if exchange.path.endswith("/models"):
            if callable(self.models):
                return self.models
            return document({"object": "list", "data": [{"id": name} for name in self.models]})
        if not _is_chat(exchange):
            return refuse(404, {"error": {"message": "no such path"}})
        return self._replies.popleft() if self._replies else self.otherwise


def _is_chat(exchange: Exchange) -> bool:
    # The other path is Anthropic's, for a proxy that translates.
    return exchange.path.partition("?")[0].endswith(("/chat/completions", "/v1/messages"))


async def _gone(reader: asyncio.StreamReader) -> None:
    # A client that speaks HTTP/1.1 sends nothing before it has its answer: what comes is the end.
    while not reader.at_eof():
        await asyncio.sleep(0.002)


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
) -> Exchange | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines if line)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Exchange(method, path, headers, body, connection, reader, writer)


# Chunks.

DONE = b"data: [DONE]\n\n"


def chunk(delta: Any = None, finish_reason: Any = None, **more: Any) -> dict[str, Any]:
    """A chunk with one choice."""
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice], **more}


def text(content: Any) -> dict[str, Any]:
    return chunk({"content": content})


def tool(*calls: dict[str, Any]) -> dict[str, Any]:
    """A chunk with parts of calls: `index`, `id`, `name` and `arguments`, those that are given."""
    parts = []
    for call in calls:
        part = {name: call[name] for name in ("index", "id", "type") if name in call}
        function = {name: call[name] for name in ("name", "arguments") if name in call}
        parts.append({**part, "function": function})
    return chunk({"tool_calls": parts})


def finish(reason: Any) -> dict[str, Any]:
    return chunk({}, reason)


def usage(prompt: Any, completion: Any) -> dict[str, Any]:
    """The last chunk, which has no choices."""
    counted = {"prompt_tokens": prompt, "completion_tokens": completion}
    return {"choices": [], "usage": counted}


STOP = finish("stop")


# Replies.


def stream(
    *events: Any,
    done: bool = True,
    chunked: bool = True,
    end: bytes = b"\n\n",
    content_type: str = "text/event-stream",
    hold: bool = False,
) -> Reply:
    """A stream of these events: dicts are sent as JSON, bytes as they are.

    Args:
        done: with `[DONE]` at the end.
        chunked: in HTTP's chunks; without, the connection's end is the answer's end.
        end: what follows the data of each event.
        hold: the connection stays open behind the last event, and the answer unended.
    """

    async def reply(exchange: Exchange) -> None:
        transfer = "transfer-encoding: chunked" if chunked else "connection: close"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\n{transfer}\r\n\r\n"
        await exchange.send(head.encode())
        for event in (*events, *([DONE] if done else [])):
            if isinstance(event, Pause):
                await event.wait()
            elif isinstance(event, Cut):
                exchange.writer.transport.abort()
                return
            else:
                await exchange.send(_framed(_bytes(event, end), chunked))
        if hold:
            await asyncio.Event().wait()
        if chunked:
            await exchange.send(b"0\r\n\r\n")
        else:
            exchange.writer.close()

    return reply


def _bytes(event: Any, end: bytes) -> bytes:
    return event if isinstance(event, bytes) else b"data: " + json.dumps(event).encode() + end


def _framed(data: bytes, chunked: bool) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if chunked else data


def document(body: Any, status: int = 200, **headers: str) -> Reply:
    """An answer that is no stream."""
    return refuse(status, body, **headers)


def refuse(status: int, body: Any = None, **headers: str) -> Reply:
    """An answer with this status; `body` is JSON, or bytes. Headers with `_` for `-`."""

    async def reply(exchange: Exchange) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"content_type": "application/json", "content_length": str(len(data)), **headers}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
        await exchange.send(f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode() + data)

    return reply


async def silent(exchange: Exchange) -> None:
    """No answer at all."""
    await asyncio.Event().wait()


@contextmanager
def in_a_thread(port: int = 0) -> Iterator[ModelServer]:
    """The server with a loop of its own, for tests that block."""
    server = ModelServer(port)
    started, stopping = threading.Event(), threading.Event()

    async def serve() -> None:
        async with server:
            started.set()
            while not stopping.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert started.wait(60)
    try:
        yield server
    finally:
        stopping.set()
        thread.join(60)
