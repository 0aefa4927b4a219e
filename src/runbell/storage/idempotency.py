"""First answers: what was answered to requests that are to happen once, by project and key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, select

from runbell.errors import Conflict
from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.statements import Statement, insert_row, limited, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = ["KEPT_MS", "FirstAnswer", "claim", "keep", "prune"]

KEPT_MS = 24 * 3600 * 1000
"""How long an answer is kept, in milliseconds."""

_k = schema.idempotency_keys.c
_old, _first = (schema.idempotency_keys.alias(name).c for name in ("old", "first"))

INSERT = Statement("idempotency_keys.insert", "Claim a key.", insert_row(schema.idempotency_keys))
FIND = Statement(
    "idempotency_keys.find",
    "What was answered to the request with this key.",
    select_row(schema.idempotency_keys).where(
        _k.project_id == bindparam("project"), _k.key == bindparam("used_key")
    ),
)
ANSWER = Statement(
    "idempotency_keys.answer",
    "Keep the answer to the request that claimed this key.",
    update_row(schema.idempotency_keys, "status", "headers", "body", "run_id").where(
        _k.project_id == bindparam("project"), _k.key == bindparam("used_key")
    ),
)
DELETE = Statement(
    "idempotency_keys.delete",
    "Forget one key.",
    delete(schema.idempotency_keys).where(
        _k.project_id == bindparam("project"), _k.key == bindparam("used_key")
    ),
)
PRUNE = Statement(
    "idempotency_keys.prune",
    "Forget those of the first few rows that are too old. Rows come in the order of their time, so "
    "that this needs no index. Of several writers each leaves to the others what they are about to "
    "forget: nobody waits for another, who may have been stopped in the middle.",
    delete(schema.idempotency_keys).where(
        _k.position.in_(limited(select(_k.position).order_by(_k.position))),
        _k.created_at_ms < bindparam("before_ms"),
    ),
    postgresql=delete(schema.idempotency_keys).where(
        _k.position.in_(
            select(_old.position)
            .where(
                _old.position.in_(limited(select(_first.position).order_by(_first.position))),
                _old.created_at_ms < bindparam("before_ms"),
            )
            .with_for_update(skip_locked=True)
        )
    ),
)

_headers = JsonColumn(dict[str, str])


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """What was answered to a request that is to happen once.

    Attributes:
        digest: of the request, so that another one with the same key is found out.
        body: encoded, as it was sent; empty for a stream.
        run_id: of the run that was streamed, where the answer was a stream.
    """

    digest: bytes
    status: int
    headers: Mapping[str, str]
    body: bytes
    run_id: str | None


async def claim(
    tx: Transaction, project: str, key: str, digest: bytes, *, now_ms: int, oldest_ms: int
) -> FirstAnswer | None:
    """Take a key for the request that is about to happen in this transaction.

    Args:
        oldest_ms: an answer that was given before this time counts no more.

    Returns:
        None where the key was free; else what was answered to the request that had it first.
    """
    row = {
        "project_id": project,
        "key": key,
        "digest": digest,
        "created_at_ms": now_ms,
        "status": None,
        "headers": None,
        "body": None,
        "run_id": None,
    }
    try:
        # First of all, so that a duplicate elsewhere waits here until this transaction has ended.
        await tx.execute(INSERT, row)
    except Conflict:
        place = {"project": project, "used_key": key}
        found = await tx.fetch_one(FIND, place)
        if found is None:
            raise
        first, created_at_ms = _first_answer(found)
        if created_at_ms >= oldest_ms:
            return first
        await tx.execute(DELETE, place)
        await tx.execute(INSERT, row)
    return None


async def keep(tx: Transaction, project: str, key: str, first: FirstAnswer) -> None:
    """Keep the answer to the request that claimed `key` in this transaction."""
    await tx.execute(
        ANSWER,
        {
            "project": project,
            "used_key": key,
            "status": first.status,
            "headers": to_json(first.headers) if first.headers else None,
            "body": first.body,
            "run_id": first.run_id,
        },
    )


async def prune(tx: Transaction, *, before_ms: int, limit: int) -> int:
    """Forget what was answered before this time, `limit` rows at the most; how many those were."""
    return await tx.execute(PRUNE, {"before_ms": before_ms, "limit": limit})


def _first_answer(row: Row) -> tuple[FirstAnswer, int]:
    _, _, digest, created_at_ms, status, headers, body, run_id = row
    kept = _headers.decode(headers) if headers else {}
    return FirstAnswer(digest, status, kept, body, run_id), created_at_ms
