"""What happens in other processes on the same database, told as if it had happened here.

Behind a commit all processes are told what it has changed, with PostgreSQL's NOTIFY, and each wakes
those who wait there. As everywhere, that is a wake-up and not the truth: whoever is woken looks at
the rows; and where something may have been missed, everybody is woken.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.runs import RunStatus
from runbell.service.changes import Changes, Moved
from runbell.service.feeds import Feeds
from runbell.storage.lasting import lasting
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.store import Transaction

__all__ = ["CHANNEL", "LOOK_SECONDS", "Neighbours", "SharedChanges", "ToldRun"]

CHANNEL = "runbell_changes"

MOST_TOLD = 40
"""Changes in one message, which PostgreSQL limits to 8,000 bytes."""

FIRST_SECONDS, LAST_SECONDS = 0.002, 0.1
"""From one look for the feed's horizon to the next, while something is behind it."""

LOOK_SECONDS = 15.0
"""From one look at the rows to the next, for all who wait for a change or follow runs: a process
that was killed behind a commit has told nobody of it."""

MOST_UNTOLD = 10_000
"""Changes that wait to be told, while the database is away."""

TOGETHER_SECONDS = 0.008
"""From one message to the next, under load: what happens meanwhile is told together."""

TELL = """
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, message)
FROM unnest($2::text[]) AS messages (message)
"""
"""Nothing is stored by it: so nobody, in all of the database, waits for the disk behind it."""
HORIZON = """
SELECT pg_snapshot_xmin(moment)::text::bigint, pg_snapshot_xmax(moment)::text::bigint
FROM pg_current_snapshot() AS moment
"""


class ToldRun(msgspec.Struct, array_like=True, frozen=True):
    """A run that has changed.

    Attributes:
        updated_at_ms: when, in milliseconds since the epoch.
    """

    id: str
    project_id: str
    status: RunStatus
    attempt: int
    sequence: int
    updated_at_ms: int


class _Message(msgspec.Struct, array_like=True):
    """What one transaction has changed.

    Attributes:
        sender: the process.
        wakes: what else is to be looked at, by its id.
    """

    sender: str
    runs: list[ToldRun] = []
    wakes: list[str] = []


_decode = msgspec.json.Decoder(_Message).decode


