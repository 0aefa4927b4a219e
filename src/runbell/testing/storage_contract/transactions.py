"""Transactions: all of a unit of work or nothing, durable before anybody hears of it."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable

import pytest

from runbell.errors import Conflict, StorageUnavailable
from runbell.storage import holding, runs, threads
from runbell.storage.records import Thread
from runbell.storage.store import Store, Transaction, Work
from runbell.testing.storage_contract.runs import insert_runs, new_run
from runbell.testing.storage_contract.stories import PROJECT, on_a_store

__all__ = ["TransactionContract"]


def thread(name: str, **fields: object) -> Thread:
    return Thread(PROJECT, name, 1, **fields)  # type: ignore[arg-type]


def adding(*names: str, then: Callable[[Transaction], None] | None = None) -> Work[str]:
    """A unit that adds threads, and then does something else with the transaction."""

    async def work(tx: Transaction) -> str:
        for name in names:
            await threads.insert(tx, thread(name))
        if then is not None:
            then(tx)
        return names[-1]

    return work


async def there(store: Store, *names: str) -> list[bool]:
    """Which of these threads have been stored."""

    async def look(tx: Transaction) -> list[bool]:
        return [await threads.get(tx, PROJECT, name) is not None for name in names]

    return await store.read(look)


class Refused(Exception):
    """What a unit raises that thinks better of it."""


def refuse(tx: Transaction) -> None:
    raise Refused


class TransactionContract:
    """What `Store` and `Transaction` promise, whatever is stored."""

    @on_a_store
    async def test_a_unit_gives_its_result_when_it_is_durable(self, store: Store) -> None:
        """What was written can be read as soon as `write` has returned, by `read` and `scan`."""
        assert await store.write(adding("t1", "t2")) == "t2"
        assert await there(store, "t1", "t2", "t3") == [True, True, False]
        found = await store.scan(lambda tx: threads.get(tx, PROJECT, "t2"))
        assert found == thread("t2")

    @on_a_store
    async def test_a_unit_sees_its_own_writes(self, store: Store) -> None:
        """Also before they are committed."""

        async def work(tx: Transaction) -> Thread | None:
            await threads.insert(tx, thread("t1"))
            return await threads.get(tx, PROJECT, "t1")

        assert await store.write(work) == thread("t1")

    @on_a_store
    async def test_a_unit_sees_what_it_has_written_for_later(self, store: Store) -> None:
        """In the order in which it was written, also where one row is written twice."""

        async def work(tx: Transaction) -> list[Thread | None]:
            await threads.begin(tx, thread("t1"))
            await threads.begin(tx, thread("t2"))
            await threads.update(tx, thread("t1", metadata={"a": "b"}))
            found = [await threads.get(tx, PROJECT, name) for name in ("t1", "t2")]
            await threads.begin(tx, thread("t3"))
            return found

        assert await store.write(work) == [thread("t1", metadata={"a": "b"}), thread("t2")]
        assert await there(store, "t1", "t2", "t3") == [True, True, True]

    @on_a_store
    async def test_what_cannot_be_written_later_fails_the_unit(self, store: Store) -> None:
        """Whatever was written with it, or is read in between."""
        await store.write(adding("taken"))

        async def work(tx: Transaction) -> None:
            await threads.begin(tx, thread("new"))
            await threads.begin(tx, thread("taken"))

        with pytest.raises(Conflict):
            await store.write(work)
        assert await there(store, "new") == [False]

    @on_a_store
    async def test_several_rows_are_found_at_once(self, store: Store) -> None:
        """Each where it belongs, and None where there is none."""
        await store.write(adding("t1", "t2"))

        async def look(tx: Transaction) -> list[str | None]:
            wanted = [(threads.GET, {"project": PROJECT, "key": key}) for key in ("t2", "t0", "t1")]
            return [None if row is None else row[0] for row in await tx.fetch_first(*wanted)]

        assert await store.read(look) == ["t2", None, "t1"]
        assert await store.write(look) == ["t2", None, "t1"]

    @on_a_store
    async def test_several_rows_and_one_are_found_at_once(self, store: Store) -> None:
        """Also together with what the unit has written; each may find none."""
        await insert_runs(store, *(new_run(f"run_{n}", "t1", waits_turn=n > 0) for n in range(2)))

        async def look(tx: Transaction, of: str, behind: str) -> tuple[list[str], str | None]:
            await threads.begin(tx, thread(f"{of} {behind}"))
            live, waiting = await tx.fetch_both(
                (holding.LIVE_OF_THREAD, {"thread": of}), (holding.NEXT_WAITING, {"thread": behind})
            )
            ids = [runs.record_of(row).run.id for row in live]
            return ids, runs.record_of(waiting).run.id if waiting is not None else None

        for of, behind in itertools.product(("t1", "t0"), repeat=2):
            live, waiting = await store.write(lambda tx: look(tx, of, behind))  # noqa: B023
            assert live == (["run_1", "run_0"] if of == "t1" else [])
            assert waiting == ("run_1" if behind == "t1" else None)
        assert await there(store, "t1 t1", "t0 t0") == [True, True]

    @on_a_store
    async def test_a_unit_that_fails_leaves_nothing(self, store: Store) -> None:
        """Its caller gets its own error; whatever it had written is gone, and the store goes on."""
        with pytest.raises(Refused):
            await store.write(adding("t1", "t2", then=refuse))
        assert await there(store, "t1", "t2") == [False, False]
        await store.write(adding("t1"))
        assert await there(store, "t1") == [True]

    @on_a_store
    async def test_units_that_fail_harm_no_others(self, store: Store) -> None:
        """Of many at the same time, exactly those that failed leave nothing."""
        works = [adding(f"t{n}", then=refuse if n % 3 == 0 else None) for n in range(60)]
        results = await asyncio.gather(*map(store.write, works), return_exceptions=True)
        for number, result in enumerate(results):
            failed = number % 3 == 0
            assert isinstance(result, Refused) if failed else result == f"t{number}"
            assert await there(store, f"t{number}") == [not failed]

    @on_a_store
    async def test_a_conflict_within_a_unit_is_not_its_end(self, store: Store) -> None:
        """A unit can catch it and do something else; what it wrote before is kept."""
        await store.write(adding("taken"))

        async def work(tx: Transaction) -> str:
            await threads.insert(tx, thread("before"))
            try:
                await threads.insert(tx, thread("taken"))
            except Conflict:
                await threads.insert(tx, thread("instead"))
                return "caught"
            return "not refused"

        assert await store.write(work) == "caught"
        assert await there(store, "before", "instead") == [True, True]

    @on_a_store
    async def test_a_conflict_that_nobody_catches_fails_the_unit(self, store: Store) -> None:
        """It is the unit's error like any other."""
        await store.write(adding("taken"))
        with pytest.raises(Conflict):
            await store.write(adding("new", "taken"))
        assert await there(store, "new") == [False]

    @on_a_store
    async def test_units_do_not_overtake_each_other_on_one_row(self, store: Store) -> None:
        """Reading and writing within a unit is one step: of 50 increments none is lost."""
        await store.write(lambda tx: threads.insert(tx, thread("t1", metadata={"n": "0"})))

        async def increment(tx: Transaction) -> None:
            found = await threads.get(tx, PROJECT, "t1")
            assert found is not None
            number = int(found.metadata["n"]) + 1
            await threads.update(tx, thread("t1", metadata={"n": str(number)}))

        await asyncio.gather(*(store.write(increment) for _ in range(50)))
        found = await store.read(lambda tx: threads.get(tx, PROJECT, "t1"))
        assert found is not None
        assert found.metadata == {"n": "50"}

    @on_a_store
    async def test_what_is_to_follow_a_commit_follows_it(self, store: Store) -> None:
        """On the event loop's own thread, once, in order, when the change can be read, and before
        the writer's own caller goes on."""
        happened: list[object] = []

        def note(name: str) -> Callable[[], None]:
            return lambda: happened.append((name, threading.current_thread()))

        def then(tx: Transaction) -> None:
            tx.after_commit(note("first"))
            tx.after_commit(lambda: happened.append(asyncio.create_task(there(store, "t1"))))
            tx.after_commit(note("last"))

        await store.write(adding("t1", then=then))
        here = threading.current_thread()
        first, looking, last = happened
        assert (first, last) == (("first", here), ("last", here))
        assert isinstance(looking, asyncio.Task)
        assert await looking == [True]

    @on_a_store
    async def test_nothing_follows_a_unit_that_was_rolled_back(self, store: Store) -> None:
        """Not at once, nor together with those that were committed at the same time."""
        happened: list[int] = []

        def unit(number: int) -> Work[str]:
            def then(tx: Transaction) -> None:
                tx.after_commit(lambda: happened.append(number))
                if number % 2:
                    raise Refused

            return adding(f"t{number}", then=then)

        works = [unit(number) for number in range(20)]
        await asyncio.gather(*map(store.write, works), return_exceptions=True)
        assert sorted(happened) == list(range(0, 20, 2))
        with pytest.raises(Refused):
            await store.write(unit(21))
        assert 21 not in happened

    @on_a_store
    async def test_what_follows_a_commit_cannot_undo_it(self, store: Store) -> None:
        """The change is made: a callback that fails is logged, the others and the caller go on."""
        happened: list[str] = []

        def fail() -> None:
            raise Refused

        def then(tx: Transaction) -> None:
            tx.after_commit(fail)
            tx.after_commit(lambda: happened.append("still"))

        assert await store.write(adding("t1", then=then)) == "t1"
        assert happened == ["still"]

    @on_a_store
    async def test_a_caller_that_is_cancelled_leaves_a_whole_transaction(
        self, store: Store
    ) -> None:
        """All of it or nothing, and the store goes on."""
        writing = [asyncio.create_task(store.write(adding(f"a{n}", f"b{n}"))) for n in range(20)]
        await asyncio.sleep(0)
        for task in writing[::2]:
            task.cancel()
        results = await asyncio.gather(*writing, return_exceptions=True)
        await store.write(adding("later"))
        for number, result in enumerate(results):
            both = await there(store, f"a{number}", f"b{number}")
            assert both in ([True, True], [False, False])
            if not isinstance(result, BaseException):
                assert both == [True, True]

    @on_a_store
    async def test_a_closed_store_says_so(self, store: Store) -> None:
        """With the error that callers know how to handle; closing twice is harmless."""
        await store.close()
        await store.close()
        for use in (store.write, store.read, store.scan):
            with pytest.raises(StorageUnavailable):
                await use(adding("t1"))

    @on_a_store
    async def test_closing_finishes_what_was_begun(self, store: Store) -> None:
        """What had been asked for before is done, and its callers hear so."""
        writing = [asyncio.create_task(store.write(adding(f"t{n}"))) for n in range(30)]
        await asyncio.sleep(0)
        await store.close()
        assert await asyncio.gather(*writing) == [f"t{n}" for n in range(30)]
