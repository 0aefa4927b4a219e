"""An installation moves: nothing is lost or changed on the way, and what was under way goes on; a
copy that would not be the same is no copy."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runbell.clock import VirtualClock
from runbell.service import copying as moving
from runbell.service.settings import Settings
from runbell.storage import copying, idempotency
from runbell.storage.check import check
from runbell.storage.lock import InstallationLock
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.sqlite import read_only
from runbell.testing.embedded import EmbeddedService, embedded
from runbell.testing.postgresql import database, emptied, without_tables
from runbell.testing.posts import answered
from runbell.testing.receivers import Receiver
from tests.cli.conftest import Command, runbell
from tests.delivery.house import register, run_once
from tests.forking import spawn
from tests.served import Api, Served, eventually

__all__ = ["runbell"]

KEY = "A" * 43 + "="
"""That of the service which the tests' installation was made with."""


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> bytes:
    """An installation in the middle of things: runs that have ended, wait for tools, wait for their
    turn or for a worker; webhooks that were delivered, are to be tried again, and are new."""
    path = tmp_path_factory.mktemp("copy") / "runbell.db"

    async def live() -> None:
        clock = VirtualClock(time.time_ns() // 1_000_000 - 5_000)
        async with embedded(path, clock=clock) as service:
            await register(service)
            await _live(service)

    asyncio.run(live())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE webhook_endpoints SET url = ?", (receiver.url,))
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


async def _live(service: EmbeddedService) -> None:
    for _ in range(2):
        await run_once(service)
    acting = await service.run(await service.thread("call f {}"), model="echo")
    await service.settle()
    thread = (await service.find(acting)).thread_id
    await service.run(thread, model="echo", on_active_run="enqueue")
    service.poster.answer = lambda _: answered(500)
    await run_once(service, "is tried again")
    await service.jobs.stop(0)
    for number in range(3):
        await service.run(await service.thread(f"queued {number}"), model="echo")
    answer = idempotency.FirstAnswer(b"digest", 200, {"x": "y"}, b"\x00\xff{}", None)

    async def keep(tx: Any) -> None:
        now_ms = service.clock.now_ms()
        await idempotency.claim(tx, service.project, "once", b"digest", now_ms=now_ms, oldest_ms=0)
        await idempotency.keep(tx, service.project, "once", answer)

    await service.store.write(keep)


@pytest.fixture
def source(tmp_path: Path, lived_in: bytes) -> Path:
    path = tmp_path / "runbell.db"
    path.write_bytes(lived_in)
    return path


@pytest.fixture
def target() -> Iterator[str]:
    """A database that has today's schema and no rows."""
    url = asyncio.run(database())
    yield url
    asyncio.run(emptied(url))


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    """What a database says to a statement."""

    async def look() -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(query)]
        finally:
            await connection.close()

    return asyncio.run(look())


def test_what_was_copied_goes_on(
    source: Path, target: str, receiver: Receiver, tmp_path: Path, runbell: Command
) -> None:
    """Every run ends, every webhook arrives, and the feed goes on behind what was there."""
    before = source.read_bytes()
    done = runbell("copy", f"sqlite:///{source}", target)
    assert done.code == 0, done
    assert "verified; " in done.out
    assert source.read_bytes() == before
    jobs = ask(target, "SELECT split_part(entrypoint, ':', 1), count(*) FROM pgqueuer GROUP BY 1")
    # One of the runs waits its turn, and has a deadline alone.
    assert dict(jobs) == {"run": 3, "expire": 5, "deliver": 1}
    env = {"RUNBELL_ENCRYPTION_KEY": KEY, "RUNBELL_ALLOW_PRIVATE_WEBHOOKS": "true"}
    served = tmp_path / "served"
    served.mkdir()
    with Served(served, env=env, database=target) as service:
        api = service.api()
        eventually(lambda: not _going_on(api), "all runs have ended")
        owed = "SELECT id FROM deliveries WHERE status <> 'succeeded'"
        eventually(lambda: not ask(target, owed), "all webhooks were delivered")
        feed = [event["id"] for event in api.get("/v1/events?limit=100").ok()["data"]]
    with contextlib.closing(sqlite3.connect(source)) as connection:
        rows = connection.execute("SELECT id FROM events ORDER BY position").fetchall()
        sent = connection.execute("SELECT id FROM deliveries WHERE status = 'succeeded'").fetchall()
    assert feed[: len(rows)] == [row[0] for row in rows]
    came = {each.header("webhook-id") for each in receiver.requests}
    assert came == set(feed) - {row[0] for row in sent}

    async def in_order() -> dict[str, Any]:
        store = await PostgresqlStore.open(target)
        try:
            return (await store.scan(check)).problems
        finally:
            await store.close()

    assert asyncio.run(in_order()) == {}


