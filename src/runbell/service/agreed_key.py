"""Which key the secrets of a database are encrypted with: the same for all its processes.

A SQLite file has one process at a time, and what is encrypted in it says with which key. The
processes on a PostgreSQL database start in many folders; each would make a key of its own, and
nobody would know before one has to open what another has sealed. So the first of them seals a known
text, and whoever starts later has to be able to open that.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Final

from runbell.service.database import Database
from runbell.service.operations import endpoints as operations
from runbell.service.settings import EMBEDDED, Settings
from runbell.service.vault import VARIABLE, Vault, load_or_make_keys
from runbell.storage import endpoints, key_checks
from runbell.storage.store import Store, Transaction

__all__ = ["agreed_vault", "reencrypt"]

logger = logging.getLogger(__name__)

_KNOWN: Final = b"the key of this database"
"""What is sealed: it tells nothing, and the key cannot be had from it."""

_ABOUT: Final = "this database"

Sealed = tuple[bytes, str]
"""Something encrypted, and what it belongs to."""


async def agreed_vault(settings: Settings, database: Database) -> Vault:
    """What secrets are encrypted with. A new key is made only where nothing is encrypted yet, and,
    of several processes, by the first.

    Raises:
        ConfigurationError: there is no usable key; says what to change.
        CannotDecrypt: it is not the key of this database.
    """
    if database.file is not None:
        sealed = await database.store.read(endpoints.some_sealed)
        return _opening(settings, database.file, sealed)
    return await database.store.write(partial(_agree, settings=settings))


async def _agree(tx: Transaction, settings: Settings) -> Vault:
    check = await key_checks.find(tx)
    first = check is None and await key_checks.claim(tx)
    if check is None and not first:
        check = await key_checks.find(tx)
    # A database that is older than its check has secrets: who comes first has to open them.
    some = await endpoints.some_sealed(tx)
    # A key that is made here is on the disk before anybody is told of it. Where this transaction
    # fails, or is executed again, the file is found the next time.
    vault = _opening(settings, None, None if check is None else (check, _ABOUT), some)
    if first:
        await key_checks.store(tx, vault.seal(_KNOWN, _ABOUT))
    return vault


def _opening(settings: Settings, file: Path | None, *sealed: Sealed | None) -> Vault:
    """A vault that opens what is there."""
    there = [each for each in sealed if each is not None]
    keys = load_or_make_keys(
        given=settings.encryption_key,
        key_file=settings.key_file,
        beside=file,
        create=not there,
        made=_tell_others if file is None and not settings.database.startswith(EMBEDDED) else None,
    )
    vault = Vault(*keys)
    for each in there:
        # Now, rather than when the first webhook is to be signed.
        vault.open(*each)
    return vault


def _tell_others(path: Path) -> None:
    logger.warning(
        "an encryption key was made in %s: every other process on this database needs the same: "
        "copy the file to its machine (--key-file), or set %s to what is in it",
        path.resolve(),
        VARIABLE,
    )


async def reencrypt(store: Store, vault: Vault) -> tuple[int, int]:
    """Encrypt with the vault's first key what was encrypted with an older one, and at last what
    shows which key it is: from then on, the first one alone is enough.

    Returns:
        how many endpoints were changed, and how many there are.

    Raises:
        CannotDecrypt: something was encrypted with a key that the vault has not.
    """
    check = await store.read(key_checks.find)
    if check is not None:
        vault.open(check, _ABOUT)
    done = await operations.reencrypt(store, vault)
    await store.write(partial(_renew, vault=vault))
    return done


async def _renew(tx: Transaction, vault: Vault) -> None:
    check = await key_checks.find(tx)
    if check is not None:
        await key_checks.store(tx, vault.renew(check, _ABOUT))
