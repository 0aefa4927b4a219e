"""`runbell reencrypt`: what an older key encrypts, with the newest one."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from runbell.cli.keys import Database
from runbell.service.settings import Settings

__all__ = ["reencrypt"]


def reencrypt(
    database: Database = None,
    key_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The keys, the newest first. (RUNBELL_KEY_FILE, or RUNBELL_ENCRYPTION_KEY)",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Encrypt stored secrets with the first of the encryption keys, beside running services.

    Then the keys behind it are not needed any more.
    """
    from runbell.service import agreed_key
    from runbell.service.databases import open_store
    from runbell.service.settings import sqlite_path
    from runbell.service.vault import Vault, load_or_make_keys

    settings = Settings.load({"database": database, "key_file": key_file})
    is_file = settings.database.startswith("sqlite:")
    vault = Vault(
        *load_or_make_keys(
            given=settings.encryption_key,
            key_file=settings.key_file,
            beside=sqlite_path(settings.database) if is_file else None,
            create=False,
        )
    )

    async def work() -> tuple[int, int]:
        async with open_store(settings, create=False) as store:
            return await agreed_key.reencrypt(store, vault)

    changed, count = asyncio.run(work())
    typer.echo(f"changed {changed} of {count} endpoints: all have the key {vault.key_id} now")
