"""Pages: every list is cut in the same way, by position, whatever its stamps say."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbell.errors import UnknownCursor
from runbell.runs import Run, RunStatus
from runbell.storage import assistants, messages, runs, steps
from runbell.storage.paging import Page
from runbell.storage.records import Assistant, AssistantConfig, Message, RunConfig, RunStep
from runbell.storage.runs import RunRecord
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract.stories import (
    OTHER,
    PROJECT,
    PROPERTY,
    Stores,
    on_a_store,
    tell,
)

__all__ = ["PageContract"]


@dataclass(frozen=True)
class Listed:
    """One kind of list: how a row of it is made, and how a page of it is read."""

    insert: Callable[[Transaction, str, str, int], Awaitable[None]]
    page: Callable[[Transaction, str, Page], Awaitable[tuple[list[str], bool]]]


# `owner` of a row: "mine" is the list that is read, the others are what must not be in it.


async def _insert_assistant(tx: Transaction, owner: str, key: str, stamp: int) -> None:
    project = PROJECT if owner == "mine" else OTHER
    await assistants.insert(tx, Assistant(project, key, stamp, AssistantConfig(model="m")))


async def _page_of_assistants(tx: Transaction, owner: str, page: Page) -> tuple[list[str], bool]:
    found, more = await assistants.page(tx, PROJECT if owner == "mine" else OTHER, page)
    return [assistant.id for assistant in found], more


async def _insert_message(tx: Transaction, owner: str, key: str, stamp: int) -> None:
    await messages.insert(tx, Message(PROJECT, owner, key, stamp, "user", (), run_id="run_1"))


async def _page_of_messages(tx: Transaction, owner: str, page: Page) -> tuple[list[str], bool]:
    found, more = await messages.page(tx, PROJECT, owner, page)
    return [message.id for message in found], more


async def _insert_message_of_run(tx: Transaction, owner: str, key: str, stamp: int) -> None:
    row = Message(PROJECT, "t1", key, stamp, "assistant", (), run_id=f"run_{owner}")
    await messages.insert(tx, row)


async def _page_of_run(tx: Transaction, owner: str, page: Page) -> tuple[list[str], bool]:
    found, more = await messages.page(tx, PROJECT, "t1", page, run_id=f"run_{owner}")
    return [message.id for message in found], more


async def _insert_run(tx: Transaction, owner: str, key: str, stamp: int) -> None:
    run = Run(key, PROJECT, owner, "asst_1", RunStatus.FAILED, stamp, stamp, stamp)
    await runs.insert(tx, RunRecord(run, RunConfig(model="m")))


async def _page_of_runs(tx: Transaction, owner: str, page: Page) -> tuple[list[str], bool]:
    found, more = await runs.page(tx, PROJECT, owner, page)
    return [record.run.id for record in found], more


async def _insert_step(tx: Transaction, owner: str, key: str, stamp: int) -> None:
    await steps.insert(tx, RunStep(PROJECT, "t1", owner, "asst_1", key, stamp, "completed"))


async def _page_of_steps(tx: Transaction, owner: str, page: Page) -> tuple[list[str], bool]:
    found, more = await steps.page(tx, PROJECT, owner, page)
    return [step.id for step in found], more


LISTS = {
    "assistants": Listed(_insert_assistant, _page_of_assistants),
    "messages": Listed(_insert_message, _page_of_messages),
    "messages of a run": Listed(_insert_message_of_run, _page_of_run),
    "runs": Listed(_insert_run, _page_of_runs),
    "steps": Listed(_insert_step, _page_of_steps),
}

every_list = pytest.mark.parametrize("kind", LISTS)


def expected(keys: Sequence[str], page: Page) -> tuple[list[str], bool]:
    """The same page of a list in memory; `keys` in the order of insertion."""
    left = list(keys) if page.order == "asc" else list(reversed(keys))
    if page.after is not None:
        behind = left.index(page.after) + 1
        after, left = left[:behind], left[behind:]
        if page.before in after:
            return [], False
    if page.before is not None:
        left = left[: left.index(page.before)]
    more = len(left) > page.limit
    if page.before is not None and page.after is None:
        return left[-page.limit :], more
    return left[: page.limit], more


@st.composite
def pages(draw: st.DrawFn, keys: Sequence[str]) -> Page:
    """Any page of a list with these rows."""
    cursors = st.none() | st.sampled_from(keys) if keys else st.none()
    return Page(
        limit=draw(st.integers(1, len(keys) + 2)),
        order=draw(st.sampled_from(["asc", "desc"])),
        after=draw(cursors),
        before=draw(cursors),
    )


class PageContract:
    """What `Page` means, for each of the lists."""

    @every_list
    @PROPERTY
    @given(data=st.data(), stamps=st.lists(st.integers(0, 2), max_size=9))
    def test_a_page_is_a_part_of_the_list(
        self, stores: Stores, kind: str, data: st.DataObject, stamps: list[int]
    ) -> None:
        """For every cursor in both directions and each limit; ties and stamps that run backwards
        change nothing, and rows of other owners are never seen."""
        listed = LISTS[kind]
        keys = [f"row_{number}" for number in range(len(stamps))]
        wanted = data.draw(st.lists(pages(keys), min_size=1, max_size=8))

        async def story(store: Store) -> None:
            async def insert(tx: Transaction) -> None:
                for key, stamp in zip(keys, stamps, strict=True):
                    await listed.insert(tx, "mine", key, stamp)
                    await listed.insert(tx, "other", f"other {key}", stamp)

            await store.write(insert)
            for page in wanted:
                found = await store.scan(lambda tx: listed.page(tx, "mine", page))  # noqa: B023
                assert found == expected(keys, page), page

        tell(stores, story)

    @every_list
    @pytest.mark.parametrize("order", ["asc", "desc"])
    def test_pages_behind_each_other_are_the_whole_list(
        self, stores: Stores, kind: str, order: Any
    ) -> None:
        """Each row once, also where rows come or go while somebody reads."""
        listed = LISTS[kind]

        async def story(store: Store) -> None:
            async def fill(tx: Transaction) -> None:
                for number in range(10):
                    await listed.insert(tx, "mine", f"row_{number}", 0)

            await store.write(fill)
            seen: list[str] = []
            more = True
            while more:
                page = Page(limit=3, order=order, after=seen[-1] if seen else None)
                found, more = await store.scan(lambda tx: listed.page(tx, "mine", page))  # noqa: B023
                seen += found
                late = f"late_{len(seen)}"
                await store.write(lambda tx: listed.insert(tx, "mine", late, 0))  # noqa: B023
                assert len(seen) < 40, "the reader is never done"
                if order == "asc" and len(seen) >= 10:
                    break
            rows = [f"row_{number}" for number in range(10)]
            assert seen[:10] == (rows if order == "asc" else rows[::-1])

        tell(stores, story)

    @every_list
    def test_a_cursor_of_another_list_is_unknown(self, stores: Stores, kind: str) -> None:
        """Also one that exists, elsewhere: a cursor tells nothing about what others have."""
        listed = LISTS[kind]

        async def story(store: Store) -> None:
            await store.write(lambda tx: listed.insert(tx, "mine", "row_1", 0))
            await store.write(lambda tx: listed.insert(tx, "other", "row_2", 0))
            for page in (Page(after="row_2"), Page(before="row_2"), Page(after="row_none")):
                with pytest.raises(UnknownCursor) as caught:
                    await store.scan(lambda tx: listed.page(tx, "mine", page))  # noqa: B023
                assert caught.value.cursor in (page.after, page.before)

        tell(stores, story)

    @on_a_store
    async def test_a_list_without_rows_has_an_empty_page(self, store: Store) -> None:
        """And it does not go on."""
        for listed in LISTS.values():
            found = await store.scan(lambda tx: listed.page(tx, "mine", Page()))  # noqa: B023
            assert found == ([], False)
