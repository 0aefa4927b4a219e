"""Whoever reads a stream can leave, or be slow: the run goes on, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from runbell.runs import Usage
from runbell.service.backends import Finished, TextDelta
from runbell.service.live import MAX_BEHIND, Delta, Follower, Live
from runbell.service.wire.streams import BROKEN_OFF
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.streams.told import put_together, told_is_stored
from tests.web import KEY, Web, listening, parsed, unchunked

STOP = Finished("stop", Usage(3, 2))
WORDS = ("One, ", "two, ", "three.")
EVENTS_OF_A_TEXT = 14
EVENTS_OF_CALLS = 9
LIMIT_SECONDS = 60.0
"""The service's own time stands still meanwhile: nothing but the leaving itself is noticed."""


@pytest.mark.parametrize("count", range(EVENTS_OF_A_TEXT + 1))
def test_a_stream_cut_at_every_event_of_a_text(tmp_path: Path, count: int) -> None:
    """The run is completed with its whole answer, and nobody is followed any more."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, thread = Web(service), await service.thread("Hello")
        stream = web.stream(thread)
        stream.leave_after = count
        await service.settle()
        for word in WORDS:
            service.backend.turn.give(TextDelta(word))
            await service.settle()
        assert stream.task.done() == (count <= 10), "who has left is noticed at once"
        if stream.task.done():
            assert web.nothing_held(), "not only when the run has ended"
        service.backend.turn.play(STOP)
        await service.settle()
        await stream.answered()
        assert len(stream.chunks) <= count
        question, answer = await service.messages(thread)
        assert answer.content[0].text.value == "".join(WORDS)  # type: ignore[union-attr]
        assert await service.status(str(answer.run_id)) == "completed"
        assert question.role == "user"
        assert web.nothing_held()

    story(tmp_path)


def test_the_number_of_events_is_what_these_tests_think(tmp_path: Path) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        text = Web(service).stream(await service.thread("Hello"))
        await service.settle()
        service.backend.turn.play(*map(TextDelta, WORDS), STOP)
        await text.answered()
        assert len(text.events) == EVENTS_OF_A_TEXT
        calls = Web(service).stream(await service.thread("Hello"))
        await service.settle()
        service.backend.turn.call(("f", "{}"), ("g-2", "{}"))
        await calls.answered()
        assert len(calls.events) == EVENTS_OF_CALLS

    story(tmp_path)


@pytest.mark.parametrize("count", range(EVENTS_OF_CALLS + 1))
def test_a_stream_cut_at_every_event_of_calls(tmp_path: Path, count: int) -> None:
    """The run waits for its outputs, which can be streamed as if nothing had been."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, thread = Web(service), await service.thread("Hello")
        stream = web.stream(thread)
        stream.leave_after = count
        await service.settle()
        service.backend.turn.call(("f", "{}"), ("g-2", "{}"))
        await stream.answered()
        await service.settle()
        assert web.nothing_held()
        (run,) = {event["data"]["id"] for event in await service.feed()}
        assert await service.status(run) == "requires_action"
        calls = (await service.find(run)).tool_calls
        outputs = [{"tool_call_id": call.id, "output": "o"} for call in calls]
        path = f"{await web.path_of(run)}/submit_tool_outputs"
        second = web.post(path, {"tool_outputs": outputs, "stream": True})
        await service.settle()
        service.backend.turn.say("done")
        await second.answered()
        put_together(second.events)
        assert await service.status(run) == "completed"
        assert web.nothing_held()

    story(tmp_path)


@on_a_service()
async def test_who_leaves_before_the_answer_begins(service: EmbeddedService) -> None:
    """The request was made: its run is there all the same."""
    web, thread = Web(service), await service.thread("Hello")
    stream = web.stream(thread)
    stream.leave()
    await service.settle()
    await stream.answered()
    assert stream.status == 0
    assert web.nothing_held()
    service.backend.turn.say("Hi")
    await service.settle()
    assert len(await service.messages(thread)) == 2


