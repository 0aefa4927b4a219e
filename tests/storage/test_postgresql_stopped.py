"""A process that is stopped in the middle of a transaction is in nobody's way: what each writes all
the time is its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from runbell.storage import idempotency
from runbell.storage.probes import probe
from runbell.storage.store import Transaction
from runbell.testing.postgresql import opened_postgresql

DAY_MS = idempotency.KEPT_MS
OLD = """
INSERT INTO idempotency_keys (project_id, key, digest, created_at_ms)
SELECT 'p', 'old ' || n, '', 1 FROM generate_series(1, 30) AS n
"""
LEFT = "SELECT count(*) FROM idempotency_keys WHERE key LIKE 'old%'"


async def _use_a_key(tx: Transaction, key: str) -> None:
    await idempotency.prune(tx, before_ms=DAY_MS, limit=10)
    await idempotency.claim(tx, "p", key, b"", now_ms=2 * DAY_MS, oldest_ms=DAY_MS)


async def _probe(tx: Transaction, key: str) -> None:
    await probe(tx, len(key))


@pytest.mark.parametrize(("do", "left"), [(_use_a_key, 20), (_probe, 30)])
def test_it_holds_up_no_other(do: Callable[[Transaction, str], Awaitable[None]], left: int) -> None:
    """Old answers that it is about to forget are forgotten by somebody else later."""

    async def story() -> None:
        async with opened_postgresql() as store:
            await store.fetch("INSERT INTO projects VALUES ('p', 'p', 1)")
            await store.fetch(OLD)
            amid, go_on = asyncio.Event(), asyncio.Event()

            async def stopped(tx: Transaction) -> None:
                await do(tx, "first")
                amid.set()
                await go_on.wait()

            first = asyncio.create_task(store.write(stopped))
            await amid.wait()
            try:
                async with asyncio.timeout(60):
                    for key in ("second", "third"):
                        await store.write(lambda tx: do(tx, key))  # noqa: B023
            finally:
                go_on.set()
                await first
            assert (await store.fetch(LEFT))[0][0] == left
            assert await store.fetch("SELECT * FROM probes") == []

    asyncio.run(story())
