"""The connection that listens: however it is lost, another is made, and who listens knows of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest

from runbell.errors import StorageUnavailable
from runbell.storage import lasting as lasting_room
from runbell.storage import listening
from runbell.storage.lasting import lasting
from runbell.storage.listening import Listener


class Line:
    """A connection without a database, on which a statement fails as it is told."""

    def __init__(self, *, listen: Exception | None = None, select: Exception | None = None) -> None:
        self._listen, self._select = listen, select
        self._lost: list[Callable[[object], None]] = []
        self.closed = False

    def add_termination_listener(self, callback: Callable[[object], None]) -> None:
        self._lost.append(callback)

    async def add_listener(self, channel: str, callback: object) -> None:
        if self._listen is not None:
            raise self._listen

    async def fetchval(self, text: str, **options: object) -> int:
        if self._select is not None:
            raise self._select
        return 1

    def is_closed(self) -> bool:
        return self.closed

    def terminate(self) -> None:
        self.closed = True
        for callback in self._lost:
            callback(self)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here has to be waited for."""
    monkeypatch.setattr(listening, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(lasting_room.BACKOFF.__class__, "delay", lambda *_: 0.0)


def story(
    monkeypatch: pytest.MonkeyPatch,
    lines: list[Line | Exception],
    tell: Callable[[Listener, list[str]], Coroutine[Any, Any, None]],
) -> list[str]:
    """Let a listener connect to these, one after the other; what it has told of the connection."""
    told: list[str] = []
    following = iter(lines)

    async def connect(url: str, purpose: str = "") -> Line:
        line = next(following)
        if isinstance(line, Exception):
            raise line
        return line

    async def life() -> None:
        listener = Listener("postgresql://")
        listener.on_gap(lambda: told.append("gap"))
        listener.on_silence(lambda: told.append("silence"))
        await listener.start("changes")
        try:
            async with asyncio.timeout(60):
                await tell(listener, told)
        finally:
            await listener.close()

    monkeypatch.setattr(listening, "connect", connect)
    asyncio.run(life())
    return told


async def _comes_back(listener: Listener, told: list[str]) -> None:
    while "gap" not in told:
        await asyncio.sleep(0)
    assert listener.listens
    assert not listener.deaf


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.InterfaceError("the connection is closed"),
        ConnectionResetError(),
        asyncpg.InternalClientError("?"),
        StorageUnavailable("away"),
        ValueError("a defect"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_it_comes_back_whatever_is_said_of_a_lost_connection(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the one that is checked, by one that is made, or while one is made; half-made ones are
    closed."""
    lines = [Line(select=error), Line(listen=error), Line()]
    told = story(monkeypatch, [*lines[:2], error, lines[2]], _comes_back)
    assert told == ["gap"]
    assert [line.closed for line in lines[:2]] == [True, True]


def test_one_that_does_not_answer_may_not_be_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others hear of that before they wait as long."""
    told = story(monkeypatch, [Line(select=TimeoutError()), Line()], _comes_back)
    assert told == ["silence", "gap"]


def test_who_does_not_listen_for_long_is_deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not before: a connection may be lost at any time."""

    async def waits(listener: Listener, told: list[str]) -> None:
        while listener.listens:
            await asyncio.sleep(0)
        monkeypatch.setattr(listening, "DEAF_SECONDS", 60.0)
        assert not listener.deaf
        monkeypatch.setattr(listening, "DEAF_SECONDS", 0.0)
        while not listener.deaf:
            await asyncio.sleep(0)

    class Away(list[Any]):
        def __iter__(self) -> Any:
            yield Line(select=OSError())
            while True:
                yield StorageUnavailable("away")

    assert story(monkeypatch, Away(), waits) == []


def test_a_step_that_fails_is_done_again() -> None:
    """Whatever is wrong with it; only being cancelled ends it."""

    async def life() -> None:
        errors = iter([StorageUnavailable("away"), KeyError("a defect"), OSError()])
        came_through = asyncio.Event()

        async def step() -> None:
            for error in errors:
                raise error
            came_through.set()
            await asyncio.sleep(0)

        task = asyncio.create_task(lasting("a step", step))
        await asyncio.wait_for(came_through.wait(), 60)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(life())