def _going_on(api: Api) -> list[Any]:
    """Runs that have not ended; those that wait for outputs get them."""
    found: list[Any] = api.get("/v1/runs?limit=100").ok()["data"]
    for run in found:
        if run["status"] == "requires_action":
            path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"
            (call,) = run["required_action"]["submit_tool_outputs"]["tool_calls"]
            outputs = [{"tool_call_id": call["id"], "output": "42"}]
            api.post(path, {"tool_outputs": outputs}).ok()
    return [run for run in found if run["status"] != "completed"]


def test_there_and_back_again_is_the_same(source: Path, target: str, tmp_path: Path) -> None:
    """Every row with its position, in both directions; and positions that come are behind all."""
    back = tmp_path / "back.db"

    async def story() -> tuple[moving.Copied, moving.Copied]:
        there = await moving.move(Settings(database=f"sqlite:///{source}"), target)
        return there, await moving.move(Settings(database=target), f"sqlite:///{back}")

    there, again = asyncio.run(story())
    sums = {name: (content.rows, content.checksum) for name, content in there.tables.items()}
    assert sums == {n: (content.rows, content.checksum) for n, content in again.tables.items()}
    empty = {name for name, (rows, _) in sums.items() if not rows}
    assert empty == {"api_keys"}, "every other table has something to lose"
    assert again.jobs is None
    assert read_only(back, check).problems == {}
    assert sorted(path.name for path in tmp_path.iterdir() if "back" in path.name) == ["back.db"]
    with contextlib.closing(sqlite3.connect(back)) as connection:
        (last,) = connection.execute("SELECT max(position) FROM events").fetchone()
        (behind,) = connection.execute("SELECT seq FROM sqlite_sequence").fetchone()
    assert behind >= last
    for table in ("runs", "messages", "deliveries"):
        ((follows,),) = ask(
            target,
            f"SELECT nextval('{table}_position_seq') > (SELECT max(position) FROM {table})",
        )
        assert follows
    assert ask(target, "SELECT runbell_feed_position() > max(position) FROM events") == [(True,)]


