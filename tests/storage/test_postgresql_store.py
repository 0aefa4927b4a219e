"""The PostgreSQL driver passes the contract of every database."""

from __future__ import annotations

import pytest

from runbell.storage import holding, runs, threads
from runbell.storage.records import RunConfig, Thread
from runbell.storage.runs import RunRecord
from runbell.storage.store import Store, Transaction
from runbell.testing.postgresql import opened_postgresql
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
