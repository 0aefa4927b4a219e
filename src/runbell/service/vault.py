"""Small secrets at rest: encrypted with a key that is not in the database.

There may be several: the first one encrypts, the others decrypt what was encrypted before. So a key
can be replaced while processes with the old and the new one serve side by side.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from runbell.errors import CannotDecrypt, ConfigurationError

__all__ = ["KEY_BYTES", "VARIABLE", "Vault", "load_or_make_keys"]

KEY_BYTES: Final = 32
KEY_FILE: Final = "runbell.key"
VARIABLE: Final = "RUNBELL_ENCRYPTION_KEY"

_VERSION: Final = b"\x01"
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = len(_VERSION) + _ID_BYTES
_LARGEST_FILE: Final = 4_096
_MAKE_ONE: Final = "make one with: openssl rand -base64 32"


class Vault:
    """Encrypts and decrypts with AES-256-GCM (NIST SP 800-38D), with a nonce drawn for each.

    What it gives is a version, the id of the key, the nonce, and the ciphertext with its tag.
    Random nonces of 96 bits are good for 2^32 secrets a key.

    Args:
        key: what is encrypted with: 32 bytes.
        older: keys that only decrypt.

    Attributes:
        key_id: tells keys apart, and says nothing about the key.
    """

    def __init__(self, key: bytes, *older: bytes) -> None:
        self._ciphers: dict[bytes, AESGCM] = {}
        for each in (key, *older):
            if len(each) != KEY_BYTES:
                raise ConfigurationError(
                    f"the encryption key has {len(each)} bytes: it has to be 32"
                )
            self._ciphers[_id_of(each)] = AESGCM(each)
        self._id = _id_of(key)

    @property
    def key_id(self) -> str:
        return self._id.hex()

    def seal(self, secret: bytes, about: str) -> bytes:
        """Encrypt a secret.

        Args:
            about: what the secret belongs to, such as the id of a row. It is not stored: the secret
                can be had again only for the same, so nobody can copy it to another row.
        """
        head = _VERSION + self._id
        nonce = secrets.token_bytes(_NONCE_BYTES)
        cipher = self._ciphers[self._id]
        return head + nonce + cipher.encrypt(nonce, secret, head + about.encode())

    def open(self, sealed: bytes, about: str) -> bytes:
        """What `seal` was given.

        Raises:
            CannotDecrypt: it was sealed with another key, for something else, or is damaged.
        """
        head = sealed[:_HEAD_BYTES]
        nonce = sealed[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        if len(nonce) < _NONCE_BYTES or not head.startswith(_VERSION):
            raise CannotDecrypt(f"what is stored for {about} is not an encrypted secret of Runbell")
        key_id = head[len(_VERSION) :]
        cipher = self._ciphers.get(key_id)
        if cipher is None:
            raise CannotDecrypt(
                f"the secret of {about} was encrypted with the key {key_id.hex()}, and this is the "
                f"key {self.key_id}: start with the key of then ({VARIABLE} or --key-file)"
            )
        try:
            text = sealed[_HEAD_BYTES + _NONCE_BYTES :]
            return cipher.decrypt(nonce, text, head + about.encode())
        except (InvalidTag, ValueError):
            raise CannotDecrypt(
                f"the secret that is stored for {about} is damaged, or was stored for another"
            ) from None

    def renew(self, sealed: bytes, about: str) -> bytes:
        """The same secret, encrypted with the first key; as it is where it is so already.

        Raises:
            CannotDecrypt: as `open` does.
        """
        secret = self.open(sealed, about)
        return (
            sealed if sealed[len(_VERSION) : _HEAD_BYTES] == self._id else self.seal(secret, about)
        )

    def __repr__(self) -> str:
        return f"Vault(key_id={self.key_id!r})"


def _id_of(key: bytes) -> bytes:
    return hashlib.sha256(b"runbell key id\0" + key).digest()[:_ID_BYTES]


def load_or_make_keys(
    *,
    given: str | None,
    key_file: str | None,
    beside: Path | None,
    create: bool = True,
    made: Callable[[Path], None] | None = None,
) -> tuple[bytes, ...]:
    """The encryption key of an installation, and behind it those that only decrypt.

    Args:
        given: the keys themselves, with spaces or line feeds between them, as the environment has
            them; in front of any file.
        key_file: where it is kept; None for `runbell.key` beside the database's file.
        beside: the database's file; None, where it has none, for the working folder.
        create: make the file if it is not there. False where secrets are stored already: a new key
            could not decrypt them.
        made: is told of a file that was made.

    Raises:
        ConfigurationError: there is no usable key; says what to change, and never shows the key.
    """
    if given is not None:
        return _decoded(given, VARIABLE)
    path = Path(key_file) if key_file else (beside.parent if beside else Path.cwd()) / KEY_FILE
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    if not create:
        raise ConfigurationError(
            f"there is no key at {path}, and the database's secrets are encrypted with one: put it "
            "back, or copy it from where the other processes run, or name it with --key-file or "
            f"{VARIABLE}"
        )
    try:
        keys = _make(path)
    except FileExistsError:
        return _read(path)
    if made is not None:
        made(path)
    return keys


def _read(path: Path) -> tuple[bytes, ...]:
    try:
        with path.open("rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            text = stream.read(_LARGEST_FILE)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigurationError(f"cannot read the key in {path}: {error.strerror}") from error
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigurationError(
            f"everybody on this machine can read or write the key in {path}: chmod 600 {path}"
        )
    return _decoded(text.decode("latin-1"), str(path))


def _make(path: Path) -> tuple[bytes, ...]:
    """Make the file, whole or not at all, so that nobody ever finds half a key."""
    key = secrets.token_bytes(KEY_BYTES)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(fd, "wb") as stream:
                stream.write(base64.b64encode(key) + b"\n")
                stream.flush()
                os.fsync(stream.fileno())
            # Unlike a rename, this fails where somebody else has made one meanwhile.
            os.link(draft, path)
        finally:
            draft.unlink()
        _sync_folder(path.parent)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigurationError(
            f"cannot make a key in {path} ({error.strerror}): make the folder writable, name "
            f"another file with --key-file, or set {VARIABLE}"
        ) from error
    return (key,)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _decoded(text: str, origin: str) -> tuple[bytes, ...]:
    return tuple(_key(word, origin) for word in text.split() or [""])


def _key(word: str, origin: str) -> bytes:
    try:
        key = base64.b64decode(word, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigurationError(f"{origin} is not base64; {_MAKE_ONE}") from None
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{origin} holds {len(key)} bytes, and the key has to be {KEY_BYTES}; {_MAKE_ONE}"
        )
    return key
