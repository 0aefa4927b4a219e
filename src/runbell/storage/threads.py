"""Threads, and what goes when one of them goes."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete

from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.records import Thread
from runbell.storage.statements import Statement, insert_row, select_row, update_row
from runbell.storage.store import Transaction

__all__ = ["begin", "get", "insert", "remove", "update"]

_t = schema.threads.c
_own = (_t.project_id == bindparam("project"), _t.id == bindparam("key"))

INSERT = Statement("threads.insert", "A new thread.", insert_row(schema.threads))
GET = Statement("threads.get", "One thread.", select_row(schema.threads).where(*_own), locks=True)
UPDATE = Statement(
    "threads.update",
    "Replace a thread's metadata and tool resources.",
    update_row(schema.threads, "tool_resources", "metadata").where(*_own),
)
DELETE = Statement("threads.delete", "Forget a thread.", delete(schema.threads).where(*_own))
DELETE_PARTS = tuple(
    Statement(
        f"{table.name}.delete_thread",
        f"Forget the {table.name} of a thread.",
        delete(table).where(table.c.thread_id == bindparam("thread")),
    )
    for table in (schema.messages, schema.run_steps, schema.runs)
)

_document = JsonColumn(dict)


async def insert(tx: Transaction, thread: Thread) -> None:
    """Add a thread. Raises Conflict where there is one with this id."""
    await tx.execute(INSERT, _params(thread))


async def begin(tx: Transaction, thread: Thread) -> None:
    """Add a thread whose id is a new one, with what follows."""
    await tx.later(INSERT, _params(thread))


def _params(thread: Thread) -> dict[str, Any]:
    return {
        "id": thread.id,
        "project_id": thread.project_id,
        "created_at_ms": thread.created_at_ms,
        "tool_resources": to_json(thread.tool_resources),
        "metadata": to_json(thread.metadata),
    }


async def get(tx: Transaction, project: str, thread_id: str) -> Thread | None:
    """One thread of the project."""
    row = await tx.fetch_one(GET, {"project": project, "key": thread_id})
    if row is None:
        return None
    key, project_id, created_at_ms, tool_resources, metadata = row
    return Thread(
        project_id=project_id,
        id=key,
        created_at_ms=created_at_ms,
        tool_resources=_document.decode(tool_resources),
        metadata=_document.decode(metadata),
    )


async def update(tx: Transaction, thread: Thread) -> None:
    """Store the thread's metadata and tool resources."""
    await tx.execute(
        UPDATE,
        {
            "project": thread.project_id,
            "key": thread.id,
            "tool_resources": to_json(thread.tool_resources),
            "metadata": to_json(thread.metadata),
        },
    )


async def remove(tx: Transaction, project: str, thread_id: str) -> bool:
    """Forget a thread with its messages, runs and steps; its events stay.

    The caller has ended its runs. False where the project has no such thread.
    """
    if await tx.execute(DELETE, {"project": project, "key": thread_id}) == 0:
        return False
    for statement in DELETE_PARTS:
        await tx.execute(statement, {"thread": thread_id})
    return True
