"""What follows a 200: handlers, retries, dead letters, order, and who shares the work."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from runbell.clock import VirtualClock
from runbell.errors import ConfigurationError
from runbell.receiver import InProgress, ReceivedEvent, ReceivedRunEvent, Receiver, desk
from tests.receiver.house import (
    House,
    body_of,
    eventually,
    housed,
    on_a_receiver,
    on_every_inbox,
    run_event,
)

BODY = body_of("response.completed")


def test_a_handler_gets_exactly_what_it_asked_for(tmp_path: Path) -> None:
    """By type, by family, or everything, known or not; a function once, whichever of its types
    fit. A dot is a dot: `thread.run.*` is not `thread.runs.x`."""
    got: dict[str, list[str]] = {"one": [], "family": [], "all": [], "both": []}
    types = ["response.completed", "thread.run.failed", "thread.runs.x", "new", "batch.failed"]

    async def run() -> None:
        async with housed(tmp_path / "inbox.db") as house:

            def add(name: str, *types: str) -> None:
                @house.receiver.on(*types)
                async def handler(event: Any) -> None:
                    got[name].append(event.type)

            add("one", "response.completed", "batch.failed")
            add("family", "thread.run.*")
            add("all", "*")
            add("both", "thread.run.failed", "thread.*", "thread.run.failed")
            async with house.receiver.running():
                for number, kind in enumerate(types):
                    await house.push(f"wh_{number}", body_of(kind))
                await house.until(lambda: len(got["all"]) == len(types))

    asyncio.run(run())
    assert sorted(got["one"]) == ["batch.failed", "response.completed"]
    assert got["family"] == ["thread.run.failed"]
    assert sorted(got["both"]) == ["thread.run.failed", "thread.runs.x"]
    assert sorted(got["all"]) == sorted(types)


def test_a_type_that_cannot_be_one_is_refused() -> None:
    """A slip of the pen would otherwise be a handler that is never called."""
    receiver = Receiver(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
    for types in ((), ("thread.run*",), ("",), ("a..b",), ("*.completed",), ("a b",)):
        with pytest.raises(ConfigurationError):
            receiver.on(*types)
    with pytest.raises(ConfigurationError, match="nonsense"):
        Receiver(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], nonsense=1)
    with pytest.raises(ConfigurationError, match="retain_days"):
        Receiver(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], retain_days=10)


def handling(inbox: Path | str, handler: Any, story: Any, **options: Any) -> None:
    """Run a story in a house whose receiver has this handler for everything."""

    async def run() -> None:
        async with housed(inbox, rng=random.Random(1), **options) as house:
            house.receiver.on("*")(handler)
            async with house.receiver.running():
                house.hasten()
                await story(house)

    asyncio.run(run())


def test_events_are_typed(tmp_path: Path) -> None:
    """A run's event knows its run, status, number and tool calls; another one its data; both have
    the exact bytes."""
    got: list[Any] = []
    action = {
        "type": "submit_tool_outputs",
        "submit_tool_outputs": {
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ]
        },
    }
    body = body_of(
        "thread.run.requires_action",
        "run_1",
        status="requires_action",
        sequence=3,
        thread_id="thread_1",
        required_action=action,
    )

    async def story(house: House) -> None:
        await house.push("evt_1", body)
        await house.push("wh_2", BODY)
        await house.push("wh_3", body_of("thread.run.step.completed", "step_1", sequence=1))
        await house.until(lambda: len(got) == 3)

    handling(tmp_path / "inbox.db", got.append, story)
    run, other, step = sorted(got, key=lambda event: event.id)
    assert isinstance(run, ReceivedRunEvent)
    assert (run.run_id, run.status, run.sequence) == ("run_1", "requires_action", 3)
    assert (run.thread_id, run.attempt, run.body) == ("thread_1", 1, body)
    assert [(call.id, call.name, call.arguments) for call in run.tool_calls] == [
        ("call_1", "f", "{}")
    ]
    assert not run.has_ended
    assert not run.is_truncated
    assert type(other) is ReceivedEvent
    assert (other.subject, other.created_at) == ("resp_1", 1_800_000_000)
    assert body.decode()[:9] not in repr(run)
    assert step.type == "thread.run.step.completed"


def test_a_function_that_is_not_async_does_not_stop_the_loop(tmp_path: Path) -> None:
    """It runs in a thread: webhooks are answered meanwhile."""
    inside, release = threading.Event(), threading.Event()

    def handler(event: Any) -> None:
        inside.set()
        assert release.wait(60)

    async def story(house: House) -> None:
        await house.push("wh_1", BODY)
        assert await asyncio.to_thread(inside.wait, 60)
        assert (await house.push("wh_2", BODY)).status == 200
        release.set()
        await house.until(lambda: house.state("wh_2") == "handled")

    handling(tmp_path / "inbox.db", handler, story)


def test_fifty_duplicates_at_once_are_one_event(inbox: str) -> None:
    """Each of them is a 200; one is stored, and handled once."""
    got: list[str] = []

    async def handler(event: Any) -> None:
        got.append(event.id)

    async def story(house: House) -> None:
        answers = await asyncio.gather(*(house.push("wh_1", BODY) for _ in range(50)))
        assert {answer.status for answer in answers} == {200}
        await house.until(lambda: house.state("wh_1") == "handled")
        await asyncio.gather(*(house.push("wh_1", BODY) for _ in range(50)))
        await house.pass_time(5)
        assert got == ["wh_1"]
        assert await house.count("accepted_total", origin="push") == 1
        assert await house.count("duplicates_total", origin="push") == 99

    handling(inbox, handler, story)


@on_every_inbox()
async def test_another_body_under_the_same_id_is_kept_apart(house: House) -> None:
    """It is a 200, since it would come again otherwise; it is counted and never handled."""
    await house.push("wh_1", BODY)
    await house.until(lambda: house.state("wh_1") == "handled")
    other = body_of("response.failed")
    for _ in range(2):
        assert (await house.push("wh_1", other)).status == 200
    await house.pass_time(5)
    assert house.handled == [("wh_1", "response.completed")]
    assert house.rows("SELECT id, body FROM inbox_others") == [("wh_1", other)]
    assert await house.count("quarantined_total") == 1


def test_what_fails_is_tried_again_and_a_duplicate_changes_nothing(inbox: str) -> None:
    """With growing pauses; a duplicate neither brings a retry forward, nor holds it up, nor has a
    handled event handled again."""
    tries: list[tuple[int, int]] = []

    async def story(house: House) -> None:
        async def handler(event: Any) -> None:
            tries.append((event.attempt, house.clock.now_ms()))
            if len(tries) < 4:
                raise RuntimeError("not yet")

        house.receiver.on("*")(handler)
        await house.push("wh_1", BODY)
        await house.until(lambda: len(tries) == 1)
        for _ in range(3):
            assert (await house.push("wh_1", BODY)).status == 200
        await house.settle()
        assert len(tries) == 1
        await house.until(lambda: house.state("wh_1") == "handled")
        assert (await house.push("wh_1", BODY)).status == 200
        await house.pass_time(30)

    handling(inbox, lambda event: None, story)
    assert [attempt for attempt, _ in tries] == [1, 2, 3, 4]
    pauses = [(b - a) / 1000 for (_, a), (_, b) in itertools.pairwise(tries)]
    for pause, least, most in zip(pauses, (0.5, 1, 2), (1.5, 2.5, 4.5), strict=True):
        assert least <= pause <= most, pauses


def test_of_two_handlers_only_the_one_that_failed_is_called_again(tmp_path: Path) -> None:
    """Not the one that succeeded: not even after the retry was taken up by another process."""
    good: list[int] = []
    bad: list[int] = []

    async def succeeds(event: Any) -> None:
        good.append(event.attempt)

    async def story(house: House) -> None:
        @house.receiver.on("response.*")
        async def fails(event: Any) -> None:
            bad.append(event.attempt)
            if event.attempt < 3:
                raise RuntimeError

        await house.push("wh_1", BODY)
        await house.until(lambda: house.state("wh_1") == "handled")

    handling(tmp_path / "inbox.db", succeeds, story)
    assert (good, bad) == ([1], [1, 2, 3])


def test_what_never_works_is_a_dead_letter_and_can_be_replayed(
    inbox: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After its last try, loudly, with its error; others go on meanwhile. A replay begins anew."""
    tries: list[str] = []
    works = False

    async def handler(event: Any) -> None:
        tries.append(event.id)
        if event.id == "poison" and not works:
            raise ValueError("bad data")

    async def story(house: House) -> None:
        nonlocal works
        await house.push("poison", BODY)
        await house.push("wh_2", BODY)
        await house.until(lambda: house.state("poison") == "dead")
        assert tries.count("poison") == 3
        assert house.state("wh_2") == "handled"
        [(error,)] = house.rows("SELECT error FROM inbox_events WHERE id = 'poison'")
        assert "ValueError: bad data" in error
        assert await house.count("dead_events") == 1
        assert any(
            r.levelno == logging.ERROR and "runbell inbox replay poison" in r.getMessage()
            for r in caplog.records
        )
        await house.push("poison", BODY)
        await house.pass_time(60, step=5)
        assert tries.count("poison") == 3
        works = True
        now_ms = house.clock.now_ms()
        assert await house.store.write(lambda tx: desk.replay(tx, "poison", now_ms))
        await house.until(lambda: house.state("poison") == "handled")

    handling(inbox, handler, story, max_attempts=3)
    assert tries.count("poison") == 4


