"""What a program that crashed must not do twice, and what it need not learn again: outputs of tool
calls, and how long runs took, in a SQLite file."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self
from urllib.parse import quote

from runbell.errors import ConfigurationError, InvalidSetting, RunbellError

__all__ = ["Claim", "History", "Journal", "Stretch", "read_history"]

log = logging.getLogger("runbell")

KEEP_SECONDS = 7 * 86_400
"""Outputs are kept this long: no run lives that long without an end."""

PRUNE_SECONDS = 3600.0
"""How often those that are older are looked for, which reads the whole table."""

LEASE_SECONDS = 15.0
"""For how long a call belongs to whoever makes it, who renews that while he is at it. So this long
after a crash the call is free."""

WRITE_SECONDS = 0.5
"""Durations are written together, this long after the first of them."""

KEEP_DURATIONS = 200
"""For each kind of run: a little more than Foresight remembers."""

MOST_DURATIONS = 20_000
"""For all kinds of runs together."""

LOADED_DURATIONS = 2000
"""The latest, of all kinds, that are read at the start."""

SCHEMA = """
create table if not exists tool_calls (
  run_id text not null,
  call_id text not null,
  name text not null,
  begun_at real not null,
  output text,
  owner text,
  held_until real not null default 0,
  primary key (run_id, call_id)
) without rowid;
create table if not exists durations (
  id integer primary key,
  key text not null,
  queue_seconds real,
  run_seconds real not null,
  ended integer not null,
  at_ms integer not null,
  queue_low real,
  queue_high real,
  run_low real not null,
  run_high real,
  run_id text,
  first integer not null default 1
);
create index if not exists durations_of_key on durations (key, id);
"""

OURS = {"key", "run_seconds", "ended", "at_ms"}
"""Columns of `durations` since there are journals."""

COUNTS = """
create table if not exists kinds (
  key text primary key,
  runs integer not null,
  first_ms integer not null,
  last_ms integer not null
) without rowid;
"""
"""How many runs of each kind there were and when: `durations` keeps the latest alone."""

COUNTED = "select key, sum({first}), min(at_ms), max(at_ms) from durations group by key"

COUNT = """
insert into kinds (key, runs, first_ms, last_ms) values (:key, :runs, :at, :at)
on conflict (key) do update set runs = runs + excluded.runs, last_ms = excluded.last_ms
"""

HISTORY = """
select {run}, key, {first}, coalesce(queue_seconds, 0) + run_seconds, ended
from durations order by id
"""

NAMES = {"run": "coalesce(run_id, id)", "first": "first"}
NAMES_BEFORE = {"run": "id", "first": "1"}
"""In a file from before the stretches of a run were told to be of one."""

CLAIM = """
insert into tool_calls (run_id, call_id, name, begun_at, owner, held_until)
values (:run, :call, :name, :now, :owner, :until)
on conflict (run_id, call_id) do update set owner = excluded.owner, held_until = excluded.held_until
where output is null and held_until <= :now
returning begun_at
"""

Claim = Literal["first", "again", "held"]
"""A call is made for the first time; or again, after somebody died of it; or somebody is at it."""


class Stretch(NamedTuple):
    """How long a run took from its creation, or from the submission of outputs, to the next thing
    that whoever waits had to know. In seconds.

    Attributes:
        key: the kind of run, as JSON.
        queue: between these it waited for its start; None where nobody knows.
        run: between these it took from there on; the second is None where it would have taken
            longer: it was cancelled, expired, or given up.
        at_ms: when that was seen, in milliseconds since the epoch.
        run_id: of which run; "" where nobody knows.
        first: it began with the run's creation.
    """

    key: str
    queue: tuple[float, float] | None
    run: tuple[float, float | None]
    at_ms: int
    run_id: str = ""
    first: bool = True

    @property
    def ended(self) -> bool:
        return self.run[1] is not None


class Journal:
    """Tool calls and their outputs, and durations. One file may serve several programs and threads
    of a machine.

    Args:
        path: of the file; it is made where there is none, for its owner alone to read.

    Raises:
        ConfigurationError: the file can't be used.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._side = threading.Lock()  # for what must not wait for the disk; taken after the other
        self._begun: set[tuple[str, str]] = set()
        self._noted: list[Stretch] = []
        self._owner = os.urandom(8).hex()
        self._keeper: threading.Thread | None = None
        self._news = threading.Event()
        self._closing = False
        self._complaints: set[tuple[str, type[Exception], str]] = set()
        self._pruned = -math.inf
        try:
            # Outputs of tools are nobody else's business. SQLite's own files get the same mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            # Autocommit: each statement is durable when it returns.
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("pragma journal_mode=wal")
            self._db.execute("pragma synchronous=full")
            self._set_up()
        except (sqlite3.Error, OSError) as error:
            raise ConfigurationError(f"the journal {self.path} can't be used: {error}") from error

    def _set_up(self) -> None:
        columns = _columns(self._db)
        if columns and not columns >= OURS:
            raise sqlite3.DatabaseError("its table `durations` is another program's")
        for statement in SCHEMA.split(";"):
            self._db.execute(statement)
        columns = {row[1] for row in self._db.execute("pragma table_info(tool_calls)")}
        if "owner" not in columns:  # a file from before calls were claimed
            self._db.execute("alter table tool_calls add column owner text")
            self._db.execute("alter table tool_calls add column held_until real not null default 0")
        if "run_id" not in _columns(self._db):  # a file from before runs were told apart
            self._db.execute("alter table durations add column run_id text")
            self._db.execute("alter table durations add column first integer not null default 1")
        if not _has_counts(self._db):
            self._db.execute(COUNTS)
            self._db.execute(f"insert or ignore into kinds {COUNTED.format(**NAMES)}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Calls of tools.

    def output(self, run_id: str, call_id: str) -> str | None:
        """What the call gave, if that was written down."""
        found = self._all(
            "select output from tool_calls where run_id = ? and call_id = ?", run_id, call_id
        )
        return found[0][0] if found else None

    def begin(self, run_id: str, call_id: str, name: str, now: float) -> Claim:
        """Claim a call, unless somebody is at it, here or in another process.

        Whoever gets it has to `finish` it; until then the claim is renewed.

        Args:
            now: seconds since the epoch.
        """
        about = {"run": run_id, "call": call_id, "name": name, "owner": self._owner}
        with self._lock, self._problems():
            if self._closing:
                raise RunbellError(f"the journal {self.path} was closed")
            if now >= self._pruned + PRUNE_SECONDS:
                self._db.execute("delete from tool_calls where begun_at < ?", (now - KEEP_SECONDS,))
                self._pruned = now
            begun = self._db.execute(
                CLAIM, {**about, "now": now, "until": now + LEASE_SECONDS}
            ).fetchall()
            if not begun:
                return "held"
            self._begun.add((run_id, call_id))
            with self._side:
                self._keep()
        return "first" if begun[0][0] == now else "again"

    def finish(self, run_id: str, call_id: str, output: str | None) -> bool:
        """Write down what the call gave, the first time that this is said; None, where it gave
        nothing that is to be kept, frees it.

        Returns:
            False where the call is somebody else's by now, since its claim was not renewed in time:
            the process stood still. What he writes down counts.
        """
        with self._lock, self._problems():
            if self._closing and (run_id, call_id) not in self._begun:  # it was said before
                return True
            about = (run_id, call_id, self._owner)
            try:
                self._db.execute(
                    "update tool_calls set output = ?, held_until = 0 "
                    "where run_id = ? and call_id = ? and output is null and owner = ?",
                    (output, *about),
                )
                ours = self._db.execute(
                    "select 1 from tool_calls where run_id = ? and call_id = ? and owner = ?", about
                )
                return ours.fetchone() is not None
            finally:
                self._begun.discard((run_id, call_id))
                self._close_if_done()

    # How long runs took.

    def note(self, stretch: Stretch) -> None:
        """Have a duration written down, soon; what a crash loses of them is no harm."""
        with self._side:
            if not self._closing:
                self._noted.append(stretch)
                self._keep()

    def stretches(self) -> list[Stretch]:
        """The latest that were written down, of all kinds, the oldest first."""
        rows = self._all(
            "select key, queue_low, queue_high, run_low, run_high, at_ms from durations "
            "order by id desc limit ?",
            LOADED_DURATIONS,
        )
        return [
            Stretch(key, None if low is None else (low, high), (shortest, longest), at_ms)
            for key, low, high, shortest, longest, at_ms in reversed(rows)
        ]

    def close(self) -> None:
        """Close the file, as soon as the calls that are being made are written down."""
        with self._lock:
            with self._side:
                self._closing = True
            self._write_noted()
            self._close_if_done()
        self._news.set()

    # What goes on meanwhile.

    def _keep(self) -> None:
        """See to it that claims are renewed and durations written; called with `_side` held."""
        if self._keeper is None:
            keeper = threading.Thread(target=self._keep_going, name="runbell-journal", daemon=True)
            try:
                keeper.start()
            except RuntimeError as error:  # no more threads now: the next call tries again
                self._complain("nobody renews claims and writes durations", error)
            else:
                self._keeper = keeper
        elif self._noted:
            self._news.set()

    def _keep_going(self) -> None:
        """Whatever goes wrong with one claim or duration, those after it are seen to."""
        while True:
            if not self._noted:
                self._news.wait(LEASE_SECONDS / 3)
            self._news.clear()
            if self._noted and not self._closing:
                time.sleep(WRITE_SECONDS)
            with self._lock:
                self._write_noted()
                self._renew()
                with self._side:
                    if not self._begun and not self._noted:
                        self._keeper = None
                        return

    def _renew(self) -> None:
        if not self._begun:
            return
        try:
            self._db.execute(
                "update tool_calls set held_until = ? where owner = ? and held_until > 0",
                (time.time() + LEASE_SECONDS, self._owner),
            )
        except Exception as error:  # noqa: BLE001 - there is another try before they are lost
            self._complain("claims were not renewed", error)

    def _write_noted(self) -> None:
        with self._side:
            noted, self._noted = self._noted, []
        if not noted:
            return
        try:
            self._db.execute("begin immediate")
            with self._db:
                self._insert([_storable(each) for each in noted])
        except Exception as error:  # noqa: BLE001 - they are worth less than what else is kept
            self._complain("durations were not kept", error)

    def _complain(self, what: str, error: Exception) -> None:
        """Say what went wrong, each kind of it once. Only SQLite's own words: others may quote what
        was to be written."""
        words = str(error) if isinstance(error, sqlite3.Error) else ""
        if (what, type(error), words) not in self._complaints:
            self._complaints.add((what, type(error), words))
            log.warning("the journal %s: %s: %s", self.path, what, words or type(error).__name__)

    def _insert(self, noted: Sequence[Stretch]) -> None:
        self._db.executemany(
            "insert into durations (key, queue_seconds, run_seconds, ended, at_ms, "
            "queue_low, queue_high, run_low, run_high, run_id, first) "
            "values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            map(_row, noted),
        )
        self._db.executemany(
            COUNT, [{"key": each.key, "runs": each.first, "at": each.at_ms} for each in noted]
        )
        for key in {stretch.key for stretch in noted}:
            self._db.execute(
                "delete from durations where key = ? and id <= (select id from durations "
                "where key = ? order by id desc limit 1 offset ?)",
                (key, key, KEEP_DURATIONS),
            )
        self._db.execute(
            "delete from durations where id <= (select max(id) from durations) - ?",
            (MOST_DURATIONS,),
        )

    def _close_if_done(self) -> None:
        if self._closing and not self._begun:
            self._db.close()

    @contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeEncodeError) as error:
            raise RunbellError(f"the journal {self.path} can't be used: {error}") from error

    def _all(self, statement: str, *values: str | int) -> list[Any]:
        with self._lock, self._problems():
            return self._db.execute(statement, values).fetchall()


