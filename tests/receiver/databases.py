"""Inboxes for tests: a file of its own for each, or the database of this process, emptied."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Coroutine
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote

import asyncpg

from runbell.receiver.places import place_of
from runbell.receiver.schema import metadata, prepare
from runbell.testing.postgresql import server

__all__ = ["asked", "empty_database", "file_of", "made", "new_inbox"]


def new_inbox(path: Path) -> Path:
    """An empty inbox at `path`, if there is none."""
    if not path.exists():
        path.write_bytes(_template())
    return path


def file_of(url: str) -> Path:
    """The file of an inbox in one."""
    return Path(unquote(url.removeprefix("sqlite:///")))


def empty_database() -> str:
    """The URL of an inbox on PostgreSQL that has no rows; all tests of a process have the same."""
    url = _database()
    asked(url, ";".join(f"DELETE FROM {table.name}" for table in metadata.sorted_tables))
    return url


def asked(url: str, sql: str) -> list[Any]:
    """What a database says to a statement, from beside whoever uses it."""
    if url.startswith("sqlite:"):
        with contextlib.closing(sqlite3.connect(file_of(url))) as connection:
            found = connection.execute(sql).fetchall()
            connection.commit()
            return found
    return _done(_asked(url, sql))


@cache
def made(name: str) -> str:
    """The URL of an empty database of the process's server; made when it is asked for first."""
    _done(_asked(server().url(), f"CREATE DATABASE {name} STRATEGY file_copy"))
    return server().url(name)


@cache
def _template() -> bytes:
    """An inbox without rows, as the migrations make it."""
    with TemporaryDirectory() as directory:
        path = Path(directory) / "inbox.db"
        prepare(path)
        return path.read_bytes()


@cache
def _database() -> str:
    async def make(url: str) -> None:
        async with place_of(url).open():
            pass

    url = made("inbox")
    _done(make(url))
    return url


_connections: dict[str, asyncpg.Connection] = {}


async def _asked(url: str, sql: str) -> list[Any]:
    if url not in _connections:
        _connections[url] = await asyncpg.connect(url)
    if ";" in sql:
        await _connections[url].execute(sql)
        return []
    return [tuple(row) for row in await _connections[url].fetch(sql)]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """One in a thread of its own, so that a test may ask wherever it is."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


def _done(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(60)
