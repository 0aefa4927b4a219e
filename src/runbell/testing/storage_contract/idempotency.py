"""First answers: one claim of a key succeeds, and what is kept comes back."""

from __future__ import annotations

import asyncio

import pytest

from runbell.storage import idempotency, threads
from runbell.storage.idempotency import FirstAnswer
from runbell.storage.records import Thread
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract.stories import OTHER, PROJECT, on_a_store

__all__ = ["IdempotencyContract"]

ANSWER = FirstAnswer(b"\x00digest\xff", 200, {"etag": '"é"'}, b'{"id": "x"}\x00', None)
STREAM = FirstAnswer(b"digest", 200, {}, b"", "run_1")


async def answered(
    tx: Transaction,
    key: str,
    answer: FirstAnswer = ANSWER,
    *,
    project: str = PROJECT,
    now_ms: int = 100,
    oldest_ms: int = 0,
) -> FirstAnswer | None:
    """What was answered before; else nothing, and this answer is kept."""
    first = await idempotency.claim(
        tx, project, key, answer.digest, now_ms=now_ms, oldest_ms=oldest_ms
    )
    if first is None:
        await idempotency.keep(tx, project, key, answer)
    return first


class _Undone(Exception):
    """The unit thinks better of it."""


class IdempotencyContract:
    """Every function of `idempotency`."""

    @on_a_store
    async def test_a_first_answer_comes_back_as_it_was(self, store: Store) -> None:
        """Every byte of it, and where it was a stream, the run that was streamed."""
        assert await store.write(lambda tx: answered(tx, "a", ANSWER)) is None
        assert await store.write(lambda tx: answered(tx, "b", STREAM)) is None
        assert await store.write(lambda tx: answered(tx, "a", STREAM)) == ANSWER
        assert await store.write(lambda tx: answered(tx, "b", ANSWER)) == STREAM

    @on_a_store
    async def test_a_key_belongs_to_one_project(self, store: Store) -> None:
        """The other one can use it too."""
        assert await store.write(lambda tx: answered(tx, "a")) is None
        assert await store.write(lambda tx: answered(tx, "a", STREAM, project=OTHER)) is None
        assert await store.write(lambda tx: answered(tx, "a")) == ANSWER

    @on_a_store
    async def test_of_many_at_a_time_one_is_the_first(self, store: Store) -> None:
        """The others wait for it, and see what it kept."""

        async def work(tx: Transaction) -> FirstAnswer | None:
            first = await answered(tx, "a")
            if first is None:
                await threads.insert(tx, Thread(PROJECT, "thread_1", 1))
            return first

        seen = await asyncio.gather(*(store.write(work) for _ in range(20)))
        assert seen.count(None) == 1
        assert seen.count(ANSWER) == 19

    @on_a_store
    async def test_a_unit_that_fails_leaves_its_key_free(self, store: Store) -> None:
        """Claim, effect and answer are there together, or none of them is."""

        async def work(tx: Transaction) -> None:
            await answered(tx, "a")
            await threads.insert(tx, Thread(PROJECT, "thread_1", 1))
            raise _Undone

        with pytest.raises(_Undone):
            await store.write(work)
        assert await store.read(lambda tx: threads.get(tx, PROJECT, "thread_1")) is None
        assert await store.write(lambda tx: answered(tx, "a")) is None

    @on_a_store
    async def test_an_answer_that_is_too_old_is_replaced(self, store: Store) -> None:
        """At its very age it still counts."""
        assert await store.write(lambda tx: answered(tx, "a", now_ms=100)) is None
        same = await store.write(lambda tx: answered(tx, "a", STREAM, oldest_ms=100))
        assert same == ANSWER
        later = await store.write(lambda tx: answered(tx, "a", STREAM, now_ms=201, oldest_ms=101))
        assert later is None
        assert await store.write(lambda tx: answered(tx, "a", oldest_ms=101)) == STREAM

    @on_a_store
    async def test_pruning_takes_the_oldest_and_so_many(self, store: Store) -> None:
        """Never one that still counts."""

        async def keep(number: int) -> None:
            await store.write(lambda tx: answered(tx, f"{number}", now_ms=number))

        async def prune(before_ms: int, limit: int) -> int:
            return await store.write(
                lambda tx: idempotency.prune(tx, before_ms=before_ms, limit=limit)
            )

        for number in range(6):
            await keep(number)
        assert [await prune(4, 3), await prune(4, 3), await prune(4, 3)] == [3, 1, 0]
        assert await store.write(lambda tx: answered(tx, "3", STREAM)) is None
        assert await store.write(lambda tx: answered(tx, "4", STREAM)) == ANSWER
