"""The feed: what was committed, in the order of the commits, each event once."""

from __future__ import annotations

import asyncio
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbell.errors import Conflict, UnknownCursor
from runbell.runs import EVENT_TYPES
from runbell.storage import events
from runbell.storage.store import Store, Transaction, Work
from runbell.testing.storage_contract.stories import (
    OTHER,
    PROJECT,
    PROPERTY,
    Stores,
    event,
    on_a_store,
    tell,
)

__all__ = ["FeedContract"]

Rows = tuple[list[events.FeedRow], bool]


async def read(
    store: Store,
    after: str | None = None,
    types: frozenset[str] | None = None,
    limit: int = 100,
    project: str = PROJECT,
) -> Rows:
    return await store.scan(
        lambda tx: events.page(tx, project, after=after, types=types, limit=limit)
    )


def appending(run_id: str, *numbers: int) -> Work[None]:
    async def work(tx: Transaction) -> None:
        for number in numbers:
            await events.append(tx, event(number, run_id))

    return work


class FeedContract:
    """Every function of `events`."""

    @PROPERTY
    @given(
        bodies=st.lists(st.binary(max_size=300), max_size=12),
        limit=st.integers(1, 5),
        data=st.data(),
    )
    def test_the_feed_gives_the_bytes_that_were_appended(
        self, stores: Stores, bodies: list[bytes], limit: int, data: st.DataObject
    ) -> None:
        """To the byte, in order, page by page behind any event; filtered where types are named."""
        some_types = st.sets(st.sampled_from(EVENT_TYPES[:4]), min_size=1)
        types = data.draw(st.none() | some_types.map(frozenset))
        kinds = [data.draw(st.sampled_from(EVENT_TYPES[:4])) for _ in bodies]
        start = data.draw(st.integers(0, len(bodies)))
        rows = [
            (f"evt_run_1_{n}", kind, body)
            for n, (kind, body) in enumerate(zip(kinds, bodies, strict=True), 1)
        ]
        wanted = [row for row in rows[start:] if types is None or row[1] in types]

        async def story(store: Store) -> None:
            async def append(tx: Transaction) -> None:
                for number, (body, kind) in enumerate(zip(bodies, kinds, strict=True), 1):
                    await events.append(tx, event(number, body=body, type=kind))

            await store.write(append)
            seen: list[events.FeedRow] = []
            more, after = True, rows[start - 1][0] if start else None
            while more:
                found, more = await read(store, after, types, limit)
                assert len(found) == limit or not more
                seen += found
                assert len(seen) <= len(wanted), "the reader is never done"
                after = found[-1][0] if found else after
            assert seen == wanted

        tell(stores, story)

    @on_a_store
    async def test_all_types_at_once_can_be_asked_for(self, store: Store) -> None:
        """There is room for every type that there is."""

        async def work(tx: Transaction) -> None:
            for number, kind in enumerate(EVENT_TYPES, 1):
                await events.append(tx, event(number, type=kind))

        await store.write(work)
        found, more = await read(store, types=frozenset(EVENT_TYPES))
        assert len(found) == len(EVENT_TYPES)
        assert not more

    @on_a_store
    async def test_a_project_sees_its_own_events(self, store: Store) -> None:
        """And another's event is no cursor in it."""
        await store.write(appending("run_1", 1, 2))
        await store.write(lambda tx: events.append(tx, event(1, "run_2", OTHER)))
        assert [row[0] for row in (await read(store))[0]] == ["evt_run_1_1", "evt_run_1_2"]
        assert [row[0] for row in (await read(store, project=OTHER))[0]] == ["evt_run_2_1"]
        for cursor in ("evt_run_2_1", "evt_none"):
            with pytest.raises(UnknownCursor):
                await read(store, after=cursor)

    @on_a_store
    async def test_a_run_has_one_event_of_each_number(self, store: Store) -> None:
        """The database itself refuses a second one, and a second use of an id."""
        await store.write(appending("run_1", 1))
        with pytest.raises(Conflict):
            await store.write(lambda tx: events.append(tx, event(1, id="evt_another")))
        with pytest.raises(Conflict):
            await store.write(lambda tx: events.append(tx, event(2, id="evt_run_1_1")))
        assert len((await read(store))[0]) == 1

    @on_a_store
    async def test_a_reader_of_the_feed_misses_nothing(self, store: Store) -> None:
        """Whoever reads on from the last event that he saw, while others write, sees each event
        once: nothing that commits later appears in front of it. Units that fail leave no trace.

        A driver with one writer also keeps the order in which units were committed; where there
        are several, that order is nobody's, but what comes after another's end comes behind it."""
        rng = random.Random(0)
        committed: list[str] = []
        seen: list[str] = []
        written = asyncio.Event()

        async def append(run_id: str) -> None:
            for number in range(1, 6):
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
                fails = rng.random() < 0.2

                async def work(tx: Transaction, number: int = number, fails: bool = fails) -> None:
                    one = event(number, run_id)
                    await events.append(tx, one)
                    tx.after_commit(lambda: committed.append(one.id))
                    if fails:
                        raise ValueError

                try:
                    await store.write(work)
                except ValueError:
                    await store.write(lambda tx, work=work: work(tx, fails=False))  # type: ignore[misc]

        async def follow() -> None:
            while not (written.is_set() and len(seen) == len(committed)):
                assert len(seen) <= 25 * 5, "the reader is never done"
                found, _ = await read(store, after=seen[-1] if seen else None, limit=7)
                seen.extend(event_id for event_id, _, _ in found)

        following = asyncio.create_task(follow())
        await asyncio.gather(*(append(f"run_{n}") for n in range(25)))
        written.set()
        await following
        assert len(committed) == 25 * 5
        assert sorted(seen) == sorted(committed)
        everything, more = await read(store, limit=1_000)
        assert [event_id for event_id, _, _ in everything] == seen
        assert not more
        for run in range(25):
            own = [event_id for event_id in seen if event_id.startswith(f"evt_run_{run}_")]
            assert own == [f"evt_run_{run}_{number}" for number in range(1, 6)]
