"""Messages of threads, in the order in which they were added."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, delete

from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.paging import Page, PagedList
from runbell.storage.records import ContentPart, Message
from runbell.storage.statements import (
    Statement,
    insert_row,
    limited,
    select_row,
    update_row,
)
from runbell.storage.store import Row, Transaction

__all__ = ["conversation", "get", "insert", "page", "remove", "short_conversation", "update"]

_m = schema.messages.c
_in_thread = (
    _m.project_id == bindparam("project"),
    _m.thread_id == bindparam("thread"),
)
_own = (*_in_thread, _m.id == bindparam("key"))

INSERT = Statement("messages.insert", "A new message.", insert_row(schema.messages))
GET = Statement(
    "messages.get", "One message.", select_row(schema.messages).where(*_own), locks=True
)
UPDATE = Statement(
    "messages.update",
    "Replace a message's metadata.",
    update_row(schema.messages, "metadata").where(*_own),
)
DELETE = Statement("messages.delete", "Forget a message.", delete(schema.messages).where(*_own))
PAGES = PagedList("messages.list", schema.messages, *_in_thread)
RUN_PAGES = PagedList(
    "messages.list_run", schema.messages, *_in_thread, _m.run_id == bindparam("run")
)
LATEST = Statement(
    "messages.latest",
    "A thread's latest messages, newest first.",
    limited(select_row(schema.messages).where(*_in_thread).order_by(_m.position.desc())),
)

MAX_CONVERSATION_BYTES = 64_000_000
"""Older messages are left out of a conversation when its texts have this size."""

SHORT, SHORT_BYTES = 16, 64_000
"""Fewer messages, and less text, than that are read in some 50 µs."""

_content = JsonColumn(tuple[ContentPart, ...])
_metadata = JsonColumn(dict[str, str])


async def insert(tx: Transaction, message: Message) -> None:
    """Add a message at the end of its thread."""
    await tx.later(
        INSERT,
        {
            "project_id": message.project_id,
            "thread_id": message.thread_id,
            "id": message.id,
            "created_at_ms": message.created_at_ms,
            "role": message.role,
            "content": to_json(message.content),
            "status": message.status,
            "incomplete_reason": message.incomplete_reason,
            "completed_at_ms": message.completed_at_ms,
            "incomplete_at_ms": message.incomplete_at_ms,
            "assistant_id": message.assistant_id,
            "run_id": message.run_id,
            "metadata": to_json(message.metadata),
        },
    )


async def get(tx: Transaction, project: str, thread_id: str, message_id: str) -> Message | None:
    """One message of a thread."""
    row = await tx.fetch_one(GET, {"project": project, "thread": thread_id, "key": message_id})
    return _message(row) if row is not None else None


async def update(tx: Transaction, message: Message) -> None:
    """Store the message's metadata."""
    await tx.execute(
        UPDATE,
        {
            "project": message.project_id,
            "thread": message.thread_id,
            "key": message.id,
            "metadata": to_json(message.metadata),
        },
    )


async def remove(tx: Transaction, project: str, thread_id: str, message_id: str) -> bool:
    """Forget a message; False where the thread has none with this id."""
    params = {"project": project, "thread": thread_id, "key": message_id}
    return await tx.execute(DELETE, params) == 1


async def page(
    tx: Transaction, project: str, thread_id: str, page: Page, *, run_id: str | None = None
) -> tuple[list[Message], bool]:
    """A page of a thread's messages (those of one run, with `run_id`); whether there are more."""
    owner: dict[str, Any] = {"project": project, "thread": thread_id}
    pages = PAGES
    if run_id is not None:
        owner["run"] = run_id
        pages = RUN_PAGES
    rows, more = await pages.fetch(tx, page, owner)
    return [_message(row) for row in rows], more


async def conversation(tx: Transaction, project: str, thread_id: str, limit: int) -> list[Message]:
    """The latest messages of a thread, oldest first: what a model is told.

    Args:
        limit: how many at the most.
    """
    params = {"project": project, "thread": thread_id, "limit": limit}
    rows = await tx.fetch_all(LATEST, params, MAX_CONVERSATION_BYTES)
    return [_message(row) for row in reversed(rows)]


async def short_conversation(tx: Transaction, project: str, thread_id: str) -> list[Message] | None:
    """All messages of a thread, oldest first; None where they are more than a few small ones."""
    params = {"project": project, "thread": thread_id, "limit": SHORT}
    rows = await tx.fetch_all(LATEST, params, SHORT_BYTES)
    size = sum(len(value) for row in rows for value in row if isinstance(value, str))
    if len(rows) == SHORT or size >= SHORT_BYTES:
        return None
    return [_message(row) for row in reversed(rows)]


def _message(row: Row) -> Message:
    (
        project_id,
        thread_id,
        message_id,
        created_at_ms,
        role,
        content,
        status,
        incomplete_reason,
        completed_at_ms,
        incomplete_at_ms,
        assistant_id,
        run_id,
        metadata,
    ) = row
    return Message(
        project_id=project_id,
        thread_id=thread_id,
        id=message_id,
        created_at_ms=created_at_ms,
        role=role,
        content=_content.decode(content),
        status=status,
        incomplete_reason=incomplete_reason,
        completed_at_ms=completed_at_ms,
        incomplete_at_ms=incomplete_at_ms,
        assistant_id=assistant_id,
        run_id=run_id,
        metadata=_metadata.decode(metadata),
    )
