"""Deliveries that wait for a retry, put into the database of a service that is down.

By the store's own statements: the rows are those that attempts would have left, without the minutes
that so many attempts take.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from runbell.runs import Event
from runbell.storage import endpoints, events, owed
from runbell.storage.deliveries import Attempt
from runbell.storage.endpoints import Endpoint
from runbell.storage.sqlite import SQLiteStore
from runbell.storage.store import Transaction

__all__ = ["LATER_MS", "put"]

LATER_MS = 36_000_000
"""From now until the retries are due: nothing of them happens while they are watched."""

EVENTS_AT_ONCE = 100
BODY = b'{"object":"event","padding":"' + b"." * 600 + b'"}'
"""As long as the event of a run."""


def put(database: Path, count: int) -> int:
    """Owe `count` deliveries, evenly, to the endpoints that are there, each as after one attempt
    that failed; how many that are in the end."""
    return asyncio.run(_put(database, count))


async def _put(database: Path, count: int) -> int:
    store = await SQLiteStore.open(database)
    try:
        owed_to = await store.read(endpoints.all_enabled)
        number = count // len(owed_to)
        for first in range(0, number, EVENTS_AT_ONCE):
            span = range(first, min(first + EVENTS_AT_ONCE, number))

            async def work(tx: Transaction, span: range = span) -> None:
                await _owe(tx, owed_to, span)

            await store.write(work)
        return number * len(owed_to)
    finally:
        await store.close()


async def _owe(tx: Transaction, owed_to: list[Endpoint], span: range) -> None:
    now_ms = time.time_ns() // 1_000_000
    for number in span:
        event = Event(
            f"evt_waiting_{number}",
            owed_to[0].project_id,
            f"run_waiting_{number}",
            1,
            "thread.run.created",
            now_ms,
            BODY,
        )
        await events.append(tx, event)
        for endpoint in owed_to:
            await owed.owe(tx, endpoint.id, event)
    attempt = Attempt(1, now_ms, 3, 500, "It answered 500.", "")
    for endpoint in owed_to:
        for due in await owed.due(tx, endpoint.id, now_ms, len(span)):
            next_at_ms = now_ms + LATER_MS + due.position
            await owed.record(tx, due, attempt, status="pending", next_at_ms=next_at_ms)
