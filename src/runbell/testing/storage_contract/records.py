"""Records: what goes in comes out, to its own project alone, and only what is named is changed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runbell.errors import Conflict
from runbell.runs import Run, RunStatus
from runbell.storage import assistants, events, messages, projects, runs, steps, threads
from runbell.storage.records import (
    ApiKey,
    Assistant,
    AssistantConfig,
    Message,
    Project,
    RunConfig,
    RunStep,
    TextPart,
    TextValue,
    Thread,
)
from runbell.storage.runs import RunRecord
from runbell.storage.store import Store, Transaction
from runbell.testing.storage_contract import strategies
from runbell.testing.storage_contract.stories import (
    OTHER,
    PROJECT,
    PROPERTY,
    Stores,
    event,
    on_a_store,
    tell,
)

__all__ = ["RecordContract"]

replace = msgspec.structs.replace


def unique(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Some records, each with an id of its own."""
    return st.lists(strategy, min_size=1, max_size=6, unique_by=lambda record: record.id)


def key(name: str, project: str = PROJECT, created_at_ms: int = 5) -> ApiKey:
    return ApiKey(f"key_{name}", project, f"digest {name}", "sk-r***zz", "keys", created_at_ms)


class RecordContract:
    """Every function of `projects`, `assistants`, `threads`, `messages` and `steps`."""

    # Projects and their keys.

    @on_a_store
    async def test_projects_have_names(self, store: Store) -> None:
        """A project is found by its name, which no two can have."""
        assert await store.read(lambda tx: projects.named(tx, "a")) == Project(PROJECT, "a", 1)
        assert await store.read(lambda tx: projects.named(tx, "A")) is None
        found = await store.read(projects.all_projects)
        assert sorted(project.id for project in found) == [PROJECT, OTHER]
        with pytest.raises(Conflict):
            await store.write(lambda tx: projects.insert(tx, Project("proj_c", "a", 3)))

    @on_a_store
    async def test_keys_are_found_by_their_digest_until_they_are_revoked(
        self, store: Store
    ) -> None:
        """From the commit of its revocation on a key opens nothing; when that was is kept."""
        await store.write(lambda tx: projects.insert_key(tx, key("one")))
        await store.write(lambda tx: projects.insert_key(tx, key("two", OTHER, 4)))
        assert await store.read(lambda tx: projects.find_key(tx, "digest one")) == key("one")
        assert await store.read(lambda tx: projects.find_key(tx, "digest")) is None
        revoked = replace(key("one"), revoked_at_ms=77)
        assert await store.write(lambda tx: projects.revoke_key(tx, "key_one", 77))
        assert not await store.write(lambda tx: projects.revoke_key(tx, "key_one", 88))
        assert not await store.write(lambda tx: projects.revoke_key(tx, "key_none", 88))
        assert await store.read(lambda tx: projects.find_key(tx, "digest one")) is None
        assert await store.read(projects.list_keys) == [key("two", OTHER, 4), revoked]

    @on_a_store
    async def test_no_two_keys_have_one_digest(self, store: Store) -> None:
        """A digest opens one project."""
        await store.write(lambda tx: projects.insert_key(tx, key("one")))
        with pytest.raises(Conflict):
            await store.write(
                lambda tx: projects.insert_key(tx, replace(key("one", OTHER), id="key_2"))
            )

    # Assistants.

    @PROPERTY
    @given(records=unique(strategies.assistants))
    def test_assistants_come_back_as_they_were(
        self, stores: Stores, records: list[Assistant]
    ) -> None:
        """Tools, formats and resources to the letter; an update replaces the configuration."""

        async def story(store: Store) -> None:
            async def insert(tx: Transaction) -> None:
                for record in records:
                    await assistants.insert(tx, record)

            async def look(tx: Transaction) -> list[Assistant | None]:
                return [await assistants.get(tx, PROJECT, record.id) for record in records]

            await store.write(insert)
            assert await store.read(look) == records
            changed = replace(records[0], config=records[-1].config)
            await store.write(lambda tx: assistants.update(tx, changed))
            assert await store.read(look) == [changed, *records[1:]]

        tell(stores, story)

    @on_a_store
    async def test_an_assistants_id_is_taken_within_its_project_alone(self, store: Store) -> None:
        """Its maker may choose it, so it must not tell one project what another one has."""
        mine = Assistant(PROJECT, "asst_1", 1, AssistantConfig(model="m"))
        theirs = replace(mine, project_id=OTHER, created_at_ms=2)
        await store.write(lambda tx: assistants.insert(tx, mine))
        await store.write(lambda tx: assistants.insert(tx, theirs))
        with pytest.raises(Conflict):
            await store.write(lambda tx: assistants.insert(tx, mine))
        assert await store.read(lambda tx: assistants.get(tx, OTHER, "asst_1")) == theirs
        assert await store.write(lambda tx: assistants.remove(tx, OTHER, "asst_1"))
        assert not await store.write(lambda tx: assistants.remove(tx, OTHER, "asst_1"))
        assert await store.read(lambda tx: assistants.get(tx, OTHER, "asst_1")) is None
        assert await store.read(lambda tx: assistants.get(tx, PROJECT, "asst_1")) == mine

    # Threads.

    @PROPERTY
    @given(records=unique(strategies.threads))
    def test_threads_come_back_as_they_were(self, stores: Stores, records: list[Thread]) -> None:
        """An update replaces resources and metadata, within the thread's own project."""

        async def story(store: Store) -> None:
            async def insert(tx: Transaction) -> None:
                for record in records:
                    await threads.insert(tx, record)

            async def look(tx: Transaction) -> list[Thread | None]:
                return [await threads.get(tx, PROJECT, record.id) for record in records]

            await store.write(insert)
            assert await store.read(look) == records
            changed = replace(records[0], metadata={"new": "1"}, tool_resources={"x": [1.5]})
            await store.write(lambda tx: threads.update(tx, replace(changed, project_id=OTHER)))
            assert await store.read(look) == records
            await store.write(lambda tx: threads.update(tx, changed))
            assert await store.read(look) == [changed, *records[1:]]

        tell(stores, story)

    @on_a_store
    async def test_a_thread_goes_with_all_that_is_in_it(self, store: Store) -> None:
        """Messages, runs and steps go, events stay, and other threads keep theirs."""
        await store.write(_two_furnished_threads)
        assert not await store.write(lambda tx: threads.remove(tx, OTHER, "t1"))
        assert await _left(store, "t1") == [True] * 5
        assert await store.write(lambda tx: threads.remove(tx, PROJECT, "t1"))
        assert not await store.write(lambda tx: threads.remove(tx, PROJECT, "t1"))
        assert await _left(store, "t1") == [False, False, False, False, True]
        assert await _left(store, "t2") == [True] * 5

    # Messages.

    @PROPERTY
    @given(records=unique(strategies.messages))
    def test_messages_come_back_as_they_were(self, stores: Stores, records: list[Message]) -> None:
        """An update replaces the metadata, and nothing else of what somebody said."""

        async def story(store: Store) -> None:
            async def insert(tx: Transaction) -> None:
                for record in records:
                    await messages.insert(tx, record)

            async def look(tx: Transaction) -> list[Message | None]:
                return [await messages.get(tx, PROJECT, m.thread_id, m.id) for m in records]

            await store.write(insert)
            assert await store.read(look) == records
            changed = replace(records[0], metadata={"new": "1"})
            attempt = replace(changed, content=(), role="assistant")
            await store.write(lambda tx: messages.update(tx, attempt))
            assert await store.read(look) == [changed, *records[1:]]

        tell(stores, story)

    @on_a_store
    async def test_a_message_is_reached_through_its_thread_and_its_project(
        self, store: Store
    ) -> None:
        """By any other way it is not there: not to read, not to change, not to delete."""
        mine = Message(PROJECT, "t1", "msg_1", 1, "user", ())

        async def by(tx: Transaction, project: str, thread: str) -> tuple[Message | None, bool]:
            changed = replace(mine, project_id=project, thread_id=thread, metadata={"x": "y"})
            await messages.update(tx, changed)
            found = await messages.get(tx, project, thread, "msg_1")
            return found, await messages.remove(tx, project, thread, "msg_1")

        await store.write(lambda tx: messages.insert(tx, mine))
        assert await store.write(lambda tx: by(tx, OTHER, "t1")) == (None, False)
        assert await store.write(lambda tx: by(tx, PROJECT, "t2")) == (None, False)
        assert await store.read(lambda tx: messages.get(tx, PROJECT, "t1", "msg_1")) == mine
        assert await store.write(lambda tx: messages.remove(tx, PROJECT, "t1", "msg_1"))
        assert not await store.write(lambda tx: messages.remove(tx, PROJECT, "t1", "msg_1"))

    @on_a_store
    async def test_a_conversation_is_the_latest_messages_oldest_first(self, store: Store) -> None:
        """In the order of insertion, whatever the stamps say, and of this thread alone."""

        async def work(tx: Transaction) -> list[list[str]]:
            for number in range(6):
                stamp = 100 - number
                row = Message(PROJECT, "t1", f"msg_{number}", stamp, "user", ())
                await messages.insert(tx, row)
                await messages.insert(tx, replace(row, id=f"x{number}", thread_id="t2"))
            return [
                [message.id for message in await messages.conversation(tx, project, "t1", limit)]
                for project, limit in ((PROJECT, 3), (PROJECT, 100), (OTHER, 100))
            ]

        latest, everything, foreign = await store.write(work)
        assert latest == ["msg_3", "msg_4", "msg_5"]
        assert everything == [f"msg_{number}" for number in range(6)]
        assert foreign == []

    @on_a_store
    async def test_a_short_conversation_is_all_of_it_or_nothing(self, store: Store) -> None:
        """Neither many messages nor a long one are half of an answer."""

        def row(thread: str, number: int, said: str = "") -> Message:
            part = TextPart(TextValue(said))
            return Message(PROJECT, thread, f"{thread}_{number}", number, "user", (part,))

        few = [row("t1", number) for number in range(messages.SHORT - 1)]
        rows = [
            *few,
            *(row("t2", number) for number in range(messages.SHORT)),
            row("t3", 0, "a" * messages.SHORT_BYTES),
            row("t3", 1),
        ]

        async def work(tx: Transaction) -> None:
            for each in rows:
                await messages.insert(tx, each)

        await store.write(work)
        for thread, whole in (("t1", few), ("t2", None), ("t3", None), ("t4", [])):
            found = await store.read(
                lambda tx, thread=thread: messages.short_conversation(tx, PROJECT, thread)  # type: ignore[misc]
            )
            assert found == whole, thread

    # Steps.

    @PROPERTY
    @given(records=unique(strategies.steps), calls=strategies.tool_outputs)
    def test_steps_come_back_as_they_were(
        self, stores: Stores, records: list[RunStep], calls: tuple[Any, ...]
    ) -> None:
        """An update moves status, outputs, error and usage on, and leaves the rest."""

        async def story(store: Store) -> None:
            async def insert(tx: Transaction) -> None:
                for record in records:
                    await steps.insert(tx, record)

            async def look(tx: Transaction) -> list[RunStep | None]:
                return [await steps.get(tx, PROJECT, step.run_id, step.id) for step in records]

            await store.write(insert)
            assert await store.read(look) == records
            changed = replace(
                records[-1],
                status="failed",
                tool_calls=calls,
                error_code="server_error",
                error_message="Why.",
                ended_at_ms=9,
                usage=records[0].usage,
            )
            attempt = replace(changed, created_at_ms=1, metadata={"x": "y"}, message_id="msg_x")
            await store.write(lambda tx: steps.update(tx, attempt))
            assert await store.read(look) == [*records[:-1], changed]

        tell(stores, story)

    @on_a_store
    async def test_steps_of_a_run_are_in_order_and_the_open_ones_known(self, store: Store) -> None:
        """In the order of insertion; open are those in progress."""

        async def work(tx: Transaction) -> tuple[list[RunStep], list[RunStep], RunStep | None]:
            for number, status in enumerate(("completed", "in_progress", "failed", "in_progress")):
                step = _step(f"s{number}", created_at_ms=100 - number, status=status)
                await steps.insert(tx, step)
                await steps.insert(tx, replace(step, id=f"x{number}", run_id="run_2"))
            return (
                await steps.of_run(tx, "run_1"),
                await steps.open_of_run(tx, "run_1"),
                await steps.get(tx, PROJECT, "run_2", "s0"),
            )

        every, still_open, foreign = await store.write(work)
        assert [step.id for step in every] == ["s0", "s1", "s2", "s3"]
        assert [step.id for step in still_open] == ["s1", "s3"]
        assert foreign is None


