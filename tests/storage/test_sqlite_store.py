"""The SQLite driver: group commit, a writer of its own, and a disk that fails."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest

from runbell.errors import StorageUnavailable
from runbell.storage import events, sqlite, threads
from runbell.storage.records import Thread
from runbell.storage.sqlite import MAX_GROUP, SQLiteStore
from runbell.storage.store import Transaction, Work
from runbell.testing.databases import migrated_sqlite, opened, writer_held
from runbell.testing.faults import armed
from runbell.testing.storage_contract.stories import event

GROUP = ["storage.group.begun", "storage.group.executed", "storage.group.committed"]


def on_sqlite(story: Callable[[SQLiteStore], Awaitable[None]]) -> Callable[[Path], None]:
    """Make a test of an async function that is given a store with one project."""

    async def telling(path: Path) -> None:
        with contextlib.closing(sqlite3.connect(migrated_sqlite(path))) as connection:
            connection.execute("INSERT INTO projects VALUES ('p', 'p', 1)")
            connection.commit()
        async with opened(path) as store:
            await story(store)

    def test(tmp_path: Path) -> None:
        asyncio.run(telling(tmp_path / "runbell.db"))

    test.__doc__ = story.__doc__
    return test


def adding(name: str, text: str = "", project: str = "p") -> Work[str]:
    async def work(tx: Transaction) -> str:
        await threads.insert(tx, Thread(project, name, 1, {"text": text}))
        return name

    return work


def stored(store: SQLiteStore) -> set[str]:
    """The threads that another process can see."""
    with contextlib.closing(sqlite3.connect(store.path)) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM threads")}


async def queued(store: SQLiteStore, *works: Work[str]) -> list[asyncio.Task[str]]:
    """Units that wait for the writer, in this order."""
    tasks = [asyncio.create_task(store.write(work)) for work in works]
    await asyncio.sleep(0)
    assert store.waiting == len(works)
    return tasks


# Group commit.


@on_sqlite
async def test_units_that_wait_together_are_committed_together(store: SQLiteStore) -> None:
    """One commit for all of them, however many callers there are."""
    reached: list[str] = []
    with armed(reached.append):
        async with writer_held(store):
            tasks = await queued(store, *(adding(f"t{n}") for n in range(40)))
        await asyncio.gather(*tasks)
    assert reached == GROUP * 2, "the unit that held the writer, and one group"
    assert len(stored(store)) == 40


@on_sqlite
async def test_a_group_has_an_end(store: SQLiteStore) -> None:
    """The first of a crowd does not wait for the last."""
    reached: list[str] = []
    with armed(reached.append):
        async with writer_held(store):
            tasks = await queued(store, *(adding(f"t{n}") for n in range(MAX_GROUP + 10)))
        await asyncio.gather(*tasks)
    assert reached == GROUP * 3
    assert len(stored(store)) == MAX_GROUP + 10


@on_sqlite
async def test_the_points_of_a_group_are_where_their_names_say(store: SQLiteStore) -> None:
    """Nothing of it is durable before the commit, all of it afterwards, and nobody knows yet."""
    seen: list[tuple[str, int, bool]] = []
    tasks: list[asyncio.Task[str]] = []

    def look(point: str) -> None:
        seen.append((point, len(stored(store)), any(task.done() for task in tasks)))

    with contextlib.ExitStack() as looking:
        async with writer_held(store):
            tasks += await queued(store, *(adding(f"t{n}") for n in range(5)))
            looking.enter_context(armed(look))
        await asyncio.gather(*tasks)
    assert seen[-3:] == [(GROUP[0], 0, False), (GROUP[1], 0, False), (GROUP[2], 5, False)]


@on_sqlite
async def test_a_group_that_cannot_be_committed_leaves_nothing_of_any_unit(
    store: SQLiteStore,
) -> None:
    """Every caller hears of it, nothing follows the commit that was none, and the store goes on."""
    followed: list[str] = []
    groups = count(1)

    def fail(point: str) -> None:
        # The first group is the unit that holds the writer.
        if point == "storage.group.executed" and next(groups) == 2:
            raise StorageUnavailable("the disk went away")

    def unit(name: str) -> Work[str]:
        async def work(tx: Transaction) -> str:
            tx.after_commit(lambda: followed.append(name))
            return await adding(name)(tx)

        return work

    with armed(fail):
        async with writer_held(store):
            tasks = await queued(store, *(unit(f"t{n}") for n in range(5)))
        results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [StorageUnavailable] * 5
    assert (stored(store), followed) == (set(), [])
    assert await store.write(unit("later")) == "later"
    assert (stored(store), followed) == ({"later"}, ["later"])


@on_sqlite
async def test_a_row_that_breaks_a_rule_of_the_schema_harms_its_own_unit_alone(
    store: SQLiteStore,
) -> None:
    """A broken reference is a defect of ours, not a Conflict: its caller gets SQLite's own word."""
    async with writer_held(store):
        works = adding("good"), adding("bad", project="no project"), adding("better")
        tasks = await queued(store, *works)
    good, bad, better = await asyncio.gather(*tasks, return_exceptions=True)
    assert (good, better) == ("good", "better")
    assert isinstance(bad, sqlite3.IntegrityError)
    assert stored(store) == {"good", "better"}


