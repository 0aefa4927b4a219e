"""Databases for tests: made fast, failing on request, paused in the middle of things."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from functools import cache
from pathlib import Path
from typing import TypeVar

from runbell.errors import StorageUnavailable
from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import upgrade_sqlite
from runbell.storage.sqlite import SQLiteStore
from runbell.storage.store import Store, Transaction, Work

__all__ = ["ObservedStore", "migrated_sqlite", "opened", "writer_held"]

T = TypeVar("T")


def migrated_sqlite(path: Path) -> Path:
    """A SQLite file at `path` with today's schema and no rows; as the migrations make it.

    The migrations run once a process; every further file is a copy.
    """
    path.write_bytes(_template())
    return path


@contextlib.asynccontextmanager
async def opened(path: Path, *, durable: bool = True) -> AsyncIterator[SQLiteStore]:
    """The store in a SQLite file that `migrated_sqlite` made; closed at the end.

    Args:
        durable: commits survive a power cut. Tests that need no more than a database that survives
            their own process are much faster without.
    """
    store = await SQLiteStore.open(path)
    if not durable:
        # Outside of a transaction, and before the writer has anything to do.
        store._writer.execute("PRAGMA synchronous = OFF")
    try:
        yield store
    finally:
        await store.close()


@contextlib.asynccontextmanager
async def writer_held(store: Store) -> AsyncIterator[None]:
    """Keep the store's only writer busy for the length of the block.

    What is written inside the block waits, and is then committed as one group, in the order in
    which it came.
    """
    begun, release = threading.Event(), threading.Event()

    async def wait(tx: Transaction) -> None:
        begun.set()
        assert release.wait(60), "the block never ended"

    holding = asyncio.create_task(store.write(wait))
    assert await asyncio.to_thread(begun.wait, 60), "the writer never came to it"
    try:
        yield
    finally:
        release.set()
        await holding


class ObservedStore:
    """A store that counts what goes through it, and that can be away.

    Attributes:
        away: while this is set, every write is refused with StorageUnavailable.
        unreadable: likewise every read.
        calls: how many units of work have been asked for.
        under_way: how many of these have not returned yet.
        refused: how many of them were turned away.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.away = False
        self.unreadable = False
        self.calls = 0
        self.under_way = 0
        self.refused = 0

    async def write(self, work: Work[T]) -> T:
        with self._counted(refuse=self.away):
            return await self.inner.write(work)

    async def read(self, work: Work[T]) -> T:
        with self._counted(refuse=self.unreadable):
            return await self.inner.read(work)

    async def scan(self, work: Work[T]) -> T:
        with self._counted(refuse=self.unreadable):
            return await self.inner.scan(work)

    async def close(self) -> None:
        await self.inner.close()

    async def drain(self) -> None:
        """Return when all units have ended that were asked for before."""
        await self.inner.write(_nothing)
        await self.inner.scan(_nothing)

    @contextlib.contextmanager
    def _counted(self, *, refuse: bool) -> Iterator[None]:
        self.calls += 1
        if refuse:
            self.refused += 1
            raise StorageUnavailable("the test took the database away")
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1


async def _nothing(tx: Transaction) -> None:
    """A unit that is only waited for."""


@cache
def _template() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "template.db"
        upgrade_sqlite(path, InstallationLock(path))
        return path.read_bytes()
