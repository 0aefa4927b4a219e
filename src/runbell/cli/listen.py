"""`runbell listen`: the events of a service, sent on to a receiver that it cannot reach itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from runbell.cli.client import ApiKey, BaseUrl, Service, locate
from runbell.cli.forwarding import SecretOption, announce, post, receiver, told
from runbell.clock import Clock, SystemClock
from runbell.errors import ConfigurationError, RunbellError
from runbell.pacing import RetryBackoff
from runbell.webhooks import Secret

if TYPE_CHECKING:
    import aiohttp

    from runbell.service.delivery.dialling import Poster

__all__ = ["Progress", "listen"]

ATTEMPTS: Final = 5
"""How often an event is sent to a receiver that answers, and not with a success."""

BACKOFF: Final = RetryBackoff(start=0.25, cap=5.0)
SILENCE_SECONDS: Final = 60.0
"""A live feed says every 15 seconds that it is there."""

CONNECT_SECONDS: Final = 10.0


def listen(
    forward_to: Annotated[
        str, typer.Option("--forward-to", metavar="URL", help="Where the receiver listens.")
    ],
    types: Annotated[
        str | None,
        typer.Option(metavar="TYPE,…", help="Only these types of events; thread.run.* is all."),
    ] = None,
    secret: SecretOption = None,
    state: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where it is noted which event was the last."),
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Send the service's events on to a receiver on this machine, signed like the real thing.

    Begins with what happens from now on; started again, behind the event that was the last. An
    event that the receiver refuses is tried again a few times, and one that finds no receiver until
    there is one. Ctrl-C ends it.
    """
    service = locate(base_url, api_key)
    url = receiver(forward_to)
    progress = Progress(state or _default_file(service, url))
    signed_with = announce(secret, service.key)
    feed = _Feed(service, types, progress, f"runbell: events go to {url}; Ctrl-C ends")
    try:
        asyncio.run(_forward(feed, url, signed_with, progress))
    except KeyboardInterrupt:
        typer.echo("")


class Progress:
    """A file that says which event was the last that was done with."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> str | None:
        """The event's id; None where there is none yet.

        Raises:
            ConfigurationError: the file cannot be read.
        """
        try:
            return self._file.read_text().strip() or None
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read {self._file}: name another --state") from error

    def save(self, event_id: str | None) -> None:
        """Note the event, whole or not at all.

        Raises:
            ConfigurationError: the file cannot be written.
        """
        draft = self._file.with_name(f"{self._file.name}.new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            draft.write_text(f"{event_id or ''}\n")
            draft.replace(self._file)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self._file} ({error.strerror}): name another with --state"
            ) from error


def _default_file(service: Service, url: str) -> Path:
    """One for each service, key and receiver: their feeds are not the same, or not as far read."""
    folder = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    about = "\0".join((service.url, service.key, url))
    name = hashlib.sha256(about.encode()).hexdigest()[:16]
    return Path(folder).expanduser() / "runbell" / f"listen-{name}"


class _Event(NamedTuple):
    """An event: its bytes, and what of them is looked at."""

    id: str
    kind: str
    body: bytes


class _Away(Exception):
    """The service cannot be asked just now; the message says why."""


@dataclass
class _Feed:
    """The live feed of a service, for as long as anybody listens.

    Attributes:
        types: what is followed; None for everything.
        opened: what to say when it is followed for the first time.
    """

    service: Service
    types: str | None
    progress: Progress
    opened: str

    async def events(self, clock: Clock) -> AsyncGenerator[_Event, None]:
        """Every event behind the one that was the last, across connections that break.

        Raises:
            RunbellError: the service refuses, or was not there from the beginning.
        """
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        rng, failures, connected, away = random.Random(), 0, False, False
        async with aiohttp.ClientSession(timeout=limits) as session:
            while True:
                try:
                    async with aclosing(self._connection(session)) as events:
                        async for event in events:
                            failures = 0
                            if event is not None:
                                yield event
                            elif not connected:
                                connected = True
                                typer.echo(self.opened)
                            elif away:
                                away = False
                                typer.echo("runbell: the service is there again", err=True)
                except _Away as error:
                    if not connected:
                        raise self.service.silence(error.__cause__ or error) from error
                    if not away:
                        typer.echo(f"runbell: the service is away ({error}); waiting", err=True)
                    away = True
                failures += 1
                await clock.sleep(BACKOFF.delay(failures, rng))

    async def _connection(
        self, session: aiohttp.ClientSession
    ) -> AsyncGenerator[_Event | None, None]:
        """What comes over one connection; first None, when it is open and, of a feed that is
        followed for the first time, when it is noted where it begins."""
        import aiohttp

        from runbell.service.backends.upstream.sse import EventDecoder, EventTooLong

        after = self.progress.load()
        headers = {"Authorization": f"Bearer {self.service.key}", "Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = after
        decoder = EventDecoder()
        try:
            async with session.get(
                f"{self.service.url.rstrip('/')}/events",
                headers=headers,
                params={"types": self.types} if self.types else {},
                allow_redirects=False,
            ) as response:
                if response.status != 200:
                    await self._refused(response, after)
                    return
                if after is not None:
                    yield None
                async for data in response.content.iter_any():
                    events = decoder.feed(data)
                    if after is None and decoder.begins_behind is not None:
                        # Before anything is sent on: whatever ends this, it goes on from here.
                        after = decoder.begins_behind
                        self.progress.save(after)
                        yield None
                    for event in events:
                        yield _parsed(event.data)
        except EventTooLong:
            raise RunbellError(f"{self.service.url} sent something that is no event") from None
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _Away(str(error) or type(error).__name__) from error

    async def _refused(self, response: aiohttp.ClientResponse, after: str | None) -> None:
        said = _said(await response.content.read(65_536)) or f"HTTP status {response.status}"
        if response.status in (429, 500, 502, 503, 504):
            raise _Away(said)
        if response.status == 404 and after is not None:
            typer.echo(
                f"runbell: the service has no event {after} any more; it goes on with what "
                "happens from now on",
                err=True,
            )
            self.progress.save(None)
            return
        raise self.service.refusal(response.status, said)


async def _forward(feed: _Feed, url: str, secret: Secret, progress: Progress) -> None:
    from runbell.service.delivery.dialling import Poster

    clock = SystemClock()
    poster = Poster(allow_private=True)
    try:
        async with aclosing(feed.events(clock)) as events:
            async for event in events:
                typer.echo(await _deliver(poster, clock, url, secret, event))
                progress.save(event.id)
    finally:
        await poster.close()


async def _deliver(poster: Poster, clock: Clock, url: str, secret: Secret, event: _Event) -> str:
    """Send one event until it is done with; a line about it."""
    rng, answered, failures, waiting = random.Random(), 0, 0, False
    while True:
        posted = await post(poster, clock, url, secret, event.id, event.body)
        answered += posted.status is not None
        if posted.succeeded or answered >= ATTEMPTS:
            return told(event.kind, event.id, posted, answered)
        if posted.status is None and not waiting:
            typer.echo(f"runbell: no receiver ({posted.error}); waiting", err=True)
        waiting = posted.status is None
        failures += 1
        await clock.sleep(BACKOFF.delay(failures, rng))


def _parsed(data: bytes) -> _Event:
    try:
        event = json.loads(data)
        return _Event(str(event["id"]), str(event["type"]), data)
    except (ValueError, KeyError, TypeError) as error:
        raise RunbellError("the service sent something that is no event") from error


def _said(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
