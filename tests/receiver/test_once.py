"""Side effects that happen once, also where processes and inboxes fail beside them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import ConfigurationError, StorageUnavailable
from tests.receiver.house import House, body_of, eventually, housed, on_a_receiver, on_every_inbox

BODY = body_of("response.completed")


def test_an_event_outlasts_the_lease_of_a_process_that_died_in_the_block(tmp_path: Path) -> None:
    """Its tries until then are no failures: it is handled when the hour is over, and no dead
    letter after two."""
    sent: list[float] = []

    async def run() -> None:
        async with housed(tmp_path / "inbox.db", max_attempts=2) as house:

            @house.receiver.on("*")
            async def mail(event: Any) -> None:
                async with house.receiver.once("mail") as first:
                    if first:
                        sent.append(house.clock.monotonic())

            async with house.receiver.running():
                # As a process leaves it that dies in the block.
                assert await house.receiver.once("mail").__aenter__()
                await house.push("wh_1", BODY)
                await house.pass_time(3_590, 30)
                assert sent == []
                assert house.rows("SELECT state, attempts FROM inbox_events") == [("waiting", 0)]
                assert await house.count("events_total", outcome="set_aside") > 1
                assert await house.count("lag_seconds_count") == 1
                await house.until(lambda: house.state("wh_1") == "handled")

    asyncio.run(run())
    assert len(sent) == 1
    assert 3_600 <= sent[0] < 3_640


def test_who_finds_somebody_in_the_block_looks_again_soon(inbox: str) -> None:
    """Most blocks are short: the event behind one does not wait for a lease."""

    async def run() -> None:
        async with housed(inbox) as house:

            @house.receiver.on("*")
            async def bill(event: Any) -> None:
                async with house.receiver.once("bill"):
                    pass

            async with house.receiver.running():
                async with house.receiver.once("bill"):
                    await house.push("wh_1", BODY)
                    aside = "SELECT error FROM inbox_events WHERE error IS NOT NULL"
                    await house.until(lambda: house.rows(aside))
                began = house.clock.monotonic()
                await house.until(lambda: house.state("wh_1") == "handled")
                assert house.clock.monotonic() - began <= 3

    asyncio.run(run())


@on_a_receiver()
async def test_with_in_an_async_function_is_an_error_and_not_a_standstill(house: House) -> None:
    """It would wait for its own thread."""
    with pytest.raises(ConfigurationError, match="async with"), house.receiver.once("a"):
        raise AssertionError


@on_every_inbox()
async def test_what_is_cancelled_on_its_way_in_does_not_keep_the_key(house: House) -> None:
    """A handler's time can end at that very moment."""

    async def enter() -> None:
        async with house.receiver.once("a"):
            raise AssertionError

    entering = asyncio.create_task(enter())
    await asyncio.sleep(0)
    entering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await entering
    async with house.receiver.once("a") as first:
        assert first


@on_a_receiver()
async def test_what_has_happened_is_written_though_the_inbox_is_locked_for_a_while(
    house: House,
) -> None:
    """Or it would happen again."""
    house.store._writer.execute("PRAGMA busy_timeout = 1")
    write, failures = house.store.write, []

    async def noted(work: Any) -> Any:
        try:
            return await write(work)
        except StorageUnavailable as error:
            failures.append(error)
            raise

    async def act() -> None:
        async with house.receiver.once("a") as first:
            assert first
            house.store.write = noted  # type: ignore[method-assign]
            other.execute("BEGIN IMMEDIATE")

    with contextlib.closing(sqlite3.connect(house.path, isolation_level=None)) as other:
        acting = asyncio.create_task(act())
        # The clock stands still, so it waits from its first failure until time passes.
        await eventually(lambda: failures)
        other.execute("ROLLBACK")
        await house.pass_time(0.5)
        await acting
    async with house.receiver.once("a") as again:
        assert not again
