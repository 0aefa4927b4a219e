"""How a unit of work talks to PostgreSQL: seldom, and on connections that are lent fairly."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import asyncpg
import pytest

from runbell.errors import StorageUnavailable
from runbell.storage import closing, endpoints, events, threads
from runbell.storage.connections import Connections
from runbell.storage.postgresql import PostgresqlTransaction
from runbell.storage.records import Thread
from runbell.testing.storage_contract.stories import event


class Recorded:
    """A connection that notes what it is asked, and has as many rows as it is told."""

    def __init__(self, *rows: tuple[Any, ...]) -> None:
        self.asked: list[str] = []
        self.rows = rows

    async def execute(self, text: str, *args: object) -> str:
        self.asked.append(text)
        return "INSERT 0 1"

    async def fetch(self, text: str, *args: object) -> tuple[tuple[Any, ...], ...]:
        self.asked.append(text)
        return self.rows

    async def fetchrow(self, text: str, *args: object) -> None:
        self.asked.append(text)


def recorded(*rows: tuple[Any, ...]) -> tuple[Recorded, PostgresqlTransaction]:
    connection = Recorded(*rows)
    return connection, PostgresqlTransaction(cast(asyncpg.Connection, connection))


def test_writes_and_what_is_read_apart_from_them_are_one_request() -> None:
    """A thread, an event, and the endpoints that want it."""

    async def story() -> None:
        connection, tx = recorded(("7", 1, 1, None, None, None, None))
        await threads.begin(tx, Thread("p", "t1", 1))
        await events.append(tx, event(1))
        assert await endpoints.listening(tx, "p", 1) == []
        (asked,) = connection.asked
        assert [asked.count(word) for word in ("INSERT", "webhook_endpoints.id")] == [2, 1]
        assert f"${asked.count('$')}" in asked

    asyncio.run(story())


def test_what_reads_a_written_table_is_asked_behind_it() -> None:
    """A unit sees its own writes."""

    async def story() -> None:
        connection, tx = recorded(("7",))
        await events.append(tx, event(1))
        await events.newest(tx, "p")
        assert [asked.partition(" ")[0] for asked in connection.asked] == ["INSERT", "SELECT"]

    asyncio.run(story())


def test_what_follows_the_end_of_a_run_is_one_request_with_it() -> None:
    """Who listens, and whose turn comes."""

    async def story() -> None:
        connection, tx = recorded(("7", 1, *[None] * 4, *[None] * 29))
        await events.append(tx, event(1))
        assert await closing.look(tx, "p", "t1", 1) == closing.Closing([], None)
        (asked,) = connection.asked
        assert [asked.count(f" AS {name} ON true") for name in ("r0", "r1")] == [1, 1]
        assert f"${asked.count('$')}" in asked

    asyncio.run(story())


class Line:
    """A connection without a database."""

    def __init__(self) -> None:
        self.closed = self.in_transaction = False

    def is_closed(self) -> bool:
        return self.closed

    def is_in_transaction(self) -> bool:
        return self.in_transaction

    def terminate(self) -> None:
        self.closed = True

    async def close(self) -> None:
        self.closed = True


class Lines:
    """`Connections` of those."""

    def __init__(self, most: int, patience: float = 30.0) -> None:
        self.made: list[Line] = []
        self.fails = False
        self.shared = Connections(self._connect, most, patience)

    async def _connect(self) -> asyncpg.Connection:
        if self.fails:
            raise OSError("away")
        self.made.append(Line())
        return cast(asyncpg.Connection, self.made[-1])


def test_connections_are_lent_in_the_order_of_asking() -> None:
    """And the one that was used last is used again."""

    async def story() -> None:
        lines, order = Lines(2), []

        async def use(number: int) -> None:
            async with lines.shared.one():
                order.append(number)
                await asyncio.sleep(0)

        await asyncio.gather(*(use(number) for number in range(9)))
        assert order == list(range(9))
        assert len(lines.made) == 2
        await lines.shared.close()
        assert all(line.closed for line in lines.made)

    asyncio.run(story())


def test_who_waits_too_long_is_turned_away() -> None:
    """The connection that then comes back is somebody else's."""

    async def story() -> None:
        lines = Lines(1, patience=0.0)
        async with lines.shared.one():
            with pytest.raises(StorageUnavailable, match="none of 1 connections"):
                async with lines.shared.one():
                    pass
        async with lines.shared.one():
            pass

    asyncio.run(story())


def test_what_comes_in_the_moment_in_which_patience_ends_is_not_lost() -> None:
    """Whoever waited has it; else nobody would, ever again."""

    async def story() -> None:
        lines = Lines(1, patience=0.2)
        held = await lines.shared._borrow()
        waiting = asyncio.create_task(lines.shared._borrow())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(0.01, lines.shared._give_back, held)
        # Now both happen in one turn of the event loop, in this order.
        time.sleep(0.25)  # noqa: ASYNC251 - that is what a busy event loop does
        assert await waiting is held

    asyncio.run(story())


def test_who_leaves_in_the_moment_of_their_turn_passes_it_on() -> None:
    """And who has left before is passed over."""

    async def story() -> None:
        lines = Lines(1)
        held = await lines.shared._borrow()
        leaving = [asyncio.create_task(lines.shared._borrow()) for _ in range(2)]
        staying = asyncio.create_task(lines.shared._borrow())
        await asyncio.sleep(0)
        leaving[0].cancel()
        await asyncio.sleep(0)
        lines.shared._give_back(held)
        leaving[1].cancel()
        assert await staying is held
        assert all(task.cancelled() for task in leaving)

    asyncio.run(story())


def test_connections_that_lead_nowhere_are_dropped() -> None:
    """Those in use too; then there is room for others."""

    async def story() -> None:
        lines = Lines(2)
        async with lines.shared.one():
            async with lines.shared.one():
                pass
            lines.shared.drop()
            assert [line.closed for line in lines.made] == [True, True]
        async with lines.shared.one(), lines.shared.one():
            assert len(lines.made) == 4

    asyncio.run(story())


def test_a_connection_that_is_of_no_use_is_replaced() -> None:
    """It was lost, is still in a transaction, was left in the middle of a statement, or its server
    only reads now."""

    async def story() -> None:
        lines = Lines(1)
        async with lines.shared.one():
            lines.made[0].closed = True
        async with lines.shared.one():
            lines.made[1].in_transaction = True
        assert lines.made[1].closed
        with pytest.raises(asyncio.CancelledError):
            async with lines.shared.one():
                raise asyncio.CancelledError
        assert lines.made[2].closed
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with lines.shared.one():
                raise asyncpg.ReadOnlySQLTransactionError
        assert lines.made[3].closed
        async with lines.shared.one():
            assert len(lines.made) == 5

    asyncio.run(story())


def test_who_waits_gets_the_room_of_a_connection_that_cannot_be_made() -> None:
    """A database that is away keeps nobody waiting for a connection that nobody has."""

    async def story() -> None:
        lines = Lines(1)
        lines.fails = True

        async def use() -> None:
            async with lines.shared.one():
                pass

        results = await asyncio.gather(use(), use(), use(), return_exceptions=True)
        assert [type(result) for result in results] == [OSError] * 3

    asyncio.run(story())
