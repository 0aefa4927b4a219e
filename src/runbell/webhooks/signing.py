"""How a webhook is signed, and how that is checked: Standard Webhooks 1.0.0.

Signed is `id.timestamp.body`, over the exact bytes. `webhook-signature` is a list, separated by
spaces, of `v1,` and the base64 of an HMAC-SHA256, one for each secret that is good at the moment;
`v1a,` stands before an ed25519 signature. Source: standard-webhooks/standard-webhooks, spec 1.0.0.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from runbell.errors import MalformedWebhook, SignatureMismatch, StaleTimestamp
from runbell.webhooks.secrets import PublicKey, Secret

__all__ = [
    "ID_HEADER",
    "SIGNATURE_HEADER",
    "TIMESTAMP_HEADER",
    "TOLERANCE_SECONDS",
    "Headers",
    "Verified",
    "headers_for",
    "sign",
    "verify",
]

ID_HEADER: Final = "webhook-id"
TIMESTAMP_HEADER: Final = "webhook-timestamp"
SIGNATURE_HEADER: Final = "webhook-signature"

TOLERANCE_SECONDS: Final = 300
"""How far the sender's clock may be from ours; what all published verifiers allow."""

MAX_SIGNATURES: Final = 65_536
"""Bytes of a signature header that are looked at at all: over a thousand signatures."""

MAX_ASYMMETRIC: Final = 8
"""Signatures of the kind `v1a` that are tried: each costs a hundred times one of the kind `v1`."""

MAX_ID: Final = 256
MAX_DIGITS: Final = 15

Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]]
"""Names and values as servers hand them on: str or bytes, names in any case, values also lists."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a webhook that is its sender's says of itself.

    Attributes:
        id: the same for every attempt to deliver the same message.
        timestamp: when this attempt was signed, in seconds since the epoch.
    """

    id: str
    timestamp: int