BROKEN = {
    "changes": ("NEW.content := NEW.content || ' '; RETURN NEW;", "checksum"),
    "loses": ("IF NEW.position = 2 THEN RETURN NULL; END IF; RETURN NEW;", "rows of messages"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_what_is_not_the_same_is_no_copy(
    source: Path, target: str, runbell: Command, how: str
) -> None:
    """One row that is changed, or missing: the target stays empty, and a second try is as the
    first."""
    body, said = BROKEN[how]
    ask(
        target,
        f"CREATE FUNCTION breaks() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$",
    )
    ask(target, "CREATE TRIGGER b BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION breaks()")
    done = runbell("copy", f"sqlite:///{source}", target)
    assert done.code == 1
    assert said in done.err
    assert ask(target, "SELECT id FROM runs") == ask(target, "SELECT id FROM projects") == []
    ask(target, "DROP FUNCTION breaks CASCADE")
    done = runbell("copy", f"sqlite:///{source}", target)
    assert done.code == 0, done


def test_a_copy_that_is_killed_leaves_nothing(source: Path, target: str, runbell: Command) -> None:
    """In the middle of a table; another one begins anew, and is whole."""
    ask(
        target,
        "CREATE FUNCTION waits() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN PERFORM pg_sleep(600); RETURN NEW; END$$",
    )
    ask(target, "CREATE TRIGGER w BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION waits()")
    command = [sys.executable, "-m", "runbell", "copy", f"sqlite:///{source}", target]
    with tempfile.TemporaryFile() as said:
        process = spawn(command, stdout=said, stderr=said, cwd=source.parent, env=os.environ)
        sleeping = (
            "FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
        )
        eventually(lambda: bool(ask(target, f"SELECT pid {sleeping}")), "it is in the middle")
        process.kill()
        process.wait(60)
    # As the server does by itself when it next writes to somebody who is gone.
    ask(target, f"SELECT pg_terminate_backend(pid, 60000) {sleeping}")
    ask(target, "DROP FUNCTION waits CASCADE")
    done = runbell("copy", f"sqlite:///{source}", target)
    assert done.code == 0, done


def test_what_is_in_use_or_not_empty_is_refused(
    source: Path, target: str, tmp_path: Path, runbell: Command
) -> None:
    """The message says which it is; nothing is touched."""
    lock = InstallationLock(source)
    assert lock.acquire()
    done = runbell("copy", f"sqlite:///{source}", target)
    lock.release()
    assert (done.code, "in use by a runbell service" in done.err) == (1, True)

    async def beside_a_service() -> None:
        store = await PostgresqlStore.open(target)
        try:
            with pytest.raises(moving.ConfigurationError, match="1 sessions"):
                await moving.move(Settings(database=target), f"sqlite:///{tmp_path}/new.db")
        finally:
            await store.close()

    asyncio.run(beside_a_service())
    ask(target, "INSERT INTO projects VALUES ('p', 'mine', 1)")
    # Somebody has started there, with a key that may be another.
    ask(target, "INSERT INTO key_checks VALUES (1, '')")
    done = runbell("copy", f"sqlite:///{source}", target)
    found = "not empty, it has rows in projects (1), key_checks (1)"
    assert (done.code, found in done.err) == (1, True)
    done = runbell("copy", target, f"sqlite:///{source}")
    assert (done.code, "is there already" in done.err) == (1, True)
    done = runbell("copy", f"sqlite:///{source}", f"sqlite:///{tmp_path}/new.db")
    assert (done.code, "runbell backup" in done.err) == (1, True)
    done = runbell("copy", f"sqlite:///{source}", "mysql://db/x")
    assert done.code == 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(moving, "damage", lambda _: ["a page is torn"])
        done = runbell("copy", target, f"sqlite:///{tmp_path}/new.db")
    assert (done.code, "damaged: a page is torn" in done.err) == (1, True)
    # Nothing is left behind where it broke off, under whatever name.
    assert [path.name for path in tmp_path.iterdir() if "new" in path.name] == []


def test_what_a_text_cannot_hold_there_is_replaced_and_counted(
    source: Path, target: str, runbell: Command
) -> None:
    """Also of rows that come one by one, as large ones do."""
    with contextlib.closing(sqlite3.connect(source)) as connection:
        connection.execute("UPDATE runs SET error_message = 'a' || char(0) WHERE position = 1")
        connection.commit()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "BATCH_BYTES", 1)
        done = runbell("copy", f"sqlite:///{source}", target)
    assert done.code == 0, done
    assert "1 rows held the character 0" in done.err
    assert ask(target, "SELECT error_message FROM runs WHERE position = 1") == [("a\ufffd",)]


def test_a_source_is_not_changed(target: str, tmp_path: Path, runbell: Command) -> None:
    """Least of all one that is no installation at all."""
    other = asyncio.run(without_tables())
    done = runbell("copy", other, f"sqlite:///{tmp_path}/new.db")
    assert (done.code, "there is no installation of Runbell in" in done.err) == (1, True)
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert ask(other, tables) == [(0,)]
    ((current,),) = ask(target, "SELECT version_num FROM alembic_version")
    ask(target, "UPDATE alembic_version SET version_num = '0000'")
    done = runbell("copy", target, f"sqlite:///{tmp_path}/new.db")
    # Whoever is lent the database next finds it as it was.
    ask(target, f"UPDATE alembic_version SET version_num = '{current}'")
    assert (done.code, "has schema 0000" in done.err) == (1, True)
    assert not (tmp_path / "new.db").exists()
