"""Waiting for one run: `Prefer: wait=N`, `If-None-Match`, and the two together."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runbell.runs import Run, RunStatus
from runbell.service.neighbours import SharedChanges
from runbell.service.operations import threads
from runbell.service.routes.runs import _Look
from runbell.service.wire.preferences import MAX_WAIT_SECONDS, knows, wait_seconds
from runbell.storage.runs import RunRecord
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.web import Exchange, Web

MOMENT = 0.05
"""Too little for anything that waits."""


async def in_progress(service: EmbeddedService, **fields: Any) -> tuple[Web, str, str]:
    """A run whose model is being called: a client, the run's id and its path."""
    web = Web(service)
    run = await service.run(await service.thread("Hello"), **fields)
    await service.settle()
    return web, run, await web.path_of(run)


async def pending(service: EmbeddedService, exchange: Exchange) -> Exchange:
    """The same exchange, which is not answered yet."""
    await service.settle()
    assert not exchange.task.done(), exchange.body
    assert service.ctx.changes.waiting == 1
    return exchange


def answered(service: EmbeddedService, exchange: Exchange, status: int = 200) -> Exchange:
    """The same exchange, which is answered, and held no more."""
    assert exchange.task.done()
    assert exchange.status == status, exchange.body
    assert service.ctx.changes.waiting == 0
    return exchange


@on_a_service()
async def test_a_settled_run_is_answered_at_once(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    service.backend.turn.say("Hi")
    await service.settle()
    exchange = web.get(path, ("Prefer", "wait=60"))
    await service.settle()
    answered(service, exchange)
    assert exchange.json()["status"] == "completed"
    assert exchange.headers["preference-applied"] == "wait=60"
    assert "openai-poll-after-ms" not in exchange.headers


@on_a_service()
async def test_an_answer_comes_when_the_run_has_settled(service: EmbeddedService) -> None:
    """And not before, whatever happens to it on the way."""
    web = Web(service)
    thread = await service.thread("Hello")
    first = await service.run(thread)
    run = await service.run(thread, on_active_run="enqueue")
    await service.settle()
    exchange = await pending(service, web.get(await web.path_of(run), ("Prefer", "wait=60")))
    await service.cancel(first)  # the run's turn comes, and it begins
    await pending(service, exchange)
    assert await service.status(run) == "in_progress"
    await web.post(await web.path_of(run), {"metadata": {"k": "v"}}).answered()
    await pending(service, exchange)
    service.backend.turn.say("Hi")
    await service.settle()
    body = answered(service, exchange).json()
    assert (body["status"], body["metadata"]) == ("completed", {"k": "v"})


@pytest.mark.parametrize("how", ["call", "fail", "cut", "cancel", "expire"])
def test_every_way_to_settle_ends_the_wait(tmp_path: Path, how: str) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, run, path = await in_progress(service, expires_after=30)
        exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
        match how:
            case "call":
                service.backend.turn.call(("f", "{}"))
            case "fail":
                service.backend.turn.fail()
            case "cut":
                service.backend.turn.say("half", reason="max_completion_tokens")
            case "cancel":
                await service.cancel(run)
            case "expire":
                await service.advance(30)
        await service.settle()
        expected = {"call": "requires_action", "fail": "failed", "cut": "incomplete"}
        expected |= {"cancel": "cancelled", "expire": "expired"}
        assert answered(service, exchange).json()["status"] == expected[how]
        assert ("openai-poll-after-ms" in exchange.headers) == (how == "call")

    story(tmp_path)


@on_a_service()
async def test_after_the_time_the_run_is_answered_as_it_is(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    exchange = web.get(path, ("Prefer", "wait=5"))
    await service.advance(5 - MOMENT)
    await pending(service, exchange)
    await service.advance(MOMENT)
    assert answered(service, exchange).json()["status"] == "in_progress"
    assert exchange.headers["preference-applied"] == "wait=5"
    assert int(exchange.headers["openai-poll-after-ms"]) > 0


@pytest.mark.parametrize("given", ["wait=61", "wait=600", "wait=99999999999999999999", "wait=060"])
def test_nobody_waits_longer_than_a_minute(tmp_path: Path, given: str) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, _, path = await in_progress(service)
        exchange = web.get(path, ("Prefer", given))
        await service.advance(MAX_WAIT_SECONDS - MOMENT)
        await pending(service, exchange)
        await service.advance(MOMENT)
        answered(service, exchange)
        assert exchange.headers["preference-applied"] == f"wait={MAX_WAIT_SECONDS}"

    story(tmp_path)


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("wait=7", 7),
        ("WAIT = 7", 7),
        ('wait="7"', 7),
        ("respond-async, wait=7", 7),
        ("wait=7; note=x, handling=lenient", 7),
        ("handling=lenient;wait=7", 7),
        ("wait=7, wait=9", 7),
        ("wait=0", 0),
        ("wait=007", 7),
        (f"wait={'9' * 5_000}", 60),
        ("wait", None),
        ("wait=", None),
        ("wait=-7", None),
        ("wait=7.5", None),
        ("wait=soon", None),
        ("wait=7s", None),
        ("await=7", None),
        ("wait=\u0667", None),
        ("respond-async", None),
        ("", None),
        (None, None),
    ],
)
def test_what_can_be_read_of_a_preference(given: str | None, seconds: int | None) -> None:
    """What can't be read is none: RFC 7240 has servers ignore it."""
    assert wait_seconds(given) == seconds


