"""The live feed: every event once, in order, from any point on, for as long as somebody listens."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

from runbell.service import feeds
from runbell.service.changes import Changes
from runbell.service.operations import access, runs
from runbell.service.routes.events import HEARTBEAT_SECONDS, LIVE_PAGE
from runbell.service.wire.requests import CreateRun
from runbell.storage import events
from runbell.storage.sqlite import MAX_WAITING_SCANS
from runbell.testing.databases import writer_held
from runbell.testing.embedded import EmbeddedService, on_a_service
from runbell.testing.histories import check_histories
from tests.web import Exchange, Web

LIVE = ("Accept", "text/event-stream")
HEARTBEAT = b": heartbeat\n\n"
OPEN = b": open\nid: evt_0\n\n"
"""Of a feed that has no events yet."""


def follow(web: Web, query: str = "", *headers: tuple[str, str], **options: Any) -> Exchange:
    return web.get(f"/v1/events{query}", LIVE, *headers, **options)


def ids(exchange: Exchange) -> list[str]:
    return [event["id"] for _, event in exchange.events]


async def some_runs(service: EmbeddedService, count: int) -> None:
    """Runs from their creation to their end: three events each."""
    for _ in range(count):
        await service.run(await service.thread("Hello"))
    await service.settle()
    for turn in service.backend.open:
        turn.say("Hi")
    await service.settle()


async def feed(service: EmbeddedService) -> list[str]:
    return [event["id"] for event in await service.feed()]


@on_a_service()
async def test_events_come_as_they_happen(service: EmbeddedService) -> None:
    """Without a cursor from now on; with the bytes that everybody else gets."""
    await some_runs(service, 2)
    web = Web(service)
    exchange = follow(web)
    await service.settle()
    assert exchange.chunks == [OPEN.replace(b"evt_0", (await feed(service))[-1].encode())]
    assert exchange.headers["content-type"] == "text/event-stream; charset=utf-8"
    before = len(await feed(service))
    await service.run(await service.thread("Hello"))
    await service.settle()
    assert [name for name, _ in exchange.events] == ["thread.run.created", "thread.run.in_progress"]
    service.backend.turn.say("Hi")
    await service.settle()
    assert [event for _, event in exchange.events] == (await service.feed())[before:]
    page = (await web.get(f"/v1/events?after={(await feed(service))[before]}").answered()).body
    for chunk in exchange.chunks[2:]:
        lines = dict(line.split(b": ", 1) for line in chunk.strip().split(b"\n"))
        assert lines[b"data"] in page
        assert b'"id":"%b"' % lines[b"id"] in lines[b"data"]
        assert b'"type":"%b"' % lines[b"event"] in lines[b"data"]


@on_a_service()
async def test_in_a_project_without_events(service: EmbeddedService) -> None:
    """The first one is not missed."""
    exchange = follow(Web(service))
    await service.settle()
    await some_runs(service, 1)
    assert ids(exchange) == await feed(service)


@pytest.mark.parametrize("count", [0, 2])
def test_who_had_no_event_yet_goes_on_where_it_began(tmp_path: Path, count: int) -> None:
    """A client that comes back with the id of the first frame, as EventSource does."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        await some_runs(service, count)
        web, before = Web(service), await feed(service)
        exchange = follow(web)
        await service.settle()
        exchange.leave()
        (frame,) = exchange.chunks
        key = frame.strip().rpartition(b"id: ")[2].decode()
        await some_runs(service, 1)
        exchange = follow(web, "", ("Last-Event-ID", key))
        await service.settle()
        assert ids(exchange) == (await feed(service))[len(before) :]

    story(tmp_path)


