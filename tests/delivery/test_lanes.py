"""What an endpoint gets, in which order, and how often: in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import CannotDecrypt, RequestRefused
from runbell.runs import EVENT_TYPES
from runbell.service.delivery.lanes import Deliverer
from runbell.service.delivery.recording import Outcome, Recorder
from runbell.service.operations import deliveries, endpoints
from runbell.service.operations import runs as run_operations
from runbell.service.vault import Vault
from runbell.service.wire.requests import CreateRun
from runbell.service.wire.webhooks import (
    CreateEndpoint,
    Filters,
    UpdateEndpoint,
    endpoint_object,
    endpoint_with_secret,
)
from runbell.storage import owed
from runbell.storage.deliveries import AT_ONCE, Attempt
from runbell.testing.databases import writer_held
from runbell.testing.embedded import EmbeddedService, on_a_service
from runbell.testing.posts import Post, answered, unanswered
from runbell.webhooks import Secret
from tests.delivery.house import (
    ALL,
    DAY,
    HOUR,
    MINUTE,
    find,
    jump,
    owe_many,
    register,
    run_once,
    seen,
    signed,
    update,
)

DELAYS = (5, 60, 300, 1800, 7200, 18000, 36000, 50400, 72000, 72000)


def types(posts: list[Post]) -> list[str]:
    return [json.loads(post.body)["type"].removeprefix("thread.run.") for post in posts]


def ids(posts: list[Post]) -> list[str]:
    return [post.id for post in posts]


# What is sent.


@on_a_service()
async def test_each_event_is_sent_with_its_bytes_and_its_id(service: EmbeddedService) -> None:
    """The body is the feed's item to the byte, the id is the event's, and the secret signs it."""
    _, secret = await register(service, headers={"X-Team": "ops"})
    run_id = await run_once(service)
    sent = service.poster.sent
    feed, _ = await service._feed_behind(None)
    assert [(post.id, post.body) for post in sent] == [(key, body) for key, _, body in feed]
    assert types(sent) == ["created", "in_progress", "completed"]
    assert {json.loads(post.body)["data"]["id"] for post in sent} == {run_id}
    for post in sent:
        assert signed(post, secret) == service.clock.now_ms() // 1000
        assert post.headers["X-Team"] == "ops"
        assert post.headers["content-type"] == "application/json"


@on_a_service()
async def test_only_what_is_wanted_is_owed(service: EmbeddedService) -> None:
    """By type, by assistant, by the run's metadata, and by project; no row for the others."""
    ends, _ = await register(service, "ends", event_types=("thread.run.completed",))
    other, _ = await register(service, "other", filters=Filters(assistant_ids=("asst_x",)))
    mine, _ = await register(service, "mine", filters=Filters(assistant_ids=(service.assistant,)))
    vip, _ = await register(service, "vip", filters=Filters(metadata={"tier": "1", "eu": "yes"}))
    off, _ = await register(service, "off", enabled=False)
    await run_once(service)
    thread = await service.thread("x")
    await service.run(thread, model="echo", metadata={"tier": "1", "eu": "yes", "more": "x"})
    await service.settle()
    thread = await service.thread("x")
    await service.run(thread, model="echo", metadata={"tier": "1"})
    await service.settle()
    counts = [len(await seen(service, each)) for each in (ends, other, mine, vip, off)]
    assert counts == [3, 0, 9, 3, 0]
    assert len(service.poster.sent) == 15


@on_a_service()
async def test_an_endpoint_counts_from_its_commit_on(service: EmbeddedService) -> None:
    """In one group commit: a run that is created behind an endpoint is owed to it, one in front of
    it is not; no cache stands between."""
    threads = [await service.thread("x") for _ in range(2)]
    request = CreateRun(assistant_id=service.assistant, model="scripted")

    def create(thread: str) -> asyncio.Task[object]:
        return asyncio.create_task(
            run_operations.create(service.ctx, service.project, thread, request)
        )

    async with writer_held(service.store):
        before = create(threads[0])
        await asyncio.sleep(0)
        hook = CreateEndpoint(
            name="a", url="https://a.example.com/", event_types=("thread.run.created",)
        )
        made = asyncio.create_task(endpoints.create(service.ctx, service.project, hook))
        await asyncio.sleep(0)
        after = create(threads[1])
        await asyncio.sleep(0)
    await asyncio.gather(before, made, after)
    await service.settle()
    wanted = after.result().run.id  # type: ignore[attr-defined]
    assert [json.loads(post.body)["data"]["id"] for post in service.poster.sent] == [wanted]


# Order, and who holds up whom.


