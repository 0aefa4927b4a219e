"""How handlers and their processes can end: whatever it is, the event is kept and tried again."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import ConfigurationError
from runbell.receiver import Options, rows
from tests.receiver.house import House, body_of, eventually, housed, on_a_receiver

BODY = body_of("response.completed")


async def cancelled(event: Any) -> None:
    raise asyncio.CancelledError


def exits(event: Any) -> None:
    raise SystemExit(3)


async def exits_on_the_loop(event: Any) -> None:
    raise SystemExit(3)


def stops(event: Any) -> None:
    next(iter(()))


@pytest.mark.parametrize("handler", [cancelled, exits, exits_on_the_loop, stops])
def test_whatever_a_handler_ends_with_it_has_failed(
    handler: Callable[[Any], Any], tmp_path: Path
) -> None:
    """Not the receiver, and not for as long as its claim: it is written down and tried again."""

    async def run() -> None:
        async with housed(tmp_path / "inbox.db", max_attempts=2) as house:
            house.receiver.on("*")(handler)
            async with house.receiver.running():
                await house.push("wh_1", BODY)
                failed = "SELECT id FROM inbox_events WHERE error IS NOT NULL AND claim IS NULL"
                # Time stands still until it is written down: no claim ends meanwhile.
                await eventually(lambda: house.rows(failed), "it has failed")
                tries = "SELECT attempts FROM inbox_events"
                await house.until(lambda: house.rows(tries) == [(2,)], "it is tried again")
                await eventually(lambda: house.state("wh_1") == "dead", "it has failed again")
                [(error,)] = house.rows("SELECT error FROM inbox_events")
                assert f"{handler.__name__}: " in error

    asyncio.run(run())


def test_waiting_for_a_thread_is_not_the_handlers_time(tmp_path: Path) -> None:
    """With one thread and two events, the second is not failed for how long the first takes."""
    may_end = threading.Event()
    tries: list[tuple[str, int]] = []

    async def run() -> None:
        async with housed(tmp_path / "inbox.db", threads=1, handler_timeout=0.05) as house:

            @house.receiver.on("*")
            def handler(event: Any) -> None:
                # Else one that hangs would keep a process alive that has been told to end.
                assert threading.current_thread().daemon
                tries.append((event.id, event.attempt))
                if len(tries) == 1:
                    assert may_end.wait(60)

            async with house.receiver.running():
                await house.push("wh_1", BODY)
                await eventually(lambda: tries)
                await house.push("wh_2", BODY)
                errors = "SELECT error FROM inbox_events WHERE id = 'wh_1'"
                await eventually(lambda: house.rows(errors) != [(None,)])
                [(error,)] = house.rows(errors)
                assert error.endswith("TimeoutError: longer than 0.05 s; its thread goes on")
                # Its thread is still taken, so nobody has begun with the second.
                assert house.rows("SELECT state, error FROM inbox_events WHERE id = 'wh_2'") == [
                    ("waiting", None)
                ]
                # Enough for whatever else this machine does.
                object.__setattr__(house.receiver.options, "handler_timeout", 60.0)
                may_end.set()
                await eventually(lambda: house.state("wh_2") == "handled")

    asyncio.run(run())
    assert tries == [("wh_1", 1), ("wh_2", 1)]


def test_a_clock_that_is_set_does_not_hand_out_what_is_being_handled(tmp_path: Path) -> None:
    """An hour forward, all claims are over at once; the handlers here still run."""
    tries: list[tuple[str, int]] = []

    async def run() -> None:
        async with housed(tmp_path / "inbox.db") as house:
            may_end = asyncio.Event()

            @house.receiver.on("*")
            async def handler(event: Any) -> None:
                tries.append((event.id, event.attempt))
                await may_end.wait()

            async with house.receiver.running():
                await house.push("wh_1", BODY)
                await house.until(lambda: tries)
                house.clock._start_ms += 3_600_000  # type: ignore[attr-defined]
                await house.push("wh_2", BODY)
                await house.until(lambda: len(tries) > 1)
                may_end.set()
                await house.until(lambda: house.state("wh_1") == house.state("wh_2") == "handled")

    asyncio.run(run())
    assert tries == [("wh_1", 1), ("wh_2", 1)]


def test_what_nobody_thought_of_does_not_end_the_handling(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is an error in the log, and the receiver goes on."""
    claim, failures = rows.claim, iter([sqlite3.DatabaseError("odd")])

    async def fails_once(*arguments: Any, **more: Any) -> Any:
        for error in failures:
            raise error
        return await claim(*arguments, **more)

    monkeypatch.setattr(rows, "claim", fails_once)

    @on_a_receiver()
    async def story(house: House) -> None:
        await house.push("wh_1", BODY)
        await house.until(lambda: house.state("wh_1") == "handled")

    with caplog.at_level(logging.ERROR):
        story(tmp_path)
    assert "it begins anew" in caplog.text


def test_what_is_being_claimed_when_it_stops_is_let_go_of_too(inbox: str) -> None:
    """The next start need not wait for a lease: nobody knows of the claim, but the inbox does."""

    async def run() -> None:
        async with housed(inbox) as house:
            house.note()
            async with house.receiver.running():
                running = house.receiver._running
                assert running is not None
                holder, now_ms = running.worker._holder, house.clock.now_ms()
                await running.worker.stop()
                await house.push("wh_1", BODY)

                def claims(tx: Any) -> Any:
                    return rows.claim(
                        tx,
                        holder,
                        now_ms=now_ms,
                        lease_ms=30_000,
                        gap_ms=0,
                        max_attempts=9,
                        limit=1,
                    )

                assert (await house.store.write(claims)).taken
            assert house.rows("SELECT claim, attempts FROM inbox_events") == [(None, 0)]

    asyncio.run(run())


@pytest.mark.parametrize(
    "option",
    [
        {"retain_days": float("inf")},
        {"lease": float("nan")},
        {"threads": 1.5},
        {"concurrency": "64"},
        {"poll": True},
    ],
    ids=str,
)
def test_an_option_that_is_no_proper_number_is_refused(option: dict[str, Any]) -> None:
    """At the start, where somebody looks."""
    with pytest.raises(ConfigurationError, match="it has to be"):
        Options(**option)
