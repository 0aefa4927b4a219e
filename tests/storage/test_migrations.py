"""Migrations: a database is today's, or it is refused in words that say what to do."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, event

import runbell.storage.migrate as migrate
from runbell.errors import ConfigurationError, RunbellError
from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import HEAD, upgrade_sqlite
from runbell.storage.schema import metadata


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a database is to be."""
    return tmp_path / "runbell.db"


def upgrade(path: Path) -> None:
    upgrade_sqlite(path, InstallationLock(path))


@contextlib.contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection
        connection.commit()


def shape(path: Path) -> dict[str, Any]:
    """Everything that makes up a schema, in a form that two ways to write it share."""
    found: dict[str, Any] = {}
    with connected(path) as connection:
        tables = connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        )
        for table, sql in tables.fetchall():
            if table == "alembic_version":
                continue
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            found[table] = {row[1:] for row in columns}, "AUTOINCREMENT" in sql
            references = connection.execute(f"PRAGMA foreign_key_list({table})").fetchall()
            found[f"{table} references"] = {row[2:] for row in references}
            for _, index, unique, origin, partial in connection.execute(
                f"PRAGMA index_list({table})"
            ).fetchall():
                names = connection.execute(f"PRAGMA index_info({index})").fetchall()
                text = connection.execute(
                    "SELECT sql FROM sqlite_master WHERE name = ?", (index,)
                ).fetchone()[0]
                where = re.sub(r"\s+", " ", text).partition(" WHERE ")[2] if partial else ""
                key = (table, *(name for *_, name in names), where)
                found[f"index {key}"] = (unique, origin, index if text else "")
    return found


