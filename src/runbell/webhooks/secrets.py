"""What a webhook is signed with: secrets and public keys, as Standard Webhooks writes them."""

from __future__ import annotations

import base64
import binascii
import secrets
from dataclasses import dataclass
from typing import Any, Final, Self

from runbell.errors import InvalidSecret, MissingExtra

__all__ = ["PublicKey", "Secret"]

PREFIX: Final = "whsec_"
PUBLIC_PREFIX: Final = "whpk_"
FEWEST_BYTES, MOST_BYTES = 24, 64
"""Standard Webhooks 1.0.0, "Signature scheme": the size of a symmetric secret."""

GENERATED_BYTES: Final = 32
"""As long as what HMAC-SHA256 gives: more would not be harder to guess."""

PUBLIC_BYTES: Final = 32
LONGEST_TEXT: Final = 128
HINT_LETTERS: Final = 4


@dataclass(frozen=True, slots=True, repr=False)
class Secret:
    """A signing secret. Its text appears nowhere unless it is asked for.

    Attributes:
        key: the bytes that sign.
    """

    key: bytes

    @classmethod
    def generate(cls) -> Self:
        """A new one, from the system's source of randomness."""
        return cls(secrets.token_bytes(GENERATED_BYTES))

    @classmethod
    def parse(cls, text: str) -> Self:
        """The secret that is written `whsec_` and the padded base64 of 24 to 64 bytes.

        Raises:
            InvalidSecret: it is written in another way; says in which.
        """
        key = _decode(text, PREFIX, "signing secret")
        if not FEWEST_BYTES <= len(key) <= MOST_BYTES:
            raise InvalidSecret(
                f"the signing secret holds {len(key)} bytes: it has to be {FEWEST_BYTES} to "
                f"{MOST_BYTES}"
            )
        return cls(key)

    @property
    def text(self) -> str:
        """The secret as it is handed to whoever verifies: `whsec_…`."""
        return PREFIX + base64.b64encode(self.key).decode()

    @property
    def hint(self) -> str:
        """The last letters of the text: enough to tell secrets apart, too few to guess one."""
        return self.text[-HINT_LETTERS:]

    def __repr__(self) -> str:
        return f"Secret(…{self.hint})"


class PublicKey:
    """A sender's ed25519 key, for signatures of the kind `v1a`.

    Attributes:
        text: as it is written: `whpk_…`.
    """

    def __init__(self, text: str) -> None:
        """The key that is written `whpk_` and the padded base64 of 32 bytes.

        Raises:
            InvalidSecret: it is written in another way, or no key.
            MissingExtra: ed25519 is not in the standard library: it needs `cryptography`.
        """
        key = _decode(text, PUBLIC_PREFIX, "public key")
        if len(key) != PUBLIC_BYTES:
            raise InvalidSecret(f"the public key holds {len(key)} bytes: it has to be 32")
        self.text = text
        self._key = _ed25519(key)

    def is_signature(self, signature: bytes, content: bytes) -> bool:
        """Whether the owner of the key signed `content` so."""
        from cryptography.exceptions import InvalidSignature

        try:
            self._key.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    def __repr__(self) -> str:
        return f"PublicKey({self.text!r})"


def _decode(text: str, prefix: str, what: str) -> bytes:
    # Nothing of the text is shown: it may be a real secret in a wrong place.
    if text != text.strip():
        raise InvalidSecret(f"the {what} has spaces or line ends around it: remove them")
    if not text.startswith(prefix):
        raise InvalidSecret(f"a {what} begins with {prefix}; this one does not")
    if len(text) > LONGEST_TEXT:
        raise InvalidSecret(f"the {what} is longer than any: was it copied twice?")
    try:
        return base64.b64decode(text.removeprefix(prefix), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidSecret(
            f"what follows {prefix} in the {what} is not padded base64: was it copied whole?"
        ) from None


def _ed25519(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ModuleNotFoundError:
        raise MissingExtra("verifying ed25519 signatures", "serve") from None
    return Ed25519PublicKey.from_public_bytes(key)
