"""Every damage that is planted is found and named; a database in order has none."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from runbell.service.operations import threads
from runbell.service.wire.requests import CreateMessage
from runbell.storage import report as reporting
from runbell.storage.backup import damage
from runbell.storage.check import check
from runbell.storage.lock import InstallationLock
from runbell.storage.report import Report
from runbell.storage.sqlite import read_only
from runbell.testing.databases import migrated_sqlite
from runbell.testing.embedded import EmbeddedService, embedded
from tests.cli.conftest import Command, runbell
from tests.served import Served

__all__ = ["runbell"]


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with runs in every status, one thread with a line, and one that was deleted."""
    path = tmp_path_factory.mktemp("check") / "runbell.db"

    async def story() -> None:
        async with embedded(path, cancel_grace=1000) as service:
            await _live(service)

    asyncio.run(story())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        statuses = {row[0] for row in connection.execute("SELECT status FROM runs")}
    assert len(statuses) == 9, statuses
    return path.read_bytes()


async def _live(service: EmbeddedService) -> None:
    async def begun(label: str, **fields: Any) -> str:
        run = await service.run(await service.thread(label), label, **fields)
        await service.settle()
        return run

    def turn(label: str) -> Any:
        (found,) = [each for each in service.backend.open if each.label == label]
        return found

    expires = await begun("expires", expires_after=1)
    await service.advance(2)
    assert await service.status(expires) == "expired"
    await begun("completes")
    turn("completes").say("Hi")
    await begun("fails")
    turn("fails").fail()
    await begun("is cut")
    turn("is cut").say("Hi", reason="max_completion_tokens")
    cancelled = await begun("is cancelled")
    await service.cancel(cancelled)
    cancelling = await begun("is being cancelled")
    turn("is being cancelled").stubborn = True
    await service.cancel(cancelling)
    await begun("acts")
    turn("acts").call(("f", "{}"))
    works = await begun("works")
    thread = (await service.find(works)).thread_id
    for label in ("second", "third"):
        more = (CreateMessage(role="user", content=label),)
        await service.run(thread, label, on_active_run="enqueue", additional_messages=more)
    goes = await begun("goes")
    await threads.delete(service.ctx, service.project, (await service.find(goes)).thread_id)
    await service.settle()


@pytest.fixture
def database(tmp_path: Path, lived_in: bytes) -> Path:
    path = tmp_path / "runbell.db"
    path.write_bytes(lived_in)
    return path


