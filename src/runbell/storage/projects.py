"""Projects and the API keys that open them. Keys are kept as digests alone."""

from __future__ import annotations

from sqlalchemy import bindparam

from runbell.storage import schema
from runbell.storage.records import ApiKey, Project
from runbell.storage.statements import Statement, insert_row, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "all_projects",
    "find_key",
    "insert",
    "insert_key",
    "list_keys",
    "named",
    "revoke_key",
]

_p = schema.projects.c
_k = schema.api_keys.c

INSERT = Statement("projects.insert", "A new project.", insert_row(schema.projects))
NAMED = Statement(
    "projects.named",
    "The project with this name.",
    select_row(schema.projects).where(_p.name == bindparam("name")),
)
INSERT_KEY = Statement("api_keys.insert", "A new key.", insert_row(schema.api_keys))
FIND_KEY = Statement(
    "api_keys.find",
    "The key with this digest, unless it was revoked.",
    select_row(schema.api_keys).where(_k.digest == bindparam("digest"), _k.revoked_at_ms.is_(None)),
)
LIST_KEYS = Statement(
    "api_keys.list",
    "Every key, oldest first.",
    select_row(schema.api_keys).order_by(_k.created_at_ms, _k.id),
)
LIST_PROJECTS = Statement("projects.list", "Every project.", select_row(schema.projects))
REVOKE_KEY = Statement(
    "api_keys.revoke",
    "Close a key; one that is closed keeps the time of that.",
    update_row(schema.api_keys, "revoked_at_ms").where(
        _k.id == bindparam("key_id"), _k.revoked_at_ms.is_(None)
    ),
)


async def insert(tx: Transaction, project: Project) -> None:
    """Add a project. Raises Conflict where its name is taken."""
    await tx.execute(
        INSERT,
        {"id": project.id, "name": project.name, "created_at_ms": project.created_at_ms},
    )


async def named(tx: Transaction, name: str) -> Project | None:
    """The project with this name."""
    row = await tx.fetch_one(NAMED, {"name": name})
    return Project(*row) if row is not None else None


async def all_projects(tx: Transaction) -> list[Project]:
    """Every project."""
    return [Project(*row) for row in await tx.fetch_all(LIST_PROJECTS, {})]


async def insert_key(tx: Transaction, key: ApiKey) -> None:
    """Add a key."""
    await tx.execute(
        INSERT_KEY,
        {
            "id": key.id,
            "project_id": key.project_id,
            "digest": key.digest,
            "hint": key.hint,
            "origin": key.origin,
            "created_at_ms": key.created_at_ms,
            "revoked_at_ms": key.revoked_at_ms,
            "rpm": key.rpm,
        },
    )


async def find_key(tx: Transaction, digest: str) -> ApiKey | None:
    """The open key with this digest."""
    row = await tx.fetch_one(FIND_KEY, {"digest": digest})
    return _key(row) if row is not None else None


async def list_keys(tx: Transaction) -> list[ApiKey]:
    """Every key, revoked ones too, oldest first."""
    return [_key(row) for row in await tx.fetch_all(LIST_KEYS, {})]


async def revoke_key(tx: Transaction, key_id: str, now_ms: int) -> bool:
    """Close a key; False where no open key has this id."""
    return await tx.execute(REVOKE_KEY, {"key_id": key_id, "revoked_at_ms": now_ms}) == 1


def _key(row: Row) -> ApiKey:
    key_id, project_id, digest, hint, origin, created_at_ms, revoked_at_ms, rpm = row
    return ApiKey(key_id, project_id, digest, hint, origin, created_at_ms, revoked_at_ms, rpm)
