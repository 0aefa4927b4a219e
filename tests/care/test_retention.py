"""What is old goes, in small pieces; what somebody may still need stays."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import ConfigurationError, UnknownCursor
from runbell.service import retention
from runbell.service.operations import runs, threads
from runbell.service.settings import Settings
from runbell.storage import events, idempotency
from runbell.storage import retention as rows
from runbell.storage.check import check
from runbell.storage.paging import Page
from runbell.storage.sqlite import read_only
from runbell.storage.store import Transaction
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.served import Served, eventually

HOUR = 3600.0
DAYS = HOUR / 86_400
"""An hour, so that the sweeps of a whole retention are a few."""


@contextlib.asynccontextmanager
async def sweeping(service: EmbeddedService) -> AsyncIterator[None]:
    task = asyncio.create_task(retention.sweep(service.ctx))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def finished(service: EmbeddedService, thread: str) -> str:
    """A run of the thread, to its end."""
    run = await service.run(thread)
    await service.settle()
    service.backend.turn.say("Hi")
    await service.settle()
    assert await service.status(run) == "completed"
    return run


async def kept(service: EmbeddedService, thread: str) -> set[str]:
    """The ids of the thread's runs that are there."""
    found, _ = await runs.list_page(service.ctx, service.project, thread, Page(limit=100))
    return {record.run.id for record in found}


async def told(service: EmbeddedService) -> set[str]:
    """The ids of the runs that the feed tells of."""
    return {event["data"]["id"] for event in await service.feed()}


async def in_order(service: EmbeddedService) -> None:
    report = await service.store.scan(check)
    assert not report.problems


@on_a_service(retain_days=DAYS)
async def test_a_run_goes_when_it_is_old_and_not_before(service: EmbeddedService) -> None:
    thread = await service.thread("hello")
    old = await finished(service, thread)
    async with sweeping(service):
        await service.advance(HOUR - 1)
        assert await kept(service, thread) == {old}
        young = await finished(service, thread)
        await service.advance(retention.SWEEP_SECONDS + 1)
        assert await kept(service, thread) == {young}
        assert await told(service) == {young}
        assert await service.steps(old) == []
        assert len(await service.steps(young)) == 1
        await in_order(service)
        await service.advance(HOUR + retention.SWEEP_SECONDS)
        assert await kept(service, thread) == set()
        assert await service.feed() == []
    # The conversation is whole, and goes on.
    assert len(await service.messages(thread)) == 3
    await finished(service, thread)
    assert len(await service.messages(thread)) == 4
    await in_order(service)


@on_a_service(retain_days=DAYS)
async def test_first_answers_go_when_they_count_no_more(service: EmbeddedService) -> None:
    """In batches, and those that count still stay."""
    many = 2 * retention.ROWS + 1
    await claim(service, *(f"old {number}" for number in range(many)))
    service.clock.advance(idempotency.KEPT_MS / 1000 + 1)
    await claim(service, "young")
    removing = asyncio.create_task(retention.remove_old(service.ctx))
    while not removing.done():
        await service.advance(retention.PAUSE_SECONDS)
    assert await removing == many
    now_ms = service.clock.now_ms()
    left = await service.store.write(
        lambda tx: idempotency.prune(tx, before_ms=now_ms + 1, limit=many)
    )
    assert left == 1


async def claim(service: EmbeddedService, *keys: str) -> None:
    now_ms = service.clock.now_ms()
    project = service.project
    for key in keys:
        await service.store.write(
            lambda tx: idempotency.claim(tx, project, key, b"", now_ms=now_ms, oldest_ms=0)  # noqa: B023
        )


@on_a_service()
async def test_nothing_goes_by_default(service: EmbeddedService) -> None:
    thread = await service.thread("hello")
    run = await finished(service, thread)
    service.clock.advance(10 * 365 * 86_400)
    assert await retention.remove_old(service.ctx) == 0
    assert await kept(service, thread) == {run}


@on_a_service(retain_days=DAYS, run_expiry=100 * HOUR)
async def test_a_thread_with_a_live_run_is_not_touched(service: EmbeddedService) -> None:
    busy, waiting = await service.thread("busy"), await service.thread("waiting")
    old = [await finished(service, busy), await finished(service, waiting)]
    live = await service.run(busy)
    await service.settle()
    acting = await service.run(waiting)
    await service.settle()
    service.backend.open[1].call(("f", "{}"))
    await service.settle()
    queued = await service.run(waiting, on_active_run="enqueue")
    async with sweeping(service):
        await service.advance(10 * HOUR)
        assert await kept(service, busy) == {old[0], live}
        assert await kept(service, waiting) == {old[1], acting, queued}
        assert await told(service) == {*old, live, acting, queued}
        await in_order(service)
        service.backend.turn.say("Done")
        await service.settle()
        await service.advance(retention.SWEEP_SECONDS + 1)
        # What ended just now is young, however old its beginning is.
        assert await kept(service, busy) == {live}
        assert await service.history(live) == [
            "created",
            "in_progress",
            "completed",
        ]
        assert await kept(service, waiting) == {old[1], acting, queued}


@on_a_service(retain_days=DAYS)
async def test_events_of_deleted_threads_go_too(service: EmbeddedService) -> None:
    thread = await service.thread("hello")
    await finished(service, thread)
    run = await service.run(thread)
    await service.advance(HOUR / 2)
    await threads.delete(service.ctx, service.project, thread)
    assert (await service.history(run))[-1] == "expired"
    async with sweeping(service):
        await service.advance(HOUR / 2 - 2)
        assert run in await told(service)
        await in_order(service)
        await service.advance(HOUR + retention.SWEEP_SECONDS)
        assert await service.feed() == []