@on_a_service()
async def test_first_attempts_begin_in_order_and_wait_for_nobody(
    service: EmbeddedService,
) -> None:
    """The first POST is not answered: the others begin all the same, in the order of the run."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    run_id = await run_once(service)
    assert await service.status(run_id) == "completed"
    assert types(service.poster.sent) == ["created", "in_progress", "completed"]
    service.poster.sent[2].finish(answered(200))
    await service.settle()
    statuses = [delivery.status for delivery, _ in await seen(service, endpoint)]
    assert statuses == ["pending", "pending", "succeeded"]
    for post in service.poster.sent[:2]:
        post.finish(answered(200))
    await service.settle()
    assert len(service.poster.sent) == 3


@on_a_service(webhook_concurrency=2)
async def test_a_backlog_begins_in_the_order_of_its_commits(service: EmbeddedService) -> None:
    """Two at a time, whichever is answered first."""
    rng = random.Random(4)
    endpoint, _ = await register(service, enabled=False)
    await owe_many(service, endpoint, 100)
    service.poster.answer = lambda _: None
    await update(service, endpoint, enabled=True)
    await service.settle()
    finished = 0
    while finished < 100:
        open_ = [post for post in service.poster.sent if not post.answer.done()]
        assert 1 <= len(open_) <= 2
        rng.choice(open_).finish(answered(rng.choice([200, 200, 500])))
        finished += 1
        await service.settle()
    assert ids(service.poster.sent) == [f"evt_{number:06}" for number in range(100)]


@on_a_service(webhook_concurrency=3)
async def test_an_endpoint_that_never_answers_holds_up_nobody_else(
    service: EmbeddedService,
) -> None:
    """It fills its own places; another one gets every event at once."""
    await register(service, "dead")
    await register(service, "well")
    service.poster.answer = lambda post: None if "dead" in post.url else answered(200)
    for _ in range(5):
        await run_once(service)
    by_host = [("dead" in post.url) for post in service.poster.sent]
    assert by_host.count(True) == 3
    assert by_host.count(False) == 15


@on_a_service()
async def test_what_failed_is_not_in_the_way_of_what_is_new(service: EmbeddedService) -> None:
    """Retries that are due and new events are sent in turns: neither waits for the others' end."""
    endpoint, _ = await register(service, rate_limit=10)
    service.poster.answer = lambda _: answered(500)
    await owe_many(service, endpoint, 40)
    await update(service, endpoint, name="b")
    await service.advance(60)
    service.poster.sent.clear()
    service.poster.answer = lambda _: answered(200)
    await jump(service, HOUR)
    await update(service, endpoint, rate_limit=10)
    for _ in range(7):
        await run_once(service)
    await service.advance(MINUTE)
    assert {delivery.status for delivery, _ in await seen(service, endpoint)} == {"succeeded"}


@on_a_service(webhook_concurrency=8)
async def test_retries_that_are_slow_leave_places_for_what_is_new(
    service: EmbeddedService,
) -> None:
    """More of them than there are places, and none is answered: first attempts begin at once."""
    endpoint, _ = await register(service)
    await owe_many(service, endpoint, 40)
    service.poster.answer = lambda _: answered(500)
    await update(service, endpoint, name="b")
    await service.settle()
    service.poster.answer = lambda _: None
    await jump(service, 6)
    slow = service.poster.sent[40:]
    assert len(slow) == 6
    service.poster.answer = lambda post: None if post.id.startswith("evt_0") else answered(200)
    run_id = await run_once(service)
    assert types(service.poster.sent[46:]) == ["created", "in_progress", "completed"]
    assert len(await seen(service, endpoint, run_id=run_id, status="succeeded")) == 3