def test_what_ends_every_process_is_a_dead_letter_too(inbox: str) -> None:
    """Nobody is left to say that it failed: whoever finds it claimed often enough buries it."""
    got: list[str] = []

    async def handler(event: Any) -> None:
        got.append(event.id)

    async def story(house: House) -> None:
        await house.push("wh_1", BODY)
        await house.until(lambda: house.state("wh_1") == "handled")
        # As three processes left it that were killed in the handler.
        house.rows(
            "UPDATE inbox_events SET state = 'waiting', claim = 'gone', attempts = 3, due_at_ms = 0"
        )
        await house.until(lambda: house.state("wh_1") == "dead")
        assert await house.count("events_total", outcome="dead") == 1

    handling(inbox, handler, story, max_attempts=3)
    assert got == ["wh_1"]


def test_a_replay_is_handled_whatever_came_after_it(inbox: str) -> None:
    """Somebody asked for it: an event that was overtaken, or is dead, is no stale one then."""
    got: list[str] = []

    async def handler(event: Any) -> None:
        got.append(event.id)

    async def story(house: House) -> None:
        await house.push("e3", run_event("completed", 3))
        await house.until(lambda: house.state("e3") == "handled")
        await house.push("e2", run_event("in_progress", 2))
        await house.until(lambda: house.state("e2") == "stale")
        now_ms = house.clock.now_ms()
        assert await house.store.write(lambda tx: desk.replay(tx, "e2", now_ms))
        await house.until(lambda: house.state("e2") == "handled")

    handling(inbox, handler, story)
    assert got == ["e3", "e2"]


