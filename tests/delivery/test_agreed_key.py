"""All processes on a PostgreSQL database encrypt with one key: the first that starts there says
which one it is, and who has another one does not start."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from runbell.errors import CannotDecrypt, ConfigurationError
from runbell.service.agreed_key import agreed_vault, reencrypt
from runbell.service.database import Database
from runbell.service.settings import Settings
from runbell.service.vault import Vault
from runbell.storage import endpoints, key_checks
from runbell.storage.postgresql import PostgresqlStore
from runbell.testing.databases import migrated_sqlite, opened
from runbell.testing.postgresql import opened_postgresql
from runbell.testing.storage_contract.webhooks import endpoint

KEYS = ("A" * 43 + "=", "AQEB" * 10 + "AQE=")
OLD, NEW = (Vault(bytes([number]) * 32) for number in (0, 1))


async def start(
    store: PostgresqlStore, key: str | None = None, *, file: Path | None = None
) -> Vault:
    """What a process does at its start with this key, or with what is in this file."""
    settings = Settings(
        database="postgresql://db/runbell",
        encryption_key=key,
        key_file=None if file is None else str(file),
    )
    return await agreed_vault(settings, Database(store, "db", None))


async def register(store: PostgresqlStore, vault: Vault) -> None:
    made = endpoint(secret=vault.seal(b"s", "wh_1"))
    await store.write(partial(endpoints.insert, endpoint=made))


def test_who_starts_elsewhere_makes_no_key_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it start with another: also before there is any secret."""
    first, second = tmp_path / "first.key", tmp_path / "second.key"

    async def story() -> None:
        async with opened_postgresql() as store:
            vault = await start(store, file=first)
            with pytest.raises(ConfigurationError, match=r"there is no key at .*second"):
                await start(store, file=second)
            assert not second.exists()
            with pytest.raises(CannotDecrypt, match=f"with the key {vault.key_id}, and this is"):
                await start(store, KEYS[0])
            assert (await start(store, file=first)).key_id == vault.key_id
            kept = await store.fetch("SELECT sealed FROM key_checks")
            assert len(kept) == 1
            assert vault.open(kept[0][0], "this database") == b"the key of this database"

    asyncio.run(story())
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"an encryption key was made in {first}: ")
    assert "RUNBELL_ENCRYPTION_KEY" in line
    assert first.read_text().strip() not in line


def test_of_several_that_start_at_once_one_makes_the_key(tmp_path: Path) -> None:
    """Each would in its own folder; the others wait for it, and are refused."""
    files = [tmp_path / f"{number}.key" for number in range(4)]

    async def story() -> None:
        async with opened_postgresql() as store:
            # So that each has a connection, and they meet.
            await asyncio.gather(*(store.read(key_checks.find) for _ in files))
            started = await asyncio.gather(
                *(start(store, file=file) for file in files), return_exceptions=True
            )
            refused = [each for each in started if isinstance(each, ConfigurationError)]
            (vault,) = [each for each in started if isinstance(each, Vault)]
            assert len(refused) == 3, started
            (made,) = [file for file in files if file.exists()]
            assert (await start(store, file=made)).key_id == vault.key_id

    asyncio.run(story())


def test_an_older_database_has_the_key_that_opens_its_secrets(tmp_path: Path) -> None:
    """Whoever comes first with another one does not say which it is."""

    async def story() -> None:
        async with opened_postgresql() as store:
            await register(store, OLD)
            with pytest.raises(CannotDecrypt, match="was encrypted with the key"):
                await start(store, KEYS[1])
            with pytest.raises(ConfigurationError, match="there is no key at"):
                await start(store, file=tmp_path / "key")
            assert await store.read(key_checks.find) is None
            await start(store, KEYS[0])
            await store.fetch("DELETE FROM webhook_endpoints")
            with pytest.raises(CannotDecrypt, match="was encrypted with the key"):
                await start(store, KEYS[1])

    asyncio.run(story())


def test_the_key_is_replaced_without_a_moment_of_rest() -> None:
    """At each step those who have not been restarted yet may start again; then the new one is
    enough, and the old one is not."""
    old, new = KEYS

    async def story() -> None:
        async with opened_postgresql() as store:
            for keys in (old, f"{old} {new}", old, f"{new} {old}", f"{old} {new}"):
                await start(store, keys)
            await register(store, OLD)
            with pytest.raises(CannotDecrypt):
                await reencrypt(store, NEW)
            with pytest.raises(CannotDecrypt):
                await start(store, new)
            both = Vault(bytes([1]) * 32, bytes(32))
            assert await reencrypt(store, both) == (1, 1)
            assert await reencrypt(store, NEW) == (0, 1)
            for keys in (f"{old} {new}", new):
                await start(store, keys)
            await store.fetch("DELETE FROM webhook_endpoints")
            for refused in (start(store, old), reencrypt(store, OLD)):
                with pytest.raises(CannotDecrypt):
                    await refused

    asyncio.run(story())


def test_a_lost_key_is_forgotten_together_with_what_it_opened() -> None:
    """As docs/operations.md has it; the next start says which key it is."""

    async def story() -> None:
        async with opened_postgresql() as store:
            await start(store, KEYS[0])
            await register(store, OLD)
            for table in ("webhook_endpoints", "idempotency_keys", "key_checks"):
                await store.fetch(f"DELETE FROM {table}")
            await start(store, KEYS[1])

    asyncio.run(story())


def test_a_file_of_one_process_agrees_with_nobody(tmp_path: Path) -> None:
    """A backup without any secret in it needs no key: a new one is made beside it."""
    path = migrated_sqlite(tmp_path / "runbell.db")

    async def story() -> None:
        async with opened(path, durable=False) as store:
            database = Database(store, "runbell.db", path)
            for key in (*KEYS, None):
                await agreed_vault(Settings(encryption_key=key), database)

    asyncio.run(story())
    assert (tmp_path / "runbell.key").exists()
