"""PgQueuer as we use it: what is put, what is looked for, what is not kept."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.domain.errors import RetryRequested
from pgqueuer.domain.models import TracebackRecord
from pgqueuer.ports.repository import EntrypointExecutionParameter

from runbell.service.jobs import Job
from runbell.service.jobs.held import COUNT
from runbell.service.jobs.missing import sweep_once
from runbell.service.jobs.queries import FORGET, PUT, NotYet, install, queries
from runbell.storage.store import Transaction
from runbell.testing.postgresql import database, emptied, opened_postgresql

SAID = "SELECT priority, status, entrypoint, payload, attempts, slot, queue_manager_id, "
_UNLIMITED = EntrypointExecutionParameter(concurrency_limit=0)
DUE = "execute_after - created AS due FROM pgqueuer ORDER BY id"


async def _put(connection: asyncpg.Connection, **values: Any) -> str:
    this = PUT.postgresql
    done: str = await connection.execute(this.text, *(values[name] for name in this.names))
    return done


async def _as_its_own() -> None:
    url = await database()
    connection = await asyncpg.connect(url)
    five = timedelta(seconds=5)
    own = queries(AsyncpgDriver(connection))
    await own.enqueue(["run:m"], [b"r"], [0], [five], ["one"], on_conflict="skip")
    job = {"entrypoint": "run:m", "payload": b"r", "delay": five}
    assert await _put(connection, **job, dedupe_key="two") == "INSERT 0 1"
    assert await _put(connection, **job, dedupe_key="one") == "INSERT 0 0"
    theirs, ours = await connection.fetch(SAID + DUE)
    assert tuple(ours) == tuple(theirs)
    await connection.execute(FORGET.postgresql.text, "one")
    assert await connection.fetch("SELECT dedupe_key FROM pgqueuer") == [("two",)]
    await connection.close()
    await emptied(url)


def test_a_job_is_put_as_pgqueuer_puts_it() -> None:
    """Also one that is there already, which is left out. The same key takes it back."""
    asyncio.run(_as_its_own())


async def _ahead() -> None:
    url = await database()
    connection = await asyncpg.connect(url)
    ahead = queries(AsyncpgDriver(connection))
    ahead.look_for(lambda: {"expire", "run:m", "deliver"}, timedelta(seconds=4))
    now, later = timedelta(0), timedelta(hours=1)
    for number, (name, delay) in enumerate([("expire", later), ("run:m", now), ("other", now)]):
        await _put(connection, entrypoint=name, payload=b"", delay=delay, dedupe_key=str(number))
    assert await ahead.eligible_queued_work([]) == 1
    assert ahead.due == {"run:m"}
    eta = await ahead.next_deferred_eta([])
    assert eta is not None
    assert timedelta(minutes=59) < eta <= later
    lost = "UPDATE pgqueuer SET status = 'picked', heartbeat = now() - interval '5 s' "
    await connection.execute(lost + "WHERE entrypoint = 'expire'")
    await ahead.eligible_queued_work([])
    assert ahead.due == {"expire", "run:m"}
    await connection.close()
    await emptied(url)


def test_one_look_says_what_is_due_and_when_the_next_one_is() -> None:
    """Of the names that are wanted; a job whose worker was lost is due."""
    asyncio.run(_ahead())


async def _quiet() -> None:
    url = await database()
    connection = await asyncpg.connect(url)
    told: list[object] = []
    await connection.add_listener("ch_pgqueuer", lambda *told_: told.append(told_))
    await _put(connection, entrypoint="expire", payload=b"", delay=timedelta(0), dedupe_key="k")
    log = "INSERT INTO pgqueuer_log (job_id, status, priority, entrypoint, traceback) VALUES "
    await connection.execute(log + "(1, 'successful', 0, 'a', NULL), (2, 'failed', 0, 'a', '{}')")
    assert await connection.fetch("SELECT job_id FROM pgqueuer_log") == [(2,)]
    # A second installation changes nothing, and takes no lock.
    async with connection.transaction():
        await connection.execute("LOCK TABLE pgqueuer IN ACCESS SHARE MODE")
        other = await asyncpg.connect(url)
        await asyncio.wait_for(install(other), 30)
        await other.close()
    await connection.execute("SELECT 1")
    assert told == []
    await connection.close()
    await emptied(url)


def test_nothing_is_told_within_transactions_and_only_failures_are_kept() -> None:
    """PgQueuer's own would tell of each change, and keep three lines of each job."""
    asyncio.run(_quiet())


