"""SQLite: one writer thread with group commit, readers that never wait for it.

All writes go to one thread with the only writing connection. It collects the units of work that
are waiting, executes each behind a savepoint of its own, and commits them together: one fsync for
all, so that durable writes (`synchronous=FULL`) stay cheap under load. A unit that fails rolls back
to its savepoint, and its caller alone hears of it.

Reads by key run on the event loop's own thread: in WAL mode they wait for nobody and cost about
20 µs, a fraction of what handing them to a thread would. Reads of many rows have a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import quote

from runbell import faults
from runbell.errors import Conflict, StorageUnavailable
from runbell.storage.statements import Statement
from runbell.storage.store import Row, Work

__all__ = ["Observer", "SQLiteStore", "read_only"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_GROUP = 256
"""Units in one commit: bounds how long the first of them waits for the last."""

MAX_WAITING = 10_000
"""Units that may wait for the writer before further ones are turned away."""

SCANNERS = 3
"""Threads that read many rows: a long list keeps two others moving."""

MAX_WAITING_SCANS = 1_000
"""Scans that may wait for a thread before further ones are turned away."""

WRITER_BUSY_MS = 2_000
"""How long the writer waits for another process's transaction (a backup, `runbell keys`)."""

READER_BUSY_MS = 50
"""How long a read waits; in WAL mode only recovery after a crash makes it wait at all."""

_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
    }
)


