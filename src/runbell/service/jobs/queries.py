"""PgQueuer's tables and statements, as we use them: what is kept, found, put and looked ahead."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, cast

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence import qb
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import Job, TracebackRecord
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import JOB_STATUS, JobId, QueueEntrypoint, QueueManagerId
from pgqueuer.ports.driver import Driver
from pgqueuer.ports.repository import EntrypointExecutionParameter
from sqlalchemy import (
    Interval,
    bindparam,
    column,
    delete,
    func,
    insert,
    literal_column,
    table,
    text,
)

from runbell.storage.migrate_postgresql import tend
from runbell.storage.statements import Statement

if TYPE_CHECKING:
    import asyncpg

__all__ = ["CHANNEL", "FORGET", "PUT", "SETTINGS", "LookingAhead", "NotYet", "install", "queries"]

# Its log says what happened to each job; nothing here reads it, so a crash may take it.
SETTINGS = DBSettings(durability=Durability.balanced)
CHANNEL = SETTINGS.channel
"""Where PgQueuer tells that there is something to do."""

VACUUM = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "5000",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}
"""Every job is a row that comes, is changed twice and goes: a search for the next one passes over
the dead, however few are alive. PgQueuer's own advice would leave a million of them in its log."""

_qbe = qb.QueryBuilderEnvironment(settings=SETTINGS)
_qbq = qb.QueryQueueBuilder(settings=SETTINGS)
_qbs = qb.QuerySchedulerBuilder(settings=SETTINGS)

_QUIET = """
CREATE OR REPLACE FUNCTION runbell_not_kept() RETURNS trigger LANGUAGE plpgsql
AS 'BEGIN RETURN NULL; END';
CREATE OR REPLACE TRIGGER runbell_not_kept BEFORE INSERT ON pgqueuer_log
FOR EACH ROW WHEN (NEW.traceback IS NULL) EXECUTE FUNCTION runbell_not_kept();
ALTER TABLE pgqueuer DISABLE TRIGGER tg_pgqueuer_changed;
DROP INDEX IF EXISTS pgqueuer_priority_id_id1_idx, pgqueuer_updated_id_id1_idx,
    pgqueuer_queue_manager_id_idx;
CREATE INDEX IF NOT EXISTS runbell_held_idx ON pgqueuer (dedupe_key) WHERE status = 'failed';
"""
"""PgQueuer would write three lines for each job, each with five entries in indexes, of which only
those that say why a job failed are ever read. And it would tell of each change of a job within its
transaction, so that all of those are committed one after the other: we tell behind the commit.
The indexes belong to limits that are not ours, and to its dashboard; but each process asks now and
then which jobs are kept aside, among all those that wait."""

_MADE = f"for Runbell 2, by PgQueuer {version('pgqueuer')}"
"""A comment on its table: what `install` has nothing to do with any more."""

_NEXT = """
SELECT each.name, next.eta FROM unnest($1::text[]) AS each (name) CROSS JOIN LATERAL (
    SELECT execute_after - now() AS eta FROM pgqueuer
    WHERE entrypoint = each.name AND status = 'queued' ORDER BY execute_after LIMIT 1
) AS next
UNION ALL
SELECT entrypoint, interval '0' FROM pgqueuer
WHERE status = 'picked' AND heartbeat < now() - $2::interval AND entrypoint = ANY($1)
"""
"""When the first job of each of these names is due: a look into an index for each. A job whose
worker was lost is due."""

_OWN = "q.queue_manager_id = {} AND q.status = 'picked'"
_ENDED = f"""
WITH told AS (
    SELECT * FROM unnest($1::bigint[], $2::uuid[], $3::pgqueuer_status[], $4::jsonb[])
        AS each (id, holder, status, traceback)
), gone AS (
    DELETE FROM pgqueuer q USING told
    WHERE q.id = told.id AND {_OWN.format("told.holder")} AND told.status <> 'failed'
    RETURNING q.id, q.entrypoint, q.priority, told.status, told.traceback
), held AS (
    UPDATE pgqueuer q SET status = 'failed', updated = now(), queue_manager_id = NULL FROM told
    WHERE q.id = told.id AND {_OWN.format("told.holder")} AND told.status = 'failed'
    RETURNING q.id, q.entrypoint, q.priority, told.status, told.traceback
)
INSERT INTO pgqueuer_log (job_id, entrypoint, priority, status, traceback)
SELECT * FROM gone UNION ALL SELECT * FROM held
"""  # noqa: S608 - constants
_AGAIN = f"""
WITH again AS (
    UPDATE pgqueuer q SET status = 'queued', execute_after = now() + $3::interval,
        attempts = q.attempts + $4, updated = now(), queue_manager_id = NULL
    WHERE q.id = $1 AND {_OWN.format("$2")}
    RETURNING q.id, q.entrypoint, q.priority
)
INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority, traceback)
SELECT id, 'queued', entrypoint, priority, $5::jsonb FROM again WHERE $4 > 0
"""  # noqa: S608 - constants
_ALIVE = f"""
UPDATE pgqueuer q SET heartbeat = now() WHERE q.id = ANY($1::bigint[]) AND {_OWN.format("$2")}
"""  # noqa: S608 - constants