@on_a_service(webhook_concurrency=100)
async def test_large_bodies_that_are_under_way_hide_nothing_that_is_new(
    service: EmbeddedService,
) -> None:
    """However many places a lane has: what it holds already is not read again."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await owe_many(service, endpoint, 60, body=b" " * 20_000)
    await update(service, endpoint, name="b")
    await service.settle()
    assert len(service.poster.sent) == 60
    await run_once(service)
    assert types(service.poster.sent[60:]) == ["created", "in_progress", "completed"]


# Again.


@on_a_service()
async def test_a_failed_delivery_is_tried_by_the_schedule_until_it_is_given_up(
    service: EmbeddedService,
) -> None:
    """Eleven attempts in 72 hours; each with the same id and bytes, and signed anew."""
    endpoint, secret = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500, "Sorry.")
    began = service.clock.now_ms()
    await run_once(service)
    while (due_ms := (await seen(service, endpoint))[0][0].next_at_ms) is not None:
        await jump(service, (due_ms - service.clock.now_ms()) / 1000)
    posts = service.poster.sent
    assert len(posts) == 11
    assert len({post.id for post in posts}) == len({post.body for post in posts}) == 1
    stamps = [signed(post, secret) for post in posts]
    for (earlier, later), delay in zip(pairwise(stamps), DELAYS, strict=True):
        assert 0.89 * delay - 1 <= later - earlier <= 1.11 * delay + 1
    assert stamps[-1] - began / 1000 <= 72 * HOUR
    ((delivery, attempts),) = await seen(service, endpoint)
    assert (delivery.status, delivery.attempts, delivery.next_at_ms) == ("failed", 11, None)
    assert [each.number for each in attempts] == list(range(1, 12))
    assert {(each.status_code, each.error, each.excerpt) for each in attempts} == {
        (500, "It answered 500.", "Sorry.")
    }


@pytest.mark.parametrize("status", [300, 302, 304, 400, 401, 404, 408, 422, 500, 501])
def test_any_other_answer_than_a_2xx_is_a_failure(tmp_path: Path, status: int) -> None:
    """It is tried again; a redirection is not followed."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        endpoint, _ = await register(service, event_types=("thread.run.completed",))
        service.poster.answer = lambda _: answered(status)
        await run_once(service)
        service.poster.answer = lambda _: answered(204)
        await service.advance(6)
        ((delivery, attempts),) = await seen(service, endpoint)
        assert [each.status_code for each in attempts] == [status, 204]
        assert delivery.status == "succeeded"

    story(tmp_path)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(120, 120, 140), (0, 4, 6), (-5, 4, 6), (3.2e8, 6 * HOUR, 6.7 * HOUR)],
)
def test_retry_after_is_heard_within_bounds(
    tmp_path: Path, asked: float, least: float, most: float
) -> None:
    """Later than the schedule, never sooner, and never in ten years."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        endpoint, _ = await register(service, event_types=("thread.run.completed",))
        service.poster.answer = lambda _: answered(503, retry_after=asked)
        await run_once(service)
        ((delivery, _),) = await seen(service, endpoint)
        assert delivery.next_at_ms is not None
        assert least <= (delivery.next_at_ms - service.clock.now_ms()) / 1000 <= most

    story(tmp_path)


@on_a_service()
async def test_no_answer_is_recorded_and_tried_again(service: EmbeddedService) -> None:
    """With the reason; and then it arrives."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: unanswered("The name could not be resolved.")
    await run_once(service)
    service.poster.answer = lambda _: answered(200)
    await service.advance(6)
    ((delivery, attempts),) = await seen(service, endpoint)
    assert delivery.status == "succeeded"
    assert [(each.status_code, each.error) for each in attempts] == [
        (None, "The name could not be resolved."),
        (200, None),
    ]


# Endpoints that are given up.


@on_a_service()
async def test_410_disables_and_enabling_sends_what_waited(service: EmbeddedService) -> None:
    """At once; the reason says why, and until when later events are kept; ids and order stay."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: answered(410)
    await run_once(service)
    first = ids(service.poster.sent)
    disabled = await find(service, endpoint)
    assert not disabled.enabled
    reason = disabled.disabled_reason or ""
    assert "410" in reason
    assert _day(service, 7) in reason
    await run_once(service)
    await jump(service, DAY)
    assert ids(service.poster.sent) == first
    service.poster.answer = lambda _: answered(200)
    await update(service, endpoint, enabled=True)
    await service.settle()
    every = await seen(service, endpoint)
    again = ids(service.poster.sent[len(first) :])
    assert sorted(again) == sorted(delivery.id for delivery, _ in every)
    assert len(again) == 6
    new = [delivery.id for delivery, _ in every[3:]]
    assert [each for each in again if each in new] == new
    assert {delivery.status for delivery, _ in every} == {"succeeded"}
    enabled = await find(service, endpoint)
    assert (enabled.enabled, enabled.disabled_reason) == (True, None)
    assert enabled.failing_since_ms is enabled.owed_until_ms is None


def _day(service: EmbeddedService, days: int) -> str:
    at = datetime.fromtimestamp(service.clock.now_ms() / 1000 + days * DAY, UTC)
    return f"until {at:%Y-%m-%d %H:%M} UTC"


@on_a_service()
async def test_events_are_kept_for_seven_days(service: EmbeddedService) -> None:
    """For an endpoint that the service has disabled; for one whose owner has, they are not. Who
    comes back later gets what is not older than that, and sees what has failed."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(410)
    await run_once(service)
    for _ in range(9):
        await jump(service, DAY - 60)
        await run_once(service)
        service.clock.advance(60)
    assert len(await seen(service, endpoint)) == 1 + 7
    service.poster.sent.clear()
    service.poster.answer = lambda _: answered(200)
    await update(service, endpoint, enabled=True)
    await service.settle()
    statuses = [delivery.status for delivery, _ in await seen(service, endpoint)]
    assert statuses == ["failed"] * 3 + ["succeeded"] * 5
    assert len(service.poster.sent) == 5
    await update(service, endpoint, enabled=False)
    await run_once(service)
    assert len(await seen(service, endpoint)) == 8


