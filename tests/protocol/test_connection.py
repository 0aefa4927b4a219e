"""Heads of requests are limited, bodies that arrive together with them are not part of them."""

import asyncio
import json
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from runbell.service.connection import AT_ONCE, HEAD_SECONDS, MAX_HEAD, Connection
from tests.served import Api


def sent(api: Api, data: bytes) -> tuple[int, bytes]:
    """What the service answers to these bytes, sent at once: the status, and everything."""
    with socket.create_connection(("127.0.0.1", api.served.port), timeout=60) as connection:
        connection.sendall(data)
        answered = b""
        while chunk := connection.recv(1 << 20):
            answered += chunk
        return int(answered.split(b" ", 2)[1]), answered


def request(api: Api, body: bytes, *, header: int = 0, close: bool = True) -> bytes:
    """A request whose head has a header of this size."""
    return (
        b"POST /v1/threads HTTP/1.1\r\nHost: here\r\n"
        + f"Authorization: Bearer {api.key}\r\nX-Large: {'x' * header}\r\n".encode()
        + f"Connection: {'close' if close else 'keep-alive'}\r\n".encode()
        + f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def saying(length: int) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": "a" * length}]}).encode()


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self.written = b""
        self.closing = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        """Whoever writes to it takes no notice."""

    resume_reading = pause_reading


@pytest.mark.parametrize("size", [1, 100, MAX_HEAD - 1, MAX_HEAD, MAX_HEAD + 1, 1 << 20])
def test_it_does_not_matter_in_what_pieces_a_request_is_read(size: int) -> None:
    """A busy loop reads a head and all of a large body at once."""
    bodies: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length, more = 0, True
        while more:
            message = await receive()
            length, more = length + len(message["body"]), message["more_body"]
        bodies.append(length)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def read(data: bytes) -> bytes:
        config = uvicorn.Config(app, http=Connection, ws="none", lifespan="off", log_config=None)
        config.load()
        connection, wire = Connection(config, ServerState(), {}), Wire()
        connection.connection_made(wire)
        for start in range(0, len(data), size):
            connection.data_received(data[start : start + size])
        async with asyncio.timeout(60):
            while len(bodies) < 2:
                await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        connection.connection_lost(None)
        return wire.written

    length = 20_000 if size == 1 else 300_000
    head = f"POST / HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode()
    written = asyncio.run(read((head + b"a" * length) * 2))
    assert bodies == [length, length]
    assert written.count(b"200 OK") == 2


@pytest.mark.parametrize("length", [10, MAX_HEAD, 2 * MAX_HEAD, 250_000])
def test_a_body_may_arrive_together_with_its_head(api: Api, length: int) -> None:
    status, _ = sent(api, request(api, saying(length)))
    assert status == 200


def test_requests_may_follow_each_other_at_once(api: Api) -> None:
    data = request(api, saying(200_000), close=False) + request(api, saying(200_000))
    status, answered = sent(api, data)
    assert status == 200
    assert answered.count(b"HTTP/1.1 200 OK") == 2


def test_a_head_that_is_nearly_too_large_is_read(api: Api) -> None:
    assert sent(api, request(api, b"{}", header=MAX_HEAD - 1_000))[0] == 200


@pytest.mark.parametrize("header", [MAX_HEAD, 3 * MAX_HEAD])
def test_a_head_that_is_too_large_is_refused(api: Api, header: int) -> None:
    # Only what has been read when it is refused: more would reset the connection.
    data = request(api, b"{}", header=header)[: MAX_HEAD + 1]
    status, answered = sent(api, data)
    assert status == 400
    refused_as_always(answered, "The request's head is too large.")


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"GET / HTTP/1.1\r\na b\r\n\r\n"]
)
def test_what_is_no_http_is_refused(api: Api, data: bytes) -> None:
    """As by TLS on a plain port: with an id to ask for, and the connection is closed."""
    status, answered = sent(api, data)
    assert status == 400
    refused_as_always(answered, "Invalid HTTP request received.")