def test_a_handler_that_hangs_has_failed(tmp_path: Path) -> None:
    """After `handler_timeout`, and is tried again."""
    tries: list[int] = []

    async def handler(event: Any) -> None:
        tries.append(event.attempt)
        if event.attempt == 1:
            await asyncio.Event().wait()

    async def story(house: House) -> None:
        await house.push("wh_1", BODY)
        await house.until(lambda: house.state("wh_1") == "handled")

    handling(tmp_path / "inbox.db", handler, story, handler_timeout=0.02)
    assert tries == [1, 2]


@on_a_receiver(silent=True)
async def test_without_any_handler_events_wait(house: House) -> None:
    """A process that only listens leaves them to one that handles."""
    await house.push("wh_1", BODY)
    await house.pass_time(5)
    assert house.state("wh_1") == "waiting"


def test_without_a_fitting_handler_an_event_is_kept_as_such(tmp_path: Path) -> None:
    """It is not counted as handled, and can be replayed once there is one."""

    async def run() -> None:
        async with housed(tmp_path / "inbox.db") as house:
            house.note("batch.*")
            async with house.receiver.running():
                await house.push("wh_1", BODY)
                await house.until(lambda: house.state("wh_1") == "unhandled")
                assert house.handled == []

    asyncio.run(run())


