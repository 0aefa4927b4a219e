"""What an inbox keeps: the tables, their keys and their indexes, for every database.

An inbox is a database of its own, with migrations of its own, since it belongs to a program that
listens and not to the service. The rules are those of `runbell.storage.schema`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import Lineage, upgrade
from runbell.storage.schema import NAMES, numbered

__all__ = [
    "DEAD",
    "INBOX",
    "WAITING",
    "cursors",
    "events",
    "metadata",
    "once",
    "others",
    "prepare",
    "runs",
]

INBOX: Final = Lineage(
    "inbox",
    "0001",
    Path(__file__).with_name("migrations"),
    "inbox_version",
    "inbox_events",
    "--inbox",
)
"""The migrations of an inbox."""

PATIENCE_SECONDS: Final = 10.0
"""How long a process waits for another one that makes the schema at the same time."""

WAITING: Final = "state = 'waiting'"
"""What the partial index and the queries that use it have to say alike."""

DEAD: Final = "state = 'dead'"
"""Likewise."""

metadata = MetaData(naming_convention=NAMES)

events = Table(
    "inbox_events",
    metadata,
    numbered(),
    Column("id", Text, nullable=False, unique=True),
    Column("type", Text),
    Column("subject", Text),
    Column("sequence", BigInteger),
    Column("urgent", Boolean, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("origin", Text, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False),
    # waiting, handled, unhandled (nobody wanted it), stale, dead
    Column("state", Text, nullable=False),
    # When it is tried next; while somebody holds it, when it is taken from them.
    Column("due_at_ms", BigInteger, nullable=False),
    Column("claim", Text),
    Column("attempts", Integer, nullable=False),
    # Handlers that have succeeded while others have not, as JSON.
    Column("done", Text),
    # Somebody asked for it by hand: it is handled whatever came after it.
    Column("forced", Boolean, nullable=False),
    Column("error", Text),
    Column("ended_at_ms", BigInteger),
    Index(
        None, "due_at_ms", "position", sqlite_where=text(WAITING), postgresql_where=text(WAITING)
    ),
    Index(None, "subject", "sequence"),
    Index("ix_inbox_events_dead", "position", sqlite_where=text(DEAD), postgresql_where=text(DEAD)),
    # The positions are cursors of those who watch: they are never used twice.
    sqlite_autoincrement=True,
)

runs = Table(
    "inbox_runs",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("handled", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False, index=True),
)

others = Table(
    "inbox_others",
    metadata,
    numbered(),
    Column("id", Text, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("received_at_ms", BigInteger, nullable=False, index=True),
    UniqueConstraint("id", "digest"),
)

once = Table(
    "inbox_once",
    metadata,
    Column("key", Text, primary_key=True),
    Column("claim", Text),
    Column("until_ms", BigInteger, nullable=False),
    Column("done_at_ms", BigInteger, index=True),
)

cursors = Table(
    "inbox_cursors",
    metadata,
    Column("feed", Text, primary_key=True),
    Column("event_id", Text, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)


def prepare(path: Path) -> None:
    """Create an inbox, or bring its schema up to date; several processes may do so at once.

    Raises:
        ConfigurationError: the file is newer than this version, or no inbox.
        StorageUnavailable: it is locked.
    """
    lock = InstallationLock(path)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not lock.acquire() and time.monotonic() < deadline:
        time.sleep(0.02)
    try:
        upgrade(path, lock, INBOX)
    finally:
        lock.release()