@on_a_service()
async def test_a_slow_reader_is_told_everything_in_fewer_pieces(service: EmbeddedService) -> None:
    """While nothing is read, text is merged: what waits does not grow with the number of pieces."""
    web = Web(service)
    stream = web.stream(await service.thread("Hello"))
    await service.settle()
    turn = service.backend.turn
    stream.reading.clear()
    turn.give(*(TextDelta(f"{number} ") for number in range(5_000)))
    await service.settle()
    (follower,) = follows(service, stream.events[0][1]["id"])
    assert len(follower._untold) <= MAX_BEHIND + 2
    turn.play(*(TextDelta(f"{number} ") for number in range(5_000, 10_000)), STOP)
    await service.settle()
    assert not stream.task.done()
    assert len(follower._untold) <= MAX_BEHIND + 10
    stream.reading.set()
    await stream.answered()
    await told_is_stored(service, stream.events)
    assert len(stream.events) < 2 * MAX_BEHIND
    said = [d for name, d in stream.events if name == "thread.message.completed"]
    assert said[0]["content"][0]["text"]["value"] == "".join(f"{n} " for n in range(10_000))


def test_texts_that_grow_side_by_side_are_merged_too() -> None:
    """Arguments of parallel calls may come piece by piece in turns."""
    live = Live()
    follower = live.follow("run_x")
    for number in range(10_000):
        delta = Delta((number % 3,), [f"{number} "], key_and(number % 3))
        live.tell("run_x", "delta", lambda delta=delta: delta)
    live.tell("run_x", "end", lambda: None)
    assert len(follower._untold) <= MAX_BEHIND + 2
    texts = ["", "", ""]

    async def read() -> None:
        async for told in follower:
            if told.event == "end":
                follower.close()
            else:
                key, text = told.data
                texts[key] += text

    asyncio.run(read())
    assert texts == ["".join(f"{n} " for n in range(10_000) if n % 3 == key) for key in range(3)]
    assert live.following == 0


@pytest.mark.parametrize("seed", range(5))
def test_no_text_is_lost_however_telling_and_reading_meet(seed: int) -> None:
    """Text is added to what was not read yet, never to what is read already."""
    rng, live = random.Random(seed), Live()
    follower = live.follow("run_x")
    # More texts than a follower may be behind, so that one is read out while others wait.
    told, texts = [""] * 200, [""] * 200

    def tell(number: int) -> None:
        key = rng.randrange(200)
        told[key] += f"{number} "
        live.tell("run_x", "delta", lambda: Delta((key,), [f"{number} "], key_and(key)))

    async def story() -> None:
        reading = aiter(follower)
        for number in range(20_000):
            tell(number)
            # In bursts: behind for a while, then caught up in part or in full.
            if number % 500 == 0:
                for _ in range(rng.randint(0, len(follower._untold))):
                    key, text = (await anext(reading)).data
                    texts[key] += text
        while follower._untold:
            key, text = (await anext(reading)).data
            texts[key] += text
        await reading.aclose()
        follower.close()

    asyncio.run(story())
    assert texts == told


def key_and(key: int) -> Any:
    return lambda text: (key, text)


def follows(service: EmbeddedService, run: str) -> list[Follower]:
    return service.ctx.live._followers.get(run, [])


@on_a_service()
async def test_a_service_that_stops_ends_streams(service: EmbeddedService) -> None:
    """Those that are there, and those whose request was on its way; runs go on being executed."""
    web = Web(service)
    stream = web.stream(await service.thread("Hello"))
    await service.settle()
    web.app.stop()
    await stream.answered()
    assert stream.ended
    assert stream.names[-3:] == ["run.in_progress", "error", "done"], "it says that this is no end"
    data = stream.events[-2][1]
    assert data["code"] == data["error"]["code"] == "server_error"
    assert data["message"] == data["error"]["message"] == BROKEN_OFF
    late = await web.stream(await service.thread("Hello")).answered()
    assert late.ended
    assert late.names == ["run.created", "error", "done"]
    assert web.nothing_held()
    await service.settle()
    assert len(service.backend.open) == 2