@pytest.mark.parametrize("by", ["after", "Last-Event-ID"])
def test_a_feed_goes_on_where_it_was_left(tmp_path: Path, by: str) -> None:
    """From every event on, by the query or as browsers' EventSource does it."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        await some_runs(service, 3)
        web, every = Web(service), await feed(service)
        for number, key in enumerate(every):
            exchange = follow(web, f"?after={key}") if by == "after" else follow(web, "", (by, key))
            await service.settle()
            assert ids(exchange) == every[number + 1 :]
            exchange.leave()
        await service.settle()
        assert web.nothing_held()

    story(tmp_path)


@on_a_service()
async def test_what_the_client_got_last_counts_more_than_its_query(
    service: EmbeddedService,
) -> None:
    """A browser that reconnects repeats its URL."""
    await some_runs(service, 2)
    every = await feed(service)
    exchange = follow(Web(service), f"?after={every[0]}", ("Last-Event-ID", every[3]))
    await service.settle()
    assert ids(exchange) == every[4:]


@on_a_service()
async def test_an_unknown_event_is_a_404(service: EmbeddedService) -> None:
    web = Web(service)
    for exchange in (follow(web, "?after=evt_x"), follow(web, "", ("Last-Event-ID", "evt_x"))):
        await exchange.answered()
        assert (exchange.status, exchange.headers["content-type"]) == (404, "application/json")
        assert exchange.json()["error"]["message"].startswith("No event found with id 'evt_x'.")
    assert web.nothing_held()


@on_a_service()
async def test_a_long_feed_is_read_in_pieces(service: EmbeddedService) -> None:
    """More than is read at once: nothing lost or doubled at the seams."""
    await some_runs(service, LIVE_PAGE)
    every = await feed(service)
    assert len(every) == 3 * LIVE_PAGE
    exchange = follow(Web(service), f"?after={every[0]}")
    await service.settle()
    assert ids(exchange) == every[1:]


@on_a_service()
async def test_types(service: EmbeddedService) -> None:
    """Only those that were asked for, also in what was there before."""
    await some_runs(service, LIVE_PAGE)
    web, every = Web(service), await service.feed()
    wanted = ("thread.run.completed", "thread.run.failed")
    exchange = follow(web, f"?types={','.join(wanted)}&after={every[0]['id']}")
    every_type = follow(web, f"?types=thread.run.*&after={every[0]['id']}")
    await some_runs(service, 2)
    every = await service.feed()
    expected = [event["id"] for event in every if event["type"] in wanted]
    assert len(expected) == LIVE_PAGE + 2
    assert ids(exchange) == expected
    assert ids(every_type) == [event["id"] for event in every[1:]]
    refused = await follow(web, "?types=thread.run.done").answered()
    assert refused.status == 400


def test_events_that_were_passed_over_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look begins behind the last one, whether or not there was anything for this feed."""
    looked: list[int] = []
    tail = events.tail

    async def seen(tx: Any, project: str, *, low: int, limit: int) -> Any:
        looked.append(low)
        return await tail(tx, project, low=low, limit=limit)

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        exchange = follow(Web(service), "?types=thread.run.failed")
        await some_runs(service, 3)
        assert exchange.chunks == [OPEN]
        # Nor does it matter that the event which it read last is not kept any more.
        await service.store.write(_forget_all)
        await service.run(await service.thread("Hello"))
        await service.settle()
        service.backend.turn.fail()
        await service.settle()
        assert [name for name, _ in exchange.events] == ["thread.run.failed"]
        assert looked == sorted(looked)
        assert looked[-1] >= 10

    monkeypatch.setattr(events, "tail", seen)
    story(tmp_path)


async def _forget_all(tx: Any) -> None:
    tx.connection.execute("DELETE FROM events")


@on_a_service()
async def test_heartbeats(service: EmbeddedService) -> None:
    """Whenever nothing was sent for a while, and not while there is something to say."""
    exchange = follow(Web(service))
    await service.advance(HEARTBEAT_SECONDS - 1)
    assert exchange.chunks == [OPEN]
    await service.advance(1)
    assert exchange.chunks == [OPEN, HEARTBEAT]
    await service.advance(HEARTBEAT_SECONDS / 2)
    await some_runs(service, 1)
    assert len(exchange.events) == 3
    await service.advance(HEARTBEAT_SECONDS - 1)
    assert exchange.chunks.count(HEARTBEAT) == 1
    await service.advance(1)
    assert exchange.chunks.count(HEARTBEAT) == 2


@on_a_service()
async def test_what_nobody_told_of_comes_with_the_heartbeat(service: EmbeddedService) -> None:
    """As of a process that was killed behind its commit. One look is enough for all who follow."""
    web, thread = Web(service), await service.thread("Hello")
    await service.run(thread)
    await service.settle()
    following = []
    for _ in range(3):
        following.append(follow(web))
        await service.advance(1)
    unheard = dataclasses.replace(service.ctx, changes=Changes())
    run = CreateRun(assistant_id=service.assistant, on_active_run="enqueue")
    await runs.create(unheard, service.project, thread, run)
    await service.settle()
    assert [ids(each) for each in following] == [[], [], []]
    read = service.ctx.feeds.reads(service.project)
    await service.advance(HEARTBEAT_SECONDS)
    await service.advance(HEARTBEAT_SECONDS)
    assert [ids(each) for each in following] == [(await feed(service))[-1:]] * 3
    assert service.ctx.feeds.reads(service.project) - read <= 2


@on_a_service()
async def test_heartbeats_while_others_are_told_of_much(service: EmbeddedService) -> None:
    """What this feed does not want does not keep it quiet."""
    exchange = follow(Web(service), "?types=thread.run.failed")
    for _ in range(4):
        await some_runs(service, 1)
        await service.advance(HEARTBEAT_SECONDS / 2)
    assert exchange.chunks == [OPEN, HEARTBEAT, HEARTBEAT]


@on_a_service()
async def test_projects_do_not_hear_each_other(service: EmbeddedService) -> None:
    """Neither events, nor whether an id exists."""
    other = await access.ensure_project(service.store, service.clock, "other")
    key, _ = await access.create_key(service.store, service.clock, other, "keys")
    web = Web(service)
    exchange = follow(web, key=key)
    await some_runs(service, 2)
    assert exchange.chunks == [OPEN]
    first = (await feed(service))[0]
    refused = await follow(web, f"?after={first}", key=key).answered()
    assert refused.status == 404


RUNS = 30
EVENTS = 3 * RUNS


