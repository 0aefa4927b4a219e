"""Jobs that were kept aside, since they failed too often: who they are, and a new try.

A job that fails for a defect is tried again for a while, then held: it is handed to nobody, and
nobody waits for it. Others go on, of the same run or endpoint too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import timedelta

from runbell.service.jobs import JobKind
from runbell.service.jobs.putting import LATER, Put, put
from runbell.storage.postgresql import PostgresqlTransaction, PostgresqlView
from runbell.storage.store import Transaction

__all__ = ["HeldJob", "count_held", "forget_earlier", "held_jobs", "release"]

MOST = 10_000
"""Held jobs that are listed, or released at once: more mean one defect, not so many."""

HELD = """
SELECT q.id, q.entrypoint, q.payload, (extract(epoch FROM q.updated) * 1000)::bigint,
       (SELECT l.traceback->>'exception_message' FROM pgqueuer_log l
        WHERE l.job_id = q.id AND l.traceback IS NOT NULL ORDER BY l.created DESC LIMIT 1)
FROM pgqueuer q WHERE q.status = 'failed' ORDER BY q.id LIMIT $1
"""
COUNT = """
SELECT split_part(entrypoint, ':', 1), count(*) FROM pgqueuer WHERE status = 'failed' GROUP BY 1
"""
TAKE = """
DELETE FROM pgqueuer WHERE status = 'failed' AND id = ANY($1::bigint[])
RETURNING coalesce(dedupe_key, 'released:' || id), entrypoint, payload
"""
FORGET = """
DELETE FROM pgqueuer WHERE status = 'failed' AND entrypoint = $1 AND payload = $2 AND id < $3
"""


@dataclass(frozen=True, slots=True)
class HeldJob:
    """A job that was kept aside.

    Attributes:
        key: the id of its run, or of its endpoint.
        since_ms: when it was kept aside, in milliseconds since the epoch.
        why: what it failed with the last time; empty where that is not known any more.
    """

    id: int
    kind: JobKind
    key: str
    since_ms: int
    why: str


async def held_jobs(tx: Transaction) -> list[HeldJob]:
    """Every job that is held, the oldest first."""
    assert isinstance(tx, PostgresqlView)
    return [
        HeldJob(
            job_id, _kind(name), (payload or b"").decode().partition(" ")[0], since_ms, why or ""
        )
        for job_id, name, payload, since_ms, why in await tx.fetch(HELD, MOST)
    ]


async def count_held(tx: Transaction) -> dict[JobKind, int]:
    """How many jobs of each kind are held; every kind is there."""
    assert isinstance(tx, PostgresqlView)
    counts = dict.fromkeys(JobKind, 0)
    for name, count in await tx.fetch(COUNT):
        counts[_kind(name)] += count
    return counts


async def release(tx: Transaction, ids: Collection[int]) -> int:
    """Have held jobs tried again from now on, as if they had never been; how many those were."""
    assert isinstance(tx, PostgresqlTransaction)
    taken = await tx.fetch(TAKE, list(ids))
    # As new ones: each worker looks once a second, and one that is there already is enough.
    await put(tx, [Put(key, name, payload, timedelta(0)) for key, name, payload in taken])
    return len(taken)


async def forget_earlier(tx: Transaction, name: str, payload: bytes, job_id: int) -> None:
    """Forget held jobs that were the same as one that is to be held: of an endpoint, each event
    puts a job anew, and one to look at is enough."""
    assert isinstance(tx, PostgresqlTransaction)
    await tx.fetch(FORGET, name, payload, job_id)


def _kind(name: str) -> JobKind:
    """The kind of a job, from its name at PgQueuer."""
    return JobKind.DELIVER if name == LATER else JobKind(name.partition(":")[0])
