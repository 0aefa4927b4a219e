"""The check of a database that several processes share: its rows, and what its engine holds."""

from __future__ import annotations

from runbell.service.jobs.held import held_jobs
from runbell.service.settings import location
from runbell.storage.check import check
from runbell.storage.migrate_postgresql import require_current_revision
from runbell.storage.postgresql import PostgresqlView, connect, now_ms, others, unavailable
from runbell.storage.report import Report

__all__ = ["check_postgresql"]


async def check_postgresql(url: str) -> Report:
    """Hold every row against the rules, all at one moment, and list the jobs that are held.

    Raises:
        ConfigurationError: it is no database of ours, or of another version.
        StorageUnavailable: it can't be reached.
    """
    connection = await connect(url)
    try:
        with unavailable():
            await require_current_revision(connection, location(url))
            moment_ms = await now_ms(connection) if await others(connection) else None
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                view = PostgresqlView(connection)
                report = await check(view, now_ms=moment_ms)
                for job in await held_jobs(view):
                    told = f"job {job.id}, {job.kind}, {job.why}".rstrip(", ")
                    report.add("a job that failed too often and is held", job.key, told)
            return report
    finally:
        connection.terminate()
