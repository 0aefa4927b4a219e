"""How an event gets into the inbox: once, whoever brings it, and however often."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import bindparam, select

from runbell.errors import Conflict
from runbell.receiver import schema
from runbell.receiver.events import Envelope
from runbell.storage.statements import Statement, insert_row
from runbell.storage.store import Transaction

__all__ = ["Arrival", "Stored", "store", "store_all"]

Stored = Literal["accepted", "unreadable", "duplicate", "other"]
"""What became of an arrival: it is new; it is new and no event; it is there already; another body
came under its id."""

_e = schema.events.c

INSERT = Statement("inbox_events.store", "An event that came.", insert_row(schema.events))
FIND = Statement(
    "inbox_events.body",
    "What came first under this id.",
    select(_e.body).where(_e.id == bindparam("key")),
)
QUARANTINE = Statement(
    "inbox_others.insert", "Another body under an id.", insert_row(schema.others)
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A body that is its sender's.

    Attributes:
        envelope: None where the body is no event; `error` says why.
        origin: `push`, or the feed that it was fetched from.
    """

    id: str
    body: bytes
    envelope: Envelope | None
    received_at_ms: int
    origin: str = "push"
    error: str | None = None


async def store(tx: Transaction, arrival: Arrival) -> Stored:
    """Keep what came, once. What is no event is a dead letter from the beginning."""
    envelope = arrival.envelope
    try:
        await tx.execute(
            INSERT,
            {
                "id": arrival.id,
                "type": envelope and envelope.type,
                "subject": envelope and envelope.subject,
                "sequence": envelope and envelope.sequence,
                "urgent": envelope is not None and envelope.urgent,
                "body": arrival.body,
                "origin": arrival.origin,
                "received_at_ms": arrival.received_at_ms,
                "state": "waiting" if envelope else "dead",
                "due_at_ms": arrival.received_at_ms,
                "claim": None,
                "attempts": 0,
                "done": None,
                "forced": False,
                "error": arrival.error,
                "ended_at_ms": None if envelope else arrival.received_at_ms,
            },
        )
    except Conflict:
        row = await tx.fetch_one(FIND, {"key": arrival.id})
        if row is None or row[0] == arrival.body:
            return "duplicate"
        return await _quarantine(tx, arrival)
    return "accepted" if envelope else "unreadable"


async def store_all(tx: Transaction, arrivals: Sequence[Arrival]) -> list[Stored]:
    """The same with several arrivals; what became of each."""
    found: dict[int, Stored] = {}
    # In one order for all: two units that have the same ids wait for each other only one way.
    for number in sorted(range(len(arrivals)), key=lambda number: arrivals[number].id):
        found[number] = await store(tx, arrivals[number])
    return [found[number] for number in range(len(arrivals))]


async def _quarantine(tx: Transaction, arrival: Arrival) -> Stored:
    try:
        await tx.execute(
            QUARANTINE,
            {
                "id": arrival.id,
                "digest": hashlib.sha256(arrival.body).digest(),
                "body": arrival.body,
                "received_at_ms": arrival.received_at_ms,
            },
        )
    except Conflict:
        return "duplicate"
    return "other"
