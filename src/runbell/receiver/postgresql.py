"""An inbox in a PostgreSQL database: opened, and told of between processes.

Behind the commit of an event, whoever stored it tells all processes what it is about, with NOTIFY;
not within it, since transactions that notify are committed one after another in all of PostgreSQL.
That wakes those who watch, who read the rows. What was not told, since the process was killed just
then, is found by a slow sweep.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Final, cast

import asyncpg
import msgspec

from runbell.errors import ConfigurationError, StorageUnavailable
from runbell.receiver import arrivals, desk
from runbell.receiver.arrivals import Arrival, Stored
from runbell.receiver.ports import FRESH_AT_ONCE, PAGE, Audience, Idle, OpenInbox
from runbell.receiver.schema import INBOX
from runbell.runs import Deliver
from runbell.storage.lasting import lasting
from runbell.storage.listening import Listener
from runbell.storage.migrate_postgresql import CHANGING, bring_forward, revision, tend
from runbell.storage.postgresql import PostgresqlStore, connect, unavailable
from runbell.storage.shared_clock import SharedClock
from runbell.storage.store import Store
from runbell.storage.urls import check_readable, readable, without_password

__all__ = ["CHANNEL", "PostgresqlPlace"]

CHANNEL: Final = "runbell_inbox"

WRITERS: Final = 2
"""Transactions that store arrivals at a time: while one is flushed, another is on its way."""

MOST_AT_ONCE: Final = 64
"""Arrivals in one transaction."""

TELL: Final = "SELECT pg_notify($1, message) FROM unnest($2::text[]) AS messages (message)"
MOST_BYTES: Final = 7_500
"""In one message, which PostgreSQL limits to 8,000."""

MOST_UNTOLD: Final = 10_000
"""Events that wait to be told, while the database is away; the sweep finds the others."""

SWEEP_SECONDS: Final = 5.0
SWEEPS_BACK: Final = 4
"""A sweep reads on from where the one so many before it ended: positions are given before the
commit, and a transaction that is kept waiting is ended by the database after 10 seconds."""

CHURNING: Final = ("inbox_events", "inbox_runs", "inbox_once")
"""Tables whose rows are changed a few times each: an event when it is claimed and when it ends, a
run at each of its events."""

WATCHERS: Final = 2
"""Connections of a process that only watches, beside the one that listens."""

_decode = msgspec.json.Decoder(list[str]).decode


class PostgresqlPlace:
    """A database. It may hold other tables too: those of an inbox begin with `inbox_`.

    Raises:
        ConfigurationError: the URL can't be read.
    """

    def __init__(self, url: str) -> None:
        check_readable(url, "inbox")
        self._url = url
        self.name = without_password(url)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[OpenInbox]:
        """See `runbell.receiver.ports.Place`."""
        await _prepare(self._url)
        with readable("inbox"):
            store = await PostgresqlStore.open(self._url)
        teller, clock = Teller(store), SharedClock(store)
        try:
            await clock.set()
            clock.start()
            yield OpenInbox(store, Intake(store).take, teller.tell, clock)
        finally:
            await clock.stop()
            await teller.stop()
            await store.close()

    @contextlib.asynccontextmanager
    async def open_existing(self) -> AsyncIterator[Store]:
        """See `runbell.receiver.ports.Place`."""
        await self._require_current()
        store = await PostgresqlStore.open(self._url, WATCHERS)
        try:
            yield store
        finally:
            await store.close()

    def follow(self, audience: Audience) -> None:
        """See `runbell.receiver.ports.Place`."""
        asyncio.run(self._follow(audience))

    async def _follow(self, audience: Audience) -> None:
        async with self.open_existing() as store:
            listener = Listener(self._url)
            follower = Follower(store, audience)
            listener.subscribe(CHANNEL, follower.hear)
            listener.on_gap(follower.look_everywhere)
            try:
                await listener.start()
                await follower.follow()
            finally:
                await listener.close()

    async def _require_current(self) -> None:
        connection = await _connected(self._url)
        try:
            with unavailable():
                current = await revision(connection, INBOX)
        finally:
            connection.terminate()
        if current is None:
            raise ConfigurationError(
                f"there is no inbox in {self.name}: name yours with {INBOX.option}, or start its "
                "receiver once"
            )
        if current != INBOX.head:
            raise ConfigurationError(
                f"the inbox in {self.name} has schema {current}, this version of Runbell has "
                f"{INBOX.head}: "
                + ("start its receiver once" if current < INBOX.head else "upgrade Runbell")
            )


class Intake:
    """Stores arrivals, those that come at the same time in one transaction: one flush for all."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: deque[tuple[Arrival, asyncio.Future[Stored]]] = deque()
        self._writers: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def take(self, arrival: Arrival) -> Stored:
        """See `runbell.receiver.ports.OpenInbox`."""
        stored: asyncio.Future[Stored] = self._loop.create_future()
        self._waiting.append((arrival, stored))
        if len(self._writers) < WRITERS:
            writer = self._loop.create_task(self._write(), name="inbox-intake")
            self._writers.add(writer)
        return await stored

    async def _write(self) -> None:
        try:
            await self._write_waiting()
        finally:
            # Not a callback, which comes a turn later: what arrives until then would count on it.
            self._writers.discard(cast(asyncio.Task[None], asyncio.current_task()))

    async def _write_waiting(self) -> None:
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            came = [arrival for arrival, _ in group]
            try:
                found = await self._store.write(lambda tx: arrivals.store_all(tx, came))  # noqa: B023
            except StorageUnavailable as error:
                for _, stored in group:
                    _fail(stored, StorageUnavailable(*error.args))
            except Exception as error:  # noqa: BLE001 - who brought it hears of it, and nobody else
                if len(group) == 1:
                    _fail(group[0][1], error)
                    continue
                await asyncio.gather(*(self._write_alone(*each) for each in group))
            else:
                for (_, stored), what in zip(group, found, strict=True):
                    if not stored.done():
                        stored.set_result(what)

    async def _write_alone(self, arrival: Arrival, stored: asyncio.Future[Stored]) -> None:
        try:
            what = await self._store.write(lambda tx: arrivals.store(tx, arrival))
        except Exception as error:  # noqa: BLE001 - as above
            _fail(stored, error)
        else:
            if not stored.done():
                stored.set_result(what)


