"""The inbox as a source of events, the feed that fills it, and its commands."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from runbell.clock import SystemClock
from runbell.errors import StorageError, StorageUnavailable
from runbell.receiver import Inbox, desk
from runbell.runs import EventSource
from tests.cli.conftest import Command, runbell  # noqa: F401 - a fixture
from tests.receiver.databases import made
from tests.receiver.house import House, body_of, housed, on_a_receiver, on_every_inbox, run_event
from tests.served import Served

LIMIT_S = 60.0


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_both_are_event_sources(tmp_path: Path) -> None:
    """As the type checker would see it, too: a waiter takes either."""
    from runbell.receiver import Receiver

    sources: list[EventSource] = [
        Receiver(["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"], f"sqlite:///{tmp_path}/inbox.db"),
        Inbox(f"sqlite:///{tmp_path}/inbox.db"),
    ]
    for source in sources:
        source.unsubscribe("run_1", print)


@on_a_receiver()
async def test_in_the_same_process_it_is_told_with_the_200(house: House) -> None:
    """The subscriber has the event, as its bytes decode, when the sender has its answer."""
    got: list[Any] = []
    house.receiver.subscribe("run_1", got.append)
    body = run_event("requires_action", 3)
    await house.push("evt_1", body)
    await house.push("evt_2", run_event("completed", 3, "run_2"))
    assert got[:1] == [json.loads(body)]
    assert {each["data"]["id"] for each in got} == {"run_1"}
    house.receiver.unsubscribe("run_1", got.append)
    house.receiver.unsubscribe("run_1", got.append)
    await house.push("evt_3", run_event("completed", 4))
    # Whoever comes is told what is there, behind all that was being told before.
    others: list[Any] = []
    house.receiver.subscribe("run_1", others.append)
    await asyncio.to_thread(wait_until, lambda: 4 in sequences(others))
    assert 4 not in sequences(got)


def sequences(events: list[Any]) -> set[int]:
    return {each["data"]["sequence"] for each in events}


@on_every_inbox(silent=True)
async def test_another_process_is_told_of_what_came_and_of_what_comes(house: House) -> None:
    """`Inbox` reads the database alone. What came before the subscription is told too; what is
    about another run is not; a subscriber that raises harms nobody."""
    inbox = Inbox(house.url)
    got: list[int] = []
    try:
        await house.push("evt_1", run_event("queued", 1))
        inbox.subscribe("run_1", lambda event: 1 / 0)
        inbox.subscribe("run_1", lambda event: got.append(event["data"]["sequence"]))
        await asyncio.to_thread(wait_until, lambda: got == [1])
        await house.push("other", run_event("queued", 1, "run_2"))
        await house.push("evt_2", run_event("in_progress", 2))
        await asyncio.to_thread(wait_until, lambda: got == [1, 2])
    finally:
        inbox.close()
    await house.push("evt_3", run_event("completed", 3))
    assert threading.active_count() >= 1
    assert got == [1, 2]


def test_an_inbox_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    """The program that waits may start before the one that listens; nothing raises."""
    path = tmp_path / "inbox.db"
    inbox = Inbox(f"sqlite:///{path}")
    got: list[Any] = []
    inbox.subscribe("run_1", got.append)
    try:

        async def listen() -> None:
            async with housed(path) as house, house.receiver.running():
                await house.push("evt_1", run_event("completed", 3))
                await asyncio.to_thread(wait_until, lambda: got)

        asyncio.run(listen())
    finally:
        inbox.close()


def test_what_is_stored_while_the_inbox_cannot_be_read_is_told_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has to wait for the backstop because of one failed look."""
    news, failures = desk.news, iter([StorageUnavailable("for a moment")])

    async def fails_once(*arguments: Any) -> Any:
        for error in failures:
            raise error
        return await news(*arguments)

    monkeypatch.setattr("runbell.receiver.inbox.AWAY_SECONDS", 0.01)
    inbox = Inbox(f"sqlite:///{tmp_path}/inbox.db")
    got: list[Any] = []

    @on_a_receiver()
    async def story(house: House) -> None:
        await house.push("evt_1", run_event("queued", 1))
        inbox.subscribe("run_1", got.append)
        await asyncio.to_thread(wait_until, lambda: got)
        got.clear()
        monkeypatch.setattr(desk, "news", fails_once)
        await house.push("evt_2", run_event("completed", 2))
        await asyncio.to_thread(wait_until, lambda: any(e["data"]["sequence"] == 2 for e in got))

    try:
        story(tmp_path)
    finally:
        inbox.close()
    assert {each["data"]["sequence"] for each in got} == {1, 2}