def _row(stretch: Stretch) -> Sequence[float | str | None]:
    queue = stretch.queue
    low, high = stretch.run
    return (
        stretch.key,
        None if queue is None else sum(queue) / 2,
        low if high is None else (low + high) / 2,
        stretch.ended,
        stretch.at_ms,
        *(queue or (None, None)),
        low,
        high,
        stretch.run_id or None,
        stretch.first,
    )


def _storable(stretch: Stretch) -> Stretch:
    """A server's JSON may hold half of a surrogate pair, which no UTF-8 has: it becomes what JSON
    writes for it."""
    key, run_id = (
        str(each).encode("utf-8", "backslashreplace").decode()
        for each in (stretch.key, stretch.run_id)
    )
    return stretch._replace(key=key, run_id=run_id)


class History(NamedTuple):
    """What a journal tells of the runs that were waited for.

    Attributes:
        kinds: by kind, how long the latest runs took: all their stretches, without the time that
            their tools took. In seconds.
        left_out: of these runs, how many were cancelled, expired, or given up.
        runs: that there ever were, of all kinds.
        first_ms, last_ms: when the first and the last of them were seen, since the epoch.
    """

    kinds: dict[str, list[float]]
    left_out: int
    runs: int
    first_ms: int
    last_ms: int


def read_history(path: Path) -> History:
    """Read the journal of a waiter, which may be at work.

    Raises:
        ConfigurationError: it is none, or it can't be read.
        InvalidSetting: no durations were written down in it.
    """
    try:
        # Not `mode=ro`: that cannot open a database in WAL mode which nobody has open.
        where = f"file:{quote(str(path))}?mode=rw"
        with closing(sqlite3.connect(where, uri=True)) as database:
            database.execute("pragma query_only = on")
            columns = _columns(database)
            if not columns:
                tables = database.execute("select 1 from sqlite_master where name = 'tool_calls'")
                raise InvalidSetting(
                    f"the journal {path}: no durations were written down in it"
                    + ("" if tables.fetchone() else "; is it the journal of a waiter?")
                )
            names = NAMES if "run_id" in columns else NAMES_BEFORE
            counted = "select key, runs, first_ms, last_ms from kinds"
            if not _has_counts(database):
                counted = COUNTED.format(**names)
            counts = database.execute(counted).fetchall()
            rows = database.execute(HISTORY.format(**names)).fetchall()
    except sqlite3.Error as error:
        raise ConfigurationError(f"the journal {path} can't be read: {error}") from error
    kinds, left_out = _runs(rows)
    return History(
        kinds,
        left_out,
        sum(runs for _, runs, _, _ in counts),
        min((first for _, _, first, _ in counts), default=0),
        max((last for _, _, _, last in counts), default=0),
    )


def _runs(rows: Iterable[Any]) -> tuple[dict[str, list[float]], int]:
    """The stretches of each run together: durations by kind, and how many runs tell none."""
    runs: dict[Any, tuple[str, float, bool]] = {}
    for run_id, key, first, seconds, ended in rows:
        if first:
            runs[run_id] = (key, seconds, bool(ended))
        elif run_id in runs:  # of another the beginning was removed
            _, before, whole = runs[run_id]
            runs[run_id] = (key, before + seconds, whole and bool(ended))
    kinds: dict[str, list[float]] = {}
    for key, seconds, whole in runs.values():
        if whole:
            kinds.setdefault(key, []).append(seconds)
    return kinds, sum(not whole for _, _, whole in runs.values())


def _columns(database: sqlite3.Connection) -> set[str]:
    return {row[1] for row in database.execute("pragma table_info(durations)")}


def _has_counts(database: sqlite3.Connection) -> bool:
    found = database.execute("select 1 from sqlite_master where name = 'kinds'")
    return found.fetchone() is not None
