"""Runs that a worker can take up, page by page: for an engine whose memory of them is bounded."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from sqlalchemy import Select, bindparam, literal_column, select, text

from runbell.runs import RunStatus
from runbell.storage import schema
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["Workable", "asked_model", "in_progress", "ready"]

_r = schema.runs.c


def _of(status: RunStatus) -> Select[tuple[str, int, str]]:
    # As text, not as a parameter: only then can the partial index be used.
    return (
        select(_r.id, _r.position, _r.config)
        .where(
            _r.status == literal_column(f"'{status}'"),
            text(schema.WORKABLE),
            _r.position > bindparam("after"),
        )
        .order_by(_r.position)
    )


READY = Statement(
    "runs.ready",
    "Queued runs that may start, oldest first.",
    limited(_of(RunStatus.QUEUED).where(~_r.waits_turn)),
)
IN_PROGRESS = Statement(
    "runs.in_progress",
    "Runs that a worker holds, or held when it was lost.",
    limited(_of(RunStatus.IN_PROGRESS)),
)


@dataclass(frozen=True, slots=True)
class Workable:
    """A run that can be taken up: which model it asks for (see `asked_model`), and its position."""

    id: str
    model: str
    position: int


class _Asked(msgspec.Struct):
    """Of what a run is asked to do, the model alone: the rest, which may be long, is skipped."""

    model: str


_ASKED = msgspec.json.Decoder(_Asked)


def asked_model(config: str) -> str:
    """The model of a run; empty where nobody can read that: a row that is broken fails by itself,
    and keeps no other from being found."""
    try:
        return _ASKED.decode(config).model
    except msgspec.DecodeError:
        return ""


async def ready(tx: Transaction, limit: int, after: int = 0) -> list[Workable]:
    """Queued runs that may start, oldest first, behind the position `after`."""
    return await _page(tx, READY, limit, after)


async def in_progress(tx: Transaction, limit: int, after: int = 0) -> list[Workable]:
    """Runs that are in progress, oldest first, behind the position `after`."""
    return await _page(tx, IN_PROGRESS, limit, after)


async def _page(tx: Transaction, statement: Statement, limit: int, after: int) -> list[Workable]:
    rows = await tx.fetch_all(statement, {"limit": limit, "after": after})
    return [Workable(key, asked_model(config), position) for key, position, config in rows]
