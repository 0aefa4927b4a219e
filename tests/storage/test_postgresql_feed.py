"""The feed on PostgreSQL, where many write at a time: a cursor that was handed out stays in front
of everything that is committed later."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from runbell.service.postgresql import migrate
from runbell.storage import events, projects
from runbell.storage.migrate_postgresql import _OFFSET, upgrade_postgresql
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction
from runbell.storage.records import Project
from runbell.storage.store import Transaction
from runbell.testing.postgresql import database, emptied, server
from runbell.testing.storage_contract.stories import event


def on_postgresql(story: Callable[[PostgresqlStore, str], Awaitable[None]]) -> Callable[[], None]:
    """Make a test of an async function that is given a store with one project, and its URL."""

    async def telling() -> None:
        url = await database()
        store = await PostgresqlStore.open(url)
        try:
            await store.write(lambda tx: projects.insert(tx, Project("p", "p", 1)))
            await story(store, url)
        finally:
            await store.close()
            await emptied(url)

    def test() -> None:
        asyncio.run(telling())

    test.__doc__ = story.__doc__
    return test


class Writer:
    """A unit that appends an event, and is then paused in the middle of its transaction."""

    def __init__(self, store: PostgresqlStore, run_id: str) -> None:
        self._go_on, self._appended = asyncio.Event(), asyncio.Event()
        self._writing = asyncio.create_task(store.write(self._work))
        self._run_id = run_id

    async def _work(self, tx: Transaction) -> None:
        assert isinstance(tx, PostgresqlTransaction)
        await events.append(tx, event(1, self._run_id, "p"))
        await tx.flush()
        self._appended.set()
        await self._go_on.wait()

    async def appended(self) -> None:
        await asyncio.wait_for(self._appended.wait(), 30)

    async def commit(self) -> None:
        self._go_on.set()
        await self._writing


async def read(store: PostgresqlStore, after: str | None) -> list[str]:
    rows, _ = await store.scan(lambda tx: events.page(tx, "p", after=after, types=None, limit=100))
    return [row[0] for row in rows]


async def told(store: PostgresqlStore, run_id: str) -> None:
    await store.write(lambda tx: events.append(tx, event(1, run_id, "p")))


async def offset(store: PostgresqlStore) -> int:
    """By how much positions have been put ahead."""
    return int((await store.fetch("SELECT runbell_feed_offset()"))[0][0])


@on_postgresql
async def test_what_commits_later_is_not_in_front_of_a_cursor(
    store: PostgresqlStore, url: str
) -> None:
    """An event is not shown while one that was begun before it may still come: with the numbers
    of a sequence the reader would go on behind the second, and never see the first."""
    await told(store, "before")
    slow = Writer(store, "slow")
    await slow.appended()
    await told(store, "quick")
    seen = await read(store, None)
    assert seen == ["evt_before_1"]
    assert (await store.read(lambda tx: events.head(tx, "p")))[1] == "evt_before_1"
    await slow.commit()
    assert seen + await read(store, seen[-1]) == ["evt_before_1", "evt_slow_1", "evt_quick_1"]


@on_postgresql
async def test_whoever_is_slow_to_append_comes_behind_those_who_were_quick(
    store: PostgresqlStore, url: str
) -> None:
    """A transaction counts from its first write, whatever that was; not from its event."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction) -> None:
        await projects.insert(tx, Project("q", "q", 1))
        begun.set()
        await go_on.wait()
        await events.append(tx, event(1, "late", "p"))

    writing = asyncio.create_task(store.write(work))
    await asyncio.wait_for(begun.wait(), 30)
    await told(store, "quick")
    assert await read(store, None) == [], "the other may still have an event"
    go_on.set()
    await writing
    assert await read(store, None) == ["evt_late_1", "evt_quick_1"]


@on_postgresql
async def test_a_writer_that_gives_up_holds_nobody_back(store: PostgresqlStore, url: str) -> None:
    """Its place stays empty."""

    async def fails(tx: Transaction) -> None:
        await events.append(tx, event(1, "never", "p"))
        raise ValueError

    await asyncio.gather(store.write(fails), return_exceptions=True)
    await told(store, "quick")
    assert await read(store, None) == ["evt_quick_1"]


@on_postgresql
async def test_a_start_beside_units_that_are_open_passes_none_over(
    store: PostgresqlStore, url: str
) -> None:
    """Every process that starts looks whether positions have to be put ahead. A unit that is open
    holds the horizon back behind events that are there, as anybody's does in another database of
    the server: that is no reason to, and would leave what it commits behind the cursor of who
    reads."""
    await told(store, "before")
    elsewhere = await asyncpg.connect(server().url("postgres"))
    async with elsewhere.transaction():
        await elsewhere.fetch("SELECT pg_current_xact_id()")
        slow = Writer(store, "slow")
        await slow.appended()
        await told(store, "quick")
        await migrate(url)
    await elsewhere.close()
    seen = await read(store, None)
    await slow.commit()
    assert await offset(store) == 0
    assert seen == ["evt_before_1"]
    assert seen + await read(store, seen[-1]) == ["evt_before_1", "evt_slow_1", "evt_quick_1"]


