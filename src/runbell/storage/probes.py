"""Whether the database can be written: found out by writing."""

from __future__ import annotations

import secrets

from sqlalchemy import bindparam, delete

from runbell.storage import schema
from runbell.storage.statements import Statement, insert_row
from runbell.storage.store import Transaction

__all__ = ["probe"]

INSERT = Statement("probes.insert", "A probe.", insert_row(schema.probes))
DELETE = Statement(
    "probes.delete",
    "A probe has been written.",
    delete(schema.probes).where(schema.probes.c.id == bindparam("key")),
)


async def probe(tx: Transaction, now_ms: int) -> None:
    """Write one row: an empty transaction succeeds on a full disk too.

    It is nobody else's, and goes with the same transaction: a process that is stopped in the middle
    of its probe is in no other's way.
    """
    key = secrets.randbits(31)
    await tx.execute(INSERT, {"id": key, "at_ms": now_ms})
    await tx.execute(DELETE, {"key": key})
