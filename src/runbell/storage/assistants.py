"""Assistants, each within its project."""

from __future__ import annotations

from sqlalchemy import bindparam, delete

from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.paging import Page, PagedList
from runbell.storage.records import Assistant, AssistantConfig
from runbell.storage.statements import Statement, insert_row, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = ["decoded", "get", "insert", "page", "remove", "update"]

_a = schema.assistants.c
_own = (_a.project_id == bindparam("project"), _a.id == bindparam("key"))

INSERT = Statement("assistants.insert", "A new assistant.", insert_row(schema.assistants))
GET = Statement("assistants.get", "One assistant.", select_row(schema.assistants).where(*_own))
GET_TO_CHANGE = Statement(
    "assistants.get_to_change",
    "One assistant, which is about to be changed.",
    # Apart from the other: every new run reads its assistant, and none is to wait for another.
    select_row(schema.assistants).where(*_own),
    locks=True,
)
UPDATE = Statement(
    "assistants.update",
    "Replace what an assistant's maker chose.",
    update_row(schema.assistants, "config").where(*_own),
)
DELETE = Statement(
    "assistants.delete", "Forget an assistant.", delete(schema.assistants).where(*_own)
)
PAGES = PagedList("assistants.list", schema.assistants, _a.project_id == bindparam("project"))

_config = JsonColumn(AssistantConfig)


async def insert(tx: Transaction, assistant: Assistant) -> None:
    """Add an assistant. Raises Conflict where the project has one with this id."""
    await tx.execute(
        INSERT,
        {
            "project_id": assistant.project_id,
            "id": assistant.id,
            "created_at_ms": assistant.created_at_ms,
            "config": to_json(assistant.config),
        },
    )


async def get(
    tx: Transaction, project: str, assistant_id: str, *, to_change: bool = False
) -> Assistant | None:
    """One assistant of the project.

    Args:
        to_change: it is about to be changed in this transaction.
    """
    statement = GET_TO_CHANGE if to_change else GET
    row = await tx.fetch_one(statement, {"project": project, "key": assistant_id})
    return decoded(row) if row is not None else None


async def update(tx: Transaction, assistant: Assistant) -> None:
    """Store the assistant's new configuration."""
    await tx.execute(
        UPDATE,
        {
            "project": assistant.project_id,
            "key": assistant.id,
            "config": to_json(assistant.config),
        },
    )


async def remove(tx: Transaction, project: str, assistant_id: str) -> bool:
    """Forget an assistant; False where the project has none with this id."""
    return await tx.execute(DELETE, {"project": project, "key": assistant_id}) == 1


async def page(tx: Transaction, project: str, page: Page) -> tuple[list[Assistant], bool]:
    """A page of the project's assistants, and whether there are more."""
    rows, more = await PAGES.fetch(tx, page, {"project": project})
    return [decoded(row) for row in rows], more


def decoded(row: Row) -> Assistant:
    """What `GET` has found."""
    project_id, assistant_id, created_at_ms, config = row
    return Assistant(project_id, assistant_id, created_at_ms, _config.decode(config))