class Feed:
    """A service's feed, as far as a client sees it."""

    base_url = "http://feed.test/v1/"

    def __init__(self, bodies: dict[str, bytes]) -> None:
        self.bodies = bodies
        self.asked: list[str | None] = []

    def get(self, path: str, *, cast_to: Any, options: Any) -> str:
        after = options["params"].get("after")
        self.asked.append(after)
        ids = list(self.bodies)
        if after is not None and after not in ids:
            error = RuntimeError("no such cursor")
            error.status_code = 404  # type: ignore[attr-defined]
            raise error
        start = ids.index(after) + 1 if after is not None else 0
        page = ids[start : start + options["params"]["limit"]]
        items = b",".join(self.bodies[each] for each in page)
        more = b"true" if start + len(page) < len(ids) else b"false"
        return (b'{"data": [%b], "has_more": %b}' % (items, more)).decode()


def feed_event(number: int, at: int = 1_800_000_000) -> tuple[str, bytes]:
    event_id = f"evt_{number}"
    event = json.loads(body_of("response.completed", f"resp_{number}"))
    # Spaces and letters that another encoder would write otherwise.
    text = json.dumps(event | {"id": event_id, "created_at": at, "note": "ü  ü"})
    return event_id, text.encode()


@on_every_inbox()
async def test_what_was_missed_is_fetched_and_nothing_is_handled_twice(house: House) -> None:
    """What was pushed as well is a duplicate, byte for byte; a second call reads on from there; a
    push that came first does not hide what was missed before it."""
    bodies = dict(feed_event(n) for n in range(250))
    await house.push("evt_3", bodies["evt_3"])
    await house.push("evt_249", bodies["evt_249"])
    feed = Feed(bodies)
    caught = await house.receiver.catch_up(feed)
    assert (caught.read, caught.new, caught.too_old) == (250, 248, 0)
    assert await house.count("quarantined_total") == 0
    await house.until(lambda: len(house.handled) == 250)
    for n in range(250, 260):
        bodies.update([feed_event(n)])
    await house.push("evt_259", bodies["evt_259"])
    caught = await house.receiver.catch_up(feed)
    assert (caught.read, caught.new) == (10, 9)
    assert feed.asked[-1] == "evt_249"
    await house.push("evt_255", bodies["evt_255"])
    await house.until(lambda: len(house.handled) == 260)
    await house.pass_time(3)
    assert sorted(house.ids) == sorted(bodies)


@on_every_inbox()
async def test_a_cursor_that_is_not_kept_any_more_begins_anew(house: House) -> None:
    """What is older than the inbox has to remember is passed over then."""
    now = house.clock.now_ms() // 1000
    feed = Feed(dict([feed_event(0, now)]))
    await house.receiver.catch_up(feed)
    feed.bodies = dict([feed_event(1, now - 8 * 86_400), feed_event(2, now)])
    caught = await house.receiver.catch_up(feed)
    assert (caught.read, caught.new, caught.too_old) == (2, 1, 1)
    assert house.state("evt_1") == "absent"


@on_a_receiver()
async def test_a_feed_that_is_none_is_an_error(house: House) -> None:
    """A proxy's page moves no cursor and stores nothing."""

    class Page(Feed):
        def get(self, path: str, *, cast_to: Any, options: Any) -> str:
            return "<html>"

    with pytest.raises(StorageError):
        await house.receiver.catch_up(Page({}))
    assert house.rows("SELECT * FROM inbox_cursors") == []


