"""What a job is called at PgQueuer, and how jobs are put: by a service, and by who derives them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from datetime import timedelta

from runbell.service.jobs import Job, JobKind
from runbell.service.jobs.drivers import within
from runbell.service.jobs.missing import missing_jobs
from runbell.service.jobs.queries import queries
from runbell.storage.postgresql import PostgresqlTransaction

__all__ = ["ANY_MODEL", "LATER", "Put", "named", "own_line", "put", "put_missing", "turn_of"]

SLACK_MS = 20
"""Deadlines are put so much later: the database's clock is not quite ours."""

ANY_MODEL = "run:*"
"""Runs of models that the process which has put them did not know."""

LATER = "deliver_later"
"""An endpoint that is owed something later: its job only puts the one that delivers."""


@dataclasses.dataclass(frozen=True, slots=True)
class Put:
    """A job as PgQueuer takes it.

    Attributes:
        key: what it is the same as.
        entrypoint: its name, by which workers ask for it.
    """

    key: str
    entrypoint: str
    payload: bytes
    delay: timedelta


def named(job: Job, now_ms: int, served: Callable[[str], bool]) -> Put:
    """What a job is called, and what it is the same as.

    Args:
        now_ms: the time, in milliseconds since the epoch.
        served: whether runs of a model have a line of their own.
    """
    due_in_ms = 0
    if job.due_ms is not None:
        due_in_ms = max(0, job.due_ms - now_ms) + SLACK_MS
    delay = timedelta(milliseconds=due_in_ms)
    match job.kind:
        case JobKind.RUN:
            entrypoint = f"run:{job.model}" if served(job.model) else ANY_MODEL
            payload = f"{job.key} {job.turn} {job.model}".encode()
            return Put(f"run:{job.key}:{job.turn}", entrypoint, payload, delay)
        case JobKind.DELIVER if job.due_ms is not None:
            # One that waits is not in the way of one that is due.
            return Put(f"deliver:{job.key}@{job.due_ms}", LATER, job.key.encode(), delay)
    key = f"{job.kind}:{job.key}:{job.turn}"
    return Put(key, job.kind.value, job.key.encode(), delay)


def own_line(model: str) -> str | None:
    """What jobs of runs of this model are called; None where none could be called so."""
    name = f"run:{model}"
    return name if model and name != ANY_MODEL and "\x00" not in model else None


def turn_of(payload: str) -> tuple[str, int, str]:
    """Which run a job is about, which of its turns, and its model.

    Without a turn, as earlier versions and people put them, it is -1: of none that is known.
    """
    run_id, _, rest = payload.partition(" ")
    turn, _, model = rest.partition(" ")
    return (run_id, int(turn), model) if turn.isdecimal() else (run_id, -1, rest)


async def put(tx: PostgresqlTransaction, puts: Iterable[Put]) -> list[Put]:
    """Put jobs; those that are there already, and were left out."""
    # In one order everywhere: who puts the same job at this moment is waited for.
    ordered = sorted(puts, key=lambda each: each.key)
    ids = await queries(within(tx)).enqueue(
        [each.entrypoint for each in ordered],
        [each.payload for each in ordered],
        [0] * len(ordered),
        [each.delay for each in ordered],
        [each.key for each in ordered],
        on_conflict="skip",
    )
    return [each for each, job_id in zip(ordered, ids, strict=True) if job_id is None]


async def put_missing(tx: PostgresqlTransaction, now_ms: int, cancel_grace_ms: int) -> int:
    """Put every job that the tables owe, in a database where no service runs: how many."""
    count = 0
    while True:
        found = await missing_jobs(tx, now_ms, cancel_grace_ms)
        # Each worker looks for the names of lines that it does not know.
        puts = [named(job, now_ms, bool) for job in found]
        there = await put(tx, puts) if puts else []
        if len(there) == len(puts):
            return count
        count += len(puts) - len(there)