def test_two_processes_share_one_inbox(inbox: str) -> None:
    """Every event is handled by one of them, also where both are woken by the same; here with a
    store, a thread and a name each."""
    got: list[tuple[int, str]] = []

    async def run() -> None:
        async with contextlib.AsyncExitStack() as stack:
            clock = VirtualClock()
            both = asyncio.Event()
            houses = [
                await stack.enter_async_context(housed(inbox, concurrency=4, clock=clock))
                for _ in range(2)
            ]
            for number, house in enumerate(houses):
                house.beside = houses

                @house.receiver.on("*")
                async def handler(event: Any, number: int = number) -> None:
                    got.append((number, event.id))
                    if {each for each, _ in got} == {0, 1}:
                        both.set()
                    # Whichever of them the machine favours: it takes its share and no more.
                    await both.wait()

                await stack.enter_async_context(house.receiver.running())
            pushes = [
                houses[n % 2].push(f"wh_{n}", body_of("response.completed", f"r{n}"))
                for n in range(80)
            ]
            await asyncio.gather(*pushes)
            await houses[0].until(lambda: len(got) >= 80)
            await houses[0].pass_time(2)

    asyncio.run(run())
    assert sorted(event_id for _, event_id in got) == sorted(f"wh_{n}" for n in range(80))
    assert {number for number, _ in got} == {0, 1}


def test_a_claim_is_renewed_while_its_handler_runs_and_lapses_with_its_process(
    inbox: str,
) -> None:
    """Nobody else takes an event that is being handled, however long that is. When its process is
    gone, another one takes it once the claim has lapsed, and what the first writes is void."""
    got: list[str] = []
    first_may_end = asyncio.Event()

    async def run() -> None:
        clock = VirtualClock()
        async with (
            housed(inbox, lease=9, clock=clock) as first,
            housed(inbox, lease=9, clock=clock) as second,
        ):
            first.beside = [first, second]

            @first.receiver.on("*")
            async def slow(event: Any) -> None:
                got.append("first")
                await first_may_end.wait()

            @second.receiver.on("*")
            async def quick(event: Any) -> None:
                got.append("second")

            async with contextlib.AsyncExitStack() as stack:
                await stack.enter_async_context(first.receiver.running())
                await first.push("wh_1", BODY)
                await first.until(lambda: got == ["first"])
                # Only now, or it may have been the quicker one.
                await stack.enter_async_context(second.receiver.running())
                await first.pass_time(40, step=2)
                assert got == ["first"]
                # What `kill -9` leaves: nobody renews.
                assert first.receiver._running is not None
                for task in first.receiver._running.worker._background:
                    task.cancel()
                await first.pass_time(5)
                assert got == ["first"]
                await first.until(lambda: first.state("wh_1") == "handled")
                assert got == ["first", "second"]
                first_may_end.set()
                await first.pass_time(2)
                assert await first.count("events_total", outcome="lost") == 1
                assert first.rows("SELECT attempts FROM inbox_events") == [(2,)]

    asyncio.run(run())


def test_when_it_stops_what_is_not_finished_is_let_go_of(inbox: str) -> None:
    """The next start handles it at once, as the same attempt: stopping is no failure."""
    tries: list[int] = []

    async def run() -> None:
        async with housed(inbox, shutdown_grace=0.0) as house:

            @house.receiver.on("*")
            async def hangs(event: Any) -> None:
                tries.append(event.attempt)
                if len(tries) == 1:
                    await asyncio.Event().wait()

            async with house.receiver.running():
                await house.push("wh_1", BODY)
                await house.until(lambda: tries)
            assert house.rows("SELECT state, claim, attempts FROM inbox_events") == [
                ("waiting", None, 0)
            ]
            async with house.receiver.running():
                await house.until(lambda: house.state("wh_1") == "handled")

    asyncio.run(run())
    assert tries == [1, 1]


@on_every_inbox()
async def test_events_of_one_run_are_handled_in_order(house: House) -> None:
    """Whatever order they come in, as long as none is missing for long; each after the one before
    it has ended. Runs do not wait for each other."""
    for sequence, status in ((2, "in_progress"), (4, "queued"), (1, "queued"), (3, "cancelling")):
        await house.push(f"a{sequence}", run_event(status, sequence, "run_a"))
    await house.push("b1", run_event("queued", 1, "run_b"))
    await house.settle()
    await house.until(lambda: len(house.handled) == 5)
    assert [each for each in house.ids if each[0] == "a"] == ["a1", "a2", "a3", "a4"]
    assert await house.count("waiting_events") == 0


