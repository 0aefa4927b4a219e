"""Runs for which a time runs out: those that expire, and those whose cancel has to end."""

from __future__ import annotations

from sqlalchemy import literal_column, select, text

from runbell.runs import RunStatus
from runbell.storage import schema
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["cancelling_since", "expiring"]

_r = schema.runs.c
_live = text(schema.LIVE)

EXPIRING = Statement(
    "runs.expiring",
    "Runs that have not ended, in the order in which their time is over.",
    limited(select(_r.id, _r.expires_at_ms).where(_live).order_by(_r.expires_at_ms, _r.position)),
)
CANCELLING = Statement(
    "runs.cancelling",
    "Runs whose cancel has begun, oldest first.",
    limited(
        select(_r.id, _r.cancelling_at_ms)
        # As text, not as a parameter: only then can the partial index be used.
        .where(_r.status == literal_column(f"'{RunStatus.CANCELLING}'"))
        .order_by(_r.cancelling_at_ms)
    ),
)


async def expiring(tx: Transaction, limit: int) -> list[tuple[str, int]]:
    """The next runs to expire: their ids, and when (milliseconds since the epoch)."""
    return [(row[0], row[1]) for row in await tx.fetch_all(EXPIRING, {"limit": limit})]


async def cancelling_since(tx: Transaction, limit: int) -> list[tuple[str, int]]:
    """Runs being cancelled: their ids, and since when (milliseconds since the epoch)."""
    return [(row[0], row[1]) for row in await tx.fetch_all(CANCELLING, {"limit": limit})]