@on_a_service()
async def test_what_waited_for_days_is_tried_for_three_more(service: EmbeddedService) -> None:
    """A receiver that has just come back may stumble: its first failure is not its last."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    await update(service, endpoint, enabled=False)
    await jump(service, 4 * DAY)
    await update(service, endpoint, enabled=True)
    await service.settle()
    ((delivery, attempts),) = await seen(service, endpoint)
    assert (delivery.status, delivery.failures, len(attempts)) == ("pending", 1, 2)
    await jump(service, 6)
    await jump(service, 66)
    await jump(service, 2 * DAY)
    assert len((await seen(service, endpoint))[0][1]) == 5


@on_a_service()
async def test_five_days_without_a_success_disable(service: EmbeddedService) -> None:
    """Not four; and the reason says so."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500)
    for day in range(7):
        await run_once(service)
        await jump(service, DAY)
        assert (await find(service, endpoint)).enabled == (day < 4), day
    assert "5 days" in ((await find(service, endpoint)).disabled_reason or "")


@on_a_service()
async def test_one_success_begins_the_five_days_anew(service: EmbeddedService) -> None:
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    for day in range(9):
        service.poster.answer = lambda _, day=day: answered(200 if day == 4 else 500)  # type: ignore[misc]
        await run_once(service)
        await jump(service, DAY)
    assert (await find(service, endpoint)).enabled


# Changes while something is owed.


@on_a_service()
async def test_a_secret_is_rotated_while_retrying(service: EmbeddedService) -> None:
    """With the overlap, both sign for a day; then the new one alone. The id stays."""
    endpoint, old = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    _, _, new = await endpoints.rotate_secret(service.ctx, service.project, endpoint, keep_old=True)
    await service.advance(6)
    signed(service.poster.sent[-1], new, old)
    await jump(service, 25 * HOUR)
    count = len(service.poster.sent)
    await jump(service, 20 * HOUR)
    assert len(service.poster.sent) > count
    signed(service.poster.sent[-1], new)
    assert len(set(ids(service.poster.sent))) == 1


@on_a_service()
async def test_each_secret_has_its_whole_day(service: EmbeddedService) -> None:
    """However often it is rotated within one; the latest four, and none that was given up."""

    async def rotated(*, keep_old: bool = True) -> Secret:
        _, _, secret = await endpoints.rotate_secret(
            service.ctx, service.project, endpoint, keep_old=keep_old
        )
        return secret

    async def signed_by(*secrets: Secret) -> None:
        await run_once(service)
        signed(service.poster.sent[-1], *secrets)

    endpoint, first = await register(service, event_types=("thread.run.completed",))
    await jump(service, HOUR)
    second = await rotated()
    await jump(service, HOUR)
    third = await rotated()
    await signed_by(third, second, first)
    await jump(service, 23 * HOUR)
    await signed_by(third, second)
    await jump(service, 1 * HOUR)
    await signed_by(third)
    more = [third, *[await rotated() for _ in range(5)]]
    await signed_by(*reversed(more[1:]))
    assert str(more[0].text) not in repr(await find(service, endpoint))
    last = await rotated(keep_old=False)
    await signed_by(last)
    await signed_by(await rotated(), last)


@on_a_service()
async def test_a_project_has_a_limited_number_of_endpoints(
    service: EmbeddedService,
) -> None:
    made = [(await register(service, f"n{number}"))[0] for number in range(500)]
    with pytest.raises(RequestRefused, match="500 webhook endpoints already") as refused:
        await register(service, "more")
    assert refused.value.status == 400
    await endpoints.delete(service.ctx, service.project, made[7])
    await register(service, "more")


@on_a_service()
async def test_what_is_secret_is_in_no_repr(service: EmbeddedService) -> None:
    """Neither headers, nor keys, nor a URL that holds a token."""
    url, headers = "https://example.com/hooks/t0ken", {"X-Key": "t0ken"}
    request = CreateEndpoint(name="n", url=url, event_types=ALL, headers=headers)
    endpoint, shown, secret = await endpoints.create(service.ctx, service.project, request)
    keys = endpoints.keys_of(service.ctx, endpoint, service.clock.now_ms())
    objects = (
        endpoint_object(endpoint, shown),
        endpoint_with_secret(endpoint, shown, secret.text),
    )
    for each in (request, UpdateEndpoint(url=url, headers=headers), endpoint, keys, *objects):
        assert "t0ken" not in repr(each)
        assert secret.text not in repr(each)


@on_a_service()
async def test_a_secret_is_replaced_at_once(service: EmbeddedService) -> None:
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    _, _, new = await endpoints.rotate_secret(
        service.ctx, service.project, endpoint, keep_old=False
    )
    await service.advance(6)
    signed(service.poster.sent[-1], new)


@on_a_service()
async def test_the_url_is_changed_while_retrying(service: EmbeddedService) -> None:
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda post: answered(200 if "new" in post.url else 500)
    await run_once(service)
    await update(service, endpoint, url="https://new.example.com/hooks")
    await service.advance(6)
    assert [post.url for post in service.poster.sent] == [
        "https://a.example.com/hooks",
        "https://new.example.com/hooks",
    ]
    ((delivery, _),) = await seen(service, endpoint)
    assert delivery.status == "succeeded"