class SQLiteStore:
    """The store in one SQLite file. Made by `open`, on the event loop that will use it.

    Attributes:
        on_commit: is told of each group that was committed, on the writer's thread: how many units,
            and in how many seconds. It is quick and does not raise.
    """

    def __init__(self, path: Path, writer: sqlite3.Connection) -> None:
        self.path = path
        self.on_commit: Callable[[int, float], None] = _unobserved
        self._loop = asyncio.get_running_loop()
        self._waiting: queue.SimpleQueue[_Unit | None] = queue.SimpleQueue()
        self._closed = False
        self._writer = writer
        self._reader = _View(_connect(path, READER_BUSY_MS, reads_only=True))
        self._views: queue.SimpleQueue[_View] = queue.SimpleQueue()
        for _ in range(SCANNERS):
            self._views.put(_View(_connect(path, WRITER_BUSY_MS, reads_only=True)))
        self._scanner = ThreadPoolExecutor(SCANNERS, thread_name_prefix="runbell-scanner")
        self._scans = 0
        self._thread = threading.Thread(target=self._write_all, name="runbell-writer", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path) -> SQLiteStore:
        """Open a file whose schema is up to date.

        Raises:
            StorageUnavailable: it can't be opened, or is locked.
        """
        with _unavailable:
            writer = _connect(path, WRITER_BUSY_MS, reads_only=False)
            return cls(path, writer)

    @property
    def waiting(self) -> int:
        """Units of work that wait for the writer."""
        return self._waiting.qsize()

    async def write(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable("the database is closed")
        if self._waiting.qsize() >= MAX_WAITING:
            raise StorageUnavailable("too many writes are waiting")
        unit = _Unit(work, self._loop.create_future())
        self._waiting.put(unit)
        return cast(T, await unit.future)

    async def read(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable("the database is closed")
        with _unavailable:
            return _drive(work(self._reader))

    async def scan(self, work: Work[T]) -> T:
        if self._closed:
            raise StorageUnavailable("the database is closed")

        if self._scans >= MAX_WAITING_SCANS:
            raise StorageUnavailable("too many lists are waiting")

        def drive() -> T:
            view = self._views.get()
            try:
                with _unavailable:
                    return _drive(work(view))
            finally:
                self._views.put(view)

        self._scans += 1
        try:
            return await self._loop.run_in_executor(self._scanner, drive)
        finally:
            self._scans -= 1

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._scanner.shutdown)
        while not self._views.empty():
            self._views.get().connection.close()
        self._reader.connection.close()
        # Last, so that SQLite folds the log into the database and removes it.
        self._writer.close()

    def _write_all(self) -> None:
        """The writer thread: groups of units, one commit each, until the store is closed."""
        open_ = True
        while open_:
            group: list[_Unit] = []
            unit = self._waiting.get()
            while unit is not None:
                group.append(unit)
                if len(group) == MAX_GROUP:
                    break
                try:
                    unit = self._waiting.get_nowait()
                except queue.Empty:
                    break
            open_ = unit is not None
            if group:
                faults.hit("storage.group.begun")
                began = time.perf_counter()
                try:
                    self._begin()
                except Exception as error:  # noqa: BLE001 - every caller gets it; the thread goes on
                    # Whoever waits behind them has waited as long: nobody waits twice.
                    open_ = self._take_waiting(group) and open_
                    _fail(group, error)
                else:
                    try:
                        self._commit(group)
                    except Exception as error:  # noqa: BLE001 - as above
                        _fail(group, error)
                    else:
                        self.on_commit(len(group), time.perf_counter() - began)
                self._loop.call_soon_threadsafe(_deliver, group)

    def _take_waiting(self, group: list[_Unit]) -> bool:
        """Add every unit that waits to the group; False where the store is to be closed."""
        while True:
            try:
                unit = self._waiting.get_nowait()
            except queue.Empty:
                return True
            if unit is None:
                return False
            group.append(unit)

    def _begin(self) -> None:
        connection = self._writer
        if connection.in_transaction:
            # An earlier rollback failed, as it can on a disk that gives errors.
            connection.execute("ROLLBACK")
        with _unavailable:
            connection.execute("BEGIN IMMEDIATE")

    def _commit(self, group: list[_Unit]) -> None:
        connection = self._writer
        try:
            with _unavailable:
                if len(group) == 1:
                    self._execute(group[0])
                else:
                    for unit in group:
                        self._execute_apart(unit)
                faults.hit("storage.group.executed")
                connection.execute("COMMIT")
        except BaseException:
            # SQLite may have rolled back by itself, as it does on a full disk.
            if connection.in_transaction:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
            raise
        faults.hit("storage.group.committed")

    def _execute(self, unit: _Unit) -> None:
        transaction = _View(self._writer)
        with _unavailable:
            unit.result = _drive(unit.work(transaction))
        unit.callbacks = transaction.callbacks

    def _execute_apart(self, unit: _Unit) -> None:
        """Execute one unit of several: its failure is its own, unless the transaction is lost."""
        connection = self._writer
        connection.execute("SAVEPOINT unit")
        try:
            self._execute(unit)
        except Exception as error:
            if not connection.in_transaction:
                raise
            unit.fail(error)
            connection.execute("ROLLBACK TO unit")
        connection.execute("RELEASE unit")


@dataclass(slots=True, eq=False)
class _Unit:
    """A unit of work on its way to the writer and back."""

    work: Callable[[_View], Awaitable[Any]]
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = None
    callbacks: list[Callable[[], None]] = field(default_factory=list)

    def fail(self, error: BaseException) -> None:
        self.error = error
        self.callbacks = []


class _View:
    """One connection as a `Transaction`: its methods are async in form and never suspend."""

    __slots__ = ("callbacks", "connection")

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.callbacks: list[Callable[[], None]] = []

    async def fetch_one(self, statement: Statement, params: Mapping[str, Any]) -> Row | None:
        row: Row | None = self.connection.execute(statement.sqlite, params).fetchone()
        return row

    async def fetch_all(
        self, statement: Statement, params: Mapping[str, Any], max_bytes: int | None = None
    ) -> list[Row]:
        cursor = self.connection.execute(statement.sqlite, params)
        if max_bytes is None:
            return cursor.fetchall()
        rows: list[Row] = []
        size = 0
        for row in cursor:
            rows.append(row)
            size += sum(len(value) for value in row if isinstance(value, str | bytes))
            if size >= max_bytes:
                break
        cursor.close()
        return rows

    async def execute(self, statement: Statement, params: Mapping[str, Any]) -> int:
        try:
            return self.connection.execute(statement.sqlite, params).rowcount
        except sqlite3.IntegrityError as error:
            if error.sqlite_errorcode in (
                sqlite3.SQLITE_CONSTRAINT_UNIQUE,
                sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
            ):
                raise Conflict(f"{statement.name}: {error}") from None
            raise

    async def later(
        self, statement: Statement, params: Mapping[str, Any], missed: Exception | None = None
    ) -> None:
        # Nothing is gained by waiting: it is a function call away.
        if await self.execute(statement, params) != 1 and missed is not None:
            raise missed

    async def fetch_first(self, *reads: tuple[Statement, Mapping[str, Any]]) -> list[Row | None]:
        return [await self.fetch_one(statement, params) for statement, params in reads]

    async def fetch_both(
        self,
        several: tuple[Statement, Mapping[str, Any]],
        first: tuple[Statement, Mapping[str, Any]],
    ) -> tuple[list[Row], Row | None]:
        return await self.fetch_all(*several), await self.fetch_one(*first)

    def after_commit(self, callback: Callable[[], None]) -> None:
        self.callbacks.append(callback)


def read_only(path: Path, work: Work[T]) -> T:
    """Execute a unit of work that reads, from one moment's view of a file; also of one in use.

    Raises:
        StorageUnavailable: the file is missing, or can't be read now.
    """
    with _unavailable:
        connection = sqlite3.connect(
            f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None
        )
        with contextlib.closing(connection):
            connection.execute("PRAGMA temp_store = MEMORY")
            connection.execute("BEGIN")
            return _drive(work(_View(connection)))


class Observer:
    """A connection that only reads, for a thread which waits for what others commit.

    Made, used and closed by one thread.

    Raises:
        StorageUnavailable: the file is missing, or can't be read now; likewise every method.
    """

    def __init__(self, path: Path) -> None:
        with _unavailable:
            # Not `mode=ro`: that cannot open a database in WAL mode which nobody has open.
            self._connection = sqlite3.connect(
                f"file:{quote(str(path))}?mode=rw",
                uri=True,
                isolation_level=None,
                timeout=WRITER_BUSY_MS / 1000,
            )
            self._connection.execute("PRAGMA query_only = ON")
        self._version = -1

    def changed(self) -> bool:
        """Whether something was committed since the last time that this was asked.

        It reads one number of the shared memory beside the file, in about 3 µs.
        """
        with _unavailable:
            version: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
        found = version != self._version
        self._version = version
        return found

    def read(self, work: Work[T]) -> T:
        """Execute a unit of work that reads."""
        with _unavailable:
            return _drive(work(_View(self._connection)))

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()


def _unobserved(units: int, seconds: float) -> None:
    """Nobody wants to know."""


def _fail(group: list[_Unit], error: Exception) -> None:
    for unit in group:
        # One each: an error that several tasks raise would collect all their traces.
        unit.fail(StorageUnavailable(*error.args) if type(error) is StorageUnavailable else error)


def _deliver(group: list[_Unit]) -> None:
    """On the event loop: tell every caller how its unit ended, after what its commit set off."""
    for unit in group:
        for callback in unit.callbacks:
            try:
                callback()
            except Exception:
                logger.exception("what was to happen after a commit failed")
        if unit.future.done():
            continue
        if unit.error is not None:
            unit.future.set_exception(unit.error)
        else:
            unit.future.set_result(unit.result)


def _drive(work: Awaitable[T]) -> T:
    """Run a unit of work to its end, here and now."""
    coroutine = cast(Coroutine[Any, Any, T], work)
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    coroutine.close()
    raise RuntimeError("a unit of work may await its transaction, and nothing else")


def _connect(path: Path, busy_ms: int, *, reads_only: bool) -> sqlite3.Connection:
    connection = sqlite3.connect(
        path,
        timeout=busy_ms / 1000,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
    )
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: its fsync does not reach the disk
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA temp_store = MEMORY")
    if reads_only:
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
    return connection


class _Unavailable:
    """Turns what SQLite says of a locked, full or missing database into our own error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, sqlite3.Error):
            code = getattr(error, "sqlite_errorcode", None)
            if code is not None and code & 0xFF in _UNAVAILABLE:
                raise StorageUnavailable(
                    f"the database cannot be used now: {error} ({error.sqlite_errorname})"
                ) from error


_unavailable = _Unavailable()
