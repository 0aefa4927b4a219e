"""The inbox's tables: one description, one owner, and fences that hold."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

import runbell.receiver
from runbell.errors import ConfigurationError
from runbell.receiver import arrivals, rows
from runbell.receiver.events import read
from runbell.receiver.schema import INBOX, metadata, prepare
from runbell.storage.lock import InstallationLock
from runbell.storage.migrate import upgrade_sqlite
from runbell.storage.sqlite import SQLiteStore
from tests.receiver.databases import new_inbox
from tests.receiver.house import body_of


def test_migrations_make_what_the_schema_says(tmp_path: Path) -> None:
    """Two descriptions of one thing; a second start changes nothing."""
    path = tmp_path / "inbox.db"
    prepare(path)
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": INBOX.version_table}
        )
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == INBOX.head
    engine.dispose()
    before = path.read_bytes()
    prepare(path)
    assert path.read_bytes() == before


def test_an_inbox_is_no_service_and_the_other_way_round(tmp_path: Path) -> None:
    """Each refuses the other's file, and a file of anybody else, untouched."""
    service, inbox, other = (tmp_path / name for name in ("s.db", "i.db", "o.db"))
    upgrade_sqlite(service, InstallationLock(service))
    prepare(inbox)
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    for path in (service, other):
        with pytest.raises(ConfigurationError, match="another program"):
            prepare(path)
    with pytest.raises(ConfigurationError, match="another program"):
        upgrade_sqlite(inbox, InstallationLock(inbox))


def test_who_lost_a_claim_writes_nothing_even_to_itself(tmp_path: Path) -> None:
    """A process that slept through its lease, and took the event again: its first hold is void."""

    async def story() -> None:
        store = await SQLiteStore.open(new_inbox(tmp_path / "inbox.db"))
        body = body_of("response.completed")
        await store.write(
            lambda tx: arrivals.store(tx, arrivals.Arrival("wh_1", body, read(body), 0))
        )

        async def claim(now_ms: int) -> rows.Claimed:
            claims = await store.write(
                lambda tx: rows.claim(
                    tx, "me", now_ms=now_ms, lease_ms=10, gap_ms=0, max_attempts=9, limit=5
                )
            )
            (claimed,) = claims.taken
            return claimed

        first, second = await claim(1), await claim(100)
        assert (first.attempt, second.attempt, second.lapsed) == (1, 2, True)
        assert not await store.write(lambda tx: rows.finish(tx, first, "me", 101))
        assert await store.write(lambda tx: rows.renew(tx, [first, second], "me", 300)) == [first]
        assert await store.write(lambda tx: rows.finish(tx, second, "me", 102))
        await store.close()

    asyncio.run(story())


def test_what_is_exported_is_there() -> None:
    """`__all__` is the public interface, though nothing of it is imported until it is asked for."""
    for name in runbell.receiver.__all__:
        assert getattr(runbell.receiver, name).__name__ == name
    with pytest.raises(AttributeError):
        _ = runbell.receiver.nothing  # type: ignore[attr-defined]
