"""The receiver: what a program holds that listens for webhooks."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from runbell.clock import Clock, SystemClock
from runbell.errors import ConfigurationError, MissingExtra
from runbell.receiver import desk, feed
from runbell.receiver.arrivals import Arrival
from runbell.receiver.checks import Key, Keys
from runbell.receiver.door import Door
from runbell.receiver.feed import CaughtUp, FeedClient
from runbell.receiver.handlers import Handlers
from runbell.receiver.inbox import Watch
from runbell.receiver.numbers import Numbers, Page
from runbell.receiver.once import Once
from runbell.receiver.places import place_of
from runbell.receiver.ports import OpenInbox
from runbell.receiver.settings import Options
from runbell.receiver.work import Worker
from runbell.runs import Deliver
from runbell.storage.store import Store

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = ["Receiver"]

F = TypeVar("F", bound=Callable[[Any], Any])
Scope = MutableMapping[str, Any]

ONCE_SECONDS: Final = 3_600.0
"""After which a side effect whose process died is done again, where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class _Running:
    inbox: OpenInbox
    worker: Worker
    clock: Clock
    loop: asyncio.AbstractEventLoop

    @property
    def store(self) -> Store:
        return self.inbox.store


class Receiver:
    """An endpoint for webhooks that loses nothing: verify → deduplicate → store → 200 → handle.

        receiver = Receiver(secrets=["whsec_…"], inbox="sqlite:///inbox.db")

        @receiver.on("thread.run.completed", "response.completed")
        async def done(event): ...

        app = FastAPI(lifespan=receiver.lifespan)
        app.include_router(receiver.fastapi_router("/hooks"))

    It is an `EventSource` too: `AsyncWaiter(client, events=receiver)`.

    Args:
        secrets: `whsec_…` of the endpoint, several while one is changed; or `whpk_…`, the sender's
            public key. `(secret, datetime)` is good until then.
        inbox: the database: `sqlite:///FILE`, or `postgresql://USER@HOST/DATABASE`. Several
            processes may share it.
        clock: what time it is; by default the machine says so, and on PostgreSQL the database, for
            all who share it.
        rng: for the jitter of retries.
        options: see `runbell.receiver.Options`.

    Raises:
        ConfigurationError: there is no secret, or something else can't be.
        MissingExtra: the inbox is on PostgreSQL, and its driver is not installed.
    """

    def __init__(
        self,
        secrets: Sequence[Key],
        inbox: str = "sqlite:///inbox.db",
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        **options: Any,
    ) -> None:
        try:
            self.options = Options(**options)
        except TypeError:
            unknown = sorted(set(options) - set(Options.__dataclass_fields__))
            raise ConfigurationError(f"a receiver has no options {unknown}") from None
        self._place = place_of(inbox)
        self._clock = clock
        self._rng = rng or random.Random()
        self._handlers = Handlers()
        self._numbers = Numbers()
        self._watch = Watch(self._place)
        self._running: _Running | None = None
        now = clock or SystemClock()
        keys = Keys(secrets, now.now_ms())
        self._door = Door(keys, self.options, now, self._numbers, self._stored)

    def on(self, *types: str) -> Callable[[F], F]:
        """Decorate a function that is called for events of these types.

        `response.completed` is a type, `thread.run.*` a family, `*` everything. An async function
        runs on the event loop, any other in a thread. It is called at least once for each event,
        and again when it raises; for the events of one run, one after another, by their `sequence`.

        Raises:
            ConfigurationError: no type is given, or one that can't be one.
        """
        return self._handlers.on(*types)

    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """For `FastAPI(lifespan=receiver.lifespan)`, or Starlette's. See `running`."""
        return self.running()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take and handle events inside of the block. The inbox is made where it is missing.

        At the end, handlers are given `shutdown_grace` seconds; what they did not end is let go of,
        for another process or the next start.

        Raises:
            ConfigurationError: the inbox can't be used, or it runs already.
            StorageUnavailable: the inbox is locked, or can't be reached.
        """
        if self._running is not None:
            raise ConfigurationError("this receiver runs already: one lifespan is enough")
        async with self._place.open() as inbox:
            clock = self._clock or inbox.clock
            worker = Worker(
                inbox.store, self._handlers, self.options, clock, self._numbers, self._rng
            )
            self._running = _Running(inbox, worker, clock, asyncio.get_running_loop())
            worker.start()
            self._door.open(inbox.take_in, clock)
            try:
                yield
            finally:
                self._door.shut()
                await worker.stop()
                self._running = None

    def asgi(self) -> Callable[[Scope, Any, Any], Awaitable[None]]:
        """The receiver as an ASGI application of its own, at any path, with its lifespan."""

        async def app(scope: Scope, receive: Any, send: Any) -> None:
            if scope["type"] == "lifespan":
                await self._live(receive, send)
            elif scope["type"] == "http":
                await self._door(scope, receive, send)
            else:
                raise ConfigurationError(f"a receiver does not speak {scope['type']}")

        return app

    def fastapi_router(self, path: str = "/hooks") -> APIRouter:
        """A router with the receiver at `path`. The lifespan has to be given to the app as well.

        Raises:
            MissingExtra: FastAPI is not installed.
        """
        try:
            from fastapi import APIRouter
        except ModuleNotFoundError:
            raise MissingExtra("a router for FastAPI", "receiver") from None
        router = APIRouter()
        # The application itself, not a function: FastAPI would read all of a body first.
        router.add_route(path, self._door, include_in_schema=False)  # type: ignore[arg-type]
        return router

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        """Call `deliver` with every event of this run, those too that are there already."""
        self._watch.subscribe(run_id, deliver)

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """Stop that. One that is not subscribed is left as it is."""
        self._watch.unsubscribe(run_id, deliver)

    def once(self, key: str, *, lease: float = ONCE_SECONDS) -> Once:
        """A block of a handler whose effect is to happen once; `async with` or `with`.

            async with receiver.once(f"mail:{event.id}") as first:
                if first:
                    await send_mail()

        Args:
            key: what happens, and for what: 1 to 512 characters.
            lease: seconds after which it is done again where the process died inside of the block.

        Raises:
            ConfigurationError: the receiver does not run.
        """
        running = self._now_running()
        return Once(key, running.store, running.clock, round(lease * 1000), running.loop)

    async def catch_up(self, client: FeedClient, *, types: str | None = None) -> CaughtUp:
        """Fetch from the service's feed what was missed, and handle it like what is pushed.

        Call it when the program starts, and after the endpoint was disabled. What was pushed as
        well is stored and handled once, however the two overlap. It goes on where the last call
        ended; the first one reads the feed from its beginning. What is older than 7 days is passed
        over.

        Args:
            client: `openai.OpenAI` or `openai.AsyncOpenAI` with the service's base URL.
            types: only these, separated by commas; `thread.run.*` is all of them.

        Raises:
            openai.APIError: the service did not answer; what was read until then is kept.
            StorageError: the inbox can't be written.
        """
        running = self._now_running()
        return await feed.catch_up(client, self._fetched, running.store, running.clock, types)

    async def metrics(self, accept: str = "") -> Page:
        """The numbers for Prometheus. `docs/receiving.md` says what each one means.

        Args:
            accept: the request's header, which says which format is wanted.

        Raises:
            StorageUnavailable: the inbox can't be read.
        """
        running = self._now_running()
        found = await running.store.scan(desk.load)
        return self._numbers.page(accept, found, running.clock.now_ms())

    async def _fetched(self, arrival: Arrival) -> Any:
        stored = await self._door.accept(arrival)
        if stored == "accepted":
            self._numbers.accepted.labels("feed").inc()
        elif stored == "duplicate":
            self._numbers.duplicates.labels("feed").inc()
        return stored

    def _stored(self, arrival: Arrival) -> None:
        subject = None if arrival.envelope is None else arrival.envelope.subject
        if self._running is not None:
            self._running.worker.wake()
            self._running.inbox.announce(subject)
        self._watch.tell(subject, arrival.body)

    def _now_running(self) -> _Running:
        if self._running is None:
            raise ConfigurationError(
                "the receiver does not run: start it with its lifespan, or with "
                "`async with receiver.running()`"
            )
        return self._running

    async def _live(self, receive: Any, send: Any) -> None:
        """The lifespan protocol of ASGI."""
        await receive()
        kind = "startup"
        try:
            async with self.running():
                await send({"type": "lifespan.startup.complete"})
                kind = "shutdown"
                await receive()
        except Exception as error:
            await send({"type": f"lifespan.{kind}.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})
