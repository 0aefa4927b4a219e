"""A process that is stopped in the middle of a transaction is in nobody's way: what each writes all
the time is its own. And a row that somebody holds keeps only those for a moment who want it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from runbell.errors import StorageUnavailable
from runbell.storage import idempotency, postgresql
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.probes import probe
from runbell.storage.store import Transaction
from runbell.testing.postgresql import database, emptied, opened_postgresql

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


@pytest.mark.parametrize(("haste_seconds", "patience"), [(3_600.0, "10ms"), (0.0, "50ms")])
def test_when_a_row_is_held_for_long_nobody_waits_long_for_one(
    haste_seconds: float, patience: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is turned away says so to the others of the process, for a while: else those who come
    again and again for that row would have all connections all the time."""
    monkeypatch.setattr(postgresql, "ROW_SECONDS", 0.05)
    monkeypatch.setattr(postgresql, "HASTY_ROW_SECONDS", 0.01)
    monkeypatch.setattr(postgresql, "HASTE_SECONDS", haste_seconds)

    async def story() -> None:
        url = await database()
        store, somebody = await PostgresqlStore.open(url), await asyncpg.connect(url)

        async def waits(tx: postgresql.PostgresqlTransaction) -> str:
            return str((await tx.fetch("SHOW lock_timeout"))[0][0])

        async def wants(tx: postgresql.PostgresqlTransaction) -> None:
            await tx.fetch("SELECT FROM projects FOR UPDATE")

        await store.fetch("INSERT INTO projects VALUES ('p', 'p', 1)")
        assert await store.write(waits) == "50ms"  # type: ignore[arg-type]
        async with somebody.transaction():
            await somebody.execute("SELECT FROM projects FOR UPDATE")
            for _ in range(2):
                with pytest.raises(StorageUnavailable, match="lock timeout"):
                    await store.write(wants)  # type: ignore[arg-type]
                assert await store.write(waits) == patience  # type: ignore[arg-type]
        await somebody.close()
        await store.write(wants)  # type: ignore[arg-type]
        await store.close()
        await emptied(url)

    asyncio.run(story())


def test_a_statement_that_is_never_sent_in_full_keeps_no_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a process that is stopped between the two requests that a new statement takes: its
    transaction is not idle, as the server sees it."""
    monkeypatch.setattr(postgresql, "UNIT_SECONDS", 0.3)
    parse = b"\0SELECT 1\0\0\0"
    request = b"P" + (len(parse) + 4).to_bytes(4, "big") + parse + b"H\0\0\0\4"

    async def story() -> None:
        url = await database()
        store, other = await PostgresqlStore.open(url), await asyncpg.connect(url)

        async def stopped(tx: postgresql.PostgresqlTransaction) -> None:
            await tx.fetch("SELECT FROM projects FOR UPDATE")
            tx.connection._transport.write(request)  # type: ignore[attr-defined]
            # Waited for, and had: what the stopped one held it does not hold any more.
            await other.execute("SET lock_timeout = '60s'")
            await other.execute("SELECT FROM projects FOR UPDATE")
            had.append("p")

        had: list[str] = []
        await store.fetch("INSERT INTO projects VALUES ('p', 'p', 1)")
        with pytest.raises(StorageUnavailable):
            await store.write(stopped)  # type: ignore[arg-type]
        assert had
        await other.close()
        await store.close()
        await emptied(url)

    asyncio.run(story())
