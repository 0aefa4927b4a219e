"""Runs: their rows, and what is due, in the order in which it is."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import bindparam

from runbell.errors import Conflict
from runbell.runs import Run, RunStatus
from runbell.storage import closing, deadlines, holding, runs, schema, workable
from runbell.storage.records import Message, RunConfig
from runbell.storage.runs import RunRecord
from runbell.storage.statements import Statement, update_row
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract import strategies
from runbell.testing.storage_contract.stories import (
    OTHER,
    PROJECT,
    PROPERTY,
    Stores,
    on_a_store,
    tell,
)

__all__ = ["RunContract", "insert_runs", "new_run"]

S = RunStatus
CONFIG = RunConfig(model="m")
ENDED = [status for status in S if status.is_terminal]
LIVE = [status for status in S if not status.is_terminal]

BREAK = Statement(
    "runs.break",
    "A run that nobody can read any more.",
    update_row(schema.runs, "config").where(schema.runs.c.id == bindparam("key")),
)


def new_run(name: str, thread: str = "", status: S = S.QUEUED, **fields: object) -> Run:
    """A run, on a thread of its own where none is named."""
    run = Run(
        id=name,
        project_id=PROJECT,
        thread_id=thread or f"thread of {name}",
        assistant_id="asst_1",
        status=status,
        created_at_ms=1_000,
        expires_at_ms=9_000,
        updated_at_ms=1_000,
    )
    return dataclasses.replace(run, **fields)  # type: ignore[arg-type]


async def insert_runs(store: Store, *new: Run, config: RunConfig = CONFIG) -> None:
    """Store these runs, which were all asked to do the same."""

    async def work(tx: Transaction) -> None:
        for run in new:
            await runs.insert(tx, RunRecord(run, config))

    await store.write(work)


class RunContract:
    """Every function of `runs` but the guards on their changes."""

    @PROPERTY
    @given(
        run=strategies.runs(),
        config=strategies.run_configs,
        changed=strategies.runs(),
        metadata=strategies.metadata,
    )
    def test_runs_come_back_as_they_were(
        self,
        stores: Stores,
        run: Run,
        config: RunConfig,
        changed: Run,
        metadata: dict[str, str],
    ) -> None:
        """Every field survives the insert and the change; what never changes is not changed."""

        async def story(store: Store) -> None:
            await store.write(lambda tx: runs.insert(tx, RunRecord(run, config)))
            found = await store.read(lambda tx: runs.get(tx, PROJECT, run.thread_id, run.id))
            assert found == RunRecord(run, config)
            assert await store.read(lambda tx: runs.find(tx, run.id)) == found
            constant = ("id", "thread_id", "assistant_id", "created_at_ms", "expires_at_ms")
            kept = {name: getattr(run, name) for name in (*constant, "metadata")}
            after = dataclasses.replace(changed, **kept)
            await store.write(lambda tx: runs.change(tx, run, after))
            assert await store.read(lambda tx: runs.find(tx, run.id)) == RunRecord(after, config)
            named = dataclasses.replace(after, metadata=metadata)
            attempt = dataclasses.replace(named, status=S.FAILED, sequence=1)
            await store.write(lambda tx: runs.set_metadata(tx, attempt))
            assert await store.read(lambda tx: runs.find(tx, run.id)) == RunRecord(named, config)

        tell(stores, story)

    @on_a_store
    async def test_a_run_is_reached_through_its_thread_and_its_project(self, store: Store) -> None:
        """By a client; a worker needs the id alone."""
        run = new_run("run_1", "t1")
        await insert_runs(store, run)

        async def look(tx: Transaction) -> list[bool]:
            ways = ((PROJECT, "t1"), (OTHER, "t1"), (PROJECT, "t2"))
            return [await runs.get(tx, *way, "run_1") is not None for way in ways]

        assert await store.read(look) == [True, False, False]
        foreign = dataclasses.replace(run, project_id=OTHER, metadata={"x": "y"})
        await store.write(lambda tx: runs.set_metadata(tx, foreign))
        assert await store.read(lambda tx: runs.find(tx, "run_1")) == RunRecord(run, CONFIG)
        assert await store.read(lambda tx: runs.find(tx, "run_2")) is None

    @on_a_store
    async def test_the_active_run_is_the_one_that_holds_its_thread(self, store: Store) -> None:
        """Neither one that has ended nor one that waits; whatever the live status."""
        for number, status in enumerate(LIVE):
            thread = f"t{number}"
            await insert_runs(
                store,
                *(new_run(f"{thread} {ended}", thread, ended) for ended in ENDED),
                new_run(f"{thread} waits", thread, waits_turn=True),
                new_run(f"{thread} active", thread, status),
            )
            found = await store.read(lambda tx: holding.active(tx, thread))  # noqa: B023
            assert found == f"{thread} active"
        assert await store.read(lambda tx: holding.active(tx, "no thread")) is None

    @on_a_store
    async def test_waiting_runs_have_their_turn_in_the_order_of_their_creation(
        self, store: Store
    ) -> None:
        """The longest waiting one first; those that ended meanwhile are passed over."""
        waiting = [new_run(f"run_{n}", "t1", waits_turn=True) for n in range(3)]
        await insert_runs(
            store,
            new_run("run_a", "t1", S.IN_PROGRESS),
            new_run("run_x", "t1", S.CANCELLED, waits_turn=True),
            *waiting,
            new_run("run_b", "t2", waits_turn=True),
        )
        found = await store.read(lambda tx: holding.next_waiting(tx, "t1"))
        assert found is not None
        assert found.run == waiting[0]
        assert await store.read(lambda tx: holding.next_waiting(tx, "t3")) is None
        live = await store.read(lambda tx: holding.live(tx, "t1"))
        assert [record.run.id for record in live] == ["run_0", "run_1", "run_2", "run_a"]

    @on_a_store
    async def test_a_waiting_run_that_is_unreadable_is_passed_over(self, store: Store) -> None:
        """Whoever ends in front of it can do so, and the next one that waits has its turn."""
        await insert_runs(store, new_run("run_0", "t1"))
        await insert_runs(store, *(new_run(f"run_{n}", "t1", waits_turn=True) for n in (1, 2, 3)))

        async def following() -> list[str]:
            """Who is next, as an end asks and as asked alone."""
            end = await store.read(lambda tx: closing.look(tx, PROJECT, "t1", 1_000))
            alone = await store.read(lambda tx: holding.next_waiting(tx, "t1"))
            return [record.run.id for record in (end.waiting, alone) if record is not None]

        seen = []
        for number in (1, 2, 3):
            seen.append(await following())
            broken = {"key": f"run_{number}", "config": "{"}
            await store.write(lambda tx, broken=broken: tx.execute(BREAK, broken))  # type: ignore[misc]
        assert seen == [[f"run_{number}"] * 2 for number in (1, 2, 3)]
        assert await following() == []

    @on_a_store
    async def test_a_run_that_takes_its_turn_brings_its_messages_once(self, store: Store) -> None:
        """They are kept with it until then; afterwards it waits no more and has none."""
        pending = tuple(Message(PROJECT, "t1", f"msg_{n}", 1, "user", ()) for n in range(2))
        run = new_run("run_1", "t1", waits_turn=True)
        await store.write(lambda tx: runs.insert(tx, RunRecord(run, CONFIG), pending))
        assert await store.read(lambda tx: holding.pending_messages(tx, "run_1")) == pending
        assert await store.read(lambda tx: holding.pending_messages(tx, "run_2")) == ()
        await store.write(lambda tx: holding.take_turn(tx, "run_1"))
        assert await store.read(lambda tx: holding.pending_messages(tx, "run_1")) == ()
        taken = await store.read(lambda tx: runs.find(tx, "run_1"))
        assert taken is not None
        assert taken.run == dataclasses.replace(run, waits_turn=False)
        assert await store.read(lambda tx: holding.active(tx, "t1")) == "run_1"

    @on_a_store
    async def test_ready_are_the_queued_runs_that_do_not_wait(self, store: Store) -> None:
        """The oldest first, and no more than were asked for."""
        await insert_runs(store, *(new_run(f"run_{s}", status=s) for s in S if s is not S.QUEUED))
        await insert_runs(store, *(new_run(f"run_{n}") for n in (3, 1, 2)))
        await insert_runs(store, new_run("run_waits", waits_turn=True))
        found = await store.scan(lambda tx: workable.ready(tx, 10))
        assert [(run.id, run.model) for run in found] == [
            (f"run_{number}", CONFIG.model) for number in (3, 1, 2)
        ]
        assert await store.scan(lambda tx: workable.ready(tx, 2)) == found[:2]
        behind = found[0].position
        assert await store.scan(lambda tx: workable.ready(tx, 2, behind)) == found[1:]

    @on_a_store
    async def test_in_progress_are_the_runs_that_a_worker_holds_or_held(self, store: Store) -> None:
        """The oldest first, and no more than were asked for."""
        others = (s for s in S if s is not S.IN_PROGRESS)
        await insert_runs(store, *(new_run(f"run_{s}", status=s) for s in others))
        await insert_runs(store, *(new_run(f"run_{n}", status=S.IN_PROGRESS) for n in (3, 1, 2)))
        found = await store.scan(lambda tx: workable.in_progress(tx, 10))
        assert [(run.id, run.model) for run in found] == [
            (f"run_{number}", CONFIG.model) for number in (3, 1, 2)
        ]
        assert await store.scan(lambda tx: workable.in_progress(tx, 2)) == found[:2]
        behind = found[0].position
        assert await store.scan(lambda tx: workable.in_progress(tx, 2, behind)) == found[1:]

    @on_a_store
    async def test_every_live_run_expires_the_nearest_first(self, store: Store) -> None:
        """Also one that waits its turn; ties in the order of creation; ended runs never."""
        await insert_runs(store, *(new_run(f"ended {s}", status=s) for s in ENDED))
        await insert_runs(
            store,
            *(new_run(s, status=s, expires_at_ms=5_000 - n) for n, s in enumerate(LIVE)),
            new_run("waits", "t1", waits_turn=True, expires_at_ms=4_000),
            new_run("tie", expires_at_ms=5_000),
        )
        nearest_first = [("waits", 4_000)]
        nearest_first += [(str(s), 5_000 - n) for n, s in reversed(list(enumerate(LIVE)))]
        nearest_first.append(("tie", 5_000))
        assert await store.read(lambda tx: deadlines.expiring(tx, 10)) == nearest_first
        assert await store.read(lambda tx: deadlines.expiring(tx, 2)) == nearest_first[:2]

    @on_a_store
    async def test_cancelling_runs_are_known_with_the_time_of_their_cancel(
        self, store: Store
    ) -> None:
        """So that each can be ended once its worker had time enough."""
        await insert_runs(store, *(new_run(f"run_{s}", status=s) for s in S if s != S.CANCELLING))
        await insert_runs(
            store, *(new_run(f"run_{n}", status=S.CANCELLING, cancelling_at_ms=n) for n in (3, 1))
        )
        assert await store.read(lambda tx: deadlines.cancelling_since(tx, 9)) == [
            ("run_1", 1),
            ("run_3", 3),
        ]
        assert len(await store.read(lambda tx: deadlines.cancelling_since(tx, 1))) == 1

    @PROPERTY
    @given(held=st.sampled_from(S), new=st.sampled_from(S), waits=st.booleans())
    def test_a_thread_has_one_active_run(
        self, stores: Stores, held: S, new: S, waits: bool
    ) -> None:
        """The database itself refuses a second one; any number may wait or have ended."""

        async def story(store: Store) -> None:
            await insert_runs(store, new_run("run_1", "t1", held))
            await insert_runs(store, new_run("run_2", "t1", S.QUEUED, waits_turn=True))
            adding = insert_runs(store, new_run("run_3", "t1", new, waits_turn=waits))
            if held.is_terminal or new.is_terminal or waits:
                await adding
                return
            with pytest.raises(Conflict):
                await adding
            assert await store.read(lambda tx: runs.find(tx, "run_3")) is None

        tell(stores, story)
