"""PgQueuer as we use it: what is put, what is looked for, what is not kept."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver

from runbell.service.jobs.engine import FORGET, PUT, install, queries
from runbell.testing.postgresql import database, emptied

SAID = "SELECT priority, status, entrypoint, payload, attempts, slot, queue_manager_id, "
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
