"""Certificates for servers on loopback, good and bad ones; needs `trustme`.

kind           what is wrong with it
good           nothing
expired        it was good until yesterday
wrong_host     it is for another name
self_signed    nobody whom a client trusts has signed it
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import trustme

__all__ = ["Kind", "Tls", "tls"]

Kind = Literal["good", "expired", "wrong_host", "self_signed"]


@dataclass(frozen=True)
class Tls:
    """Both sides of a connection.

    Attributes:
        server: what a server presents.
        client: trusts the authority of all kinds but `self_signed`.
        authority: that authority's certificate in PEM, for `SSL_CERT_FILE`.
    """

    server: ssl.SSLContext
    client: ssl.SSLContext
    authority: bytes


def tls(kind: Kind = "good", *names: str) -> Tls:
    """A new authority, and a certificate of the kind for these names and addresses."""
    trusted = trustme.CA()
    signer = trustme.CA() if kind == "self_signed" else trusted
    host = ("elsewhere.example",) if kind == "wrong_host" else names or ("localhost", "127.0.0.1")
    now = datetime.now(UTC)
    certificate = signer.issue_cert(
        *host,
        not_before=now - timedelta(days=2),
        not_after=now + timedelta(days=-1 if kind == "expired" else 1),
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    trusted.configure_trust(client)
    return Tls(server, client, trusted.cert_pem.bytes())
