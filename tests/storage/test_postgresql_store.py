"""The PostgreSQL driver passes the contract of every database."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runbell.errors import ConfigurationError
from runbell.planner.sources import from_database
from runbell.runs.run import RunStatus
from runbell.storage import history, holding, runs, threads
from runbell.storage.postgresql import PostgresqlStore, connect
from runbell.storage.records import RunConfig, Thread
from runbell.storage.runs import RunRecord
from runbell.storage.store import Store, Transaction
from runbell.testing.postgresql import database, emptied, opened_postgresql, server, without_tables
from runbell.testing.storage_contract import StorageContract, Stores
from runbell.testing.storage_contract.runs import insert_runs, new_run
from runbell.testing.storage_contract.stories import on_a_store


@pytest.fixture(scope="module")
def stores() -> Stores:
    """Databases of one server, each without rows."""
    return opened_postgresql


class TestPostgresql(StorageContract):
    """What every database has to pass."""

    @on_a_store
    async def test_who_is_overtaken_looks_again(self, store: Store) -> None:
        """Another run begins behind the look: the unit is executed again, and sees it."""
        seen: list[str | None] = []

        async def begin(tx: Transaction) -> None:
            seen.append(await holding.active(tx, "t1"))
            if seen[-1] is None:
                await insert_runs(store, new_run("run_1", "t1"))
                await threads.begin(tx, Thread("p", "undone", 1))
                await runs.insert(tx, RunRecord(new_run("run_2", "t1"), RunConfig(model="m")))

        await store.write(begin)
        assert seen == [None, "run_1"]
        assert await store.read(lambda tx: threads.get(tx, "p", "undone")) is None


def test_a_plan_reads_the_history_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE", 2)
    ended = [
        new_run(str(n), status=RunStatus.COMPLETED, completed_at_ms=1_000 + 500 * n)
        for n in (1, 2, 3)
    ]

    async def filled() -> str:
        url = await database()
        store = await PostgresqlStore.open(url)
        await insert_runs(store, *ended, new_run("4", status=RunStatus.CANCELLED))
        await store.close()
        return url

    url, told = asyncio.run(filled()), []
    trace = from_database(url, told.append)
    asyncio.run(emptied(url))
    assert {kind: list(each) for kind, each in trace.kinds.items()} == {"asst_1, m": [0.5, 1, 1.5]}
    name = url.partition("?")[0].rpartition("/")[2]
    assert (trace.left_out, trace.source) == (1, f"{name}, 3 runs")
    assert told == [0.5, 1.0]


def test_a_plan_makes_no_tables(tmp_path: Path) -> None:
    bare = asyncio.run(without_tables())
    # Also of a server that another process has started, as that of a service would be.
    embedded = f"postgresql-embedded:///{server()._data.parent}"
    for url in (bare, embedded):
        with pytest.raises(ConfigurationError, match=r"has schema none.*with --from-database"):
            from_database(url)
    with pytest.raises(ConfigurationError, match=r"no PostgreSQL of Runbell's in .*none"):
        from_database(f"postgresql-embedded:///{tmp_path}/none")
    assert not (tmp_path / "none").exists()

    async def tables() -> int:
        connection = await connect(bare)
        count: int = await connection.fetchval(
            "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
        )
        connection.terminate()
        return count

    assert asyncio.run(tables()) == 0
