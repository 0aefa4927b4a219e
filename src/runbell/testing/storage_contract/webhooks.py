"""Endpoints and deliveries: what is owed is found when it is due, and recorded once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from runbell.errors import Conflict, UnknownCursor
from runbell.storage import deliveries, endpoints, events, owed, retention
from runbell.storage.deliveries import Attempt, Delivery, DeliveryFilter
from runbell.storage.endpoints import Endpoint, Subscription
from runbell.storage.owed import Due
from runbell.storage.paging import Page
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract.stories import OTHER, PROJECT, event, on_a_store

__all__ = ["WebhookContract"]

WANTED = Subscription(("thread.run.*",), ("asst_1",), {"k": "ä"})


def endpoint(key: str = "wh_1", **fields: Any) -> Endpoint:
    given: dict[str, Any] = {
        "project_id": PROJECT,
        "id": key,
        "created_at_ms": 1,
        "updated_at_ms": 1,
        "name": key,
        "url": "https://example.com/",
        "subscription": WANTED,
        "secret": b"\x00sealed\xff",
        "secret_hint": "abcd",
        "metadata": {},
    }
    return Endpoint(**{**given, **fields})


async def owe(tx: Transaction, *numbers: int, to: str = "wh_1", run: str = "run_1") -> None:
    for number in numbers:
        one = event(number, run, created_at_ms=1_000 + number)
        if to == "wh_1":
            await events.append(tx, one)
        await owed.owe(tx, to, one)


def attempt(number: int, at_ms: int = 2_000, **fields: Any) -> Attempt:
    given: dict[str, Any] = {
        "number": number,
        "at_ms": at_ms,
        "duration_ms": 5,
        "status_code": 500,
        "error": "It answered 500.",
        "excerpt": "Sorry.",
    }
    return Attempt(**{**given, **fields})


async def fetch(store: Store, now_ms: int = 2_000, to: str = "wh_1", limit: int = 10) -> list[Due]:
    return await store.read(lambda tx: owed.due(tx, to, now_ms, limit))


async def fail(store: Store, due: Due, next_at_ms: int | None) -> bool:
    return await store.write(
        lambda tx: owed.record(
            tx,
            due,
            attempt(due.attempts + 1),
            status="failed" if next_at_ms is None else "pending",
            next_at_ms=next_at_ms,
        )
    )


async def succeed(store: Store, due: Due) -> bool:
    said = attempt(due.attempts + 1, status_code=200, error=None)
    return await store.write(
        lambda tx: owed.record(tx, due, said, status="succeeded", next_at_ms=None)
    )


class WebhookContract:
    """Every function of `endpoints` and `deliveries`."""

    @on_a_store
    async def test_an_endpoint_comes_back_as_it_was(self, store: Store) -> None:
        """Every field of it; after each change, too; to its own project alone."""
        full = endpoint(
            rate_limit=5,
            headers=b"\x01",
            metadata={"k": "v"},
            old_secret=b"\x02",
            old_secret_until_ms=9,
            enabled=False,
            disabled_reason="Why.",
            failing_since_ms=3,
            owed_until_ms=8,
        )
        await store.write(lambda tx: endpoints.insert(tx, full))
        assert await store.read(lambda tx: endpoints.get(tx, PROJECT, "wh_1")) == full
        assert await store.read(lambda tx: endpoints.get(tx, OTHER, "wh_1")) is None
        bare = endpoint(updated_at_ms=7, subscription=Subscription(("thread.run.failed",)))
        await store.write(lambda tx: endpoints.update(tx, bare))
        assert await store.read(lambda tx: endpoints.find(tx, "wh_1")) == bare
        assert not await store.write(lambda tx: endpoints.remove(tx, OTHER, "wh_1"))
        assert await store.write(lambda tx: endpoints.remove(tx, PROJECT, "wh_1"))
        assert await store.read(lambda tx: endpoints.find(tx, "wh_1")) is None

    @on_a_store
    async def test_who_listens_is_what_the_transaction_sees(self, store: Store) -> None:
        """An endpoint of the same transaction listens; neither disabled ones nor strangers do. One
        that the service has disabled does for a while."""

        async def work(tx: Transaction) -> list[str]:
            await endpoints.insert(tx, endpoint("wh_1"))
            await endpoints.insert(tx, endpoint("wh_2", enabled=False))
            await endpoints.insert(tx, endpoint("wh_3", project_id=OTHER))
            found = await endpoints.listening(tx, PROJECT, 5)
            assert [each.subscription for each in found] == [WANTED]
            return [each.id for each in found]

        assert await store.write(work) == ["wh_1"]
        assert await store.write(lambda tx: endpoints.disable(tx, "wh_1", 1, "Why.", 9))
        assert not await store.write(lambda tx: endpoints.disable(tx, "wh_1", 1, "Again.", 99))
        kept = [endpoints.Listening("wh_1", WANTED, enabled=False)]
        assert await store.read(lambda tx: endpoints.listening(tx, PROJECT, 8)) == kept
        assert await store.read(lambda tx: endpoints.listening(tx, PROJECT, 9)) == []
        found = await store.read(lambda tx: endpoints.find(tx, "wh_1"))
        assert found is not None
        assert found.disabled_reason == "Why."

    @on_a_store
    async def test_failing_counts_from_the_first_failure(self, store: Store) -> None:
        """Until a success."""

        async def since() -> int | None:
            found = await store.read(lambda tx: endpoints.find(tx, "wh_1"))
            assert found is not None
            return found.failing_since_ms

        await store.write(lambda tx: endpoints.insert(tx, endpoint()))
        await store.write(lambda tx: endpoints.mark_failing(tx, "wh_1", 1, 5))
        await store.write(lambda tx: endpoints.mark_failing(tx, "wh_1", 1, 6))
        assert await since() == 5
        await store.write(lambda tx: endpoints.mark_succeeding(tx, "wh_1", 1))
        assert await since() is None

    @on_a_store
    async def test_what_was_seen_before_a_change_says_nothing_after_it(self, store: Store) -> None:
        """Neither that the endpoint is gone, nor that it fails, nor that it does not."""
        changed = endpoint(updated_at_ms=2)
        await store.write(lambda tx: endpoints.insert(tx, changed))
        assert not await store.write(lambda tx: endpoints.disable(tx, "wh_1", 1, "Gone.", 9))
        await store.write(lambda tx: endpoints.mark_failing(tx, "wh_1", 1, 5))
        assert await store.read(lambda tx: endpoints.find(tx, "wh_1")) == changed
        await store.write(lambda tx: endpoints.mark_failing(tx, "wh_1", 2, 6))
        await store.write(lambda tx: endpoints.mark_succeeding(tx, "wh_1", 1))
        failing = replace(changed, failing_since_ms=6)
        assert await store.read(lambda tx: endpoints.find(tx, "wh_1")) == failing

    @on_a_store
    async def test_what_is_new_comes_in_the_order_of_its_commits(self, store: Store) -> None:
        """With the event's bytes; each endpoint has its own; an event is owed once."""
        await store.write(lambda tx: owe(tx, 3, 1, 2))
        await store.write(lambda tx: owe(tx, 1, to="wh_2"))
        found = await fetch(store, now_ms=0)
        assert [(each.id, each.body) for each in found] == [
            ("evt_run_1_3", b"3"),
            ("evt_run_1_1", b"1"),
            ("evt_run_1_2", b"2"),
        ]
        assert len(await fetch(store, to="wh_2")) == 1
        assert len(await fetch(store, limit=2)) == 2
        with pytest.raises(Conflict):
            await store.write(lambda tx: owe(tx, 1))

    @on_a_store
    async def test_what_failed_is_due_at_its_time(self, store: Store) -> None:
        """Not before; the longest due first, behind what is new."""
        await store.write(lambda tx: endpoints.insert(tx, endpoint()))
        await store.write(lambda tx: owe(tx, 1, 2, 3))
        first, second, _ = await fetch(store)
        assert await fail(store, first, 5_000)
        assert await fail(store, second, 4_000)
        assert [each.id[-1] for each in await fetch(store, 3_999)] == ["3"]
        assert [each.id[-1] for each in await fetch(store, 5_000)] == ["3", "2", "1"]
        later = await fetch(store, 5_000)
        assert [(each.attempts, each.failures) for each in later] == [(0, 0), (1, 1), (1, 1)]
        due = owed.due_by_endpoint
        assert await store.read(due) == [("wh_1", deliveries.AT_ONCE)]
        assert await succeed(store, later[0])
        assert await store.read(due) == [("wh_1", 4_000)]
        assert await store.read(lambda tx: owed.next_due(tx, "wh_1")) == 4_000
        assert await store.read(lambda tx: owed.next_due(tx, "wh_1", 4_000)) == 5_000
        await store.write(lambda tx: endpoints.disable(tx, "wh_1", 1, "Why.", 9))
        assert await store.read(due) == []
        assert await store.read(lambda tx: owed.next_due(tx, "wh_1")) is None

    @on_a_store
    async def test_of_two_that_record_an_attempt_one_does(self, store: Store) -> None:
        """The other one changes nothing, and no attempt is there twice."""
        await store.write(lambda tx: owe(tx, 1))
        (due,) = await fetch(store)
        won = await asyncio.gather(succeed(store, due), fail(store, due, 9_000))
        assert sorted(won) == [False, True]
        assert not await fail(store, due, 9_000)
        found = await store.read(lambda tx: deliveries.get(tx, "wh_1", due.id))
        assert found is not None
        assert len(await store.read(lambda tx: deliveries.attempts_of(tx, found, 9))) == 1

    @on_a_store
    async def test_the_attempts_come_back_as_they_were(self, store: Store) -> None:
        """In their order, the latest where there are too many."""
        await store.write(lambda tx: owe(tx, 1))
        for _ in range(3):
            (due,) = await fetch(store, 9_999)
            await fail(store, due, 2_000)
        (due,) = await fetch(store, 9_999)
        await succeed(store, due)
        found = await store.read(lambda tx: deliveries.get(tx, "wh_1", due.id))
        assert found is not None
        assert (found.status, found.attempts, found.failures) == ("succeeded", 4, 3)
        assert (found.next_at_ms, found.settled_at_ms) == (None, 2_005)
        every = await store.read(lambda tx: deliveries.attempts_of(tx, found, 9))
        assert every == [*map(attempt, (1, 2, 3)), attempt(4, status_code=200, error=None)]
        assert await store.read(lambda tx: deliveries.attempts_of(tx, found, 2)) == every[2:]

    @on_a_store
    async def test_what_is_sent_again_begins_anew(self, store: Store) -> None:
        """Its attempts stay; only what failed, of events since a time, is found."""
        await store.write(lambda tx: owe(tx, 1, 2, 3))
        one, two, three = await fetch(store)
        await fail(store, one, None)
        await fail(store, two, None)
        await succeed(store, three)

        def failed(since_ms: int, low: int = 0) -> Any:
            return store.read(lambda tx: deliveries.failed_since(tx, "wh_1", since_ms, 9, low=low))

        assert await failed(0) == [one.position, two.position]
        assert await failed(1_002) == [two.position]
        assert await failed(0, one.position) == [two.position]
        assert await store.write(lambda tx: deliveries.recover(tx, two.position, 7_000))
        assert not await store.write(lambda tx: deliveries.recover(tx, two.position, 8_000))
        assert not await store.write(lambda tx: deliveries.recover(tx, three.position, 8_000))
        assert await failed(0) == [one.position]
        assert await fetch(store, 6_999) == []
        assert await fetch(store, 7_000) == [
            replace(two, attempts=1, since_ms=7_000, next_at_ms=7_000)
        ]

    @on_a_store
    async def test_what_is_pending_begins_anew(self, store: Store) -> None:
        """In the span; the new ones stay in front, and what is too old has failed. What failed
        before, or is another endpoint's, stays."""
        await store.write(lambda tx: owe(tx, 1, 2, 3, 4, 5))
        await store.write(lambda tx: owe(tx, 3, to="wh_2"))
        _, two, _, four, five = await fetch(store)
        await fail(store, two, 9_000)
        await fail(store, four, None)

        async def one(number: int, to: str = "wh_1") -> Delivery:
            key = f"evt_run_1_{number}"
            delivery = await store.read(lambda tx: deliveries.get(tx, to, key))
            assert delivery is not None
            return delivery

        def behind(position: int, limit: int = 9) -> Any:
            return store.read(lambda tx: deliveries.pending_behind(tx, "wh_1", position, limit))

        every = await behind(0)
        assert len(every) == 4
        assert await behind(every[0], 2) == every[1:3]
        span = (0, every[2])
        await store.write(lambda tx: deliveries.begin_anew(tx, "wh_1", span, 1_002, 7_000))
        found = [await one(number) for number in (1, 2, 3, 4, 5)]
        assert [
            (each.status, each.failures, each.since_ms, each.next_at_ms, each.settled_at_ms)
            for each in found
        ] == [
            ("failed", 0, 1_001, None, 7_000),
            ("pending", 0, 7_000, 7_000, None),
            ("pending", 0, 7_000, deliveries.AT_ONCE, None),
            ("failed", 1, 1_004, None, 2_005),
            ("pending", 0, five.since_ms, deliveries.AT_ONCE, None),
        ]
        assert (await one(3, "wh_2")).since_ms == 1_003
        await store.write(lambda tx: deliveries.begin_anew(tx, "wh_1", span, 0, 7_000))
        assert (await one(2)).since_ms == 7_001

    @on_a_store
    async def test_a_failure_does_not_undo_that_a_delivery_is_owed_anew(self, store: Store) -> None:
        """It was asked for while the attempt was under way: the attempt is noted, no more. A
        success counts."""
        await store.write(lambda tx: owe(tx, 1, 2))
        one, two = await fetch(store)

        async def again(event_id: str) -> None:
            async def work(tx: Transaction) -> None:
                found = await deliveries.get(tx, "wh_1", event_id)
                assert found is not None
                await deliveries.send_again(tx, found, 1_000)

            await store.write(work)

        for due in (one, two):
            await again(due.id)
        assert await fail(store, one, None)
        assert not await fail(store, one, None)
        assert await succeed(store, two)
        (left,) = await fetch(store, 1_000)
        assert left == replace(one, attempts=1, since_ms=one.since_ms + 1)
        assert await fail(store, left, 9_000)
        (left,) = await fetch(store, 9_000)
        assert (left.attempts, left.failures, left.next_at_ms) == (2, 1, 9_000)
        await again(left.id)
        assert await fail(store, left, None)
        (left,) = await fetch(store, 9_000)
        assert (left.attempts, left.failures, left.next_at_ms) == (3, 0, 1_000)

    @on_a_store
    async def test_a_delivery_goes_with_its_attempts(self, store: Store) -> None:
        """In one unit, whatever its limit: what is left is whole."""
        await store.write(lambda tx: owe(tx, 1, 2))
        for _ in range(3):
            for due in await fetch(store, 9_999):
                await fail(store, due, 2_000)
        second = (await fetch(store, 9_999))[1]
        remove = retention.remove_of_endpoint
        assert await store.write(lambda tx: remove(tx, "wh_1", 1)) == 4
        assert await fetch(store, 9_999) == [second]
        left = await store.read(lambda tx: deliveries.get(tx, "wh_1", second.id))
        assert left is not None
        assert len(await store.read(lambda tx: deliveries.attempts_of(tx, left, 9))) == 3
        assert await store.write(lambda tx: remove(tx, "wh_1", 9)) == 4
        assert await store.write(lambda tx: remove(tx, "wh_1", 9)) == 0

    @on_a_store
    async def test_pages_hold_what_is_wanted(self, store: Store) -> None:
        """By status, run and time, in both directions."""
        await store.write(lambda tx: owe(tx, 1, 2, 3))
        await store.write(lambda tx: owe(tx, 1, run="run_2"))
        one, two, _, _ = await fetch(store)
        await succeed(store, one)
        await fail(store, two, None)

        async def ids(page: Page = Page(order="asc"), **wanted: Any) -> list[str]:  # noqa: B008
            found, _ = await store.scan(
                lambda tx: deliveries.page(tx, "wh_1", page, DeliveryFilter(**wanted))
            )
            return [each.id.removeprefix("evt_run_") for each in found]

        assert await ids() == ["1_1", "1_2", "1_3", "2_1"]
        assert await ids(Page(limit=2)) == ["2_1", "1_3"]
        assert await ids(Page(order="asc", after="evt_run_1_2")) == ["1_3", "2_1"]
        assert await ids(status="succeeded") == ["1_1"]
        assert await ids(status="failed") == ["1_2"]
        assert await ids(status="pending") == ["1_3", "2_1"]
        assert await ids(run_id="run_2") == ["2_1"]
        assert await ids(run_id="run_1", status="pending") == ["1_3"]
        assert await ids(created_from_ms=1_002, created_before_ms=1_003) == ["1_2"]
        with pytest.raises(UnknownCursor):
            await ids(Page(after="evt_nobody"))

    @on_a_store
    async def test_what_is_undelivered_is_counted(self, store: Store) -> None:
        """To enabled endpoints alone; due ones, since when, and the oldest of all."""
        await store.write(lambda tx: endpoints.insert(tx, endpoint()))
        await store.write(lambda tx: endpoints.insert(tx, endpoint("wh_2", enabled=False)))
        nothing = await store.scan(lambda tx: owed.undelivered(tx, 5_000))
        assert (nothing.due, nothing.oldest_ms) == (0, None)
        await store.write(lambda tx: owe(tx, 1, 2))
        await store.write(lambda tx: owe(tx, 1, to="wh_2"))
        first, _ = await fetch(store)
        await fail(store, first, 9_000)
        found = await store.scan(lambda tx: owed.undelivered(tx, 5_000))
        assert (found.due, found.oldest_ms) == (1, 1_001)
