"""What shows which key the secrets of a database are encrypted with: one row, never the key."""

from __future__ import annotations

from sqlalchemy import bindparam

from runbell.errors import Conflict
from runbell.storage import schema
from runbell.storage.statements import Statement, insert_row, select_row, update_row
from runbell.storage.store import Transaction

__all__ = ["claim", "find", "store"]

_k = schema.key_checks.c
_ONE = 1
"""The id of the row."""

CLAIM = Statement("key_checks.claim", "Be the first.", insert_row(schema.key_checks))
FIND = Statement(
    "key_checks.find",
    "What the key has to open.",
    select_row(schema.key_checks).where(_k.id == bindparam("key")),
)
STORE = Statement(
    "key_checks.store",
    "From now on, another key has to open it.",
    update_row(schema.key_checks, "sealed").where(_k.id == bindparam("key")),
)


async def claim(tx: Transaction) -> bool:
    """Be the one who says which key it is, in this transaction; False where somebody has said so.

    Who does so at this moment is waited for. The row is empty until `store`.
    """
    try:
        await tx.execute(CLAIM, {"id": _ONE, "sealed": b""})
    except Conflict:
        return False
    return True


async def find(tx: Transaction) -> bytes | None:
    """What was sealed with the key; None where nobody has said yet which one it is."""
    row = await tx.fetch_one(FIND, {"key": _ONE})
    return row[1] if row is not None else None


async def store(tx: Transaction, sealed: bytes) -> None:
    """Have the row say which key it is; where there is none, none is made."""
    await tx.execute(STORE, {"key": _ONE, "sealed": sealed})