@on_a_service(webhook_concurrency=1)
async def test_an_answer_from_before_a_change_says_nothing_of_the_endpoint(
    service: EmbeddedService,
) -> None:
    """Neither the old URL's 410, nor one that comes after the owner has enabled it again."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    await update(service, endpoint, url="https://new.example.com/hooks")
    service.poster.sent[0].finish(answered(410))
    await service.settle()
    moved = await find(service, endpoint)
    assert (moved.enabled, moved.failing_since_ms) == (True, None)
    await update(service, endpoint, enabled=False)
    await update(service, endpoint, enabled=True)
    service.poster.sent[1].finish(answered(410))
    await service.settle()
    assert (await find(service, endpoint)).enabled
    service.poster.sent[2].finish(answered(410))
    await service.settle()
    assert not (await find(service, endpoint)).enabled


@on_a_service()
async def test_another_url_begins_anew(service: EmbeddedService) -> None:
    """It is neither as slow as the old one wanted, nor failing for as long."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: answered(503)
    for _ in range(4):
        await run_once(service)
        await service.advance(10)
    assert (await find(service, endpoint)).failing_since_ms is not None
    await owe_many(service, endpoint, 200)
    service.poster.sent.clear()
    service.poster.answer = lambda _: answered(200)
    await update(service, endpoint, url="https://new.example.com/hooks")
    assert (await find(service, endpoint)).failing_since_ms is None
    await service.settle()
    assert len(service.poster.sent) >= 200


@on_a_service()
async def test_what_the_old_url_answers_does_not_slow_the_new_one_down(
    service: EmbeddedService,
) -> None:
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    old = list(service.poster.sent)
    await update(service, endpoint, url="https://new.example.com/hooks")
    service.poster.answer = lambda _: answered(200)
    await run_once(service)
    for post in old:
        post.finish(answered(503))
    await service.settle()
    count = len(service.poster.sent)
    await run_once(service)
    assert len(service.poster.sent) == count + 3


@on_a_service(webhook_concurrency=1)
async def test_an_endpoint_is_deleted_while_retrying(service: EmbeddedService) -> None:
    """What is under way ends and is forgotten; nothing more begins."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    await endpoints.delete(service.ctx, service.project, endpoint)
    service.poster.sent[0].finish(answered(500))
    await jump(service, DAY)
    assert len(service.poster.sent) == 1


@on_a_service(webhook_concurrency=1)
async def test_an_endpoint_that_is_disabled_gets_nothing_more(service: EmbeddedService) -> None:
    """Also of what its lane had taken from the tables already."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    await update(service, endpoint, enabled=False)
    service.poster.sent[0].finish(answered(200))
    await jump(service, DAY)
    assert types(service.poster.sent) == ["created"]
    service.poster.answer = lambda _: answered(200)
    await update(service, endpoint, enabled=True)
    await service.settle()
    assert types(service.poster.sent) == ["created", "in_progress", "completed"]


# At what rate.


# Ten thousand times until everything has settled: on a busy machine that is minutes.
@pytest.mark.timeout(600)
@on_a_service()
async def test_a_backlog_of_ten_thousand_drains_within_the_rate_limit(
    service: EmbeddedService,
) -> None:
    """In no second more than the limit; not in lockstep; and not much slower than it allows."""
    endpoint, _ = await register(service, enabled=False)
    await owe_many(service, endpoint, 10_000)
    at: list[float] = []

    def answer(_: Post) -> object:
        at.append(service.clock.monotonic())
        return answered(200)

    service.poster.answer = answer  # type: ignore[assignment]
    await update(service, endpoint, enabled=True, rate_limit=500)
    for _ in range(30):
        await service.advance(1)
        if len(at) == 10_000:
            break
    assert len(at) == 10_000
    assert ids(service.poster.sent) == sorted(ids(service.poster.sent))
    for first, later in zip(at, at[500:], strict=False):
        assert later - first >= 1.0 - 1e-6
    gaps = {round(later - earlier, 6) for earlier, later in pairwise(at)}
    assert len(gaps) > 100
    assert at[-1] - at[0] <= 10_000 / 500 * 1.1


@on_a_service()
async def test_an_overloaded_endpoint_is_sent_to_more_slowly_and_then_faster(
    service: EmbeddedService,
) -> None:
    endpoint, _ = await register(service, enabled=False)
    await owe_many(service, endpoint, 3_000)
    service.poster.answer = lambda _: answered(503)
    await update(service, endpoint, enabled=True)

    async def sent_in(seconds: float) -> int:
        before = len(service.poster.sent)
        await service.advance(seconds)
        return len(service.poster.sent) - before

    await sent_in(10)
    slow = await sent_in(10)
    assert slow < 100
    service.poster.answer = lambda _: answered(200)
    await sent_in(60)
    assert await sent_in(10) > 3 * slow