@on_a_service()
async def test_what_is_no_preference_is_ignored(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    exchange = web.get(path, ("Prefer", "wait=soon"))
    await service.settle()
    answered(service, exchange)
    assert "preference-applied" not in exchange.headers


@on_a_service()
async def test_preferences_may_come_in_several_headers(service: EmbeddedService) -> None:
    """RFC 7240: several headers mean the same as one with all values."""
    web, _, path = await in_progress(service)
    exchange = web.get(path, ("Prefer", "respond-async"), ("Prefer", "wait=5"))
    await pending(service, exchange)
    await service.advance(5)
    answered(service, exchange)


@on_a_service()
async def test_wait_0_is_answered_now(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    exchange = web.get(path, ("Prefer", "wait=0"))
    await service.settle()
    answered(service, exchange)
    assert exchange.headers["preference-applied"] == "wait=0"


# Only what has changed.


async def tag(service: EmbeddedService, path: str) -> str:
    exchange = await Web(service).get(path).answered()
    return exchange.headers["etag"]


@on_a_service()
async def test_the_tag_changes_with_everything_that_is_answered(service: EmbeddedService) -> None:
    """Statuses and metadata alike; and without a change it stays."""
    web, run, path = await in_progress(service)
    tags = [await tag(service, path)]

    async def changed() -> None:
        await service.settle()
        tags.append(await tag(service, path))
        assert tags[-1] == await tag(service, path)

    await web.post(path, {"metadata": {"k": "v"}}).answered()
    await changed()
    await web.post(path, {"metadata": {"k": "w"}}).answered()
    await changed()
    for _ in range(2):
        service.backend.turn.call(("f", "{}"))
        await changed()
        (call,) = (await service.find(run)).tool_calls
        await service.submit(run, {call.id: "o"})
        await service.settle()
    service.backend.turn.say("Hi")
    await changed()
    assert len(set(tags)) == len(tags) == 6, "both calls, since they have ids of their own"


@on_a_service()
async def test_304_says_that_nothing_is_new(service: EmbeddedService) -> None:
    """Without a body; with the tag, and with when to look again."""
    web, _, path = await in_progress(service)
    known = await tag(service, path)
    exchange = await web.get(path, ("If-None-Match", known)).answered()
    assert (exchange.status, exchange.body) == (304, b"")
    assert exchange.headers["etag"] == known
    assert "content-length" not in exchange.headers
    assert int(exchange.headers["openai-poll-after-ms"]) > 0
    exchange = await web.get(path, ("If-None-Match", '"other"')).answered()
    assert (exchange.status, exchange.headers["etag"]) == (200, known)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('"b", "a"', True),
        ('"b",W/"a"', True),
        ("*", True),
        ('"b"', False),
        ("a", False),
        ('"a', False),
        ("", False),
        (None, False),
    ],
)
def test_what_a_client_says_it_knows(given: str | None, known: bool) -> None:
    """RFC 9110, section 13.1.2: compared weakly, one of a list, or anything at all."""
    assert knows(given, '"a"') == known