@on_postgresql
async def test_events_that_came_from_elsewhere_stay_in_front(
    store: PostgresqlStore, url: str
) -> None:
    """As after a restore into another server, where the numbers of transactions are low again: the
    next start puts what is new behind what is there, whoever has a transaction at that moment.
    Sessions that are open notice, also in a database of which an earlier version had made the
    offset a constant."""
    connection = await asyncpg.connect(url)
    elsewhere = await asyncpg.connect(server().url("postgres"))
    try:
        await connection.execute(_OFFSET.format(offset=0).replace("STABLE", "IMMUTABLE"))
        await upgrade_postgresql(connection)
        await told(store, "warm")
        for _ in range(10):
            # So often, that the session keeps its plan.
            assert await read(store, None) == ["evt_warm_1"]
        async with elsewhere.transaction():
            await elsewhere.fetch("SELECT pg_current_xact_id()")
            await connection.execute(
                "INSERT INTO events VALUES "
                "($1, 'p', 'evt_old', 'old', 1, 'thread.run.queued', 1, '')",
                1 << 50,
            )
            await upgrade_postgresql(connection)
            moved = await offset(store)
            assert moved > 0
            assert await read(store, None) == ["evt_warm_1", "evt_old"]
            await upgrade_postgresql(connection)
            assert await offset(store) == moved, "once is enough"
            await told(store, "new")
        assert await read(store, None) == ["evt_warm_1", "evt_old", "evt_new_1"]
        assert await read(store, "evt_old") == ["evt_new_1"]
    finally:
        await elsewhere.close()
        await connection.execute(_OFFSET.format(offset=0))
        await connection.close()


@on_postgresql
async def test_the_feed_is_read_by_an_index_from_the_cursor_to_the_horizon(
    store: PostgresqlStore, url: str
) -> None:
    """Both are conditions of the index: neither what was read nor what is behind is looked at."""
    params = {"project": "p", "low": 1, "limit": 10}
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SET enable_seqscan = off")
        for statement in (events.PAGE, events.NEWEST):
            this = statement.postgresql
            args = [params[name] for name in this.names]
            rows = await connection.fetch(f"EXPLAIN {this.text}", *args)
            plan = "\n".join(row[0] for row in rows)
            assert re.search("Index Cond: .*pg_snapshot_xmin", plan), plan
            assert "Filter" not in plan
            assert "Sort" not in plan
    finally:
        await connection.close()


@on_postgresql
async def test_the_events_of_one_transaction_keep_their_order(
    store: PostgresqlStore, url: str
) -> None:
    """Also beside the events of others."""

    async def work(tx: Transaction) -> None:
        for number in range(1, 30):
            await events.append(tx, event(number, "long", "p"))

    await asyncio.gather(store.write(work), *(told(store, f"r{n}") for n in range(20)))
    seen = await read(store, None)
    assert len(seen) == 49
    long = [each for each in seen if each.startswith("evt_long")]
    assert long == [f"evt_long_{number}" for number in range(1, 30)]
    first = seen.index(long[0])
    assert seen[first : first + 29] == long


@on_postgresql
async def test_who_holds_the_feed_back_is_seen(store: PostgresqlStore, url: str) -> None:
    """By the statements that docs/operations.md has for it: a writer does, a reader does not, such
    as `pg_dump`. Each of the statements can be asked."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    statements = [each for block in blocks for each in block.split(";") if each.strip()]
    answers = {}

    async def ask() -> None:
        for statement in statements:
            for row in await store.fetch(statement):
                for name, value in dict(row).items():
                    answers.setdefault(name, []).append(value)

    reader = await asyncpg.connect(url)
    async with reader.transaction(isolation="repeatable_read", readonly=True):
        await reader.fetch("SELECT * FROM events")
        await told(store, "first")
        assert len(await read(store, None)) == 1, "a reader holds nothing back"
        writer = Writer(store, "slow")
        await writer.appended()
        await told(store, "second")
        assert len(await read(store, None)) == 1
        await ask()
        assert reader.get_server_pid() in answers["pid"]
        assert answers["transactions_behind"][0] >= 2
        assert any(answers["backend_xid"])
        await writer.commit()
    await reader.close()
    assert len(await read(store, None)) == 3
    assert answers["ours"][0] >= 2
    assert {"n_dead_tup", "written", "failed_count"} <= set(answers)