def sign(secrets: Sequence[Secret], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`: one signature for each secret, in their order.

    Args:
        message_id: `webhook-id`; the same in every attempt.
        timestamp: `webhook-timestamp`: seconds since the epoch, of this attempt.
        body: the exact bytes that are sent.

    Raises:
        ValueError: there is no secret, or the id is one that no header carries, or holds a full
            stop, which would make it unclear where the id ends.
    """
    if not secrets or not _is_id(message_id):
        raise ValueError("a webhook needs a secret, and an id of printable ASCII without '.'")
    content = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return " ".join([(b"v1," + _hmac(secret, content)).decode() for secret in secrets])


def headers_for(
    secrets: Sequence[Secret], message_id: str, timestamp: int, body: bytes
) -> dict[str, str]:
    """The headers of one attempt: the three of the standard, and the body's type.

    Raises:
        ValueError: as `sign`.
    """
    return {
        "content-type": "application/json",
        ID_HEADER: message_id,
        TIMESTAMP_HEADER: str(timestamp),
        SIGNATURE_HEADER: sign(secrets, message_id, timestamp, body),
    }


def verify(
    keys: Sequence[Secret | PublicKey],
    headers: Headers,
    body: bytes,
    *,
    now_ms: int,
    tolerance: int = TOLERANCE_SECONDS,
) -> Verified:
    """Check that one of the keys signed these bytes, just now.

    Whatever stands in the headers, the work is bounded, takes as long for a signature that is
    nearly right as for one that is not, and ends with one of the errors below.

    Args:
        keys: those that are good at the moment; while a secret is changed, the old and the new.
        headers: of the request.
        body: of the request, untouched: parsing it and writing it again changes it.
        now_ms: the clock, in milliseconds since the epoch.
        tolerance: seconds that the sender's stamp may be off, either way.

    Raises:
        MalformedWebhook: a header is missing, empty, there twice or no such value.
        SignatureMismatch: no signature belongs to a key.
        StaleTimestamp: one does, and is more than `tolerance` seconds old, or from the future.
    """
    found = _standard(headers)
    message_id = _text(found, ID_HEADER)
    stamp = _text(found, TIMESTAMP_HEADER)
    signatures = _one(found, SIGNATURE_HEADER)
    if not _is_id(message_id):
        raise _malformed(ID_HEADER, "an id of printable ASCII, without '.'")
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) <= MAX_DIGITS):
        raise _malformed(TIMESTAMP_HEADER, "a whole number of seconds since 1970")
    if len(signatures) > MAX_SIGNATURES:
        raise _malformed(SIGNATURE_HEADER, f"a list of up to {MAX_SIGNATURES} bytes")
    # The stamp as it was sent, not as it was understood: those bytes were signed.
    content = b"%b.%b.%b" % (message_id.encode(), stamp.encode(), body)
    if not _is_signed(keys, signatures.split(b" "), content):
        raise SignatureMismatch(
            "no_match",
            "the signature is not made with this secret, or the body is not the one that was "
            "signed: verify the bytes as they came",
        )
    _check_age(int(stamp), now_ms // 1000, tolerance)
    return Verified(message_id, int(stamp))


def _hmac(secret: Secret, content: bytes) -> bytes:
    digest = hmac.digest(secret.key, content, "sha256")
    return binascii.b2a_base64(digest, newline=False)


def _is_id(text: str) -> bool:
    return (
        0 < len(text) <= MAX_ID
        and text.isascii()
        and text.isprintable()
        and " " not in text
        and "." not in text
    )


def _is_signed(keys: Sequence[Secret | PublicKey], entries: list[bytes], content: bytes) -> bool:
    # One HMAC a secret, whatever the number of entries; and never an early end at the first match.
    expected = [_hmac(key, content) for key in keys if isinstance(key, Secret)]
    given = [entry[3:] for entry in entries if entry.startswith(b"v1,")]
    matches = [hmac.compare_digest(mine, theirs) for theirs in given for mine in expected]
    return any(matches) or _is_signed_asymmetrically(keys, entries, content)


def _is_signed_asymmetrically(
    keys: Sequence[Secret | PublicKey], entries: list[bytes], content: bytes
) -> bool:
    public = [key for key in keys if isinstance(key, PublicKey)]
    if not public:
        return False
    given = [entry[4:] for entry in entries if entry.startswith(b"v1a,")]
    for encoded in given[:MAX_ASYMMETRIC]:
        try:
            signature = base64.b64decode(encoded, validate=True)
        except ValueError:
            continue
        if any(key.is_signature(signature, content) for key in public):
            return True
    return False


def _check_age(timestamp: int, now: int, tolerance: int) -> None:
    skew = timestamp - now
    if skew < -tolerance:
        raise StaleTimestamp(
            "too_old", f"signed {-skew} s ago: more than {tolerance} s is a replay", skew
        )
    if skew > tolerance:
        raise StaleTimestamp(
            "too_new", f"signed {skew} s in the future: is the clock here right?", skew
        )


def _standard(headers: Headers) -> dict[str, list[bytes]]:
    """The values of the standard's headers, by their names in lower case."""
    found: dict[str, list[bytes]] = {}
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    for name, values in pairs:
        key = _bytes(name).decode("latin-1").lower()
        if key in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER):
            found.setdefault(key, []).extend(_each(values))
    return found


def _each(values: Any) -> Iterator[bytes]:
    if isinstance(values, list | tuple):
        yield from map(_bytes, values)
    else:
        yield _bytes(values)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        # What is not ASCII matches nothing; it only must not be an error of another kind.
        return value.encode("utf-8", "surrogatepass")
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else b""


def _one(found: dict[str, list[bytes]], name: str) -> bytes:
    values = found.get(name, [])
    if len(values) > 1:
        raise MalformedWebhook("duplicate_header", f"the header {name} is there more than once")
    value = values[0].strip(b" \t") if values else b""
    if not value:
        raise MalformedWebhook("missing_header", f"the header {name} is missing or empty")
    return value


def _text(found: dict[str, list[bytes]], name: str) -> str:
    # Latin-1 never fails, and tells ASCII from what is not as well as any.
    return _one(found, name).decode("latin-1")


def _malformed(name: str, what: str) -> MalformedWebhook:
    return MalformedWebhook("malformed_header", f"the header {name} is not {what}")