@on_a_service()
async def test_lists_of_tags_may_come_in_several_headers(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    known = await tag(service, path)
    given = (("If-None-Match", '"x"'), ("If-None-Match", f"W/{known}"))
    assert (await web.get(path, *given).answered()).status == 304


@on_a_service()
async def test_waiting_for_any_change(service: EmbeddedService) -> None:
    """With a tag, the first change is the answer: here one of metadata."""
    web, _, path = await in_progress(service)
    known = await tag(service, path)
    exchange = web.get(path, ("If-None-Match", known), ("Prefer", "wait=60"))
    await pending(service, exchange)
    await web.post(path, {"metadata": {"k": "v"}}).answered()
    await service.settle()
    answered(service, exchange)
    assert exchange.json()["metadata"] == {"k": "v"}
    assert exchange.headers["etag"] == await tag(service, path) != known
    assert exchange.headers["preference-applied"] == "wait=60"


@on_a_service()
async def test_waiting_for_a_change_that_does_not_come(service: EmbeddedService) -> None:
    """Also where the run has settled: nothing is new then."""
    web, _, path = await in_progress(service)
    service.backend.turn.say("Hi")
    await service.settle()
    known = await tag(service, path)
    exchange = web.get(path, ("If-None-Match", known), ("Prefer", "wait=5"))
    await pending(service, exchange)
    await service.advance(5)
    answered(service, exchange, 304)
    assert exchange.headers["preference-applied"] == "wait=5"


@on_a_service()
async def test_a_client_that_missed_a_change_does_not_wait(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    known = await tag(service, path)
    service.backend.turn.call(("f", "{}"))
    await service.settle()
    exchange = web.get(path, ("If-None-Match", known), ("Prefer", "wait=60"))
    await service.settle()
    assert answered(service, exchange).json()["status"] == "requires_action"


# Who waits for nothing any more.


@pytest.mark.parametrize("conditional", [False, True])
def test_a_client_that_leaves_is_noticed_at_once(tmp_path: Path, conditional: bool) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, _, path = await in_progress(service)
        condition = [("If-None-Match", await tag(service, path))] if conditional else []
        exchange = await pending(service, web.get(path, ("Prefer", "wait=60"), *condition))
        exchange.leave()
        await service.settle()
        assert exchange.task.done()
        assert exchange.status == 0
        assert web.nothing_held()

    story(tmp_path)


@on_a_service()
async def test_a_run_that_goes_away_is_a_404(service: EmbeddedService) -> None:
    web, run, path = await in_progress(service)
    exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
    thread = (await service.find(run)).thread_id
    await threads.delete(service.ctx, service.project, thread)
    await service.settle()
    answered(service, exchange, 404)


@on_a_service()
async def test_a_run_that_is_not_there_is_not_waited_for(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    exchange = web.get(f"{path}x", ("Prefer", "wait=60"))
    await service.settle()
    answered(service, exchange, 404)


def test_a_wait_holds_nothing_of_what_it_saw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run may be large, and thousands wait."""
    seen: list[weakref.ref[_Look]] = []

    class Seen(_Look):
        def __init__(self, record: RunRecord) -> None:
            super().__init__(record)
            seen.append(weakref.ref(self))

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        web, _, path = await in_progress(service)
        exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
        gc.collect()
        assert seen
        assert not [look for look in seen if look() is not None]
        service.backend.turn.say("Hello")
        await exchange.answered()
        assert answered(service, exchange).json()["status"] == "completed"

    monkeypatch.setattr("runbell.service.routes.runs._Look", Seen)
    story(tmp_path)


@on_a_service()
async def test_a_database_that_goes_away_is_a_503(service: EmbeddedService) -> None:
    web, run, path = await in_progress(service)
    exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
    service.store.unreadable = True
    service.ctx.changes.publish(await _without_reading(service, run))
    await exchange.answered()
    answered(service, exchange, 503)
    service.store.unreadable = False


@on_a_service()
async def test_a_service_that_stops_answers_with_what_there_is(service: EmbeddedService) -> None:
    web, _, path = await in_progress(service)
    exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
    web.app.stop()
    await service.settle()
    assert answered(service, exchange).json()["status"] == "in_progress"
    late = web.get(path, ("Prefer", "wait=60"))
    await service.settle()
    answered(service, late)


@on_a_service()
async def test_a_change_that_nobody_tells_is_found_before_the_time_is_over(
    service: EmbeddedService,
) -> None:
    """As of a process that was killed behind its commit, where there are several."""
    web, run, path = await in_progress(service)
    changes = service.ctx.changes
    changes.look_seconds = SharedChanges.look_seconds
    exchange = await pending(service, web.get(path, ("Prefer", "wait=60")))
    changes.publish = lambda _: None  # type: ignore[method-assign]
    service.backend.turn.say("Hi")
    await service.settle()
    assert await service.status(run) is RunStatus.COMPLETED
    await pending(service, exchange)
    await service.advance(SharedChanges.look_seconds)
    assert answered(service, exchange).json()["status"] == "completed"


async def _without_reading(service: EmbeddedService, run: str) -> Run:
    service.store.unreadable = False
    found = await service.find(run)
    service.store.unreadable = True
    return replace(found, status=RunStatus.COMPLETED)
