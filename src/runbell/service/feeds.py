"""The newest events of a project, read once for all who follow its feed.

Thousands may follow, and one event wakes all of them: each looking by itself would be thousands of
queries at a time. Who is further behind than what is held here reads for itself, a few at a time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from runbell.service.changes import Changes, Moved
from runbell.storage import events
from runbell.storage.events import FeedRow
from runbell.storage.store import Store

__all__ = ["Feeds"]

HELD_EVENTS = 1_000
HELD_BYTES = 1_048_576
"""What is held of one project at the most, while anybody follows it."""

READ_AT_ONCE = 100
"""Events that are read at once for all; a few hundred microseconds of the event loop."""

CATCHING_UP = 4
"""Followers that read for themselves at the same time."""


class Feeds:
    """What all followers of this process have in common."""

    def __init__(self, store: Store, changes: Changes) -> None:
        self._store = store
        self._tails: dict[str, _Tail] = {}
        self._catching_up = asyncio.Semaphore(CATCHING_UP)
        changes.subscribe(self._hear)

    @contextmanager
    def following(self, project: str) -> Iterator[None]:
        """While this is entered, the project's newest events are held."""
        tail = self._tails.setdefault(project, _Tail(self._store, project))
        tail.followers += 1
        try:
            yield
        finally:
            tail.followers -= 1
            if not tail.followers:
                del self._tails[project]

    async def behind(
        self, project: str, *, low: int, types: frozenset[str] | None, limit: int
    ) -> tuple[list[FeedRow], int, bool]:
        """As `events.behind`, for a follower: the rows, up to where they were read, and whether
        there are more."""
        tail = self._tails[project]
        await tail.refresh()
        if tail.holds(low):
            return tail.behind(low, types, limit)
        async with self._catching_up:
            return await self._store.scan(
                lambda tx: events.behind(tx, project, low=low, types=types, limit=limit)
            )

    def followed(self, project: str) -> bool:
        """Somebody follows this project's feed."""
        return project in self._tails

    def reads(self, project: str) -> int:
        """How often this project's newest events were read since somebody began to follow."""
        return self._tails[project].reads

    def look_again(self, project: str | None = None) -> None:
        """There may be events that were not read yet: of a project, or of any."""
        for key in self._tails if project is None else (project,):
            tail = self._tails.get(key)
            if tail is not None:
                tail.stale = True

    def _hear(self, run: Moved) -> None:
        self.look_again(run.project_id)


class _Tail:
    """The newest events of one project, in commit order.

    Attributes:
        stale: there may be events that were not read yet.
        reads: how often they were read.
    """

    def __init__(self, store: Store, project: str) -> None:
        self.followers = 0
        self.stale = True
        self.reads = 0
        self._store = store
        self._project = project
        self._held: deque[tuple[int, FeedRow]] = deque()
        self._bytes = 0
        self._low: int | None = None
        self._high = 0
        self._reading: asyncio.Future[None] | None = None

    def holds(self, low: int) -> bool:
        """Everything behind this position is here."""
        return self._low is not None and low >= self._low

    def behind(
        self, low: int, types: frozenset[str] | None, limit: int
    ) -> tuple[list[FeedRow], int, bool]:
        # The newest are wanted nearly always: looked for from that end.
        new = sum(1 for _ in self._newer(low))
        rows: list[FeedRow] = []
        seen = low
        for position, row in islice(self._held, len(self._held) - new, None):
            if types is None or row[1] in types:
                if len(rows) == limit:
                    return rows, seen, True
                rows.append(row)
            seen = position
        return rows, max(seen, low), False

    def _newer(self, low: int) -> Iterator[int]:
        for position, _ in reversed(self._held):
            if position <= low:
                return
            yield position

    async def refresh(self) -> None:
        """Return when everything is here that was committed before this was called."""
        while self.stale:
            if self._reading is None:
                self._reading = asyncio.ensure_future(self._read())
            # Shared: whoever leaves meanwhile must not end it for the others.
            await asyncio.shield(self._reading)

    async def _read(self) -> None:
        self.stale = False
        try:
            if self._low is None:
                newest = await self._store.read(lambda tx: events.newest(tx, self._project))
                self._low = self._high = newest
            rows, more = await self._store.read(
                lambda tx: events.tail(tx, self._project, low=self._high, limit=READ_AT_ONCE)
            )
        except BaseException:
            self.stale = True
            raise
        finally:
            # Here, and not by a callback: whoever looked in between would wait for what is over,
            # again and again, and let nobody else have a turn.
            self._reading = None
        self.reads += 1
        self.stale = self.stale or more
        for position, row in rows:
            self._held.append((position, row))
            self._bytes += len(row[2])
            self._high = position
        while len(self._held) > HELD_EVENTS or self._bytes > HELD_BYTES:
            self._low, row = self._held.popleft()
            self._bytes -= len(row[2])