@contextmanager
def spoiling(database: Path) -> Iterator[Callable[[str], int]]:
    """Change rows behind everybody's back: a statement, and how many rows it touched."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")

        def execute(statement: str) -> int:
            return connection.execute(statement).rowcount

        yield execute


def spoil(database: Path, *statements: str) -> None:
    with spoiling(database) as execute:
        for statement in statements:
            assert execute(statement) != 0, statement


def problems(database: Path, now_ms: int | None = None) -> dict[str, int]:
    """The rules that are broken, and how often."""

    async def work(tx: Any) -> Report:
        return await check(tx, now_ms=now_ms)

    return {rule: found.count for rule, found in read_only(database, work).problems.items()}


def test_a_database_that_was_lived_in_is_in_order(database: Path) -> None:
    assert damage(database) == []
    report = read_only(database, check)
    assert report.problems == {}
    assert report.looked_at["runs"] == 10
    assert report.looked_at["runs under way"] == 5
    assert all(count for table, count in report.looked_at.items() if table != "deliveries")


def test_pages_of_any_size_see_the_same(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(database, "DELETE FROM events WHERE type = 'thread.run.in_progress'")
    looked, found = read_only(database, check).looked_at, problems(database)
    for size in (1, 2, 3, 7):
        monkeypatch.setattr(reporting, "PAGE", size)
        assert read_only(database, check).looked_at == looked
        assert problems(database) == found


RUN_OF = "(SELECT id FROM runs WHERE status = '{}' AND NOT waits_turn)"
DONE, WORKING, ACTING = (RUN_OF.format(s) for s in ("completed", "in_progress", "requires_action"))
GONE = "(SELECT run_id FROM events WHERE run_id NOT IN (SELECT id FROM runs))"

MISSING = "an event that is missing"
NO_TRANSITION = "an event without a transition"
NEXT = "(SELECT min(position) FROM runs WHERE waits_turn)"
ELSEWHERE = f"(SELECT thread_id FROM runs WHERE id = {DONE})"
SECOND = f"sequence = 2 AND run_id = {DONE}"
NO_EVENT = "a transition without an event"
COUNTS = "a run with more or fewer events than its sequence"
SAYS = "an event that says something else than its row"
ENDED = "a run that has ended without a reason, or has a reason without having ended"

PLANTED: dict[str, tuple[set[str], list[str]]] = {
    "an event in the middle is gone": (
        {MISSING, NO_TRANSITION, COUNTS},
        [f"DELETE FROM events WHERE {SECOND}"],
    ),
    "the first event is gone": (
        {MISSING, COUNTS},
        [f"DELETE FROM events WHERE sequence = 1 AND run_id = {DONE}"],
    ),
    "the last event is gone": (
        {NO_EVENT, COUNTS},
        [f"DELETE FROM events WHERE sequence = 3 AND run_id = {DONE}"],
    ),
    "all events of a run are gone": (
        {COUNTS},
        [f"DELETE FROM events WHERE run_id = {DONE}"],
    ),
    "an event of a type that cannot follow": (
        {NO_TRANSITION, SAYS},
        [f"UPDATE events SET type = 'thread.run.cancelling' WHERE {SECOND}"],
    ),
    "an event of a type that there is not": (
        {NO_TRANSITION, SAYS},
        [f"UPDATE events SET type = 'thread.run.x' WHERE {SECOND}"],
    ),
    "a second creation": (
        {"a history that does not begin with a creation", NO_TRANSITION, SAYS},
        [f"UPDATE events SET type = 'thread.run.created' WHERE {SECOND}"],
    ),
    "an event whose body is another's": (
        {SAYS},
        [
            f"UPDATE events SET body = (SELECT body FROM events LIMIT 1) WHERE {SECOND}",
        ],
    ),
    "an event whose body is no JSON": (
        {"an event that cannot be read"},
        [f"UPDATE events SET body = 'x' WHERE {SECOND}"],
    ),
    "a run whose metadata is no JSON": (
        {"a run that cannot be read"},
        [f"UPDATE runs SET metadata = 'x' WHERE id = {DONE}"],
    ),
    "an event that stands too far in front": (
        {"an event that stands in front of an earlier one"},
        [f"UPDATE events SET position = -1 WHERE {SECOND}"],
    ),
    "an event of another project": (
        {"an event in another project than its run"},
        [
            "INSERT INTO projects VALUES ('proj_x', 'x', 1)",
            f"UPDATE events SET project_id = 'proj_x' WHERE {SECOND}",
        ],
    ),
    "a run that is gone without its end": (
        {"a run that is gone and did not end"},
        [f"DELETE FROM events WHERE sequence = 4 AND run_id IN {GONE}"],
    ),
    "a status that no event tells of": (
        {NO_EVENT, ENDED, "a run with the stamp of an end that is not its own"},
        [f"UPDATE runs SET status = 'in_progress' WHERE id = {DONE}"],
    ),
    "a status that there is not": (
        {NO_EVENT, "a run with a status that does not exist"},
        [f"UPDATE runs SET status = 'sleeping' WHERE id = {DONE}"],
    ),
    "a number that no event has": (
        {NO_EVENT, COUNTS},
        [f"UPDATE runs SET sequence = 4 WHERE id = {DONE}"],
    ),
    "an end without a reason": (
        {ENDED},
        [f"UPDATE runs SET status_reason = NULL WHERE id = {DONE}"],
    ),
    "an end without its stamp": (
        {"a run that is completed without completed_at_ms"},
        [f"UPDATE runs SET completed_at_ms = NULL WHERE id = {DONE}"],
    ),
    "a cancel that would never be finished": (
        {"a run that is cancelling without cancelling_at_ms"},
        ["UPDATE runs SET cancelling_at_ms = NULL WHERE status = 'cancelling'"],
    ),
    "two ends": (
        {"a run with the stamp of an end that is not its own"},
        [f"UPDATE runs SET expired_at_ms = 1 WHERE id = {DONE}"],
    ),
    "a failure without an error": (
        {"a run that failed without an error, or has an error without having failed"},
        ["UPDATE runs SET error_code = NULL WHERE status = 'failed'"],
    ),
    "an action without calls": (
        {"a run that waits for outputs without calls, or has calls without waiting"},
        [f"UPDATE runs SET tool_calls = NULL WHERE id = {ACTING}"],
    ),
    "two active runs on a thread": (
        {
            "a thread with several active runs",
            "a run whose turn has come and whose messages were not added",
        },
        [
            "DROP INDEX uq_runs_active_thread",
            f"UPDATE runs SET waits_turn = 0 WHERE position = {NEXT}",
        ],
    ),
    "a line behind nobody": (
        {"a run that waits its turn behind none"},
        [
            f"UPDATE runs SET thread_id = {ELSEWHERE} WHERE id = {WORKING}",
        ],
    ),
    "a waiting run that is not queued": (
        {"a run that waits its turn without being queued"},
        [f"UPDATE runs SET waits_turn = 1 WHERE id = {DONE}"],
    ),
    "messages that were never added": (
        {"a run whose turn has come and whose messages were not added"},
        [f"UPDATE runs SET pending_messages = '[]' WHERE id = {DONE}"],
    ),
    "a thread that is gone": (
        {"a run without a thread", "a step without a thread", "a message without a thread"},
        [f"DELETE FROM threads WHERE id = (SELECT thread_id FROM runs WHERE id = {DONE})"],
    ),
    "a step without its run": (
        {"a step without a run"},
        ["UPDATE run_steps SET run_id = 'run_x' WHERE status = 'completed'"],
    ),
    "a step that never ends": (
        {"a step that goes on although its run has ended"},
        [f"UPDATE run_steps SET status = 'in_progress' WHERE run_id = {DONE}"],
    ),
    "a message of a run elsewhere": (
        {"a message of another thread's run"},
        [f"UPDATE messages SET run_id = {WORKING} WHERE run_id = {DONE}"],
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_is_planted_is_found_and_nothing_else(database: Path, planted: str) -> None:
    rules, statements = PLANTED[planted]
    spoil(database, *statements)
    assert set(problems(database)) == rules


def test_what_retention_leaves_behind_is_in_order(database: Path) -> None:
    """A run that is gone may have lost the first of its events."""
    spoil(database, f"DELETE FROM events WHERE sequence < 3 AND run_id IN {GONE}")
    assert problems(database) == {}


def test_a_service_has_to_end_what_is_over(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        live = "SELECT max(expires_at_ms) FROM runs WHERE status = 'requires_action'"
        (expires_ms,) = connection.execute(live).fetchone()
    late = "a run that should have expired, while a service runs"
    assert problems(database) == {}
    assert problems(database, now_ms=expires_ms + 59_000) == {}
    assert problems(database, now_ms=expires_ms + 3_600_000) == {late: 5}


def test_examples_are_few_and_the_count_is_whole(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MAX_EXAMPLES", 2)
    spoil(database, "UPDATE events SET body = 'x'")
    found = read_only(database, check).problems["an event that cannot be read"]
    assert found.count > 20
    assert len(found.examples) == 2


def test_the_command_says_what_is_wrong(database: Path, runbell: Command) -> None:
    url = f"sqlite:///{database}"
    done = runbell("check", "--database", url)
    assert done.code == 0
    assert done.out.startswith("checked 10 runs, 5 runs under way, ")
    assert done.out.endswith("everything is in order\n")
    spoil(database, f"UPDATE runs SET status_reason = NULL WHERE id = {DONE}")
    before = database.read_bytes()
    done = runbell("check", "--database", url)
    assert done.code == 1
    assert f"\n  {ENDED}: it is completed\nchecked 10 runs" in done.out
    assert done.out.splitlines()[-2].endswith(": 1 problem")
    assert "docs/operations.md" in done.out.splitlines()[-1]
    assert database.read_bytes() == before


def test_what_is_wrong_with_one_run_stands_together(database: Path, runbell: Command) -> None:
    """One damage breaks several rules."""
    spoil(database, f"DELETE FROM events WHERE {SECOND}")
    with closing(sqlite3.connect(database)) as connection:
        ((run_id,),) = connection.execute(f"SELECT {DONE}")
    done = runbell("check", "--database", f"sqlite:///{database}")
    subject, *lines, checked, _ = done.out.splitlines()
    assert subject == run_id
    assert f"  {COUNTS}: its sequence is 3, but 2 events are there" in lines
    assert len(lines) == 3
    assert checked.endswith(": 3 problems")


def test_more_than_can_be_listed_is_counted(
    database: Path, runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reporting, "MAX_EXAMPLES", 2)
    spoil(database, f"UPDATE events SET body = 'x' WHERE run_id = {DONE}")
    done = runbell("check", "--database", f"sqlite:///{database}")
    assert "\n… and 1 more: an event that cannot be read\n" in done.out


def test_a_damaged_file_is_said_to_be_one(database: Path, runbell: Command) -> None:
    with database.open("r+b") as stream:
        stream.seek(4096 * 20)
        stream.write(b"\xff" * 4096)
    done = runbell("check", "--database", f"sqlite:///{database}")
    assert done.code == 1
    assert f"{database} is damaged; SQLite says:" in done.out
    assert "Traceback" not in done.err


def test_a_file_that_cannot_even_be_opened_is_said_to_be_damaged(
    database: Path, runbell: Command
) -> None:
    with database.open("r+b") as stream:
        stream.seek(100)
        stream.write(b"\xff" * 4096)
    done = runbell("check", "--database", f"sqlite:///{database}")
    assert done.code == 1
    assert f"{database} is damaged (" in done.err
    assert "restore a backup, see docs/operations.md" in done.err


def test_a_row_that_refers_to_none_is_damage(database: Path, runbell: Command) -> None:
    spoil(database, "DELETE FROM projects")
    done = runbell("check", "--database", f"sqlite:///{database}")
    assert done.code == 1
    assert "has no row in projects" in done.out


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("none.db", "there is no file "), ("old.db", "start the service once")],
)
def test_what_is_no_database_of_this_version_is_refused(
    tmp_path: Path, runbell: Command, name: str, complaint: str
) -> None:
    spoil(migrated_sqlite(tmp_path / "old.db"), "UPDATE alembic_version SET version_num = '0000'")
    done = runbell("check", "--database", f"sqlite:///{tmp_path}/{name}")
    assert done.code == 1
    assert complaint in done.err
    assert not (tmp_path / "none.db").exists()


def test_beside_a_service_and_after_its_death(tmp_path: Path) -> None:
    with Served(tmp_path) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="echo")
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "sleep 600"}])
        client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
        assert InstallationLock(served.database_path).is_held()
        assert "everything is in order" in served.command_line("check")
        log = served.database_path.with_name("runbell.db-wal")
        served.kill()
        assert not InstallationLock(served.database_path).is_held()
        # What the log holds belongs to the database; a check does not fold it in.
        before = (served.database_path.read_bytes(), log.read_bytes())
        assert "checked 1 run, 1 run under way, " in served.command_line("check")
        assert (served.database_path.read_bytes(), log.read_bytes()) == before
        served.start()
