"""What the tables owe and PgQueuer has no job for: law 1, in a few statements.

A job is missing where somebody took it away by hand, or where the database was restored without it;
and of an endpoint, where a process died between a commit and what follows it.
"""

from __future__ import annotations

from runbell.service.jobs import Job, JobKind
from runbell.storage import owed
from runbell.storage.postgresql import PostgresqlTransaction, PostgresqlView
from runbell.storage.schema import LAST_MS
from runbell.storage.store import Transaction
from runbell.storage.workable import asked_model

__all__ = ["MAX_MODELS", "missing_jobs", "models_in_line", "prune_log", "sweep_once"]

NEAR_MS = 600_000
"""Deadlines so near, in milliseconds, are to have a job: what is far is found by a later sweep,
and a hundred thousand runs that wait for somebody are not looked through by each."""

AT_ONCE = 1_000
"""Jobs of each kind that are found in one sweep."""

_HAS_NONE = """
NOT EXISTS (SELECT FROM pgqueuer q
            WHERE q.dedupe_key = {key} AND q.status IN ('queued', 'picked'))
AND NOT EXISTS (SELECT FROM pgqueuer q WHERE q.dedupe_key = {key} AND q.status = 'failed')
"""
"""Whatever became of it: one that was kept aside is not to be put again. In two, as there are two
indexes, each of a part of the table."""

SWEEPING = "SELECT pg_try_advisory_xact_lock($1)"
SWEEP = 0x73776565704A
"""The advisory lock of who searches the tables: "sweepJ" in ASCII."""

# A run in progress was queued by the event in front of its latest.
_TURN = "(r.sequence - (r.status = 'in_progress')::int)"
TURNS = f"""
SELECT r.id, {_TURN} AS turn, r.config FROM runs r
WHERE r.status IN ('queued', 'in_progress') AND NOT r.waits_turn
AND {_HAS_NONE.format(key=f"'run:' || r.id || ':' || {_TURN}")}
ORDER BY r.position LIMIT $1
"""  # noqa: S608 - constants
EXPIRIES = f"""
SELECT r.id, r.expires_at_ms FROM runs r
WHERE r.status IN ('queued', 'in_progress', 'requires_action', 'cancelling')
AND r.expires_at_ms < $2
AND {_HAS_NONE.format(key="'expire:' || r.id || ':0'")}
ORDER BY r.expires_at_ms LIMIT $1
"""  # noqa: S608 - constants
CANCELS = f"""
SELECT r.id, r.sequence, r.cancelling_at_ms FROM runs r
WHERE r.status = 'cancelling'
AND {_HAS_NONE.format(key="'finish_cancel:' || r.id || ':' || r.sequence")}
ORDER BY r.position LIMIT $1
"""  # noqa: S608 - constants
MODELS = """
WITH RECURSIVE names AS (
    (SELECT entrypoint FROM pgqueuer WHERE status = 'queued' AND entrypoint > 'run:'
     ORDER BY entrypoint LIMIT 1)
    UNION ALL
    SELECT (SELECT q.entrypoint FROM pgqueuer q
            WHERE q.status = 'queued' AND q.entrypoint > names.entrypoint
            ORDER BY q.entrypoint LIMIT 1)
    FROM names WHERE names.entrypoint IS NOT NULL
)
SELECT entrypoint FROM names WHERE entrypoint LIKE 'run:%' AND entrypoint <> 'run:*' LIMIT $1
"""
"""Each name once, by a look into the index for each."""

PRUNED_AT_ONCE = 10_000
PRUNE = """
WITH old AS (SELECT l.id FROM pgqueuer_log l WHERE l.created < now() - interval '10 minutes'
             AND (l.status <> 'failed'
                  OR NOT EXISTS (SELECT FROM pgqueuer q WHERE q.id = l.job_id))
             ORDER BY l.created LIMIT $1),
gone AS (DELETE FROM pgqueuer_log WHERE id IN (SELECT id FROM old) RETURNING 1)
SELECT count(*) FROM gone
"""
"""Why a job is held stays for as long as that is."""

ENDPOINTS_WITH_JOB = """
SELECT convert_from(payload, 'UTF8') FROM pgqueuer
WHERE entrypoint = 'deliver' AND status IN ('queued', 'picked', 'failed')
UNION ALL
SELECT convert_from(payload, 'UTF8') FROM pgqueuer
WHERE entrypoint = 'deliver_later' AND status IN ('queued', 'picked')
AND execute_after < now() + interval '1 s'
"""
"""Whose job waits, is at work, or is kept aside; and whose time to put one has come. One that is at
work has given its key back before it looks for the last time, and puts the next one itself; where
its worker is lost, it is handed out again."""

MAX_MODELS = 200
"""Models beside those that this process knows, which it looks for."""


async def sweep_once(tx: Transaction, now_ms: int, cancel_grace_ms: int) -> list[Job] | None:
    """What is owed and has no job; None where another process is looking for that."""
    assert isinstance(tx, PostgresqlTransaction), "a lock lasts no longer than its transaction"
    if not (await tx.fetch(SWEEPING, SWEEP))[0][0]:
        return None
    return await missing_jobs(tx, now_ms, cancel_grace_ms, near_ms=now_ms + NEAR_MS)


async def missing_jobs(
    tx: Transaction, now_ms: int, cancel_grace_ms: int, *, near_ms: int = LAST_MS
) -> list[Job]:
    """What is owed and has no job.

    Args:
        near_ms: runs that have time until then, in milliseconds since the epoch, are not asked
            whether something will end them.
    """
    assert isinstance(tx, PostgresqlView)
    jobs = [
        Job(JobKind.RUN, run_id, model=asked_model(config), turn=turn)
        for run_id, turn, config in await tx.fetch(TURNS, AT_ONCE)
    ]
    jobs += [
        Job(JobKind.EXPIRE, run_id, due_ms=expires_at_ms)
        for run_id, expires_at_ms in await tx.fetch(EXPIRIES, AT_ONCE, near_ms)
    ]
    jobs += [
        Job(JobKind.FINISH_CANCEL, run_id, due_ms=since_ms + cancel_grace_ms, turn=sequence)
        for run_id, sequence, since_ms in await tx.fetch(CANCELS, AT_ONCE)
    ]
    seen_to = {row[0] for row in await tx.fetch(ENDPOINTS_WITH_JOB)}
    # Whether there is one for later is for PgQueuer to say.
    jobs += [
        Job(JobKind.DELIVER, endpoint_id, due_ms=due_ms if due_ms > now_ms else None)
        for endpoint_id, due_ms in await owed.due_by_endpoint(tx)
        if endpoint_id not in seen_to
    ]
    return jobs


async def models_in_line(tx: Transaction) -> frozenset[str]:
    """The models of runs that wait for a worker."""
    assert isinstance(tx, PostgresqlView)
    names = await tx.fetch(MODELS, MAX_MODELS)
    return frozenset(row[0].removeprefix("run:") for row in names)


async def prune_log(tx: Transaction) -> bool:
    """Forget what happened to jobs some time ago; whether there may be more of that."""
    assert isinstance(tx, PostgresqlView)
    rows = await tx.fetch(PRUNE, PRUNED_AT_ONCE)
    return bool(rows[0][0] == PRUNED_AT_ONCE)