@on_a_service(retain_days=DAYS)
async def test_a_cursor_whose_event_has_gone_is_refused(service: EmbeddedService) -> None:
    thread = await service.thread("hello")
    await finished(service, thread)
    last = (await service.feed())[-1]["id"]
    async with sweeping(service):
        await service.advance(HOUR + retention.SWEEP_SECONDS)
    await finished(service, thread)

    async def behind(tx: Transaction) -> Any:
        return await events.page(tx, service.project, after=last, types=None, limit=10)

    with pytest.raises(UnknownCursor):
        await service.store.scan(behind)
    assert len(await service.feed()) == 3


@on_a_service(retain_days=DAYS)
async def test_no_unit_removes_more_than_it_may(
    service: EmbeddedService,
) -> None:
    """Not with many runs, and not with one that has more rows than a unit removes."""
    long = await service.thread("long")
    run = await service.run(long)
    await service.settle()
    for _ in range(45):
        service.backend.turn.call(("f", "{}"))
        await service.settle()
        calls = (await service.find(run)).tool_calls
        await service.submit(run, {calls[0].id: "x"})
        await service.settle()
    service.backend.turn.say("At last")
    await service.settle()
    assert len(await service.feed()) + len(await service.steps(run)) > retention.ROWS + 50
    # One of fewer rows than the others, so that a unit's limit falls into the middle of a run.
    await service.run(await service.thread("fails"))
    await service.settle()
    service.backend.turn.fail()
    for _ in range(30):
        await finished(service, await service.thread("short"))
    service.clock.advance(2 * HOUR)
    young = await finished(service, long)

    sizes: list[int] = []
    write = service.store.write

    async def counted(work: Any) -> Any:
        done = await write(work)
        if isinstance(done, int):
            sizes.append(done)
            # At every moment what is left is in order.
            await in_order(service)
        return done

    service.store.write = counted  # type: ignore[method-assign]
    before = len(await service.feed())
    removing = asyncio.create_task(retention.remove_old(service.ctx))
    while not removing.done():
        await service.advance(retention.PAUSE_SECONDS)
    assert await removing == sum(sizes)
    assert max(sizes) == retention.ROWS
    assert len([size for size in sizes if size]) >= 4
    assert await told(service) == {young}
    assert sum(sizes) > before
    page = service.ctx.metrics.page("", None).body.decode()
    assert f"runbell_retention_removed_rows_total {sum(sizes):.1f}" in page


@on_a_service(retain_days=DAYS)
async def test_an_old_run_behind_many_that_stay_is_found(service: EmbeddedService) -> None:
    """A thread that is always busy does not keep others from being cleared away."""
    busy = await service.thread("busy")
    for _ in range(40):
        await finished(service, busy)
    other = await service.thread("other")
    old = await finished(service, other)
    service.clock.advance(2 * HOUR)
    await service.run(busy)
    await service.settle()
    assert len(await service.feed()) > retention.ROWS + 3
    async with sweeping(service):
        await service.advance(1)
        assert old not in await told(service)
        assert len(await kept(service, busy)) == 41


@on_a_service(retain_days=DAYS)
async def test_retention_waits_for_a_database_that_is_away(
    service: EmbeddedService,
) -> None:
    thread = await service.thread("hello")
    await finished(service, thread)
    service.clock.advance(2 * HOUR)
    service.store.away = True
    async with sweeping(service):
        await service.advance(1)
        service.store.away = False
        assert len(await kept(service, thread)) == 1
        await service.advance(retention.SWEEP_SECONDS)
        assert await kept(service, thread) == set()


@on_a_service(retain_days=DAYS)
async def test_a_crash_in_the_middle_leaves_what_the_next_sweep_removes(
    service: EmbeddedService,
) -> None:
    thread = await service.thread("hello")
    run = await finished(service, thread)
    service.clock.advance(2 * HOUR)
    now_ms = service.clock.now_ms()
    for limit in (1, 1, 1, 1):
        await service.store.write(
            lambda tx, limit=limit: rows.remove(tx, [run], now_ms, limit, now_ms=now_ms)
        )
        await in_order(service)
    assert await kept(service, thread) == set()
    assert len(await service.feed()) == 1
    async with sweeping(service):
        await service.advance(1)
    assert await service.feed() == []


def test_the_settings_say_how_many_days() -> None:
    assert Settings.load({}, {}).retain_days == 0
    assert Settings.load({}, {"RUNBELL_RETAIN_DAYS": "30"}).retain_days == 30
    for wrong in ("-1", "nan", "inf", "x"):
        with pytest.raises(ConfigurationError, match="retain_days"):
            Settings.load({"retain_days": wrong}, {})


def test_a_served_process_removes_what_is_old(tmp_path: Path) -> None:
    second = 1 / 86_400
    with Served(tmp_path) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="echo")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "hello"}])
        run = client.beta.threads.runs.create_and_poll(
            thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=20
        )
        events_before = served.api().get("/v1/events").ok()["data"]
        served.stop()
        served.args = ("--retain-days", str(second))
        eventually(
            lambda: time.time() > (run.completed_at or 0) + 3,
            "the run is older than a second",
        )
        served.start()
        api = served.api()
        eventually(lambda: api.get("/v1/events").ok()["data"] == [], "the events have gone")
        assert api.get(f"/v1/threads/{thread.id}/runs/{run.id}").status == 404
        gone = api.get(f"/v1/events?after={events_before[-1]['id']}")
        assert gone.status == 404
        assert gone.error["message"].startswith(
            f"No event found with id '{events_before[-1]['id']}'."
        )
        assert len(api.get(f"/v1/threads/{thread.id}/messages").ok()["data"]) == 2
        eventually(lambda: "retention has removed 5 rows" in served.stderr(), "it is logged")
    report = read_only(served.database_path, check)
    assert not report.problems