class SharedChanges(Changes):
    """Changes that all processes on a database tell each other.

    They are told behind the commit, many at a time, and not within it: transactions that notify are
    committed one after the other, each with a flush of its own, in all of PostgreSQL. What a
    process could not tell any more, since it was killed, is found by whoever looks again.
    """

    look_seconds = LOOK_SECONDS

    def __init__(self, store: PostgresqlStore, listener: Listener) -> None:
        super().__init__()
        self.sender = secrets.token_hex(4)
        self._store = store
        self._listener = listener
        self._untold = _Message(self.sender)
        self._news = asyncio.Event()
        self._telling: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to tell others."""
        telling = lasting("telling other processes", self._tell_next)
        self._telling = asyncio.create_task(telling, name="neighbours-telling")

    @property
    def deaf(self) -> bool:
        return self._listener.deaf

    def announce(self, tx: Transaction, run: Moved) -> None:
        super().announce(tx, run)
        told = ToldRun(
            run.id, run.project_id, run.status, run.attempt, run.sequence, run.updated_at_ms
        )
        tx.after_commit(lambda: self._tell_later(self._untold.runs, told))

    def announce_wake(self, tx: Transaction, key: str) -> None:
        super().announce_wake(tx, key)
        tx.after_commit(lambda: self._tell_later(self._untold.wakes, key))

    def _tell_later(self, untold: list[Any], what: Any) -> None:
        if len(untold) < MOST_UNTOLD:
            untold.append(what)
            self._news.set()

    async def _tell_next(self) -> None:
        await self._news.wait()
        await self._tell()
        await asyncio.sleep(TOGETHER_SECONDS)

    async def _tell(self) -> None:
        """Tell what there is to tell."""
        if self._untold.runs or self._untold.wakes:
            untold, self._untold = self._untold, _Message(self.sender)
            wakes = list(dict.fromkeys(untold.wakes))
            self._news.clear()
            parts = [
                msgspec.json.encode(
                    _Message(self.sender, untold.runs[start:end], wakes[start:end])
                ).decode()
                for start in range(0, max(len(untold.runs), len(wakes)), MOST_TOLD)
                for end in (start + MOST_TOLD,)
            ]
            try:
                await self._store.fetch(TELL, CHANNEL, parts)
            except (StorageUnavailable, asyncio.CancelledError):
                # What can't be told for another reason never can be, and must not stand in the way
                # of everything else: it is found by whoever looks again.
                self._untold.runs[:0] = untold.runs
                self._untold.wakes[:0] = wakes
                self._news.set()
                raise

    async def stop(self) -> None:
        """Tell what is left, if that can be done."""
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
            with contextlib.suppress(StorageUnavailable):
                await self._tell()


class Neighbours:
    """Hears what other processes tell.

    Args:
        missed: is called when something may have been missed; looks at the rows.
    """

    def __init__(
        self,
        store: PostgresqlStore,
        listener: Listener,
        clock: Clock,
        changes: SharedChanges,
        feeds: Feeds,
        missed: Callable[[], Awaitable[None]],
    ) -> None:
        self._store = store
        self._clock = clock
        self._changes = changes
        self._feeds = feeds
        self._missed = missed
        self._callbacks: list[Callable[[ToldRun], None]] = []
        self._working: list[Callable[[], None]] = []
        self._fresh: set[str] = set()
        self._behind: dict[str, int] = {}
        self._gaps: list[Callable[[], None]] = []
        self._unsettled, self._unseen = asyncio.Event(), asyncio.Event()
        self._pause = FIRST_SECONDS
        self._tasks: list[asyncio.Task[None]] = []
        listener.subscribe(CHANNEL, self._hear)
        listener.on_gap(self._miss)

    def on_change(self, callback: Callable[[ToldRun], None]) -> None:
        """Have `callback` called with each run that has changed in another process."""
        self._callbacks.append(callback)

    def on_work(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when another process may have put jobs that are due."""
        self._working.append(callback)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Have `callback` called when a change in another process may have been missed."""
        self._gaps.append(callback)

    def start(self) -> None:
        """Begin to look at what was told."""
        self._tasks = [
            asyncio.create_task(lasting(what, step), name=name)
            for what, step, name in (
                ("looking for the feed's end", self._settle_next, "feeds-settling"),
                ("looking for what was missed", self._look, "neighbours-missed"),
            )
        ]

    def _hear(self, payload: str) -> None:
        message = _decode(payload)
        if message.sender != self._changes.sender:
            for run in message.runs:
                self._changes.publish(run)
                for callback in self._callbacks:
                    callback(run)
            for key in message.wakes:
                self._changes.wake(key)
            if message.wakes or any(run.status is RunStatus.QUEUED for run in message.runs):
                for work in self._working:
                    work()
        for project in {run.project_id for run in message.runs}:
            if self._feeds.followed(project):
                self._settle(project)

    def _settle(self, project: str) -> None:
        """Have the feed looked at again when what was committed until now can be read.

        That is when all have ended that were begun before it, about which nobody tells anything.
        """
        self._fresh.add(project)
        self._unsettled.set()

    async def _settle_next(self) -> None:
        if not (self._fresh or self._behind):
            self._pause = FIRST_SECONDS
            self._unsettled.clear()
            await self._unsettled.wait()
        fresh, self._fresh = self._fresh, set()
        try:
            horizon, latest = (await self._store.fetch(HORIZON))[0]
        except BaseException:
            self._fresh |= fresh
            raise
        for project in fresh:
            self._behind[project] = latest
        for project, until in list(self._behind.items()):
            if until <= horizon:
                del self._behind[project]
                self._feeds.look_again(project)
                self._changes.wake(project)
        if self._behind:
            await self._clock.sleep(self._pause)
            self._pause = min(LAST_SECONDS, self._pause * 1.5)

    def _miss(self) -> None:
        self._feeds.look_again()
        self._changes.wake_all()
        for callback in self._gaps:
            callback()
        self._unseen.set()

    async def _look(self) -> None:
        await self._unseen.wait()
        self._unseen.clear()
        try:
            await self._missed()
        except BaseException:
            self._unseen.set()
            raise

    async def close(self) -> None:
        """Look no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