@on_a_service()
async def test_an_endpoint_is_slowed_down_from_the_rate_that_it_had(
    service: EmbeddedService,
) -> None:
    """Not from one that it might have had: half of what it got in the last second, and less."""
    endpoint, _ = await register(service, enabled=False, rate_limit=8)
    await owe_many(service, endpoint, 600)
    await update(service, endpoint, enabled=True)
    await service.advance(10)
    await update(service, endpoint, rate_limit=0)
    service.poster.answer = lambda _: answered(429)
    before = len(service.poster.sent)
    await service.settle()
    burst = len(service.poster.sent) - before
    await service.advance(1)
    assert len(service.poster.sent) - before - burst <= max(8, burst)


@on_a_service()
async def test_retry_after_holds_all_that_goes_to_the_endpoint(service: EmbeddedService) -> None:
    """For what it asks, an hour at the most; nothing is lost, and a change of the endpoint ends
    it. Of another endpoint it says nothing, and neither does a 500."""
    held, _ = await register(service, "held", event_types=("thread.run.completed",))
    await register(service, "free", event_types=("thread.run.completed",))
    answers = {"held": answered(503, retry_after=600), "free": answered(500, retry_after=600)}
    service.poster.answer = lambda post: answers[post.url[8:12]]

    async def sent_in(seconds: float) -> list[str]:
        before = len(service.poster.sent)
        await run_once(service)
        await service.advance(seconds)
        return [post.url[8:12] for post in service.poster.sent[before:]]

    assert sorted(await sent_in(0)) == ["free", "held"]
    assert await sent_in(540) == ["free"]
    answers["held"] = answered(503, retry_after=7 * DAY)
    assert (await sent_in(140)).count("held") == 1
    assert "held" not in await sent_in(0.9 * HOUR)
    assert (await sent_in(0.3 * HOUR)).count("held") == 1
    answers["held"] = answered(200)
    await update(service, held, name="mended")
    await service.advance(0)
    assert service.poster.sent[-1].url[8:12] == "held"
    await jump(service, 8 * HOUR)
    assert {delivery.status for delivery, _ in await seen(service, held)} == {"succeeded"}


# What an operator does.


@on_a_service()
async def test_one_is_sent_again_whatever_became_of_it(service: EmbeddedService) -> None:
    """With its id; its attempts stay, and the schedule begins anew."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    await run_once(service)
    ((delivery, _),) = await seen(service, endpoint)
    service.poster.answer = lambda _: answered(500)
    await deliveries.resend(service.ctx, service.project, endpoint, delivery.id)
    await service.settle()
    service.poster.answer = lambda _: answered(200)
    await service.advance(6)
    assert ids(service.poster.sent) == [delivery.id] * 3
    ((delivery, attempts),) = await seen(service, endpoint)
    assert (delivery.status, [each.status_code for each in attempts]) == (
        "succeeded",
        [200, 500, 200],
    )


@on_a_service()
async def test_one_that_is_sent_again_while_it_is_under_way_is(service: EmbeddedService) -> None:
    """What was asked for is not undone by the failure of the attempt before: at once, and from the
    beginning of the schedule."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: None
    await run_once(service)
    for number in range(12):
        ((delivery, _),) = await seen(service, endpoint)
        await deliveries.resend(service.ctx, service.project, endpoint, delivery.id)
        service.poster.sent[number].finish(answered(500))
        await service.settle()
        assert len(service.poster.sent) == number + 2
    service.poster.sent[-1].finish(answered(200))
    await service.settle()
    ((delivery, attempts),) = await seen(service, endpoint)
    assert (delivery.status, len(attempts)) == ("succeeded", 13)


