"""How long runs took: the history that a plan is made from."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from msgspec import Struct
from sqlalchemy import bindparam, func, select

from runbell.storage import schema
from runbell.storage.codec import JsonColumn
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["History", "read"]

PAGE = 1000
"""Rows that are read at once, each with all that its run was told to do."""

_r = schema.runs.c

SPAN = Statement(
    "runs.span",
    "The positions of the oldest run after another, and of the newest.",
    select(func.min(_r.position), func.max(_r.position)).where(_r.position > bindparam("after")),
)
DURATIONS = Statement(
    "runs.durations",
    "When runs of which assistant, asked to do what, were created and when they ended by "
    "themselves, a page in the order of creation.",
    limited(
        select(
            _r.position,
            _r.assistant_id,
            _r.config,
            _r.created_at_ms,
            func.coalesce(_r.completed_at_ms, _r.failed_at_ms, _r.incomplete_at_ms),
        )
        .where(_r.position > bindparam("after"))
        .order_by(_r.position)
    ),
)


class _Asked(Struct):
    """Of what a run was asked to do, the only thing that is decoded here."""

    model: str


_asked = JsonColumn(_Asked)


class History(NamedTuple):
    """What was read.

    Attributes:
        ended: runs that ended by themselves.
        left_out: runs that were cancelled, have expired, or go on.
        first_ms, last_ms: when the first and the last run was created, since the epoch.
    """

    ended: int
    left_out: int
    first_ms: int
    last_ms: int


async def read(
    tx: Transaction,
    durations: defaultdict[str, array[float]],
    progress: Callable[[float], None],
) -> History:
    """Add the seconds from creation to end of every run that ended by itself, by its kind: its
    assistant and its model, as in `asst_1, gpt-5`.

    Args:
        durations: is added to.
        progress: is told which share of the rows was read.
    """
    span = await tx.fetch_one(SPAN, {"after": 0})
    # The oldest runs may be gone: their positions are not.
    oldest, newest = (span and span[0] and span) or (0, 0)
    after = ended = left_out = first_ms = last_ms = 0
    while True:
        page = await tx.fetch_all(DURATIONS, {"after": after, "limit": PAGE})
        for position, assistant, config, created_ms, ended_ms in page:
            after = position
            first_ms, last_ms = first_ms or created_ms, created_ms
            if ended_ms is None:
                left_out += 1
            else:
                ended += 1
                kind = f"{assistant or 'no assistant'}, {_asked.decode(config).model}"
                durations[kind].append(max(ended_ms - created_ms, 0) / 1000)
        if len(page) < PAGE:
            return History(ended, left_out, first_ms, last_ms)
        progress((after - oldest + 1) / (newest - oldest + 1))
