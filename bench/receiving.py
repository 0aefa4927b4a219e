"""The receiver: accepted events a second, the answer's delay, and CPU an event.

The receiver is a process with a handler for everything, and an inbox on SQLite FULL or PostgreSQL
with fsync; the sender is another one, and signs everything before the clock starts. All are on one
machine: ratios hold where absolute numbers do not.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench.figures import Figure, percentile, within

__all__ = ["Sizes", "measure", "measure_postgresql"]

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
CONNECTIONS = 64
HANDLED_SECONDS = 120.0
IDLE_SECONDS = 4.0


@dataclass(frozen=True)
class Sizes:
    """How many events are sent at once, and at a rate of 1,000 a second for how long."""

    burst: int
    paced_seconds: float
    noticed: int


@dataclass(frozen=True)
class Sent:
    """What the sender saw: seconds for all, and each answer's delay from its due moment."""

    seconds: float
    delays: list[float]
    cpu: float


@dataclass(frozen=True)
class Inboxes:
    """Where the inbox is, and what is wanted of it.

    Attributes:
        url: for the receiver and for those who watch.
        what: the database, in words.
        suffix: of the figures' names.
        accepted: events a second that it has to accept; None where none are promised.
        server: the database's own process, if it has one.
    """

    url: str
    what: str = "SQLite FULL"
    suffix: str = ""
    accepted: int | None = 2_000
    server: int | None = None


def measure(sizes: Sizes) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        yield from _measure(sizes, Inboxes(f"sqlite:///{Path(folder) / 'inbox.db'}"))


def measure_postgresql(sizes: Sizes) -> Iterator[Figure]:
    """The same where the inbox is in a PostgreSQL on this machine."""
    from runbell.testing.postgresql import own_server

    with own_server() as server:
        yield from _measure(
            sizes,
            Inboxes(server.url(), "PostgreSQL, fsync on", "_on_postgresql", None, server.pid),
        )


def _measure(sizes: Sizes, inbox: Inboxes) -> Iterator[Figure]:
    with _receiver(inbox) as receiver:
        burst = receiver.send(sizes.burst, rate=None)
        yield from _burst(receiver, sizes.burst, burst)
        paced = receiver.send(round(1_000 * sizes.paced_seconds), rate=1_000.0)
        p99 = percentile(paced.delays, 99) * 1000
        yield within(
            f"webhook_answer_p99_ms_at_1000_per_second{inbox.suffix}",
            p99,
            50,
            "from the moment a webhook was due to be sent until its 200 was read",
            p50_ms=round(percentile(paced.delays, 50) * 1000, 2),
            max_ms=round(max(paced.delays) * 1000, 2),
        )
        receiver.settle()  # what is still to be handled is no part of what follows
        yield from _noticed(receiver, sizes.noticed)


def _burst(receiver: _Receiver, count: int, sent: Sent) -> Iterator[Figure]:
    accepted, inbox = count / sent.seconds, receiver.inbox
    cpu = receiver.settle()
    wanted = inbox.accepted
    yield Figure(
        f"webhooks_accepted_per_second{inbox.suffix}",
        round(accepted, 1),
        None if wanted is None else f">= {wanted}",
        None if wanted is None else accepted >= wanted,
        f"{CONNECTIONS} connections, {inbox.what}, one process, a handler for each",
        {"sender_cpu_ms_per_event": round(sent.cpu / count * 1000, 3)},
    )
    yield Figure(
        f"webhook_cpu_ms_per_event{inbox.suffix}",
        round(cpu / count * 1000, 4),
        how="CPU of the receiver, and of PostgreSQL where there is one, from the first byte until "
        "the last event is marked as handled",
        detail={"events_per_cpu_second": round(count / cpu, 1)},
    )


def _noticed(receiver: _Receiver, count: int) -> Iterator[Figure]:
    """How soon another process that watches the inbox knows of an event, and what that costs."""
    from runbell.receiver import Inbox

    inbox, suffix = Inbox(receiver.inbox.url), receiver.inbox.suffix
    process = psutil.Process()
    delays = []
    try:
        for number in range(count):
            run = f"run_watched_{number}"
            told = threading.Event()
            at: list[float] = []

            def deliver(event: Any, at: list[float] = at, told: threading.Event = told) -> None:
                at.append(time.monotonic())
                told.set()

            inbox.subscribe(run, deliver)
            time.sleep(0.05)
            began = time.monotonic()
            receiver.send_one(f"evt_watched_{number}", run)
            if not told.wait(10):
                raise RuntimeError("the inbox did not tell of an event")
            delays.append(at[0] - began)
            inbox.unsubscribe(run, deliver)
        inbox.subscribe("run_idle", lambda event: None)
        before = sum(process.cpu_times()[:2])
        time.sleep(IDLE_SECONDS)
        idle = (sum(process.cpu_times()[:2]) - before) / IDLE_SECONDS
    finally:
        inbox.close()
    yield within(
        f"inbox_of_another_process_p99_ms{suffix}",
        percentile(delays, 99) * 1000,
        100,
        "from the start of the POST to one process until a subscriber in another one was called",
        p50_ms=round(percentile(delays, 50) * 1000, 2),
    )
    yield Figure(
        f"inbox_idle_cpu_percent{suffix}",
        round(idle * 100, 3),
        how="of a core, in the process that waits, while nothing comes",
    )


