"""A receiver with an inbox of its own, in the test's process: time is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from runbell.clock import VirtualClock
from runbell.receiver import Receiver
from runbell.storage.sqlite import SQLiteStore
from runbell.webhooks import Secret, headers_for
from tests.receiver.databases import asked, file_of, new_inbox

__all__ = [
    "SECRET",
    "Answer",
    "House",
    "body_of",
    "call",
    "eventually",
    "housed",
    "on_a_receiver",
    "on_every_inbox",
    "run_event",
]

SECRET = Secret.parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
LIMIT_S = 60.0


@dataclass
class Answer:
    """What the application answered; status 0 where it answered nothing."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def reason(self) -> str:
        return str(json.loads(self.body)["error"]["code"])


def body_of(kind: str, subject: str = "resp_1", **more: Any) -> bytes:
    """The bytes of an event."""
    event = {
        "object": "event",
        "id": "evt_1",
        "type": kind,
        "created_at": 1_800_000_000,
        "data": {"id": subject, **more},
    }
    return json.dumps(event).encode()


def run_event(status: str, sequence: int, run: str = "run_1") -> bytes:
    """The bytes of an event of a run, as far as a receiver looks at them."""
    kind = "created" if sequence == 1 else status
    return body_of(f"thread.run.{kind}", run, status=status, sequence=sequence)


async def call(
    app: Any,
    body: bytes | Iterable[bytes] = b"",
    headers: Iterable[tuple[str | bytes, str | bytes]] = (),
    *,
    method: str = "POST",
    leaves: bool = False,
) -> Answer:
    """One request to an ASGI application, without sockets; the body may come in pieces."""
    pieces = [body] if isinstance(body, bytes) else list(body)
    messages = [
        {"type": "http.request", "body": piece, "more_body": leaves or n < len(pieces)}
        for n, piece in enumerate(pieces, 1)
    ]
    answer = Answer()

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop(0)
        if leaves:
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    def raw(text: str | bytes) -> bytes:
        return text if isinstance(text, bytes) else text.encode("latin-1")

    scope = {
        "type": "http",
        "method": method,
        "path": "/hooks",
        "headers": [(raw(name), raw(value)) for name, value in headers],
    }
    await app(scope, receive, send)
    return answer


async def eventually(condition: Callable[[], Any], what: str = "it") -> None:
    """Return when the condition holds; fail when it does not within the limit."""
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.001)


class House:
    """A receiver, its clock and its inbox.

    Attributes:
        beside: the houses that have the same clock, itself among them: time stands still as long
            as anybody in one of them is at work.
    """

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.clock = options.pop("clock", None) or VirtualClock()
        options.setdefault("secrets", [SECRET])
        self.beside = [self]
        self.receiver = Receiver(inbox=url, clock=self.clock, **options)
        self.app = self.receiver.asgi()
        self.handled: list[tuple[str, str]] = []

    def note(self, *types: str) -> None:
        """Have a handler note the id and the type of each event that it gets."""

        @self.receiver.on(*(types or ("*",)))
        async def noted(event: Any) -> None:
            self.handled.append((event.id, event.type))

    @property
    def path(self) -> Path:
        """The file, where it is one."""
        return file_of(self.url)

    @property
    def store(self) -> Any:
        running = self.receiver._running
        assert running is not None
        return running.store

    def hasten(self) -> None:
        """Commits need not survive a power cut: only processes of their own die here."""
        if isinstance(self.store, SQLiteStore):
            self.store._writer.execute("PRAGMA synchronous = OFF")

    @property
    def ids(self) -> list[str]:
        return [event_id for event_id, _ in self.handled]

    async def push(self, event_id: str, body: bytes, **how: Any) -> Answer:
        """A proper webhook."""
        return await call(self.app, body, self.headers(event_id, body, **how).items())

    def headers(
        self, event_id: str, body: bytes, *, secret: Secret = SECRET, skew: int = 0
    ) -> dict[str, str]:
        now = self.clock.now_ms() // 1000
        return headers_for([secret], event_id, now + skew, body)

    def rows(self, sql: str = "SELECT id, state FROM inbox_events ORDER BY position") -> list[Any]:
        return asked(self.url, sql)

    def state(self, event_id: str) -> str:
        return dict(self.rows()).get(event_id, "absent")

    async def count(self, name: str, **labels: str) -> float:
        """A number of the metrics' page."""
        page = (await self.receiver.metrics()).body.decode()
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                if sample.name == f"runbell_receiver_{name}" and sample.labels == labels:
                    return sample.value
        raise AssertionError(f"no number {name} {labels}")

    async def pass_time(self, seconds: float, step: float = 0.5) -> None:
        """Let time go by, and everybody do what it makes them do."""
        left = seconds
        while left > 0:
            self.clock.advance(min(step, left))
            left -= step
            await self.settle()

    async def settle(self) -> None:
        """Return when everything that was set off has come to rest."""
        stores = [house.store for house in self.beside if house.receiver._running is not None]
        for store in stores:
            if isinstance(store, SQLiteStore):
                for _ in range(6):
                    await asyncio.sleep(0)
                    await store.write(_nothing)
        turns = 0
        while turns < 10:
            busy = any(store.waiting for store in stores if not isinstance(store, SQLiteStore))
            turns = 0 if busy else turns + 1
            await asyncio.sleep(0.0002 if busy else 0)

    async def until(self, condition: Callable[[], Any], what: str = "it") -> None:
        """Let time go by until the condition holds."""
        async with asyncio.timeout(LIMIT_S):
            while not condition():
                await self.pass_time(0.5)


async def _nothing(tx: Any) -> None:
    """A unit that is only waited for."""


@contextlib.asynccontextmanager
async def housed(inbox: Path | str, **options: Any) -> AsyncIterator[House]:
    """A house whose receiver does not run yet.

    Args:
        inbox: its URL; or a file, which is made where it is missing.
    """
    house = House(inbox if isinstance(inbox, str) else f"sqlite:///{new_inbox(inbox)}", **options)
    try:
        yield house
    finally:
        house.receiver._watch.close()


Told = Callable[[House], Awaitable[None]]


def on_a_receiver(**options: Any) -> Callable[[Told], Callable[[Path], None]]:
    """Make a test of an async function that is given a house whose receiver runs.

    A handler notes every event, unless `silent`; `options` are the receiver's.
    """

    def decorate(test: Told) -> Callable[[Path], None]:
        def run(tmp_path: Path) -> None:
            asyncio.run(_live(test, tmp_path / "inbox.db", **options))

        return _named(run, test)

    return decorate


def on_every_inbox(**options: Any) -> Callable[[Told], Callable[[str], None]]:
    """The same, once with each kind of database."""

    def decorate(test: Told) -> Callable[[str], None]:
        def run(inbox: str) -> None:
            asyncio.run(_live(test, inbox, **options))

        return _named(run, test)

    return decorate


async def _live(test: Told, inbox: Path | str, *, silent: bool = False, **options: Any) -> None:
    async with housed(inbox, **options) as house:
        if not silent:
            house.note()
        async with house.receiver.running():
            house.hasten()
            await test(house)


def _named(run: Any, test: Told) -> Any:
    # Not `functools.wraps`: pytest would look for a fixture of the wrapped signature's name.
    run.__doc__ = test.__doc__
    run.__name__ = run.__qualname__ = getattr(test, "__name__", "test")
    run.__module__ = test.__module__
    return run
