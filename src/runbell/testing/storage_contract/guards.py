"""Guards: a write that belongs to an older state of a run changes nothing."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from runbell.errors import Conflict, StaleWrite
from runbell.runs import Run, RunStatus, apply, lifecycle, take_over
from runbell.storage import events, holding, runs
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract.runs import insert_runs, new_run
from runbell.testing.storage_contract.stories import Stores, event, on_a_store, tell

__all__ = ["GuardContract"]

S = RunStatus


async def found(store: Store, run_id: str) -> Run:
    record = await store.read(lambda tx: runs.find(tx, run_id))
    assert record is not None
    return record.run


class GuardContract:
    """What `runs.change` and `holding.take_turn` refuse."""

    @pytest.mark.parametrize(
        "moved",
        [
            {"status": S.REQUIRES_ACTION},
            {"status": S.COMPLETED},
            {"attempt": 3},
            {"attempt": 1},
            {"sequence": 6},
            {"sequence": 4},
        ],
        ids=str,
    )
    def test_a_write_that_read_another_state_changes_nothing(
        self, stores: Stores, moved: dict[str, Any]
    ) -> None:
        """Status, attempt and sequence: each of them alone makes it stale."""
        read = new_run("run_1", status=S.IN_PROGRESS, attempt=2, sequence=5)
        stored = dataclasses.replace(read, **moved)
        wanted = apply(read, lifecycle.completed(read.usage), now_ms=2_000)

        async def story(store: Store) -> None:
            await insert_runs(store, stored)
            with pytest.raises(StaleWrite):
                await store.write(lambda tx: runs.change(tx, read, wanted))
            assert await found(store, "run_1") == stored

        tell(stores, story)

    @on_a_store
    async def test_a_run_that_is_gone_cannot_be_changed(self, store: Store) -> None:
        """As after its thread was deleted."""
        run = new_run("run_1")
        with pytest.raises(StaleWrite):
            await store.write(lambda tx: runs.change(tx, run, take_over_of(run)))

    @on_a_store
    async def test_a_stale_write_takes_its_whole_unit_with_it(self, store: Store) -> None:
        """The event of a change that did not happen is not in the feed."""
        run = new_run("run_1", status=S.IN_PROGRESS)
        await insert_runs(store, run)
        stale = dataclasses.replace(run, attempt=9)

        async def work(tx: Transaction) -> None:
            await events.append(tx, event(1))
            await runs.change(tx, stale, take_over(stale))

        with pytest.raises(StaleWrite):
            await store.write(work)
        feed = await store.scan(
            lambda tx: events.page(tx, run.project_id, after=None, types=None, limit=10)
        )
        assert feed == ([], False)

    @on_a_store
    async def test_of_many_that_move_a_run_at_once_one_does(self, store: Store) -> None:
        """Twenty workers read the same queued run and take it up: one of them has it."""
        run = new_run("run_1")
        await insert_runs(store, run)
        started = apply(run, lifecycle.started(), now_ms=2_000)
        results = await asyncio.gather(
            *(store.write(lambda tx: runs.change(tx, run, started)) for _ in range(20)),
            return_exceptions=True,
        )
        assert sum(result is None for result in results) == 1
        assert sum(isinstance(result, StaleWrite) for result in results) == 19
        assert await found(store, "run_1") == started

    @on_a_store
    async def test_of_many_that_begin_a_run_on_a_thread_one_does(self, store: Store) -> None:
        """Also where all of them had seen that it was free."""
        adding = (insert_runs(store, new_run(f"run_{n}", "t1")) for n in range(20))
        results = await asyncio.gather(*adding, return_exceptions=True)
        assert sum(result is None for result in results) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 19

    @on_a_store
    async def test_a_turn_cannot_be_taken_on_a_thread_that_is_held(self, store: Store) -> None:
        """A waiting run stays where it is until the active one has ended."""
        active = new_run("run_1", "t1", S.IN_PROGRESS)
        waiting = new_run("run_2", "t1", waits_turn=True)
        await insert_runs(store, active, waiting)
        with pytest.raises(Conflict):
            await store.write(lambda tx: holding.take_turn(tx, "run_2"))
        assert await found(store, "run_2") == waiting
        ended = apply(active, lifecycle.completed(active.usage), now_ms=2_000)

        async def work(tx: Transaction) -> None:
            await runs.change(tx, active, ended)
            await holding.take_turn(tx, "run_2")

        await store.write(work)
        assert await found(store, "run_1") == ended
        assert await found(store, "run_2") == dataclasses.replace(waiting, waits_turn=False)


def take_over_of(run: Run) -> Run:
    return dataclasses.replace(run, attempt=run.attempt + 1)