# The same over sockets.


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[socket.socket]:
    """A connection that takes in little by itself, so that who does not read is felt."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.setblocking(False)
        parts = urlsplit(url)
        await asyncio.get_running_loop().sock_connect(raw, (parts.hostname, parts.port))
        yield raw


def request_bytes(method: str, path: str, body: bytes = b"", *headers: str) -> bytes:
    lines = (
        f"{method} {path} HTTP/1.1",
        "Host: test",
        f"Authorization: Bearer {KEY}",
        f"Content-Length: {len(body)}",
        *headers,
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


def stream_request(service: EmbeddedService, thread: str) -> bytes:
    body = b'{"assistant_id": "%b", "stream": true}' % service.assistant.encode()
    return request_bytes("POST", f"/v1/threads/{thread}/runs", body)


async def read_until(raw: socket.socket, end: bytes) -> bytes:
    read = bytearray()
    async with asyncio.timeout(LIMIT_SECONDS):
        while end not in read[-65_536 - len(end) :]:
            piece = await asyncio.get_running_loop().sock_recv(raw, 65_536)
            assert piece, read[-1000:]
            read += piece
    return bytes(read)


async def eventually(look: Any) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while not look():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["closed", "reset", "half closed"])
def test_a_connection_that_ends_is_noticed_at_once(tmp_path: Path, how: str) -> None:
    """However it ends, and while nothing is said."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        loop = asyncio.get_running_loop()
        async with listening(service) as (url, server):
            async with connected(url) as raw:
                await loop.sock_sendall(raw, stream_request(service, await service.thread("Hi")))
                await read_until(raw, b"thread.run.in_progress")
                assert service.ctx.live.following == 1
                if how == "reset":
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                if how == "half closed":
                    raw.shutdown(socket.SHUT_WR)
                    await eventually(lambda: service.ctx.live.following == 0)
            await eventually(lambda: service.ctx.live.following == 0)
            await eventually(lambda: not server.server_state.connections)
            await eventually(lambda: not server.server_state.tasks)
            await service.settle()
            service.backend.turn.say("Hi")
            await eventually(lambda: not service.backend.open)

    story(tmp_path)


@pytest.mark.parametrize("kind", ["stream", "wait", "feed"])
def test_a_pipelined_request_behind_it_hides_no_leaving(tmp_path: Path, kind: str) -> None:
    """Whoever waits or streams is told, not only the latest request of the connection."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        loop = asyncio.get_running_loop()
        thread = await service.thread("Hi")
        run = await service.run(await service.thread("Hi"))
        ctx = service.ctx
        first, begun = {
            "stream": (stream_request(service, thread), lambda: ctx.live.following),
            "wait": (
                request_bytes("GET", await Web(service).path_of(run), b"", "Prefer: wait=60"),
                lambda: ctx.changes.waiting,
            ),
            "feed": (
                request_bytes("GET", "/v1/events", b"", "Accept: text/event-stream"),
                lambda: ctx.changes.waiting,
            ),
        }[kind]
        async with listening(service) as (url, server):
            async with connected(url) as raw:
                await loop.sock_sendall(raw, first)
                await eventually(begun)
                await loop.sock_sendall(raw, request_bytes("GET", "/v1/models"))
                await asyncio.sleep(0.05)
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # Reading is paused while a request waits in line, so the leaving shows when something
            # is sent: here, at the latest, with the next event.
            for each in service.backend.open:
                each.say("Hi")
            await eventually(Web(service).nothing_held)
            await eventually(lambda: not server.server_state.connections)
            await eventually(lambda: not server.server_state.tasks)

    story(tmp_path)


@on_a_service()
async def test_a_slow_reader_over_a_socket(service: EmbeddedService) -> None:
    """It is held back by the connection, bounded in memory, and gets every word in the end."""
    loop = asyncio.get_running_loop()
    async with listening(service) as (url, server), contextlib.AsyncExitStack() as stack:
        # Connections inherit it: else the system alone would take in megabytes.
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
        raw = await stack.enter_async_context(connected(url))
        thread = await service.thread("Hi")
        await loop.sock_sendall(raw, stream_request(service, thread))
        await eventually(lambda: service.backend.open)
        turn = service.backend.turn
        pieces = [f"{number:07} " * 4 for number in range(40_000)]
        for start in range(0, len(pieces), 1_000):
            turn.give(*map(TextDelta, pieces[start : start + 1_000]))
            await asyncio.sleep(0.001)
        (connection,) = server.server_state.connections
        (follower,) = next(iter(service.ctx.live._followers.values()))
        # It does not read at all as yet.
        await eventually(lambda: connection.flow.write_paused)
        assert connection.transport.get_write_buffer_size() < 1_000_000
        assert len(follower._untold) <= MAX_BEHIND + 2
        turn.play(STOP)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        answer = await read_until(raw, b"data: [DONE]\n\n\r\n0\r\n\r\n")
        events = parsed(unchunked(answer.partition(b"\r\n\r\n")[2]))
    deltas = sum(name == "thread.message.delta" for name, _ in events)
    assert deltas < len(pieces) / 2
    await told_is_stored(service, events)
    (said,) = [d for name, d in events if name == "thread.message.completed"]
    assert said["content"][0]["text"]["value"] == "".join(pieces)
