"""What a program that crashed must not do twice: outputs of tool calls, in a SQLite file."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Self

from runbell.errors import ConfigurationError

__all__ = ["Journal"]

KEEP_SECONDS = 7 * 86_400
"""Outputs are kept this long: no run lives that long without an end."""

SCHEMA = """
create table if not exists tool_calls (
  run_id text not null,
  call_id text not null,
  name text not null,
  begun_at real not null,
  output text,
  primary key (run_id, call_id)
) without rowid
"""


class Journal:
    """Tool calls and their outputs. One file may serve several programs and threads.

    Args:
        path: of the file; it is made where there is none.

    Raises:
        ConfigurationError: the file can't be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        try:
            # Autocommit: each statement is durable when it returns.
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._db.execute(SCHEMA)
        except sqlite3.Error as error:
            raise ConfigurationError(f"the journal {self.path} can't be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def output(self, run_id: str, call_id: str) -> str | None:
        """What the call gave, if that was written down."""
        found = self._one(
            "select output from tool_calls where run_id = ? and call_id = ?", run_id, call_id
        )
        return None if found is None else found[0]

    def begin(self, run_id: str, call_id: str, name: str, now: float) -> bool:
        """Write down that a call is being made.

        Args:
            now: seconds since the epoch.

        Returns:
            Whether this is the first time. If not, and there is no output, whoever made it before
            is at it, or died of it.
        """
        with self._lock:
            self._db.execute("delete from tool_calls where begun_at < ?", (now - KEEP_SECONDS,))
            done = self._db.execute(
                "insert or ignore into tool_calls values (?, ?, ?, ?, null)",
                (run_id, call_id, name, now),
            )
        return done.rowcount == 1

    def finish(self, run_id: str, call_id: str, output: str) -> None:
        """Write down what the call gave."""
        with self._lock:
            self._db.execute(
                "update tool_calls set output = ? where run_id = ? and call_id = ?",
                (output, run_id, call_id),
            )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _one(self, statement: str, *values: str) -> tuple[str | None] | None:
        with self._lock:
            row: tuple[str | None] | None = self._db.execute(statement, values).fetchone()
        return row