@on_sqlite
async def test_the_feed_has_the_order_of_the_commits(store: SQLiteStore) -> None:
    """With one writer it is the order in which units were given to it, less those that failed."""
    committed: list[str] = []

    def unit(number: int) -> Work[None]:
        async def work(tx: Transaction) -> None:
            one = event(1, f"run_{number}", "p")
            await events.append(tx, one)
            tx.after_commit(lambda: committed.append(one.id))
            if number % 5 == 0:
                raise ValueError

        return work

    writing = (store.write(unit(number)) for number in range(1, 60))
    await asyncio.gather(*writing, return_exceptions=True)
    found, _ = await store.scan(lambda tx: events.page(tx, "p", after=None, types=None, limit=100))
    assert [row[0] for row in found] == committed
    assert committed == [f"evt_run_{number}_1" for number in range(1, 60) if number % 5]


# A disk that is full, a database that is locked.


@pytest.mark.parametrize("alone", [True, False])
def test_a_full_disk_refuses_what_it_cannot_keep(tmp_path: Path, alone: bool) -> None:
    """SQLite may roll the whole group back, or the one unit: either way whoever was told that it is
    stored was told the truth, the others can try again, and room heals it."""

    @on_sqlite
    async def story(store: SQLiteStore) -> None:
        pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
        store._writer.execute(f"PRAGMA max_page_count = {pages + 20}")
        sizes = {"large": 400_000} if alone else {"a": 10_000, "large": 400_000, "z": 10_000}
        works = {name: adding(name, "x" * size) for name, size in sizes.items()}
        async with writer_held(store):
            tasks = await queued(store, *works.values())
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [result for result in results if not isinstance(result, str)]
        told = set(results) - set(errors)
        assert [type(error) for error in errors] == [StorageUnavailable] * len(errors)
        assert all("full" in str(error) for error in errors)
        assert stored(store) == told
        assert "large" not in told
        store._writer.execute("PRAGMA max_page_count = 1000000")
        await asyncio.gather(*(store.write(works[name]) for name in set(works) - told))
        assert stored(store) == set(works)

    story(tmp_path)