async def _fenced(what: str) -> tuple[str, bool, bool]:
    """What becomes of a job that one worker lost and another has, when the first is back."""
    url = await database()
    connection = await asyncpg.connect(url)
    lost, holder = (queries(AsyncpgDriver(connection)) for _ in range(2))
    names = [uuid.uuid4(), uuid.uuid4()]
    await _put(connection, entrypoint="m", payload=b"", delay=timedelta(0), dedupe_key="k")
    stale = "UPDATE pgqueuer SET heartbeat = now() - interval '5 s'"
    four = timedelta(seconds=4)
    jobs = []
    for own, name in zip((lost, holder), names, strict=True):
        jobs += await own.dequeue(10, {"m": _UNLIMITED}, name, None, four)  # type: ignore[dict-item, arg-type]
        await connection.execute(stale)
    assert [job.queue_manager_id for job in jobs] == names
    match what:
        case "ends":
            await lost.log_jobs([(jobs[0], "successful", None), (jobs[0], "failed", None)])
        case "gives back":
            await lost.retry_job(jobs[0], timedelta(0), None)
        case "keeps alive":
            await lost.update_heartbeat([jobs[0].id])
        case "is the holder":
            await holder.update_heartbeat([jobs[1].id])
    (row,) = await connection.fetch(
        "SELECT status::text, queue_manager_id = $1, heartbeat > now() - $2::interval "
        "FROM pgqueuer",
        names[1],
        four,
    )
    await holder.log_jobs([(jobs[1], "successful", None)])
    assert await connection.fetch("SELECT FROM pgqueuer") == []
    await connection.close()
    await emptied(url)
    return tuple(row)  # type: ignore[return-value]


@pytest.mark.parametrize("what", ["ends", "gives back", "keeps alive"])
def test_a_worker_that_was_believed_lost_has_no_say_about_its_job(what: str) -> None:
    """Somebody else has it: PgQueuer's own statements would go by the job's id alone."""
    assert asyncio.run(_fenced(what)) == ("picked", True, False)


def test_the_holder_of_a_job_keeps_it_alive() -> None:
    assert asyncio.run(_fenced("is the holder")) == ("picked", True, True)


async def _attempts() -> list[tuple[int, int]]:
    url = await database()
    connection = await asyncpg.connect(url)
    own, name = queries(AsyncpgDriver(connection)), uuid.uuid4()
    await _put(connection, entrypoint="m", payload=b"", delay=timedelta(0), dedupe_key="k")
    seen = []
    for error in (NotYet(timedelta(0), "it is early"), RetryRequested(timedelta(0), "a defect")):
        (job,) = await own.dequeue(10, {"m": _UNLIMITED}, name, None, timedelta(seconds=4))  # type: ignore[dict-item, arg-type]
        why = TracebackRecord.from_exception(error, job.id)
        await own.retry_job(job, timedelta(0), why)
        sums = "SELECT max(attempts), (SELECT count(*) FROM pgqueuer_log) FROM pgqueuer"
        seen.append(tuple(await connection.fetchrow(sums)))
    await connection.close()
    await emptied(url)
    return seen


def test_only_defects_count_as_failures() -> None:
    """A deadline that was early, or a worker that stops, brings no job nearer to being held."""
    assert asyncio.run(_attempts()) == [(0, 0), (1, 1)]


async def _explained() -> str:
    url = await database()
    connection = await asyncpg.connect(url)
    await connection.execute(
        "INSERT INTO pgqueuer (priority, status, entrypoint, dedupe_key, execute_after) "
        "SELECT 0, 'queued', 'expire', 'expire:' || n, now() FROM generate_series(1, 2000) AS n"
    )
    await connection.execute("ANALYZE pgqueuer")
    plan = await connection.fetch(f"EXPLAIN {COUNT}")
    await connection.close()
    await emptied(url)
    return "\n".join(row[0] for row in plan)


def test_held_jobs_are_counted_without_a_look_at_the_others() -> None:
    plan = asyncio.run(_explained())
    assert "runbell_held_idx" in plan
    assert "Seq Scan" not in plan


async def _sweeps() -> list[list[Job] | None]:
    """What is found by one that looks, by another meanwhile, and by a third behind them."""
    looked, go_on = asyncio.Event(), asyncio.Event()

    async def sweep(tx: Transaction) -> list[Job] | None:
        found = await sweep_once(tx, 0, 1_000)
        looked.set()
        await go_on.wait()
        return found

    async with opened_postgresql() as store:
        first = asyncio.create_task(store.write(sweep))
        await asyncio.wait_for(looked.wait(), 30)
        second = await store.write(lambda tx: sweep_once(tx, 0, 1_000))
        go_on.set()
        return [await first, second, await store.write(sweep)]


def test_of_several_that_sweep_at_a_time_one_looks() -> None:
    """The tables are searched by one process for all, and by the next one when that has ended."""
    assert asyncio.run(_sweeps()) == [[], None, []]
