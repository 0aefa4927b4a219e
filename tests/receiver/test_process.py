"""Real processes and real sockets: what dies, what lies and what dawdles."""

from __future__ import annotations

import contextlib
import json
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbell import faults
from runbell.webhooks import headers_for
from tests.receiver.databases import new_inbox
from tests.receiver.house import SECRET, body_of, run_event
from tests.receiver.serving import Served, limited

POINTS = ["storage.group.executed", *(p for p in faults.POINTS if p.startswith("receiver."))]


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_point_it_loses_nothing(point: str, tmp_path: Path) -> None:
    """A sender that gets no 200 sends again; what got one, or was committed before it, is handled
    after the next start. What was marked as handled is not handled again."""
    new_inbox(tmp_path / "inbox.db")
    events = {f"evt_{n}": run_event("in_progress", n, "run_1") for n in (1, 2, 3)}
    with Served(tmp_path) as served:
        served.start("--plain", "--kill-at", f"{point}:2")
        owed = dict(events)
        for event_id, body in events.items():
            if served.push(event_id, body) == 200:
                owed.pop(event_id)
            if served.has_ended:
                break
        said = served.wait_dead()
        assert f"killed at {point}:2".encode() in said
        with contextlib.closing(sqlite3.connect(served.inbox)) as connection:
            rows = dict(connection.execute("SELECT id, state FROM inbox_events").fetchall())
        assert set(events) - set(owed) <= set(rows), "a 200 was given for what is not there"
        finished = [event_id for event_id, state in rows.items() if state == "handled"]
        before = served.handled
        served.start("--plain")
        for event_id, body in owed.items():
            assert served.push(event_id, body) == 200
        with limited() as rest:
            while set(served.handled) != set(events):
                rest(f"{point}: handled {served.handled}")
            while states(served.inbox) != dict.fromkeys(events, "handled"):
                rest(f"{point}: {states(served.inbox)}")
        for event_id in finished:
            assert served.handled.count(event_id) == before.count(event_id) == 1
        assert list(dict.fromkeys(served.handled)) == sorted(events)


def states(inbox: Path) -> dict[str, str]:
    with contextlib.closing(sqlite3.connect(inbox)) as connection:
        return dict(connection.execute("SELECT id, state FROM inbox_events").fetchall())


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A receiver that gives bodies two seconds."""
    folder = tmp_path_factory.mktemp("served")
    new_inbox(folder / "inbox.db")
    with Served(folder) as served:
        served.start("--body-timeout", "2")
        yield served
        assert b"Traceback" not in served.stop()


BODY = body_of("response.completed", text="x" * 500)


def head(event_id: str, body: bytes, *more: str) -> bytes:
    headers = headers_for([SECRET], event_id, int(time.time()), body)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(["POST /hooks HTTP/1.1", "Host: x", *lines, *more, "", ""]).encode()


def exchange(port: int, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send pieces, and return what comes until the other side closes, or says enough."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            while True:
                read = connection.recv(65_536)
                answer += read
                if not read or (b"\r\n\r\n" in answer and b"connection: close" not in answer):
                    return answer
        except (ConnectionResetError, BrokenPipeError):
            return answer


def test_over_a_socket_a_webhook_comes_in(served: Served) -> None:
    """Also in chunks, and byte by byte."""
    assert served.push("wh_plain", BODY) == 200
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (BODY[:100], BODY[100:]))
    answer = exchange(
        served.port, head("wh_chunks", BODY, "Transfer-Encoding: chunked"), chunks + b"0\r\n\r\n"
    )
    assert answer.startswith(b"HTTP/1.1 200"), answer
    whole = head("wh_bytes", BODY, f"Content-Length: {len(BODY)}") + BODY
    answer = exchange(served.port, *(whole[n : n + 1] for n in range(len(whole))))
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert {"wh_plain", "wh_chunks", "wh_bytes"} <= set(states(served.inbox))


def test_a_body_over_a_mebibyte_is_a_413_while_it_comes(served: Served) -> None:
    """Announced, or in chunks that never end: the connection is closed long before all was sent."""
    announced = exchange(served.port, head("wh_big", BODY, "Content-Length: 1048577"))
    assert announced.startswith(b"HTTP/1.1 413"), announced
    chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    endless = exchange(
        served.port, head("wh_endless", BODY, "Transfer-Encoding: chunked"), *([chunk] * 64)
    )
    # The answer may be lost with the connection, where the sender does not read while it sends.
    assert endless.startswith(b"HTTP/1.1 413") or endless == b""
    assert not {"wh_big", "wh_endless"} & set(states(served.inbox))
    assert served.push("wh_after", BODY) == 200


def test_a_length_that_lies_brings_nothing_in(served: Served) -> None:
    """Longer than what comes: nothing is stored of it. Shorter: what was signed is not there."""
    longer = exchange(
        served.port,
        head("wh_longer", BODY, f"Content-Length: {len(BODY) + 100}"),
        BODY,
        half_close=True,
    )
    assert not longer.startswith(b"HTTP/1.1 200"), longer
    shorter = exchange(
        served.port, head("wh_shorter", BODY, f"Content-Length: {len(BODY) - 100}"), BODY
    )
    # The server may answer the bytes behind it first, which are no request.
    assert shorter[9:12] in (b"400", b"401"), shorter
    assert not {"wh_longer", "wh_shorter"} & set(states(served.inbox))


def test_slow_bodies_end_and_their_places_are_free(served: Served) -> None:
    """A hundred senders that stop in the middle are each told so; meanwhile others come in."""
    piece = head("wh_slow", BODY, f"Content-Length: {len(BODY)}") + BODY[:50]
    with contextlib.ExitStack() as stack:
        slow = [
            stack.enter_context(socket.create_connection(("127.0.0.1", served.port), timeout=60))
            for _ in range(100)
        ]
        for connection in slow:
            connection.sendall(piece)
        assert served.push("wh_beside", BODY) == 200
        for connection in slow:
            assert connection.recv(65_536).startswith(b"HTTP/1.1 408")
    assert "wh_slow" not in states(served.inbox)


def test_over_a_socket_other_methods_are_a_405(served: Served) -> None:
    """FastAPI leaves it to the receiver, which says what is allowed."""
    answer = exchange(served.port, b"GET /hooks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405")
    assert b"allow: POST" in answer
    missing = exchange(served.port, b"POST /other HTTP/1.1\r\nHost: x\r\n\r\n")
    assert missing.startswith(b"HTTP/1.1 404")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "method"