@pytest.mark.parametrize(("seed", "held"), [(0, feeds.HELD_EVENTS), (1, 3), (2, 20)])
def test_no_event_is_lost_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, held: int
) -> None:
    """However reading and committing meet: followers that come, go and come back all the time."""
    monkeypatch.setattr(feeds, "HELD_EVENTS", held)
    monkeypatch.setattr(feeds, "READ_AT_ONCE", 7)

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        await some_runs(service, 1)
        start = await feed(service)
        web, rng = Web(service), random.Random(seed)
        listening = [asyncio.create_task(listen(web, start[-1], rng)) for _ in range(20)]
        await happen(service, rng)
        got = await asyncio.gather(*listening)
        every = (await feed(service))[len(start) :]
        assert len(every) == EVENTS
        assert all(mine == every for mine in got)
        check_histories(await service.feed(), ended=True)
        await service.settle()
        assert web.nothing_held()

    story(tmp_path)


async def listen(web: Web, start: str, rng: random.Random) -> list[str]:
    """Follow the feed a few events at a time, until all have come."""
    mine: list[str] = []
    while len(mine) < EVENTS:
        exchange = follow(web, f"?after={mine[-1] if mine else start}")
        some = min(rng.randint(0, 20), EVENTS - len(mine))
        await exchange.until(lambda exchange, some=some: len(exchange.events) >= some)
        exchange.leave()
        await exchange.answered()
        mine += ids(exchange)
    return mine


async def happen(service: EmbeddedService, rng: random.Random) -> None:
    """Runs that are created and end at any moment, some of them in one commit."""
    threads = [await service.thread("Hello") for _ in range(RUNS)]
    while threads:
        some = [threads.pop() for _ in range(min(len(threads), rng.randint(1, 4)))]
        async with writer_held(service.store):
            making = [asyncio.create_task(service.run(thread)) for thread in some]
            await asyncio.sleep(0)
        await asyncio.gather(*making)
        for _ in range(rng.randint(0, 5)):
            await asyncio.sleep(0)
        for turn in service.backend.open:
            turn.say("Hi")
    await service.settle()
    for turn in service.backend.open:
        turn.say("Hi")
    await service.settle()


@on_a_service()
async def test_many_followers(service: EmbeddedService) -> None:
    """All get everything; when they leave, nothing is left."""
    web = Web(service)
    exchanges = [follow(web) for _ in range(300)]
    await service.settle()
    assert service.ctx.changes.waiting == 300
    await some_runs(service, 3)
    every = await feed(service)
    assert all(ids(exchange) == every for exchange in exchanges)
    for exchange in exchanges:
        exchange.leave()
    await service.settle()
    assert all(exchange.task.done() for exchange in exchanges)
    assert web.nothing_held()
    assert not service.ctx.changes._watches


@on_a_service()
async def test_many_followers_cost_one_look(service: EmbeddedService) -> None:
    """Also where far more follow than may read at the same time, and all of them from behind."""
    await some_runs(service, 1)
    web, first = Web(service), (await feed(service))[0]
    exchanges = [follow(web, f"?after={first}") for _ in range(MAX_WAITING_SCANS + 100)]
    await service.settle()
    await some_runs(service, 1)
    every = (await feed(service))[1:]
    assert all(ids(exchange) == every for exchange in exchanges)
    calls = service.store.calls
    await service.run(await service.thread("Hello"))
    await service.settle()
    assert service.store.calls - calls < 20
    every = (await feed(service))[1:]
    assert all(ids(exchange) == every for exchange in exchanges)
    web.app.stop()
    await service.settle()


@on_a_service()
async def test_a_slow_reader_holds_one_page(service: EmbeddedService) -> None:
    """What it has not read stays in the table; in the end it has everything."""
    web = Web(service)
    exchange = follow(web)
    await service.settle()
    exchange.reading.clear()
    calls = service.store.calls
    await some_runs(service, 50)
    made = service.store.calls - calls
    await some_runs(service, 50)
    assert service.store.calls - calls - made <= made, "it reads on although nobody takes it"
    assert exchange.chunks == [OPEN]
    exchange.reading.set()
    await service.settle()
    assert ids(exchange) == await feed(service)


@on_a_service()
async def test_a_service_that_stops_ends_the_feed(service: EmbeddedService) -> None:
    """In order: the client knows that it has everything up to its last event."""
    web = Web(service)
    exchange = follow(web)
    await service.settle()
    web.app.stop()
    await service.settle()
    assert exchange.ended
    late = follow(web)
    await service.settle()
    assert late.ended


@on_a_service()
async def test_a_database_that_goes_away_ends_the_feed(
    service: EmbeddedService,
) -> None:
    """The client comes back with its last event; nobody sees a traceback."""
    web = Web(service)
    exchange = follow(web)
    await some_runs(service, 1)
    run = await service.find((await service.feed())[0]["data"]["id"])
    service.store.unreadable = True
    service.ctx.changes.publish(run)
    await exchange.answered()
    service.store.unreadable = False
    assert exchange.ended
    assert web.nothing_held()
    again = follow(web, f"?after={ids(exchange)[0]}")
    await service.settle()
    assert ids(again) == (await feed(service))[1:]
