"""`runbell trigger`: one event that is made up, to see what a receiver makes of it."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Annotated

import typer

from runbell.cli.client import API_KEY_VARIABLE
from runbell.cli.forwarding import SecretOption, announce, post, receiver, told
from runbell.clock import SystemClock
from runbell.runs import EVENT_TYPES

if TYPE_CHECKING:
    from runbell.runs import Event
    from runbell.service.delivery.dialling import Posted
    from runbell.webhooks import Secret

__all__ = ["trigger"]


def trigger(
    kind: Annotated[
        str, typer.Argument(metavar="TYPE", help=f"What happened: {', '.join(EVENT_TYPES)}.")
    ],
    to: Annotated[str, typer.Option("--to", metavar="URL", help="Where the receiver listens.")],
    secret: SecretOption = None,
) -> None:
    """Send a sample event to a receiver, signed like the real thing. Needs no service.

    The exit code is 0 if the receiver answered with a success, else 1.
    """
    if kind not in EVENT_TYPES:
        raise typer.BadParameter(f"{kind!r} is none of: {', '.join(EVENT_TYPES)}")
    url = receiver(to)
    # Imported here: help needs no HTTP client.
    from runbell.service.operations import samples
    from runbell.service.operations.ids import new_id

    clock = SystemClock()
    signed_with = announce(secret, os.environ.get(API_KEY_VARIABLE))
    event = samples.event(kind, lambda prefix: new_id(prefix, clock), clock.now_ms())
    posted = asyncio.run(_send(url, signed_with, event))
    typer.echo(told(kind, event.id, posted))
    if not posted.succeeded:
        raise typer.Exit(1)


async def _send(url: str, secret: Secret, event: Event) -> Posted:
    from runbell.service.delivery.dialling import Poster

    poster = Poster(allow_private=True)
    try:
        return await post(poster, SystemClock(), url, secret, event.id, event.body)
    finally:
        await poster.close()
