"""Runs across threads, and small questions: how many wait, what came last, can it be written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbell.errors import StaleWrite
from runbell.runs import Run, RunStatus
from runbell.storage import events, holding, runs
from runbell.storage.probes import probe
from runbell.storage.runs import RunFilter
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract.pages import expected, pages
from runbell.testing.storage_contract.runs import insert_runs, new_run
from runbell.testing.storage_contract.stories import (
    OTHER,
    PROJECT,
    PROPERTY,
    Stores,
    event,
    on_a_store,
    tell,
)

__all__ = ["ProjectRunContract"]

S = RunStatus

statuses = st.frozensets(st.sampled_from(S), max_size=4)
moments = st.none() | st.integers(0, 12)


class ProjectRunContract:
    """What `runs`, `events` and `probes` answer beside the life of one run."""

    @on_a_store
    async def test_many_runs_come_in_the_order_in_which_they_were_asked_for(
        self, store: Store
    ) -> None:
        """Each once, though it was named twice; those of others and those that are not there are
        passed over; more than fit into one statement are no fewer."""
        mine = [new_run(f"run_{n}") for n in range(120)]
        await insert_runs(store, *mine, new_run("run_x", project_id=OTHER))
        for ids in (
            [],
            ["run_none"],
            ["run_7", "run_x", "run_3", "run_none", "run_7"],
            [f"run_{n}" for n in reversed(range(120))],
        ):
            found = await store.read(lambda tx: runs.many(tx, PROJECT, ids))  # noqa: B023
            wanted = [name for name in dict.fromkeys(ids) if name.removeprefix("run_").isdigit()]
            assert [record.run.id for record in found] == wanted
        (record,) = await store.read(lambda tx: runs.many(tx, PROJECT, ["run_5"]))
        assert record.run == mine[5]

    @PROPERTY
    @given(
        data=st.data(),
        made=st.lists(st.tuples(st.sampled_from(S), st.integers(0, 12)), max_size=9),
        wanted=st.builds(RunFilter, statuses, moments, moments),
    )
    def test_a_page_of_a_project_has_the_runs_that_match(
        self,
        stores: Stores,
        data: st.DataObject,
        made: list[tuple[S, int]],
        wanted: RunFilter,
    ) -> None:
        """From all of its threads and no other project, filtered, in the order of insertion; a
        cursor is a run that matches."""
        every = [
            new_run(f"run_{n}", status=status, created_at_ms=moment)
            for n, (status, moment) in enumerate(made)
        ]
        matching = [run.id for run in every if matches(run, wanted)]
        page = data.draw(pages(matching))

        async def story(store: Store) -> None:
            for run in every:
                await insert_runs(store, run)
                await insert_runs(store, new_run(f"x{run.id}", status=run.status, project_id=OTHER))
            found, more = await store.scan(
                lambda tx: runs.page_of_project(tx, PROJECT, page, wanted)
            )
            assert ([record.run.id for record in found], more) == expected(matching, page)

        tell(stores, story)

    @on_a_store
    async def test_those_who_wait_for_a_thread_are_counted(self, store: Store) -> None:
        """Not the one that holds it, none that has ended, and none of another thread."""
        assert await store.read(lambda tx: holding.waiting(tx, "t1")) == 0
        await insert_runs(
            store,
            new_run("run_1", "t1"),
            new_run("run_2", "t1", waits_turn=True),
            new_run("run_3", "t1", waits_turn=True),
            new_run("run_4", "t1", S.CANCELLED, waits_turn=True),
            new_run("run_5", "t2", waits_turn=True),
        )
        assert await store.read(lambda tx: holding.waiting(tx, "t1")) == 2

    @pytest.mark.parametrize("status", [S.CANCELLED, S.IN_PROGRESS])
    def test_a_turn_is_taken_by_a_run_that_waits_for_it(self, stores: Stores, status: S) -> None:
        """One that has ended, or had its turn, cannot take it: the whole unit is undone."""

        async def story(store: Store) -> None:
            run = new_run("run_1", "t1", status, waits_turn=status.is_terminal)
            await insert_runs(store, run)

            async def work(tx: Transaction) -> None:
                await events.append(tx, event(1))
                await holding.take_turn(tx, "run_1")

            with pytest.raises(StaleWrite):
                await store.write(work)
            found = await store.read(lambda tx: runs.find(tx, "run_1"))
            assert found is not None
            assert found.run == run
            assert await store.read(lambda tx: events.newest(tx, PROJECT)) == 0

        tell(stores, story)

    @on_a_store
    async def test_the_newest_event_is_the_one_that_was_committed_last(self, store: Store) -> None:
        """Of the project alone; at position 0 where there is none."""
        assert await store.read(lambda tx: events.newest(tx, PROJECT)) == 0
        for number in (1, 2):
            await store.write(lambda tx: events.append(tx, event(number)))  # noqa: B023
            await store.write(lambda tx: events.append(tx, event(number, "run_x", OTHER)))  # noqa: B023
        for project, newest in ((PROJECT, "evt_run_1_2"), (OTHER, "evt_run_x_2")):
            found = await store.read(lambda tx: events.newest(tx, project))  # noqa: B023
            assert found == await store.read(lambda tx: events.position(tx, project, newest))  # noqa: B023

    @on_a_store
    async def test_a_probe_can_be_written_again_and_again(self, store: Store) -> None:
        """It leaves nothing behind."""
        for moment in (1, 5, 3):
            await store.write(lambda tx: probe(tx, moment))  # noqa: B023


def matches(run: Run, wanted: RunFilter) -> bool:
    """The filter once more, in words of Python."""
    first, last = wanted.created_from_ms, wanted.created_before_ms
    return (
        (not wanted.statuses or run.status in wanted.statuses)
        and (first is None or run.created_at_ms >= first)
        and (last is None or run.created_at_ms < last)
    )
