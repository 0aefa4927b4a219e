"""What is owed at this moment: runs that have not ended, and jobs that are due.

Every statement reads a partial index of the runs that have not ended, never the table: its cost
grows with what is under way, not with what is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, func, literal_column, select, text

from runbell.runs import RunStatus
from runbell.storage import schema
from runbell.storage.statements import Statement
from runbell.storage.store import Transaction

__all__ = ["Owed", "cancels", "expiries", "live_by_status", "turns"]

_r = schema.runs.c
_live = text(schema.LIVE)


def _is(status: RunStatus) -> Any:
    # As text, not as a parameter: only then can the partial indexes be used.
    return _r.status == literal_column(f"'{status}'")


LIVE_BY_STATUS = Statement(
    "runs.live_by_status",
    "How many runs there are in each status that is not terminal.",
    select(_r.status, func.count()).where(_live).group_by(_r.status),
)
TURNS = Statement(
    "runs.turns_owed",
    "Queued runs that may start, and since when the first of them may.",
    select(func.count(), func.min(_r.updated_at_ms)).where(
        _is(RunStatus.QUEUED), _live, ~_r.waits_turn
    ),
)
EXPIRIES = Statement(
    "runs.expiries_owed",
    "Runs whose time is over, and since when that of the first is.",
    select(func.count(), func.min(_r.expires_at_ms)).where(
        _live, _r.expires_at_ms <= bindparam("now_ms")
    ),
)
CANCELS = Statement(
    "runs.cancels_owed",
    "Runs whose cancel began at a time or before it, and when that of the first did.",
    select(func.count(), func.min(_r.cancelling_at_ms)).where(
        _is(RunStatus.CANCELLING), _live, _r.cancelling_at_ms <= bindparam("began_ms")
    ),
)


@dataclass(frozen=True, slots=True)
class Owed:
    """How many, and the time that the oldest counts from (ms since the epoch; None for none)."""

    count: int
    since_ms: int | None


async def live_by_status(tx: Transaction) -> dict[str, int]:
    """Runs in each status that is not terminal; 0 where there are none."""
    counts = {str(status): 0 for status in RunStatus if not status.is_terminal}
    return counts | {row[0]: row[1] for row in await tx.fetch_all(LIVE_BY_STATUS, {})}


async def turns(tx: Transaction) -> Owed:
    """Queued runs that may start; a run counts from when it was queued."""
    return await _owed(tx, TURNS, {})


async def expiries(tx: Transaction, now_ms: int) -> Owed:
    """Runs whose time is over; a run counts from that moment."""
    return await _owed(tx, EXPIRIES, {"now_ms": now_ms})


async def cancels(tx: Transaction, began_ms: int) -> Owed:
    """Runs whose cancel began at `began_ms` or before it; a run counts from its cancel."""
    return await _owed(tx, CANCELS, {"began_ms": began_ms})


async def _owed(tx: Transaction, statement: Statement, params: dict[str, Any]) -> Owed:
    row = await tx.fetch_one(statement, params)
    assert row is not None, "an aggregate has a row"
    return Owed(row[0], row[1])
