"""What `listen` and `trigger` share: a secret for development, and an event that is sent on."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from runbell.clock import Clock
from runbell.errors import ConfigurationError, InvalidSecret
from runbell.webhooks import Secret, check_url, headers_for

if TYPE_CHECKING:
    from runbell.service.delivery.dialling import Posted, Poster

__all__ = ["SecretOption", "announce", "post", "receiver", "told"]

SECRET_VARIABLE = "OPENAI_WEBHOOK_SECRET"  # noqa: S105 - a name
"""Where the openai SDK looks for the secret that it verifies with."""

SecretOption = Annotated[
    str | None,
    typer.Option(
        "--secret",
        envvar=SECRET_VARIABLE,
        metavar="WHSEC",
        show_default=False,
        help="Sign with this secret, whsec_…, instead of one that is shown.",
    ),
]


def announce(given: str | None, api_key: str | None) -> Secret:
    """The secret to sign with; one that nobody gave is shown, so that a receiver can have it.

    With an API key it is always the same: it is derived from the key, and does not tell it.

    Raises:
        ConfigurationError: what was given is no secret.
    """
    if given:
        try:
            return Secret.parse(given)
        except InvalidSecret as error:
            raise ConfigurationError(f"--secret or {SECRET_VARIABLE}: {error}") from None
    secret = Secret.generate()
    if api_key:
        secret = Secret(hmac.digest(api_key.encode(), b"runbell: webhooks to here", hashlib.sha256))
    typer.echo(f"export {SECRET_VARIABLE}={secret.text}")
    return secret


def receiver(url: str) -> str:
    """The URL, if events can be sent there.

    Raises:
        AddressRefused: it is no such URL.
    """
    return check_url(url, allow_private=True).url


async def post(
    poster: Poster, clock: Clock, url: str, secret: Secret, event_id: str, body: bytes
) -> Posted:
    """One attempt, signed like the service's."""
    headers = headers_for([secret], event_id, clock.now_ms() // 1000, body)
    return await poster.post(url, headers, body)


def told(kind: str, event_id: str, posted: Posted, attempts: int = 1) -> str:
    """One line about an event and what became of it."""
    outcome = posted.error or f"{posted.status} in {posted.duration_ms} ms"
    if attempts > 1:
        word = "after" if posted.succeeded else "given up after"
        outcome = f"{outcome.rstrip('.')}, {word} {attempts} attempts"
    return f"{datetime.now().astimezone():%H:%M:%S} {kind} {event_id} → {outcome}"