def test_a_run_is_handled_one_event_at_a_time(inbox: str) -> None:
    """A slow or failing handler holds up its own run alone."""
    log: list[str] = []

    async def run() -> None:
        async with housed(inbox) as house:
            release = asyncio.Event()

            @house.receiver.on("*")
            async def handler(event: Any) -> None:
                log.append(f"{event.id} begins")
                if event.id == "a1":
                    await release.wait()
                if event.id == "a2" and event.attempt == 1:
                    raise RuntimeError
                log.append(f"{event.id} ends")

            async with house.receiver.running():
                await house.push("a1", run_event("queued", 1, "run_a"))
                await house.push("a2", run_event("in_progress", 2, "run_a"))
                await house.push("a3", run_event("completed", 3, "run_a"))
                await house.push("b1", run_event("queued", 1, "run_b"))
                await house.pass_time(3)
                assert sorted(log) == ["a1 begins", "b1 begins", "b1 ends"]
                release.set()
                await house.until(lambda: house.state("a3") == "handled")

    asyncio.run(run())
    assert [line for line in log if line[0] == "a"] == [
        "a1 begins",
        "a1 ends",
        "a2 begins",
        "a2 begins",
        "a2 ends",
        "a3 begins",
        "a3 ends",
    ]


@on_every_inbox(gap_wait=2.0)
async def test_a_gap_is_waited_for_briefly(house: House) -> None:
    """Then the event is handled without the one that is missing, which is stale when it comes."""
    await house.push("e2", run_event("in_progress", 2))
    await house.pass_time(1.5)
    assert house.handled == []
    await house.pass_time(1.5)
    assert house.ids == ["e2"]
    assert (await house.push("e1", run_event("queued", 1))).status == 200
    await house.until(lambda: house.state("e1") == "stale")
    assert house.ids == ["e2"]


@on_every_inbox()
async def test_what_somebody_waits_for_does_not_wait_for_a_gap(house: House) -> None:
    """`requires_action` and every end are handled at once: an endpoint may have asked for these
    alone."""
    for number, status in enumerate(
        ["requires_action", "completed", "failed", "expired", "cancelled", "incomplete"]
    ):
        await house.push(f"e{number}", run_event(status, 5, f"run_{number}"))
    await house.push("late", run_event("in_progress", 5, "run_9"))
    await house.settle()
    await eventually_without_time(house, 6)
    assert sorted(house.ids) == [f"e{number}" for number in range(6)]


@on_every_inbox()
async def test_when_what_was_missing_comes_nobody_waits_any_longer(house: House) -> None:
    """The event behind it is handled at once, not when its patience ends."""
    await house.push("e2", run_event("in_progress", 2))
    await house.settle()
    await house.push("e1", run_event("queued", 1))
    await eventually_without_time(house, 2)
    assert house.ids == ["e1", "e2"]


async def eventually_without_time(house: House, count: int) -> None:
    await eventually(lambda: len(house.handled) >= count, "all are handled")


@on_every_inbox()
async def test_after_the_end_there_is_no_going_back(house: House) -> None:
    """`completed` before `in_progress`: the latter is marked as stale, and is no news; neither is
    it counted as handled."""
    await house.push("e3", run_event("completed", 3))
    await house.until(lambda: house.ids == ["e3"])
    await house.push("e2", run_event("in_progress", 2))
    await house.push("e1", run_event("queued", 1))
    await house.pass_time(5)
    assert house.ids == ["e3"]
    assert dict(house.rows()) == {"e3": "handled", "e2": "stale", "e1": "stale"}
    assert await house.count("events_total", outcome="stale") == 2