class NotYet(RetryRequested):
    """A job is to be handed out again although nothing was wrong with it: no failure is counted."""


class LookingAhead(Queries):
    """PgQueuer's statements, except those that it looks ahead with, and those about jobs which are
    handed out.

    It would ask three times, among all jobs that are not due yet, and read all of those. And it
    would know a job by its id alone: a worker that was stopped for a while would then end, give
    back or keep alive what somebody else has by now.

    Attributes:
        due: names of deferred jobs of which one was due at the last look. Only those are asked
            for: PgQueuer reads every deferred job of a name to find out that none is due.
        holder: whose jobs are kept alive: who was handed some the last time.
    """

    holder: QueueManagerId | None = None

    async def dequeue(
        self,
        batch_size: int,
        entrypoints: dict[QueueEntrypoint, EntrypointExecutionParameter],
        queue_manager_id: QueueManagerId,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> list[Job]:
        self.holder = queue_manager_id
        return await super().dequeue(
            batch_size,
            entrypoints,
            queue_manager_id,
            global_concurrency_limit,
            heartbeat_timeout,
        )

    async def log_jobs(
        self, job_status: list[tuple[Job, JOB_STATUS, TracebackRecord | None]]
    ) -> None:
        await self.driver.execute(
            _ENDED,
            [job.id for job, _, _ in job_status],
            [job.queue_manager_id for job, _, _ in job_status],
            [status for _, status, _ in job_status],
            [why.model_dump_json() if why else None for _, _, why in job_status],
        )

    async def retry_job(
        self, job: Job, delay: timedelta, traceback_record: TracebackRecord | None
    ) -> None:
        why = traceback_record
        counts = why is None or why.exception_type != NotYet.__name__
        said = why.model_dump_json() if why else None
        await self.driver.execute(_AGAIN, job.id, job.queue_manager_id, delay, int(counts), said)

    async def update_heartbeat(self, job_ids: list[JobId]) -> None:
        await self.driver.execute(_ALIVE, list(set(job_ids)), self.holder)

    def look_for(self, wanted: Callable[[], set[str]], lost_after: timedelta) -> None:
        """Say which names are wanted, and after how long without a sign a worker is lost."""
        self._wanted, self._lost_after = wanted, lost_after
        self._next: timedelta | None = None
        self.due = set(wanted())

    async def eligible_queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:
        rows = await self.driver.fetch(_NEXT, sorted(self._wanted()), self._lost_after)
        etas = [(str(row["name"]), cast(timedelta, row["eta"])) for row in rows]
        now = timedelta(0)
        self.due = {name for name, eta in etas if eta <= now}
        self._next = min((eta for _, eta in etas if eta > now), default=None)
        return len(self.due)

    async def next_deferred_eta(self, entrypoints: list[QueueEntrypoint]) -> timedelta | None:
        return self._next

    async def queued_work(self, entrypoints: list[QueueEntrypoint]) -> int:
        # One statement has looked for both kinds: nothing falls between two.
        return 0


_queue = table(
    "pgqueuer",
    *(
        column(name)
        for name in ("priority", "status", "entrypoint", "payload", "dedupe_key", "execute_after")
    ),
)
PUT = Statement(
    "pgqueuer.put",
    "A new job, unless it is there already: what PgQueuer's own enqueue does, in a statement that "
    "can be executed together with ours.",
    insert(_queue).values(
        priority=literal_column("0"),
        status=literal_column("'queued'"),
        entrypoint=bindparam("entrypoint"),
        payload=bindparam("payload"),
        dedupe_key=bindparam("dedupe_key"),
        execute_after=func.now() + bindparam("delay", type_=Interval),
    ),
)
FORGET = Statement(
    "pgqueuer.forget",
    "A job that nobody has taken up and that has nothing to do any more.",
    delete(_queue).where(_queue.c.dedupe_key == bindparam("dedupe_key"), text("status = 'queued'")),
)


def queries(driver: Driver) -> LookingAhead:
    """PgQueuer's statements, executed by this driver."""
    return LookingAhead(driver, qbe=_qbe, qbq=_qbq, qbs=_qbs)


async def install(connection: asyncpg.Connection) -> None:
    """Make PgQueuer's tables, or bring them up to the version that is installed.

    By one process at a time: the caller sees to that.
    """
    if await connection.fetchval("SELECT obj_description(to_regclass('pgqueuer'))") == _MADE:
        return
    own = queries(AsyncpgDriver(connection))
    if await own.schema_is_installed():
        await own.upgrade()
    else:
        await own.install()
    await connection.execute(f"{_QUIET}; COMMENT ON TABLE pgqueuer IS '{_MADE}'")
    for table_ in (SETTINGS.queue_table, SETTINGS.queue_table_log):
        await tend(connection, table_, VACUUM)
