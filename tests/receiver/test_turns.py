"""The order of one run's events, where deliveries overtake each other and handlers take time."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runbell.receiver import desk
from runbell.receiver.order import Around, decide
from tests.receiver.house import House, body_of, eventually, housed, on_every_inbox, run_event

moments = st.integers(0, 100)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 9),
    st.builds(
        Around,
        st.integers(0, 9),
        st.none() | moments,
        st.none() | moments,
        st.booleans(),
        st.booleans(),
    ),
    st.booleans(),
    st.booleans(),
    moments,
    moments,
)
def test_the_rule_of_order(
    sequence: int, around: Around, urgent: bool, forced: bool, gap: int, now: int
) -> None:
    """Never backwards, never past one that is there, never for ever, and never in vain."""
    verdict = decide(sequence, around, urgent=urgent, forced=forced, gap_until_ms=gap, now_ms=now)
    if not forced and (sequence <= around.handled or around.is_overtaken):
        assert verdict.what == "stale"
    elif around.ahead_due_ms is not None or (forced and around.held_until_ms is not None):
        assert verdict.what == "wait"
        assert verdict.until_ms > now
    elif forced or urgent or around.is_hurried or sequence == around.handled + 1:
        assert verdict.what == "handle"
    else:
        assert verdict.what == ("handle" if now >= gap else "wait")
        assert verdict.what == "handle" or verdict.until_ms == gap > now


def test_what_comes_while_a_later_one_is_handled_is_no_news(inbox: str) -> None:
    """`completed` has reached its handler, which takes its time: `in_progress` comes too late."""
    log: list[str] = []

    async def run() -> None:
        async with housed(inbox) as house:
            may_end = asyncio.Event()

            @house.receiver.on("*")
            async def handler(event: Any) -> None:
                log.append(event.id)
                if event.id == "e3":
                    await may_end.wait()

            async with house.receiver.running():
                await house.push("e3", run_event("completed", 3))
                await house.until(lambda: log)
                await house.push("e2", run_event("in_progress", 2))
                await house.until(lambda: house.state("e2") == "stale")
                may_end.set()
                await house.until(lambda: house.state("e3") == "handled")

    asyncio.run(run())
    assert log == ["e3"]


@on_every_inbox()
async def test_an_end_does_not_wait_behind_one_that_waits_for_a_gap(house: House) -> None:
    """An endpoint without `thread.run.created`: no time passes, and all are handled in order."""
    await house.push("e2", run_event("in_progress", 2))
    await house.settle()
    await house.push("e4", run_event("cancelling", 4))
    await house.settle()
    assert house.ids == []
    await house.push("e5", run_event("cancelled", 5))
    await eventually(lambda: len(house.ids) == 3, "all are handled")
    assert house.ids == ["e2", "e4", "e5"]


def test_dead_letters_are_replayed_in_their_order_one_after_another(inbox: str) -> None:
    """As the mended handler would have had them."""
    log: list[str] = []
    broken = True

    async def run() -> None:
        nonlocal broken
        async with housed(inbox, max_attempts=1) as house:

            @house.receiver.on("*")
            async def handler(event: Any) -> None:
                if broken:
                    raise ValueError
                log.append(f"{event.id} begins")
                await asyncio.sleep(0)
                await house.store.write(_nothing)
                log.append(f"{event.id} ends")

            async with house.receiver.running():
                for number, status in ((1, "queued"), (2, "in_progress"), (3, "completed")):
                    await house.push(f"e{number}", run_event(status, number))
                await house.until(lambda: house.state("e3") == "dead")
                broken = False
                now_ms = house.clock.now_ms()
                assert await house.store.write(lambda tx: desk.replay_dead(tx, now_ms)) == 3
                await house.until(lambda: house.state("e3") == "handled")

    asyncio.run(run())
    assert log == [f"e{n} {what}" for n in (1, 2, 3) for what in ("begins", "ends")]


async def _nothing(tx: Any) -> None:
    """Time for others."""


@on_every_inbox()
async def test_steps_of_a_run_are_events_of_another_kind(house: House) -> None:
    """`thread.run.step.completed` has no number within the run and waits for nothing."""
    await house.push("s5", body_of("thread.run.step.completed", "step_1", sequence=5))
    await eventually(lambda: house.ids == ["s5"], "it is handled")