def test_a_fresh_database_is_what_the_schema_says(path: Path, tmp_path: Path) -> None:
    """Migrations and `schema.metadata` are two descriptions of one thing: tables, columns, keys,
    references, and each index with the rows that it is for."""
    upgrade(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()
    # Alembic compares neither the conditions of partial indexes nor AUTOINCREMENT.
    direct = tmp_path / "direct.db"
    engine = create_engine(f"sqlite:///{direct}")
    metadata.create_all(engine)
    engine.dispose()
    assert shape(path) == shape(direct)


def test_there_is_one_latest_migration_and_the_code_knows_it() -> None:
    """A migration that is added without `HEAD` would never be applied."""
    config = Config()
    folder = Path(migrate.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    assert ScriptDirectory.from_config(config).get_heads() == [HEAD]


def test_upgrading_again_changes_nothing(path: Path) -> None:
    """A database that is up to date is not written to, and needs no lock."""
    upgrade(path)
    before = path.read_bytes()
    holder = InstallationLock(path)
    assert holder.acquire()
    upgrade(path)
    holder.release()
    assert path.read_bytes() == before


def test_what_was_stored_survives_an_upgrade(path: Path) -> None:
    """Rows of an installation are there after the next start."""
    upgrade(path)
    with connected(path) as connection:
        connection.execute("INSERT INTO projects VALUES ('p', 'mine', 1)")
    upgrade(path)
    with connected(path) as connection:
        assert connection.execute("SELECT name FROM projects").fetchall() == [("mine",)]


def test_a_new_database_is_its_owners_alone(path: Path) -> None:
    """It holds what people said: nobody else can read it, whatever the umask."""
    before = os.umask(0)
    try:
        upgrade(path)
        modes = [stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()]
    finally:
        os.umask(before)
    assert modes == [0o600, 0o600], "the database and its lock"


def test_an_empty_file_becomes_a_database(path: Path) -> None:
    """As somebody makes it who wants to set its owner or its mode first."""
    path.touch(0o640)
    upgrade(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert "runs" in shape(path)


def test_a_migration_that_fails_half_way_leaves_nothing(path: Path) -> None:
    """One transaction: a process that dies in it, or a full disk, is no half database."""

    def fail(conn: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "CREATE TABLE runs" in statement:
            raise KeyboardInterrupt

    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            upgrade(path)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)
    assert shape(path) == {}
    upgrade(path)
    assert "runs" in shape(path)


ADDED = ("idempotency_keys", "attempts", "deliveries", "webhook_endpoints", "key_checks")
"""Tables that the first schema had not."""


def test_keys_of_the_first_schema_go_on_without_a_limit(path: Path) -> None:
    """A database of revision 0001 is brought up to date, and what it held is as it was."""
    upgrade(path)
    today = shape(path)
    with connected(path) as connection:
        # SQLite's own words: what 0002 adds is taken away, which makes it a file of 0001.
        for table in ADDED:
            connection.execute(f"DROP TABLE {table}")
        connection.execute("ALTER TABLE api_keys DROP COLUMN rpm")
        connection.execute("INSERT INTO projects VALUES ('p', 'mine', 1)")
        connection.execute("INSERT INTO api_keys VALUES ('k', 'p', 'digest', 'hint', 'keys', 2, 3)")
    with_revision(path, "0001")
    upgrade(path)
    assert shape(path) == today
    with connected(path) as connection:
        keys = connection.execute("SELECT * FROM api_keys").fetchall()
    assert keys == [("k", "p", "digest", "hint", "keys", 2, 3, None)]


# Files that are refused.


def with_revision(path: Path, revision: str) -> None:
    with connected(path) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def test_a_newer_schema_is_refused(path: Path) -> None:
    """An old version would lose what it does not know; it says which one is needed."""
    upgrade(path)
    with_revision(path, "9999")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match=r"newer version of Runbell \(schema 9999"):
        upgrade(path)
    assert path.read_bytes() == before


def test_a_sqlite_file_of_another_program_is_refused(path: Path) -> None:
    """Nothing is added to it."""
    with connected(path) as connection:
        connection.execute("CREATE TABLE photos (id)")
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        upgrade(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("revision", ["a3f8b1c2d4e5", "0000", "0000_initial"])
def test_a_file_of_another_program_with_migrations_of_its_own_is_refused(
    path: Path, revision: str
) -> None:
    """Alembic is used by many: its table alone does not make a file ours."""
    with connected(path) as connection:
        connection.execute("CREATE TABLE photos (id)")
        connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    before = path.read_bytes()
    with pytest.raises(ConfigurationError, match="another program"):
        upgrade(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    """It is left as it is."""
    path.write_text("Dear diary, " * 1_000)
    with pytest.raises(ConfigurationError, match="is not a SQLite database"):
        upgrade(path)
    assert path.read_text() == "Dear diary, " * 1_000


def test_a_folder_is_refused(path: Path) -> None:
    """With an error of ours, which names it."""
    path.mkdir()
    with pytest.raises(RunbellError, match=re.escape(str(path))):
        upgrade(path)


# The lock.


def test_no_schema_changes_under_a_running_service(path: Path) -> None:
    """Who would change it needs the lock, and is told who has it."""
    holder = InstallationLock(path)
    assert holder.acquire()
    with pytest.raises(ConfigurationError, match=f"in use by process {os.getpid()}"):
        upgrade(path)
    assert not path.exists()
    holder.release()
    upgrade(path)


def test_the_lock_has_one_holder(path: Path) -> None:
    """Whoever comes second is told no, at once; whoever holds it may ask again."""
    first, second = InstallationLock(path), InstallationLock(path)
    assert first.acquire()
    assert first.acquire()
    assert not second.acquire()
    assert second.holder() == str(os.getpid())
    first.release()
    first.release()
    assert second.acquire()
    second.release()


def test_the_lock_can_be_held_for_a_while(path: Path) -> None:
    """It is let go of at the end, unless it was held before."""
    lock, other = InstallationLock(path), InstallationLock(path)
    with lock.held() as held:
        assert held
        with other.held() as also:
            assert not also
    assert lock.acquire()
    with lock.held() as held:
        assert held
    assert not other.acquire()
    lock.release()
    assert other.acquire()
    other.release()


def test_a_killed_process_holds_no_lock(path: Path) -> None:
    """The kernel lets go of it: nobody has to remove a file by hand after a crash."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from runbell.storage.lock import InstallationLock\n"
        "assert InstallationLock(Path(sys.argv[1])).acquire()\n"
        "print('held', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        lock = InstallationLock(path)
        assert not lock.acquire()
        assert lock.holder() == str(process.pid)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    assert lock.acquire()
    assert lock.holder() == str(os.getpid())
    lock.release()


def test_a_folder_that_is_not_there_cannot_be_locked(tmp_path: Path) -> None:
    """The message says what to do."""
    with pytest.raises(ConfigurationError, match="name a file in a folder that exists"):
        InstallationLock(tmp_path / "nowhere" / "runbell.db").acquire()
