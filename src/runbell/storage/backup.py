"""How a database is copied while it is in use: SQLite's online backup, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from runbell.errors import ConfigurationError, StorageUnavailable

__all__ = ["back_up", "damage", "partial_file", "put_in_place", "sync"]

MAX_PROBLEMS = 100
"""Damages that SQLite is asked to list."""


def back_up(source: Path, target: Path) -> int:
    """Copy a database, as it is at one moment, into one new file that only its owner can read.

    The service goes on meanwhile. The file appears under its name when it is whole, verified and on
    disk; where anything fails, nothing is left behind.

    Returns:
        Its size in bytes.

    Raises:
        ConfigurationError: the target is there already or can't be written, or the copy is damaged.
        StorageUnavailable: the database can't be read now.
    """
    if os.path.lexists(target):
        raise _taken(target)
    with partial_file(target) as partial:
        try:
            _copy(source, partial)
        except sqlite3.Error as error:
            raise StorageUnavailable(f"cannot copy {source} to {partial}: {error}") from error
        problems = damage(partial)
        if problems:
            raise ConfigurationError(f"the copy of {source} is damaged: {'; '.join(problems[:3])}")
        sync(partial)
        put_in_place(partial, target)
        sync(target.parent)
        return target.stat().st_size


def damage(path: Path) -> list[str]:
    """What SQLite finds wrong with a file: its pages, its indexes, its references."""
    try:
        with contextlib.closing(_open(path, "ro")) as connection:
            found = connection.execute(f"PRAGMA integrity_check({MAX_PROBLEMS})")
            problems = [str(row[0]) for row in found if row[0] != "ok"]
            for table, row_id, parent, _ in connection.execute("PRAGMA foreign_key_check"):
                problems.append(f"row {row_id} of {table} has no row in {parent}")
                if len(problems) >= MAX_PROBLEMS:
                    break
            return problems
    except sqlite3.DatabaseError as error:
        return [str(error)]


def _copy(source: Path, partial: Path) -> None:
    with (
        contextlib.closing(_open(source, "ro")) as reading,
        contextlib.closing(_open(partial, "rw")) as writing,
    ):
        # All pages in one step: one view of the database. In several steps, each commit of the
        # service between two of them would begin the copy anew.
        reading.backup(writing, pages=-1)
        # One file, without a log beside it; the service turns the log on again.
        writing.execute("PRAGMA journal_mode = DELETE")


def _open(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}", uri=True, timeout=5.0, isolation_level=None
    )


@contextlib.contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """A new, empty file beside the target; removed at the end, if it is still there."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise ConfigurationError(f"cannot write {target}: {error.strerror}") from error
    try:
        yield partial
    finally:
        for suffix in ("", "-journal", "-wal", "-shm", ".lock"):
            partial.with_name(partial.name + suffix).unlink(missing_ok=True)


def put_in_place(partial: Path, target: Path) -> None:
    """Give the file its name, unless somebody else has it by now."""
    try:
        target.hardlink_to(partial)
    except FileExistsError:
        raise _taken(target) from None
    except OSError:
        # A file system without hard links.
        if os.path.lexists(target):
            raise _taken(target) from None
        partial.rename(target)


def sync(path: Path) -> None:
    """Return when a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _taken(target: Path) -> ConfigurationError:
    return ConfigurationError(f"{target} is there already: a copy never replaces a file")