def test_a_database_that_another_process_has_locked_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a while the writer gives up and says so; reads wait for nobody; then all is well."""
    monkeypatch.setattr(sqlite, "WRITER_BUSY_MS", 20)

    @on_sqlite
    async def story(store: SQLiteStore) -> None:
        await store.write(adding("before"))
        with contextlib.closing(sqlite3.connect(store.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for _ in range(2):
                with pytest.raises(StorageUnavailable, match="locked"):
                    await store.write(adding("during"))
                assert await store.read(lambda tx: threads.get(tx, "p", "before")) is not None
                assert await store.scan(lambda tx: threads.get(tx, "p", "during")) is None
            other.execute("ROLLBACK")
        assert await store.write(adding("during")) == "during"

    story(tmp_path)


@on_sqlite
async def test_what_another_process_commits_is_read_at_once(store: SQLiteStore) -> None:
    """A key that `runbell keys` revokes beside the service is closed from that moment."""
    assert await store.read(lambda tx: threads.get(tx, "p", "theirs")) is None
    with contextlib.closing(sqlite3.connect(store.path)) as other:
        other.execute("INSERT INTO threads VALUES ('theirs', 'p', 1, '{}', '{}')")
        other.commit()
    assert await store.read(lambda tx: threads.get(tx, "p", "theirs")) is not None
    assert await store.scan(lambda tx: threads.get(tx, "p", "theirs")) is not None


def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """Opening says so in the words that callers know."""

    async def story() -> None:
        with pytest.raises(StorageUnavailable, match="unable to open"):
            await SQLiteStore.open(tmp_path / "nowhere" / "runbell.db")

    asyncio.run(story())


def test_no_more_writes_wait_than_there_is_patience_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that hangs costs its callers an error, not the process its memory."""
    monkeypatch.setattr(sqlite, "MAX_WAITING", 3)

    @on_sqlite
    async def story(store: SQLiteStore) -> None:
        async with writer_held(store):
            tasks = await queued(store, *(adding(f"t{n}") for n in range(3)))
            with pytest.raises(StorageUnavailable, match="too many writes"):
                await store.write(adding("t4"))
        assert await asyncio.gather(*tasks) == ["t0", "t1", "t2"]

    story(tmp_path)


# Units, and the threads that they run on.


@on_sqlite
async def test_a_unit_that_awaits_anything_else_is_an_error(store: SQLiteStore) -> None:
    """It would hold every other writer up; what it had written is gone."""

    async def work(tx: Transaction) -> None:
        await adding("t1")(tx)
        await asyncio.sleep(0)

    async def look(tx: Transaction) -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="may await its transaction, and nothing else"):
        await store.write(work)
    for use in (store.read, store.scan):
        with pytest.raises(RuntimeError, match="may await its transaction, and nothing else"):
            await use(look)
    assert stored(store) == set()
    await store.write(adding("t1"))


@on_sqlite
async def test_who_reads_cannot_write(store: SQLiteStore) -> None:
    """A write that is handed to `read` or `scan` by mistake is refused by SQLite itself."""
    for use in (store.read, store.scan):
        with pytest.raises(StorageUnavailable, match="readonly"):
            await use(adding("t1"))
    assert stored(store) == set()


@on_sqlite
async def test_reads_wait_neither_for_the_writer_nor_for_a_long_read(store: SQLiteStore) -> None:
    """While a group is being written, and while a scan goes on, keys are still looked up."""
    await store.write(adding("t1"))
    begun, release = threading.Event(), threading.Event()

    async def long(tx: Transaction) -> None:
        begun.set()
        assert release.wait(30)

    scanning = asyncio.create_task(store.scan(long))
    try:
        assert await asyncio.to_thread(begun.wait, 30)
        async with writer_held(store):
            assert await store.read(lambda tx: threads.get(tx, "p", "t1")) is not None
        assert await store.write(adding("t2")) == "t2"
    finally:
        release.set()
    await scanning


@on_sqlite
async def test_writes_are_durable_and_references_are_kept(store: SQLiteStore) -> None:
    """What a power cut would tell and no killed process can: each commit is flushed to the disk."""
    names = ("journal_mode", "synchronous", "foreign_keys")
    found = [store._writer.execute(f"PRAGMA {name}").fetchone()[0] for name in names]
    assert found == ["wal", 2, 1]


def test_a_closed_store_leaves_one_whole_file(tmp_path: Path) -> None:
    """The log is folded into the database, so that the file alone can be copied or moved."""

    @on_sqlite
    async def story(store: SQLiteStore) -> None:
        await store.write(adding("t1"))

    story(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["runbell.db"]
