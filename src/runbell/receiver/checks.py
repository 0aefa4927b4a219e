"""What a request has to be before anything of it is believed. Pure, for servers and for Lambda."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from runbell.errors import ConfigurationError
from runbell.webhooks import PublicKey, Secret

__all__ = ["Head", "Key", "Keys", "Refused", "head_of", "later", "too_large"]

RETRY_SECONDS: Final = 5
"""What Retry-After says while the inbox can't be written: locks pass, disks are emptied."""

Key = str | Secret | PublicKey | tuple[str | Secret | PublicKey, datetime]
"""`whsec_…` or `whpk_…`; with the moment at which it is good no more, while it is changed."""


class Keys:
    """Those that are good at the moment.

    Raises:
        ConfigurationError: there is none, or none that is still good: a door that nobody can open
            is none, and neither is one that anybody can.
        InvalidSecret: a text is no secret.
    """

    def __init__(self, given: Sequence[Key], now_ms: int) -> None:
        if isinstance(given, str | Secret | PublicKey):
            raise ConfigurationError("secrets is one secret: write it as a list, secrets=[…]")
        self._keys = [_key(each) for each in given]
        if not self._keys:
            raise ConfigurationError(
                "a receiver needs the signing secret of its endpoint, as the service or OpenAI "
                "showed it: secrets=['whsec_…']"
            )
        if not self.good(now_ms):
            raise ConfigurationError("every signing secret has ended: add the one that is good now")

    def good(self, now_ms: int) -> list[Secret | PublicKey]:
        """The keys that may sign at this moment."""
        return [key for key, until_ms in self._keys if until_ms is None or now_ms < until_ms]


def _key(given: Key) -> tuple[Secret | PublicKey, int | None]:
    if isinstance(given, tuple):
        key, until = given
        if until.tzinfo is None:
            raise ConfigurationError("the moment at which a secret ends needs a time zone")
        return _key(key)[0], round(until.timestamp() * 1000)
    if isinstance(given, Secret | PublicKey):
        return given, None
    if not isinstance(given, str) or not given.strip():
        raise ConfigurationError("a signing secret is empty: is its variable set?")
    return (PublicKey(given) if given.startswith("whpk_") else Secret.parse(given)), None


class Refused(Exception):
    """A request that is not let in.

    Attributes:
        reason: why, as a word that does not change.
        close: nothing more is read from this connection.
    """

    def __init__(
        self,
        status: int,
        reason: str,
        message: str,
        *,
        headers: Sequence[tuple[bytes, bytes]] = (),
        close: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.headers = [*headers, (b"connection", b"close")] if close else [*headers]


@dataclass(frozen=True, slots=True)
class Head:
    """What the head of a request says of its body."""

    length: int | None


def head_of(method: str, headers: Iterable[tuple[bytes, bytes]], max_body: int) -> Head:
    """Look at what comes before the body.

    Raises:
        Refused: no webhook comes like that.
    """
    if method != "POST":
        raise Refused(405, "method", "webhooks are POSTed", headers=[(b"allow", b"POST")])
    kinds: list[bytes] = []
    codings: list[bytes] = []
    lengths: list[bytes] = []
    wanted = {b"content-type": kinds, b"content-encoding": codings, b"content-length": lengths}
    for name, value in headers:
        values = wanted.get(name.lower())
        if values is not None:
            values.append(value.strip().lower())
    if [kind.partition(b";")[0].rstrip() for kind in kinds] != [b"application/json"]:
        raise Refused(415, "content_type", "the body has to be application/json", close=True)
    if any(coding != b"identity" for coding in codings):
        raise Refused(415, "content_encoding", "the body has to come uncompressed", close=True)
    if not lengths:
        return Head(None)
    # One that is as long as this is a lie about more than any machine has.
    if len(lengths) > 1 or not lengths[0].isdigit() or len(lengths[0]) > 18:
        raise Refused(400, "malformed_length", "Content-Length is not one number", close=True)
    length = int(lengths[0])
    if length > max_body:
        raise too_large(max_body)
    return Head(length)


def too_large(limit: int) -> Refused:
    """The answer to a body that is longer than this."""
    return Refused(413, "too_large", f"the body has more than {limit} bytes", close=True)


def later(reason: str, message: str) -> Refused:
    """The answer that asks a sender to come again."""
    headers = [(b"retry-after", str(RETRY_SECONDS).encode())]
    return Refused(503, reason, message, headers=headers, close=True)
