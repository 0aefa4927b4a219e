"""How the suite gets at a store: each test is a story that happens on one of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

from runbell.runs import Event
from runbell.storage import projects
from runbell.storage.records import Project
from runbell.storage.store import Store, Transaction

__all__ = ["OTHER", "PROJECT", "PROPERTY", "Stores", "event", "on_a_store", "tell"]

Self = TypeVar("Self")
Stores = Callable[[], AbstractAsyncContextManager[Store]]
"""Opens a store of its own with each call: migrated, without rows."""

PROJECT, OTHER = "proj_a", "proj_b"
"""The projects that every story has."""

PROPERTY = settings(
    deadline=None,
    derandomize=True,
    max_examples=25,
    # One method is the test of several drivers, which is what a contract is for.
    suppress_health_check=[HealthCheck.differing_executors],
)
"""A property is tried on so many stores, always the same."""


def tell(stores: Stores, story: Callable[[Store], Awaitable[None]]) -> None:
    """Let a story happen on a store of its own, which has the two projects."""

    async def telling() -> None:
        async with stores() as store:
            await store.write(_two_projects)
            await story(store)

    asyncio.run(telling())


def on_a_store(
    story: Callable[[Self, Store], Awaitable[None]],
) -> Callable[[Self, Stores], None]:
    """Make a test of an async method that is given a store."""

    # Not `functools.wraps`: pytest would look for a fixture of the wrapped signature's name.
    def test(self: Self, stores: Stores) -> None:
        tell(stores, lambda store: story(self, store))

    test.__doc__ = story.__doc__
    test.__name__ = getattr(story, "__name__", "test")
    test.__qualname__ = getattr(story, "__qualname__", "test")
    test.__module__ = story.__module__
    return test


def event(number: int, run_id: str = "run_1", project: str = PROJECT, **fields: Any) -> Event:
    """An event whose bytes are its number."""
    given: dict[str, Any] = {
        "id": f"evt_{run_id}_{number}",
        "project_id": project,
        "run_id": run_id,
        "sequence": number,
        "type": "thread.run.queued",
        "created_at_ms": 0,
        "body": b"%d" % number,
    }
    return Event(**{**given, **fields})


async def _two_projects(tx: Transaction) -> None:
    await projects.insert(tx, Project(PROJECT, "a", 1))
    await projects.insert(tx, Project(OTHER, "b", 2))