class Teller:
    """Tells all processes of what was stored, many events at a time."""

    def __init__(self, store: PostgresqlStore) -> None:
        self._store = store
        self._untold: dict[str, None] = {}
        self._news = asyncio.Event()
        telling = lasting("telling of what was stored in the inbox", self._tell_next)
        self._telling = asyncio.create_task(telling, name="inbox-telling")

    def tell(self, subject: str | None) -> None:
        """An event about this was committed; those about nothing are waited for by nobody."""
        if subject is not None and len(self._untold) < MOST_UNTOLD:
            self._untold[subject] = None
            self._news.set()

    async def stop(self) -> None:
        """Tell what is left, if that can be done."""
        self._telling.cancel()
        await asyncio.gather(self._telling, return_exceptions=True)
        with contextlib.suppress(StorageUnavailable):
            await self._tell()

    async def _tell_next(self) -> None:
        if not self._untold:
            self._news.clear()
            await self._news.wait()
        await self._tell()

    async def _tell(self) -> None:
        while self._untold:
            # What is stored meanwhile about the same has to be told anew.
            told, self._untold = self._untold, {}
            try:
                await self._store.fetch(TELL, CHANNEL, _messages(told))
            except BaseException:
                self._untold = told | self._untold
                raise


class Follower:
    """Reads what an audience waits for, when it is told, and now and then without being told."""

    def __init__(self, store: Store, audience: Audience) -> None:
        self._store = store
        self._audience = audience
        self._heard: dict[str, None] = {}
        self._told: dict[str, set[int]] = {}
        self._ends: deque[int] = deque(maxlen=SWEEPS_BACK)
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def follow(self) -> None:
        """Tell what is stored, until nobody has waited for a while."""
        self._audience.on_news(self._nudge)
        newest = await self._store.read(desk.newest)
        # What was given a position just now may still be on its way to its commit.
        self._ends.append(max(0, newest - PAGE))
        idle = Idle()
        next_sweep = self._loop.time() + SWEEP_SECONDS
        while not self._audience.is_over(idle=idle.for_long(self._audience)):
            self._news.clear()
            served = await self._serve()
            await self._read_heard()
            if self._loop.time() >= next_sweep:
                await self._sweep()
                next_sweep = self._loop.time() + SWEEP_SECONDS
            if not served:
                with contextlib.suppress(TimeoutError):
                    pause = max(0.0, next_sweep - self._loop.time())
                    await asyncio.wait_for(self._news.wait(), pause)

    def hear(self, message: str) -> None:
        """Something was stored."""
        wanted = [each for each in _decode(message) if self._audience.wants(each)]
        if wanted:
            self._heard.update(dict.fromkeys(wanted))
            self._news.set()

    def look_everywhere(self) -> None:
        """Something may have been stored of which nothing was heard."""
        self._heard.update(dict.fromkeys(self._audience.subjects()))
        self._news.set()

    def _nudge(self) -> None:
        # The loop may have ended just now.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._news.set)

    async def _serve(self) -> int:
        """Tell some of those who are new what is there already; how many these are."""
        fresh = self._audience.fresh(FRESH_AT_ONCE)
        newcomers: dict[str, list[Deliver]] = {}
        for subject, deliver in fresh:
            newcomers.setdefault(subject, []).append(deliver)
        for subject, delivers in newcomers.items():
            told = self._told.get(subject, ())
            for body, position in await self._stored(subject):
                # What nobody was told yet, everybody is told.
                if position not in told:
                    self._tell(subject, position, body)
                    continue
                for deliver in delivers:
                    self._audience.tell_one(subject, deliver, body)
        self._audience.served(len(fresh))
        return len(fresh)

    async def _read_heard(self) -> None:
        heard, self._heard = self._heard, {}
        for subject in heard:
            told = self._told.get(subject, ())
            for body, position in await self._stored(subject):
                if position not in told:
                    self._tell(subject, position, body)

    async def _sweep(self) -> None:
        """Look for what nobody has told of, and forget those who have left."""
        self._told = {key: told for key, told in self._told.items() if self._audience.wants(key)}
        position = self._ends[0]
        while True:
            found = await self._store.read(lambda tx: desk.news(tx, position, PAGE))  # noqa: B023
            for place, subject in found:
                position = place
                if (
                    subject is not None
                    and self._audience.wants(subject)
                    and place not in self._told.get(subject, ())
                ):
                    self._heard[subject] = None
                    self._news.set()
            if len(found) < PAGE:
                break
        self._ends.append(position)

    async def _stored(self, subject: str) -> Sequence[tuple[bytes, int]]:
        if "\0" in subject:
            return ()  # no text of PostgreSQL has it
        return await self._store.read(lambda tx: desk.of_subject(tx, subject))

    def _tell(self, subject: str, position: int, body: bytes) -> None:
        self._told.setdefault(subject, set()).add(position)
        self._audience.tell(subject, body)


async def _prepare(url: str) -> None:
    """Bring an inbox's schema up to date. Of several processes one does, and the others wait."""
    connection = await _connected(url)
    try:
        with unavailable():
            async with connection.transaction():
                await bring_forward(connection, INBOX)
                for table in CHURNING:
                    # Where they are somebody else's, that one has said so, or will.
                    with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                        async with connection.transaction():
                            await tend(connection, table, CHANGING)
    except asyncpg.InsufficientPrivilegeError as error:
        raise ConfigurationError(
            f"the inbox cannot be made in {without_password(url)}: {error}"
        ) from error
    finally:
        connection.terminate()


async def _connected(url: str) -> asyncpg.Connection:
    with readable("inbox"):
        return await connect(url)


def _fail(stored: asyncio.Future[Stored], error: Exception) -> None:
    if not stored.done():  # whoever sent it may have gone
        stored.set_exception(error)


def _messages(subjects: Iterable[str]) -> list[str]:
    """Lists of these as JSON, none of them too long."""
    parts: list[list[bytes]] = [[]]
    size = 0
    for subject in subjects:
        item = msgspec.json.encode(subject)
        if size + len(item) > MOST_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += len(item) + 1
    return [f"[{b','.join(part).decode()}]" for part in parts]