def test_the_feed_of_a_real_service_is_caught_up_with(served: Served, tmp_path: Path) -> None:
    """With the SDK's clients, sync and async; what they fetch are the very bytes of the feed."""
    client = served.client()
    assistant = client.beta.assistants.create(model="echo")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
    run = client.beta.threads.runs.create_and_poll(
        thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=20
    )

    async def story() -> None:
        async with (
            housed(tmp_path / "inbox.db", clock=SystemClock()) as house,
            house.receiver.running(),
        ):
            first = await house.receiver.catch_up(client)
            assert first.new == first.read > 0
            async with served.async_client() as unhurried:
                again = await house.receiver.catch_up(unhurried)
            assert again.new == 0
            kinds = [
                json.loads(body)["type"]
                for (body,) in house.rows(
                    f"SELECT body FROM inbox_events WHERE subject = '{run.id}' ORDER BY position"
                )
            ]
            assert kinds[0] == "thread.run.created"
            assert kinds[-1] == "thread.run.completed"

    assert isinstance(client, OpenAI)
    asyncio.run(story())


def test_the_inbox_on_the_command_line(inbox: str, runbell: Command) -> None:  # noqa: F811
    """list, show, dead and replay, on the database of a receiver that runs or does not; strange
    bytes play no tricks on the terminal; what is not there is a sentence."""
    place = ("--inbox", inbox)
    nasty = b'{"type":"a","data":{"id":"\\u001b[31mred"},"raw":"\x7f\xff"}'
    fails = True

    async def story(*, wait_for: str) -> None:
        async with housed(inbox, max_attempts=1) as house:

            @house.receiver.on("*")
            async def handler(event: Any) -> None:
                if fails:
                    raise ValueError("\x1b[31mboom")

            async with house.receiver.running():
                if fails:
                    await house.push("wh_1", body_of("response.completed"))
                    await house.push("wh_2", nasty)
                    await house.push("wh_1", body_of("response.failed"))
                await house.until(lambda: house.state("wh_1") == wait_for)

    asyncio.run(story(wait_for="dead"))
    listed = runbell("inbox", "list", *place)
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert lines[0].split() == ["RECEIVED", "ID", "TYPE", "ABOUT", "SEQ", "STATE", "ATTEMPTS"]
    assert [line.split()[2] for line in lines[1:]] == ["wh_2", "wh_1"]
    shown = runbell("inbox", "show", "wh_1", *place)
    assert body_of("response.completed").decode() in shown.out
    assert body_of("response.failed").decode() in shown.out
    assert "ValueError" in shown.out
    dead = runbell("inbox", "dead", *place)
    assert "wh_1" in dead.out
    assert "wh_2: the body is" in dead.out
    for done in (listed, shown, dead, runbell("inbox", "show", "wh_2", *place)):
        assert not {"\x1b", "\x7f"} & set(done.out)
    assert runbell("inbox", "list", "--state", "handled", *place).out.count("wh_") == 0
    assert runbell("inbox", "replay", "wh_1", *place).code == 0
    assert runbell("inbox", "replay", "wh_2", *place).code == 1
    assert runbell("inbox", "replay", "--dead", *place).out.startswith("0 dead letters")
    fails = False
    asyncio.run(story(wait_for="handled"))
    assert "handled" in runbell("inbox", "list", *place).out
    assert runbell("inbox", "show", "nothing", *place).code == 1
    assert runbell("inbox", "replay", *place).code == 2


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_operator_makes_no_inbox(kind: str, tmp_path: Path, runbell: Command) -> None:  # noqa: F811
    """A wrong name is a sentence, and leaves nothing behind."""
    url = made("without_inbox") if kind == "postgresql" else f"sqlite:///{tmp_path}/none.db"
    gone = runbell("inbox", "list", "--inbox", url)
    assert gone.code == 1
    assert "there is no " in gone.err
    assert "Traceback" not in gone.err
    assert not (tmp_path / "none.db").exists()