class _Receiver:
    """The receiving process, as a measurement sees it."""

    def __init__(self, process: Any, inbox: Inboxes, port: int) -> None:
        self._process = psutil.Process(process.pid)
        self._server = None if inbox.server is None else psutil.Process(inbox.server)
        self.inbox = inbox
        self._port = port
        self._sent = 0
        self._cpu = self._now()

    def send(self, count: int, rate: float | None) -> Sent:
        """Have a process of its own send so many."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        sender = context.Process(target=_send, args=(theirs, self._port, self._sent, count, rate))
        sender.start()
        self._sent += count
        if not ours.poll(300):
            sender.kill()
            raise RuntimeError("the sender did not come to an end")
        seconds, delays, cpu = ours.recv()
        sender.join()
        return Sent(seconds, delays, cpu)

    def send_one(self, event_id: str, run: str) -> None:
        request = _request(event_id, run, 3)
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(request)
            if b" 200 " not in connection.recv(65_536):
                raise RuntimeError("an event was not accepted")

    def settle(self) -> float:
        """CPU seconds since it was started, once everything is handled."""
        from runbell.receiver import desk
        from runbell.receiver.places import place_of

        async def waiting() -> int:
            async with place_of(self.inbox.url).open_existing() as store:
                return (await store.scan(desk.load)).waiting

        deadline = time.monotonic() + HANDLED_SECONDS
        while asyncio.run(waiting()):
            if time.monotonic() > deadline:
                raise RuntimeError("the receiver does not handle what it accepted")
            time.sleep(0.2)
        return self._now() - self._cpu

    def _now(self) -> float:
        """CPU seconds of all processes that have a share in it."""
        of_database = [] if self._server is None else self._server.children()
        times = [each.cpu_times() for each in (self._process, *of_database)]
        return float(sum(each.user + each.system for each in times))


@contextmanager
def _receiver(inbox: Inboxes) -> Iterator[_Receiver]:
    context = multiprocessing.get_context("spawn")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, listener, inbox.url))
        process.start()
        try:
            if not ours.poll(60):
                raise RuntimeError("the receiver did not start")
            yield _Receiver(process, inbox, listener.getsockname()[1])
        finally:
            process.terminate()
            process.join(20)
            if process.is_alive():
                process.kill()


def _serve(ready: Any, listener: socket.socket, url: str) -> None:
    import uvicorn
    import uvloop

    from runbell.receiver import Receiver

    receiver = Receiver([SECRET], url)

    @receiver.on("*")
    async def handler(event: Any) -> None:
        """What a handler does is not the receiver's."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            ready.send("ready")

    config = uvicorn.Config(receiver.asgi(), log_level="warning", access_log=False)
    uvloop.run(Server(config).serve(sockets=[listener]))


def _request(event_id: str, run: str, sequence: int) -> bytes:
    from runbell.webhooks import Secret, headers_for

    data = {
        "id": run,
        "object": "thread.run",
        "status": "completed",
        "sequence": sequence,
        "status_reason": "The model gave its answer.",
        # What events of runs weigh: about 1 kB.
        "metadata": {"padding": "x" * 600},
    }
    event = {"object": "event", "id": event_id, "type": "thread.run.completed", "data": data}
    body = json.dumps(event | {"created_at": int(time.time())}).encode()
    headers = headers_for([Secret.parse(SECRET)], event_id, int(time.time()), body)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = ["POST /hooks HTTP/1.1", "Host: bench", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def _send(answer: Any, port: int, first: int, count: int, rate: float | None) -> None:
    import uvloop

    answer.send(uvloop.run(_send_all(port, first, count, rate)))


async def _send_all(
    port: int, first: int, count: int, rate: float | None
) -> tuple[float, list[float], float]:
    requests = [_request(f"evt_{n}", f"run_{n}", 3) for n in range(first, first + count)]
    delays: list[float] = []
    left = iter(range(count))
    streams = [await asyncio.open_connection("127.0.0.1", port) for _ in range(CONNECTIONS)]
    cpu, began = time.process_time(), time.monotonic()

    async def work(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in left:
            due = time.monotonic()
            if rate is not None:
                due = began + number / rate
                await asyncio.sleep(max(0.0, due - time.monotonic()))
            writer.write(requests[number])
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            await reader.readexactly(len(b'{"received":true}'))
            # From the moment it was due, so that a stall counts for all who wait behind it.
            delays.append(time.monotonic() - due)

    await asyncio.gather(*(work(*stream) for stream in streams))
    seconds = time.monotonic() - began
    for _, writer in streams:
        writer.close()
    return seconds, delays, time.process_time() - cpu