def _step(step_id: str, **fields: Any) -> RunStep:
    given: dict[str, Any] = {"created_at_ms": 1, "status": "in_progress", **fields}
    return RunStep(PROJECT, "t1", "run_1", "asst_1", step_id, **given)


async def _two_furnished_threads(tx: Transaction) -> None:
    for name in ("t1", "t2"):
        await threads.insert(tx, Thread(PROJECT, name, 1))
        await messages.insert(tx, Message(PROJECT, name, f"msg_{name}", 1, "user", ()))
        step = replace(_step(f"step_{name}"), thread_id=name, run_id=f"run_{name}")
        await steps.insert(tx, step)
        run = Run(
            *(f"run_{name}", PROJECT, name, "asst_1", RunStatus.COMPLETED),
            created_at_ms=1,
            expires_at_ms=2,
            updated_at_ms=1,
        )
        await runs.insert(tx, RunRecord(run, RunConfig(model="m")))
        await events.append(tx, event(1, run.id))


async def _left(store: Store, name: str) -> list[bool]:
    """What there is of a thread: itself, its message, step and run, and the run's event."""

    async def look(tx: Transaction) -> list[bool]:
        feed, _ = await events.page(tx, PROJECT, after=None, types=None, limit=10)
        return [
            await threads.get(tx, PROJECT, name) is not None,
            await messages.get(tx, PROJECT, name, f"msg_{name}") is not None,
            await steps.get(tx, PROJECT, f"run_{name}", f"step_{name}") is not None,
            await runs.find(tx, f"run_{name}") is not None,
            f"evt_run_{name}_1" in [event_id for event_id, _, _ in feed],
        ]

    return await store.read(look)
