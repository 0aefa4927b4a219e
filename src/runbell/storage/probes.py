"""Whether the database can be written: found out by writing."""

from __future__ import annotations

from sqlalchemy import bindparam

from runbell.storage import schema
from runbell.storage.statements import Statement, insert_row, update_row
from runbell.storage.store import Transaction

__all__ = ["probe"]

INSERT = Statement("probes.insert", "The first probe.", insert_row(schema.probes))
UPDATE = Statement(
    "probes.update",
    "A further probe.",
    update_row(schema.probes, "at_ms").where(schema.probes.c.id == bindparam("key")),
)


async def probe(tx: Transaction, now_ms: int) -> None:
    """Write one row: an empty transaction succeeds on a full disk too."""
    if await tx.execute(UPDATE, {"key": 1, "at_ms": now_ms}) == 0:
        await tx.execute(INSERT, {"id": 1, "at_ms": now_ms})
