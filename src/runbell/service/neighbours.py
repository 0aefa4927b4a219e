"""What happens in other processes on the same database, told as if it had happened here.

A commit tells all processes what it has changed, with PostgreSQL's NOTIFY, and each wakes those who
wait there. As everywhere, that is a wake-up and not the truth: whoever is woken looks at the rows;
and where something may have been missed, everybody is woken.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.runs import RunStatus
from runbell.service.changes import Changes, Moved
from runbell.service.feeds import Feeds
from runbell.storage.listening import Listener
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction
from runbell.storage.store import Transaction

__all__ = ["CHANNEL", "Neighbours", "SharedChanges", "ToldRun"]

logger = logging.getLogger(__name__)

CHANNEL = "runbell_changes"

MOST_TOLD = 40
"""Changes in one message, which PostgreSQL limits to 8,000 bytes."""

FIRST_SECONDS, LAST_SECONDS = 0.002, 0.1
"""From one look for the feed's horizon to the next, while something is behind it."""

TELL = "SELECT pg_notify($1, pg_current_xact_id()::text || ' ' || $2)"
HORIZON = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"


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
    """Changes that all processes on a database tell each other."""

    def __init__(self) -> None:
        super().__init__()
        self.sender = secrets.token_hex(4)

    def announce(self, tx: Transaction, run: Moved) -> None:
        super().announce(tx, run)
        told = ToldRun(
            run.id, run.project_id, run.status, run.attempt, run.sequence, run.updated_at_ms
        )
        self._message(tx).runs.append(told)

    def announce_wake(self, tx: Transaction, key: str) -> None:
        super().announce_wake(tx, key)
        message = self._message(tx)
        if key not in message.wakes:
            message.wakes.append(key)

    def _message(self, tx: Transaction) -> _Message:
        """What the transaction will have told when it is committed."""
        assert isinstance(tx, PostgresqlTransaction), "who shares changes shares a database"
        message: _Message | None = tx.carried.get(self)
        if message is None:
            message = tx.carried[self] = _Message(self.sender)
            tx.lasts.append(lambda: _tell(tx, message))
        return message


async def _tell(tx: PostgresqlTransaction, message: _Message) -> None:
    runs, wakes = message.runs, message.wakes
    for start in range(0, max(len(runs), len(wakes)), MOST_TOLD):
        end = start + MOST_TOLD
        part = _Message(message.sender, runs[start:end], wakes[start:end])
        await tx.fetch(TELL, CHANNEL, msgspec.json.encode(part).decode())


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
        self._behind: dict[str, int] = {}
        self._settling: asyncio.Task[None] | None = None
        self._looking: set[asyncio.Task[Any]] = set()
        listener.subscribe(CHANNEL, self._hear)
        listener.on_gap(self._miss)

    def on_change(self, callback: Callable[[ToldRun], None]) -> None:
        """Have `callback` called with each run that has changed in another process."""
        self._callbacks.append(callback)

    def _hear(self, payload: str) -> None:
        number, _, encoded = payload.partition(" ")
        message = _decode(encoded)
        if message.sender != self._changes.sender:
            for run in message.runs:
                self._changes.publish(run)
                for callback in self._callbacks:
                    callback(run)
            for key in message.wakes:
                self._changes.wake(key)
        for run in message.runs:
            if self._feeds.followed(run.project_id):
                self._settle(run.project_id, int(number))

    def _settle(self, project: str, number: int) -> None:
        """Have the feed looked at again when this transaction's events can be read.

        That is when all have ended that were begun before it, about which nobody tells anything.
        """
        self._behind[project] = max(number, self._behind.get(project, 0))
        if self._settling is None or self._settling.done():
            self._settling = asyncio.create_task(self._settle_all(), name="feeds-settling")

    async def _settle_all(self) -> None:
        pause = FIRST_SECONDS
        while self._behind:
            try:
                horizon = (await self._store.fetch(HORIZON))[0][0]
            except StorageUnavailable:
                # The gap that comes with it has everybody look.
                self._behind.clear()
                return
            settled = [project for project, number in self._behind.items() if number < horizon]
            for project in settled:
                del self._behind[project]
                self._feeds.look_again(project)
                self._changes.wake(project)
            if self._behind:
                await self._clock.sleep(pause)
                pause = min(LAST_SECONDS, pause * 1.5)

    def _miss(self) -> None:
        self._feeds.look_again()
        self._changes.wake_all()
        task = asyncio.create_task(self._look(), name="neighbours-missed")
        self._looking.add(task)
        task.add_done_callback(self._looking.discard)

    async def _look(self) -> None:
        try:
            await self._missed()
        except StorageUnavailable as error:
            logger.warning("what was missed is not known: %s", error)

    async def close(self) -> None:
        """Look no more."""
        tasks = [*self._looking, *([self._settling] if self._settling is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