@on_a_service(webhook_retries="1", retain_days=0)
async def test_what_failed_within_seven_days_is_recovered(service: EmbeddedService) -> None:
    """With the same ids, each once; neither what is older nor what arrived."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    await service.advance(MINUTE)
    await jump(service, 8 * DAY)
    service.poster.answer = lambda _: answered(200)
    await run_once(service)
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    await run_once(service)
    await service.advance(MINUTE)
    statuses = [delivery.status for delivery, _ in await seen(service, endpoint)]
    assert statuses == ["failed", "succeeded", "failed", "failed"]
    failed = [delivery.id for delivery, _ in await seen(service, endpoint, status="failed")]
    service.poster.sent.clear()
    service.poster.answer = lambda _: answered(200)
    recover = deliveries.recover(service.ctx, service.project, endpoint, None)
    assert await recover == 2
    await service.settle()
    assert ids(service.poster.sent) == failed[1:]
    assert await deliveries.recover(service.ctx, service.project, endpoint, None) == 0


@on_a_service(webhook_retries="")
async def test_a_recovery_of_very_many_takes_all(service: EmbeddedService) -> None:
    """More than one unit of work owes anew; `since` leaves out what is earlier."""
    endpoint, _ = await register(service, enabled=False)
    await owe_many(service, endpoint, 1_200)
    service.poster.answer = lambda _: answered(400)
    await update(service, endpoint, enabled=True)
    await service.settle()
    now = service.clock.now_ms() // 1000
    service.poster.answer = lambda _: answered(200)
    later = await deliveries.recover(service.ctx, service.project, endpoint, now + 60)
    assert later == 0
    assert await deliveries.recover(service.ctx, service.project, endpoint, now - 60) == 1_200
    await service.settle()
    assert len(service.poster.sent) == 2_400


@on_a_service()
async def test_a_test_sends_a_sample_of_each_type(service: EmbeddedService) -> None:
    """Signed; not recorded; a 500 is an answer, nobody there is an error."""
    endpoint, secret = await register(service)
    for kind in EVENT_TYPES:
        assert await endpoints.test(service.ctx, service.project, endpoint, kind) == 200
    assert [json.loads(post.body)["type"] for post in service.poster.sent] == list(EVENT_TYPES)
    for post in service.poster.sent:
        signed(post, secret)
        assert json.loads(post.body)["data"]["metadata"] == {"runbell_test": "true"}
        assert json.loads(post.body)["id"] == post.id
    service.poster.answer = lambda _: answered(500)
    assert await endpoints.test(service.ctx, service.project, endpoint, EVENT_TYPES[0]) == 500
    service.poster.answer = lambda _: unanswered("There was no connection.")
    with pytest.raises(RequestRefused) as caught:
        await endpoints.test(service.ctx, service.project, endpoint, EVENT_TYPES[0])
    assert caught.value.status == 424
    assert await seen(service, endpoint) == []


# When something breaks.


@on_a_service()
async def test_a_process_that_dies_sends_again_what_it_had_not_recorded(
    service: EmbeddedService,
) -> None:
    """The receiver had answered: the same id and bytes again, signed anew."""
    endpoint, secret = await register(service, event_types=("thread.run.completed",))
    await run_once(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    assert len(service.poster.sent) == 2
    await service.crash()
    service.clock.advance(30)
    service.poster.answer = lambda _: answered(200)
    service.build()
    service.start()
    await service.settle()
    lost, again = service.poster.sent[1:]
    assert (lost.id, lost.body) == (again.id, again.body)
    assert signed(again, secret) - signed(lost, secret) == 30
    assert {delivery.status for delivery, _ in await seen(service, endpoint)} == {"succeeded"}


@on_a_service()
async def test_nothing_is_forgotten_while_the_process_is_away(service: EmbeddedService) -> None:
    """Retries that became due meanwhile are sent at the next start."""
    await register(service)
    service.poster.answer = lambda _: answered(500)
    await run_once(service)
    await service.crash()
    service.clock.advance(DAY)
    service.poster.answer = lambda _: answered(200)
    service.build()
    service.start()
    await service.settle()
    assert sorted(ids(service.poster.sent[3:])) == sorted(ids(service.poster.sent[:3]))


@on_a_service()
async def test_a_database_that_is_away_stops_the_sending_and_nothing_else(
    service: EmbeddedService,
) -> None:
    """What was answered meanwhile is recorded when it is back; nothing is sent twice for it."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    service.store.away = True
    for post in service.poster.sent:
        post.finish(answered(200))
    await service.advance(10)
    assert service.store.refused > 0
    service.store.away = False
    await service.advance(3)
    assert {delivery.status for delivery, _ in await seen(service, endpoint)} == {"succeeded"}
    assert len(service.poster.sent) == 3


@on_a_service()
async def test_a_lane_that_cannot_look_ends_what_is_under_way(service: EmbeddedService) -> None:
    """Only what could not be begun waits: nothing that was sent is sent again."""
    endpoint, _ = await register(service)
    service.poster.answer = lambda _: None
    await run_once(service)
    service.store.unreadable = True
    service.ctx.changes.wake(endpoint)
    await service.settle()
    assert service.store.refused > 0
    service.store.unreadable = False
    await service.advance(1)
    for post in service.poster.sent:
        post.finish(answered(200))
    await service.settle()
    await service.advance(10)
    assert {delivery.status for delivery, _ in await seen(service, endpoint)} == {"succeeded"}
    assert len(service.poster.sent) == 3


@on_a_service()
async def test_one_result_that_cannot_be_stored_is_no_others_trouble(
    service: EmbeddedService,
) -> None:
    """They are stored together; then each for itself."""
    names = ("a", "b", "c")
    made = [(await register(service, name, enabled=False))[0] for name in names]
    outcomes = []
    for endpoint in made:
        await owe_many(service, endpoint, 1, run=f"run_{endpoint}")
        (due,) = await service.store.read(lambda tx, key=endpoint: owed.due(tx, key, 0, 9))
        attempt = Attempt(1, 1, 1, 200, None, "\udc80" if endpoint == made[1] else "fine")
        outcomes.append(Outcome(endpoint, 0, due, attempt, "succeeded", None))
    recorder = Recorder(service.ctx, random.Random(1))
    stored = await asyncio.gather(*map(recorder.record, outcomes), return_exceptions=True)
    await recorder.close()
    assert [type(each) for each in stored] == [type(None), UnicodeEncodeError, type(None)]
    statuses = [(await seen(service, endpoint))[0][0].status for endpoint in made]
    assert statuses == ["succeeded", "pending", "succeeded"]


