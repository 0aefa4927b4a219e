"""Streams of runs that change elsewhere: whatever is lost on the way, each of them ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import pytest

from runbell.errors import StorageUnavailable
from runbell.service.changes import Changes
from runbell.service.feeds import Feeds
from runbell.service.live import Live
from runbell.service.neighbours import Neighbours, SharedChanges, ToldRun
from runbell.service.operations import runs, threads
from runbell.service.operations.context import Context
from runbell.service.retelling import BEING_TOLD_MS, Retelling
from runbell.storage import lasting as lasting_room
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.streams.test_order import run_of
from tests.web import Exchange, Web


class Ears:
    """What tells a `Retelling` of other processes: here the test does."""

    def __init__(self) -> None:
        self.tell: Callable[[ToldRun], None]

    def on_change(self, callback: Callable[[ToldRun], None]) -> None:
        self.tell = callback

    def on_gap(self, callback: Callable[[], None]) -> None:
        self.gap = callback


def elsewhere(service: EmbeddedService) -> Context:
    """What another process does, of which nobody hears."""
    return dataclasses.replace(service.ctx, live=Live(), changes=Changes())


async def streamed(service: EmbeddedService) -> tuple[Exchange, str, str, Ears, Retelling]:
    """A stream of a run that waits its turn, its thread and its id."""
    ears = Ears()
    retelling = Retelling(service.ctx, cast(Neighbours, ears))
    thread = await service.thread("Hello")
    await service.run(thread)
    stream = Web(service).stream(thread, on_active_run="enqueue")
    await service.settle()
    return stream, thread, run_of(stream)["id"], ears, retelling


@on_a_service()
async def test_a_change_that_nobody_told_of_is_found(service: EmbeddedService) -> None:
    """Once, though it is told of later; and not while it may still be on its way."""
    stream, thread, run, ears, retelling = await streamed(service)
    before = list(stream.names)
    await retelling.look(0)
    await runs.cancel(elsewhere(service), service.project, thread, run)
    await retelling.look(BEING_TOLD_MS)
    await service.settle()
    assert stream.names == before
    await service.advance(BEING_TOLD_MS / 1000)
    other, found = service.ctx.live.follow(run), await service.find(run)
    await retelling.look(BEING_TOLD_MS)
    ears.tell(ToldRun(run, service.project, found.status, 0, found.sequence, 0))
    await stream.answered()
    await service.settle()
    assert stream.names == [*before, "run.cancelled", "done"]
    assert [told.event for told in other._untold] == ["thread.run.cancelled"]
    other.close()


@on_a_service()
async def test_a_database_that_is_away_keeps_nothing_from_a_stream(
    service: EmbeddedService,
) -> None:
    """What was heard of meanwhile is told when it is back."""
    stream, thread, run, ears, _ = await streamed(service)
    await runs.cancel(elsewhere(service), service.project, thread, run)
    found = await service.find(run)
    service.store.unreadable = True
    ears.tell(ToldRun(run, service.project, found.status, 0, found.sequence, 0))
    await service.settle()
    assert stream.names[-1] == "run.queued"
    service.store.unreadable = False
    await service.advance(1)
    await stream.answered()
    assert stream.names[-2:] == ["run.cancelled", "done"]


@on_a_service()
async def test_a_run_that_is_not_there_any_more_ends_its_streams(service: EmbeddedService) -> None:
    """They say so, and not that the service stops."""
    stream, thread, _, _, retelling = await streamed(service)
    await threads.delete(elsewhere(service), service.project, thread)
    await retelling.look(0)
    await stream.answered()
    assert stream.names[-2:] == ["error", "done"]
    assert "not there any more" in stream.events[-2][1]["message"]


class Asked:
    """A store that is away when it is asked for the first time."""

    def __init__(self) -> None:
        self.times = 0

    async def fetch(self, text: str, *args: object) -> list[tuple[int, int]]:
        self.times += 1
        if self.times == 1:
            raise StorageUnavailable("away")
        return [(7, 7)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No loop waits before it tries again."""
    monkeypatch.setattr(lasting_room.BACKOFF.__class__, "delay", lambda *_: 0.0)


@pytest.mark.usefixtures("quick")
@on_a_service()
async def test_a_failed_look_is_repeated(service: EmbeddedService) -> None:
    """The feed's, of what was just told, and the one behind a gap."""
    store, changes = Asked(), Changes()
    feeds = Feeds(service.store, changes)
    missed = [StorageUnavailable("away"), KeyError("a defect")]

    async def look() -> None:
        if missed:
            raise missed.pop()

    class Listening:
        def subscribe(self, channel: str, hear: Callable[[str], None]) -> None:
            self.hear = hear

        def on_gap(self, callback: Callable[[], None]) -> None:
            self.gap = callback

    listener: Any = Listening()
    shared: Any = changes
    shared.sender = "this"
    neighbours = Neighbours(
        cast(Any, store), listener, service.clock, cast(SharedChanges, shared), feeds, look
    )
    neighbours.start()
    with feeds.following("p"), changes.watch(["p"]) as watch:
        listener.hear('["other",[["run_1","p","queued",0,1,1]],[]]')
        assert await watch.changed(service.clock, 10)
        # From here on, what was told is not enough: the feed's end has to be known.
        feeds._tails["p"].stale = False
        await service.settle()
        assert feeds._tails["p"].stale
        listener.gap()
        await service.settle()
        assert not missed
        assert not neighbours._unseen.is_set()
    await neighbours.close()


@on_a_service()
async def test_a_process_that_hears_of_nobody_is_not_ready(service: EmbeddedService) -> None:
    """A balancer sends nothing to it: waits that it holds would end late."""

    class Deaf(Changes):
        deaf = True

    assert (await Web(service).get("/readyz").answered()).status == 200
    service.ctx.changes.__class__ = Deaf
    answer = await Web(service).get("/readyz").answered()
    assert answer.status == 503
    assert answer.json()["reason"] == "what other processes change is not heard of"