def test_a_side_effect_happens_once(inbox: str) -> None:
    """A retry does not repeat it; one that failed has not happened; two at once are one. In async
    handlers and in threads."""
    mails: list[str] = []
    tries = 0

    async def run() -> None:
        nonlocal tries
        async with housed(inbox) as house:
            receiver = house.receiver

            @receiver.on("response.*")
            async def mail(event: Any) -> None:
                nonlocal tries
                tries += 1
                async with receiver.once(f"mail:{event.id}") as first:
                    if first and tries == 1:
                        raise ConnectionError("not sent")
                    if first:
                        mails.append(event.id)
                if tries < 3:
                    raise RuntimeError("after the mail")

            @receiver.on("batch.*")
            def bill(event: Any) -> None:
                with receiver.once("bill") as first:
                    if first:
                        mails.append("bill")

            async with receiver.running():
                await house.push("wh_1", BODY)
                await house.until(lambda: house.state("wh_1") == "handled")
                assert (tries, mails) == (3, ["wh_1"])
                for n in range(3):
                    await house.push(f"b{n}", body_of("batch.completed"))
                await house.until(lambda: all(state == "handled" for _, state in house.rows()))
                assert mails == ["wh_1", "bill"]
                async with receiver.once("slow", lease=60) as first:
                    assert first
                    with pytest.raises(InProgress):
                        async with receiver.once("slow", lease=60):
                            raise AssertionError
                    # As if the process of the first had died in the block.
                    house.clock.advance(61)
                    async with receiver.once("slow", lease=60) as second:
                        assert second
                async with receiver.once("slow") as again:
                    assert not again

    asyncio.run(run())


def test_what_is_old_is_forgotten_and_what_may_come_again_is_not(inbox: str) -> None:
    """Ids are kept for as long as was asked, 11 days at the least."""

    async def run() -> None:
        async with housed(inbox, retain_days=11) as house:
            house.note("response.*")
            async with house.receiver.running():
                for n in range(3):
                    await house.push(f"old_{n}", body_of("response.completed", f"r{n}"))
                await house.push("old_0", body_of("response.failed"))
                await house.push("old_run", run_event("completed", 3))
                await house.until(lambda: "waiting" not in dict(house.rows()).values())
                house.clock.advance(10.9 * 86_400)
                await house.push("new", BODY)
                await house.push("old_1", body_of("response.completed", "r1"))
                await house.until(lambda: house.state("new") == "handled")
                await house.pass_time(2)
                assert len(house.rows()) == 5
                house.clock.advance(0.2 * 86_400)
                await house.until(lambda: len(house.rows()) == 1)
                assert house.rows("SELECT id FROM inbox_others") == []
                assert house.rows("SELECT run_id FROM inbox_runs") == []
                assert len(house.handled) == 4

    asyncio.run(run())


@on_a_receiver()
async def test_a_full_inbox_is_a_503_and_loses_nothing(house: House) -> None:
    """Nothing is answered 200 that is not there; when there is room, the same webhook comes in."""
    await house.push("wh_0", BODY)
    await house.until(lambda: house.state("wh_0") == "handled")
    [(pages,)] = house.store._writer.execute("PRAGMA page_count").fetchall()
    house.store._writer.execute(f"PRAGMA max_page_count = {pages}")
    accepted = set()
    for n in range(40):
        answer = await house.push(f"big_{n}", body_of("response.completed", text="x" * 8_000))
        assert answer.status in (200, 503)
        if answer.status == 200:
            accepted.add(f"big_{n}")
        else:
            assert int(answer.headers["retry-after"]) > 0
    assert len(accepted) < 40
    assert {event_id for event_id, _ in house.rows()} == accepted | {"wh_0"}
    assert await house.count("rejected_total", reason="storage") == 40 - len(accepted)
    house.store._writer.execute("PRAGMA max_page_count = 100000")
    assert (await house.push("big_39", body_of("response.completed", text="x"))).status == 200
    await house.until(lambda: house.state("big_39") == "handled")


def test_a_locked_inbox_is_a_503_and_handling_goes_on_afterwards(tmp_path: Path) -> None:
    """While another process holds the database; no handler runs twice for it."""
    got: list[str] = []

    async def handler(event: Any) -> None:
        got.append(event.id)

    async def story(house: House) -> None:
        house.store._writer.execute("PRAGMA busy_timeout = 20")
        with contextlib.closing(sqlite3.connect(house.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await house.push("wh_1", BODY)
            assert (answer.status, answer.reason) == (503, "storage")
            other.execute("ROLLBACK")
        assert (await house.push("wh_1", BODY)).status == 200
        await house.until(lambda: house.state("wh_1") == "handled")
        assert got == ["wh_1"]

    handling(tmp_path / "inbox.db", handler, story)