def test_a_retry_that_becomes_due_during_a_look_is_not_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by the second look, as the first was too early for it."""
    look = owed.due

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        await register(service, event_types=("thread.run.completed",))
        service.poster.answer = lambda _: answered(500)
        await run_once(service)
        service.poster.answer = lambda _: None

        async def slowly(*args: Any, **kwargs: Any) -> Any:
            found = await look(*args, **kwargs)
            if not found:
                service.clock.advance(10)
            return found

        with monkeypatch.context() as patched:
            patched.setattr(owed, "due", slowly)
            await run_once(service)
        assert len(service.poster.sent) == 2
        await service.advance(10)
        assert len(service.poster.sent) == 3

    story(tmp_path)


@on_a_service()
async def test_two_workers_record_one_attempt(service: EmbeddedService) -> None:
    """A second process that delivers the same: the receiver hears the same id twice, and each
    attempt has one number and one row."""
    endpoint, _ = await register(service, event_types=("thread.run.completed",))
    service.poster.answer = lambda _: None
    await run_once(service)
    other = Deliverer(service.ctx, random.Random(1))
    working = asyncio.create_task(other.deliver(endpoint))
    await service.settle()
    first, second = service.poster.sent
    assert first.id == second.id
    for post in (first, second):
        post.finish(answered(200))
    await working
    await service.settle()
    ((delivery, attempts),) = await seen(service, endpoint)
    assert (delivery.status, len(attempts)) == ("succeeded", 1)


@on_a_service()
async def test_a_service_that_stops_begins_nothing_more(service: EmbeddedService) -> None:
    """What is under way is answered and recorded; the rest waits for the next start."""
    endpoint, _ = await register(service, rate_limit=1)
    await run_once(service)
    assert len(service.poster.sent) == 1
    service.poster.answer = lambda _: None
    await service.advance(1.2)
    assert len(service.poster.sent) == 2
    service.ctx.changes.close()
    stopping = asyncio.create_task(service.jobs.stop(5))
    await service.settle()
    service.poster.sent[1].finish(answered(200))
    await stopping
    statuses = [delivery.status for delivery, _ in await seen(service, endpoint)]
    assert statuses == ["succeeded", "succeeded", "pending"]


@on_a_service()
async def test_nothing_spins_while_a_service_stops(service: EmbeddedService) -> None:
    """Lanes refuse to begin anything, and what is due stays so: nobody asks the tables again and
    again, and whoever pauses is not waited for."""
    endpoint, _ = await register(service, enabled=False)
    await owe_many(service, endpoint, 3)
    service.ctx.changes.close()
    before = service.store.calls
    await update(service, endpoint, enabled=True)
    await service.settle()
    assert service.store.calls - before < 20
    stopping = asyncio.create_task(service.jobs.stop(60))
    await service.settle()
    assert stopping.done()
    assert service.poster.sent == []


@on_a_service()
async def test_a_secret_that_cannot_be_read_harms_no_other_endpoint(
    service: EmbeddedService,
) -> None:
    """It was encrypted with another key: its deliveries wait, the others' do not."""
    broken, _ = await register(service, "broken")
    service.vault = Vault(bytes([1]) * 32)
    await service.restart()
    well, _ = await register(service, "well")
    await run_once(service)
    await service.advance(1)
    assert [delivery.status for delivery, _ in await seen(service, well)] == ["succeeded"] * 3
    assert {post.url for post in service.poster.sent} == {"https://well.example.com/hooks"}
    assert await service.store.read(lambda tx: owed.next_due(tx, broken)) == AT_ONCE


@on_a_service()
async def test_the_key_that_encrypts_is_replaced_and_nobody_sees_it(
    service: EmbeddedService,
) -> None:
    """Secrets, those before them, and headers; what was done is not done again."""
    endpoint, old = await register(service, "a", headers={"X-Team": "ops"})
    _, _, new = await endpoints.rotate_secret(service.ctx, service.project, endpoint, keep_old=True)
    await register(service, "b")
    newest = bytes([1]) * 32
    both = service.vault = Vault(newest, bytes(32))
    await service.restart()
    before = await find(service, endpoint)
    assert await endpoints.reencrypt(service.store, both) == (2, 2)
    assert await endpoints.reencrypt(service.store, both) == (0, 2)
    assert (await find(service, endpoint)).updated_at_ms == before.updated_at_ms
    service.vault = Vault(newest)
    await service.restart()
    await run_once(service)
    await service.advance(1)
    post = next(post for post in service.poster.sent if "//a." in post.url)
    assert post.headers["X-Team"] == "ops"
    signed(post, new, old)
    with pytest.raises(CannotDecrypt):
        await endpoints.reencrypt(service.store, Vault(bytes([2]) * 32))
