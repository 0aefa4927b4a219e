"""What the sweep takes for missing: what is owed and nobody will look for."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any, cast

import pytest

from runbell.clock import SystemClock
from runbell.service.jobs import Job, JobKind
from runbell.service.jobs.missing import missing_jobs
from runbell.service.jobs.pgqueuer import PgQueuerJobs
from runbell.storage import endpoints
from runbell.storage.listening import Listener
from runbell.testing.postgresql import opened_postgresql
from runbell.testing.storage_contract.webhooks import endpoint, owe

INSERT = """
INSERT INTO pgqueuer (priority, status, entrypoint, payload, dedupe_key, execute_after)
VALUES (0, $1::pgqueuer_status, $2, 'wh_1', NULL, now() + $3::int * interval '1 s')
"""
THERE = [
    # At work, and behind its last look: it has given its key back, and puts the next one itself.
    ("picked", "deliver", 0),
    ("queued", "deliver", 5),
    ("failed", "deliver", 0),
    # Its time has come, and who puts the other one is a moment late.
    ("queued", "deliver_later", 0),
    ("picked", "deliver_later", -5),
]
NOT_THERE = [("queued", "deliver_later", 3_600), ("failed", "deliver_later", 0)]


def test_an_endpoint_whose_job_is_at_work_misses_none() -> None:
    """Nor one whose job waits, or is kept aside; one for much later does not count."""

    async def story() -> None:
        async with opened_postgresql() as store:
            await store.write(partial(endpoints.insert, endpoint=endpoint()))
            await store.write(lambda tx: owe(tx, 1))
            for job in (*THERE, *NOT_THERE):
                await store.fetch(INSERT, *job)
                found = await store.scan(lambda tx: missing_jobs(tx, 2_000, 0))
                missing = [] if job in THERE else [Job(JobKind.DELIVER, "wh_1")]
                assert found == missing, job
                await store.fetch("DELETE FROM pgqueuer")

    asyncio.run(story())


def test_what_is_there_already_is_not_reported_as_missing(caplog: pytest.LogCaptureFixture) -> None:
    """An endpoint that waits for its next attempt is asked about by every sweep."""
    caplog.set_level(logging.INFO)

    async def story() -> None:
        async with opened_postgresql() as store:
            nobody = cast(Any, None)
            jobs = PgQueuerJobs(
                store, Listener(""), SystemClock(), nobody, concurrency=1, cancel_grace=1.0
            )
            later = Job(JobKind.DELIVER, "wh_1", due_ms=2**40)
            for _ in range(2):
                await jobs._put_missing([later])

    asyncio.run(story())
    assert [record.getMessage() for record in caplog.records] == [
        "1 jobs were owed and not there: the sweep has put them"
    ]