def refused_as_always(answered: bytes, message: str) -> None:
    head, _, body = answered.partition(b"\r\n\r\n")
    assert json.loads(body)["error"] == {
        "message": message,
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    lines = head.decode().lower().split("\r\n")
    assert [line for line in lines if line.startswith("x-request-id: req_")]
    assert "connection: close" in lines
    assert f"content-length: {len(body)}" in lines


# Time, and answers that are there at once.

KEEP_ALIVE = 75
GET = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"


class Jumping(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when it is told to."""

    now = 1_000.0

    def time(self) -> float:
        return self.now

    async def jump(self, seconds: float) -> None:
        self.now += seconds
        await turns()


async def turns() -> None:
    """What is due is done, and what follows it."""
    for _ in range(10):
        await asyncio.sleep(0)


def connected(app: Any) -> tuple[Connection, Wire]:
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE,
    )
    config.load()
    connection, wire = Connection(config, ServerState(), {}), Wire()
    connection.connection_made(wire)
    return connection, wire


async def answer_at_once(scope: Any, receive: Any, send: Any) -> None:
    assert scope[AT_ONCE]([(b"content-length", b"2")], b"ok")


def on_a_loop(test: Callable[[Jumping], Coroutine[Any, Any, None]]) -> None:
    loop = Jumping()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.run(test(loop))


def test_who_begins_no_request_is_let_go() -> None:
    async def wait(loop: Jumping) -> None:
        _, wire = connected(answer_at_once)
        await loop.jump(HEAD_SECONDS - 1)
        assert not wire.closing
        await loop.jump(2)
        assert wire.closing

    on_a_loop(wait)


def test_the_time_of_a_head_counts_from_its_beginning() -> None:
    """Whoever sends a byte now and then holds a connection no longer."""

    async def wait(loop: Jumping) -> None:
        connection, wire = connected(answer_at_once)
        connection.data_received(GET)
        await turns()
        await loop.jump(KEEP_ALIVE - 1)
        assert not wire.closing
        connection.data_received(GET[:20])
        await loop.jump(HEAD_SECONDS - 1)
        assert not wire.closing
        connection.data_received(GET[20:24])
        await loop.jump(2)
        assert wire.closing

    on_a_loop(wait)


def test_an_idle_connection_is_kept_for_a_while_after_each_answer() -> None:
    async def wait(loop: Jumping) -> None:
        connection, wire = connected(answer_at_once)
        for _ in range(3):
            connection.data_received(GET)
            await turns()
            await loop.jump(KEEP_ALIVE - 1)
            assert not wire.closing
        assert wire.written.count(b"200 OK") == 3
        await loop.jump(2)
        assert wire.closing

    on_a_loop(wait)


def test_who_waits_for_an_answer_is_not_let_go() -> None:
    async def wait(loop: Jumping) -> None:
        done = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await done.wait()
            await answer_at_once(scope, receive, send)

        connection, wire = connected(app)
        connection.data_received(GET)
        await turns()
        await loop.jump(10 * KEEP_ALIVE)
        assert not wire.closing
        done.set()
        await turns()
        assert b"200 OK" in wire.written
        await loop.jump(KEEP_ALIVE + 1)
        assert wire.closing

    on_a_loop(wait)


def test_an_answer_at_once_is_what_two_messages_make() -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"2")]

    async def in_two(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def at_once(scope: Any, receive: Any, send: Any) -> None:
        assert scope[AT_ONCE](headers, b"ok")

    async def written(app: Any, data: bytes) -> bytes:
        connection, wire = connected(app)
        connection.server_state.default_headers = [(b"date", b"now")]
        connection.data_received(data)
        await turns()
        return wire.written

    for data in (GET, 2 * GET):
        assert asyncio.run(written(at_once, data)) == asyncio.run(written(in_two, data)) != b""


@pytest.mark.parametrize("why", ["head", "close", "line break", "not read", "left"])
def test_what_cannot_be_answered_at_once_is_left_to_the_messages(why: str) -> None:
    told: list[bool] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        value = b"a\r\nset-cookie: b" if why == "line break" else b"a"
        told.append(scope[AT_ONCE]([(b"x", value), (b"content-length", b"2")], b"ok"))

    async def ask() -> bytes:
        connection, wire = connected(app)
        data = GET
        if why == "head":
            data = GET.replace(b"GET", b"HEAD")
        elif why == "close":
            data = GET.replace(b"Host", b"Connection: close\r\nHost")
        elif why == "not read":
            connection.pause_writing()
        connection.data_received(data)
        if why == "left":
            connection.connection_lost(None)
        for _ in range(3):
            await asyncio.sleep(0)
        return wire.written

    written = asyncio.run(ask())
    assert told == [False]
    assert b"200 OK" not in written
