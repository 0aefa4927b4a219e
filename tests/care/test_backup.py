"""A backup is whole, private and verified; a busy service goes on, and another starts on it."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from runbell.errors import ConfigurationError, StorageUnavailable
from runbell.storage import backup
from runbell.storage.backup import back_up
from runbell.storage.check import check
from runbell.storage.sqlite import read_only
from runbell.testing.databases import migrated_sqlite
from runbell.testing.histories import check_histories
from tests.cli.conftest import Command, runbell
from tests.protocol.scenario import (
    answer_of,
    ask,
    create_run,
    function_tool,
    outputs_for,
    say,
    until,
)
from tests.served import Served, eventually

__all__ = ["runbell"]


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return migrated_sqlite(tmp_path / "runbell.db")


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_backup_under_load_is_one_moment_of_the_database(tmp_path: Path) -> None:
    """Every run of the copy has its events, and what was answered before is in it."""
    target = tmp_path / "copies" / "backup.db"
    target.parent.mkdir()
    with Served(tmp_path) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="echo")
        stop = threading.Event()
        made: list[str] = []

        def load() -> None:
            mine = served.client()
            while not stop.is_set():
                made.append(ask(mine, assistant, "hello").id)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            eventually(lambda: len(made) > 40, "there is a load")
            answered = list(made)
            for number in range(3):
                served.command_line("backup", str(target.with_name(f"{number}.db")))
            assert len(made) > len(answered), "the service went on"
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert copies(target.parent) == ["0.db", "1.db", "2.db"]
    counts = []
    for number in range(3):
        copy = target.with_name(f"{number}.db")
        assert stat.S_IMODE(copy.stat().st_mode) == 0o600
        assert not read_only(copy, check).problems
        with closing(sqlite3.connect(copy)) as connection:
            there = {row[0] for row in connection.execute("SELECT id FROM runs")}
        assert set(answered) <= there
        counts.append(len(there))
    assert counts == sorted(counts)


def test_a_service_goes_on_from_a_backup(tmp_path: Path) -> None:
    """Runs that were under way end; keys open; what came after the backup is not there."""
    restored = tmp_path / "restored"
    restored.mkdir()
    with Served(tmp_path) as served:
        client = served.client()
        key = served.create_key("other")
        assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
        done = until(client, ask(client, assistant, "hello"), "completed")
        acting = until(client, ask(client, assistant, "call f {}"), "requires_action")
        working = until(client, ask(client, assistant, "sleep 2"), "in_progress")
        queue = say(client, "sleep 1")
        create_run(client, assistant, queue)
        last = create_run(client, assistant, queue, on_active_run="enqueue")
        short = until(client, ask(client, assistant, "sleep 600", expires_after=4), "in_progress")
        before = served.api().get("/v1/events?limit=100").ok()["data"]
        served.command_line("backup", str(restored / "runbell.db"))
        later = ask(client, assistant, "after the backup")
        api_key = served.key
    with Served(restored, key=api_key) as again:
        client = again.client()
        assert client.beta.threads.runs.retrieve(done.id, thread_id=done.thread_id) == done
        assert again.api().get(f"/v1/threads/{later.thread_id}").status == 404
        client.beta.threads.runs.submit_tool_outputs(
            acting.id, thread_id=acting.thread_id, tool_outputs=outputs_for(acting, ["x"])
        )
        assert answer_of(client, until(client, acting, "completed")) == "x"
        until(client, working, "completed")
        until(client, last, "completed")
        until(client, short, "expired")
        again.api(key).post("/v1/threads", {}).ok()
        feed = again.api().get("/v1/events?limit=100").ok()["data"]
        assert feed[: len(before)] == before
        check_histories(feed, ended=True)
    assert not read_only(again.database_path, check).problems


def test_a_backup_is_one_file_without_a_log_beside_it(database: Path, tmp_path: Path) -> None:
    writing = sqlite3.connect(database, isolation_level=None)
    writing.execute("PRAGMA journal_mode = WAL")
    writing.execute("INSERT INTO projects VALUES ('proj_1', 'one', 1)")
    folder = tmp_path / "copies"
    folder.mkdir()
    size = back_up(database, folder / "backup.db")
    writing.close()
    assert copies(folder) == ["backup.db"]
    copy = folder / "backup.db"
    assert copy.stat().st_size == size
    with closing(sqlite3.connect(f"file:{copy}?mode=ro", uri=True)) as connection:
        assert connection.execute("SELECT id FROM projects").fetchall() == [("proj_1",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert copies(folder) == ["backup.db"]


def test_it_never_replaces_a_file(database: Path, tmp_path: Path, runbell: Command) -> None:
    target = tmp_path / "backup.db"
    target.write_text("precious")
    done = runbell("backup", str(target), "--database", f"sqlite:///{database}")
    assert (done.code, done.err) == (
        1,
        f"runbell: {target} is there already: a backup never replaces a file\n",
    )
    assert target.read_text() == "precious"
    dangling = tmp_path / "link.db"
    dangling.symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="is there already"):
        back_up(database, dangling)
    assert not [name for name in copies(tmp_path) if name.endswith(".partial")]


@pytest.mark.parametrize("hard_links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hard_links: bool
) -> None:
    target = tmp_path / "backup.db"
    copied = backup._copy

    def copy(source: Path, partial: Path) -> None:
        copied(source, partial)
        target.write_text("precious")

    monkeypatch.setattr(backup, "_copy", copy)
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", _no_hard_links)
    with pytest.raises(ConfigurationError, match="is there already"):
        back_up(database, target)
    assert target.read_text() == "precious"
    assert not [name for name in copies(tmp_path) if name.endswith(".partial")]


def _no_hard_links(self: Path, target: Path) -> None:
    raise PermissionError(1, "no hard links here")


def test_a_file_system_without_hard_links_will_do(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "hardlink_to", _no_hard_links)
    back_up(database, tmp_path / "backup.db")
    assert not backup.damage(tmp_path / "backup.db")
    assert not [name for name in copies(tmp_path) if name.endswith(".partial")]


def test_a_damaged_copy_is_not_kept(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = backup._copy

    def copy(source: Path, partial: Path) -> None:
        copied(source, partial)
        with partial.open("r+b") as stream:
            stream.seek(4096 * 3)
            stream.write(os.urandom(4096))

    monkeypatch.setattr(backup, "_copy", copy)
    with pytest.raises(ConfigurationError, match="is damaged"):
        back_up(database, tmp_path / "backup.db")
    assert not (tmp_path / "backup.db").exists()
    assert not [name for name in copies(tmp_path) if name.endswith(".partial")]


def test_what_cannot_be_copied_says_why(database: Path, tmp_path: Path, runbell: Command) -> None:
    url = f"sqlite:///{database}"
    done = runbell("backup", str(tmp_path / "no" / "folder.db"), "--database", url)
    assert done.code == 1
    assert "cannot write" in done.err
    assert "No such file or directory" in done.err
    done = runbell("backup", str(tmp_path / "a.db"), "--database", f"sqlite:///{tmp_path}/none.db")
    assert done.code == 1
    assert not (tmp_path / "none.db").exists()
    assert not (tmp_path / "a.db").exists()
    other = tmp_path / "other.db"
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("CREATE TABLE t (x)")
    done = runbell("backup", str(tmp_path / "a.db"), "--database", f"sqlite:///{other}")
    assert (done.code, "another program" in done.err) == (1, True)
    with pytest.raises(StorageUnavailable, match="cannot copy"):
        back_up(tmp_path / "none.db", tmp_path / "a.db")
    assert not [name for name in copies(tmp_path) if name.endswith(".partial")]
