"""Endpoints that are owed something: who is worked for, and who is next.

One handler an endpoint at a time. What is held here is a time for each endpoint, never a delivery:
a hundred thousand of those that wait for their retries cost nothing.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
from collections.abc import Collection

from runbell import faults
from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.service.jobs import Handler, Stopping
from runbell.service.logs import having
from runbell.storage import owed
from runbell.storage.store import Store

__all__ = ["OwedEndpoints"]

logger = logging.getLogger(__name__)


class OwedEndpoints:
    """Hands out `deliver` jobs: at once to those that a commit names, and when they are due."""

    def __init__(
        self, store: Store, clock: Clock, backoff: RetryBackoff, rng: random.Random
    ) -> None:
        self._store = store
        self._clock = clock
        self._backoff = backoff
        self._rng = rng
        self._handler: Handler | None = None
        self._running: dict[str, asyncio.Task[None]] = {}
        self._pausing: set[str] = set()
        self._again: set[str] = set()
        self._due: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []
        self._look = True
        self._wake = asyncio.Event()

    @property
    def running(self) -> Collection[asyncio.Task[None]]:
        """The handlers that are at work."""
        return list(self._running.values())

    def start(self, handler: Handler | None) -> None:
        """From now on, endpoints are handed to `handler`; None hands out nothing."""
        self._handler = handler
        self.look_again()

    def stop(self) -> None:
        """Hand out nothing more. Handlers that are at work may end; what pauses is not called
        again."""
        self._handler = None
        for endpoint_id in self._pausing:
            self._running[endpoint_id].cancel()

    def look_again(self) -> None:
        """Ask the tables who is owed something."""
        self._look = True
        self._wake.set()

    def expect(self, endpoint_id: str, due_ms: int | None) -> None:
        """An endpoint is owed something from a time on; None is at once."""
        if due_ms is None:
            self._execute(endpoint_id)
        elif due_ms < self._due.get(endpoint_id, due_ms + 1):
            self._due[endpoint_id] = due_ms
            heapq.heappush(self._order, (due_ms, endpoint_id))
            self._wake.set()

    async def hand_out(self) -> None:
        """Begin what is due, and return when something else may be."""
        self._wake.clear()
        if self._look:
            # Before the look: what is expected while it goes on is not in what it finds.
            self._look, self._due, self._order = False, {}, []
            try:
                found = await self._store.scan(owed.due_by_endpoint)
            except BaseException:
                self._look = True
                raise
            for endpoint_id, due_ms in found:
                if endpoint_id not in self._running:
                    self.expect(endpoint_id, due_ms)
        now_ms = self._clock.now_ms()
        while self._order and self._order[0][0] <= now_ms:
            due_ms, endpoint_id = heapq.heappop(self._order)
            # Only the latest word on an endpoint counts.
            if self._due.get(endpoint_id) == due_ms:
                del self._due[endpoint_id]
                faults.hit("jobs.woken")
                self._execute(endpoint_id)
        await self._sleep()

    async def _sleep(self) -> None:
        if not self._order:
            await self._wake.wait()
            return
        seconds = (self._order[0][0] - self._clock.now_ms()) / 1000
        tasks = [
            asyncio.ensure_future(self._clock.sleep(seconds)),
            asyncio.ensure_future(self._wake.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    def _execute(self, endpoint_id: str) -> None:
        if self._handler is None:
            return
        if endpoint_id in self._running:
            self._again.add(endpoint_id)
            return
        self._running[endpoint_id] = asyncio.create_task(
            self._handle(self._handler, endpoint_id), name=endpoint_id
        )

    async def _handle(self, handler: Handler, endpoint_id: str) -> None:
        """Call the handler until nothing is due any more, or it says that the process stops."""
        failures, about = 0, having({"webhook_endpoint_id": endpoint_id})
        due_ms: int | None = None
        try:
            while self._handler is not None:
                self._again.discard(endpoint_id)
                due_ms = None
                try:
                    await handler(endpoint_id)
                    due_ms = await self._store.read(lambda tx: owed.next_due(tx, endpoint_id))
                    failures = 0
                except Stopping:
                    # What is due stays so, and would be asked for again and again.
                    break
                except StorageUnavailable as error:
                    logger.warning("deliveries wait for the database: %s", error, extra=about)
                    failures += 1
                except Exception:
                    logger.exception("delivering failed; it is tried again", extra=about)
                    failures += 1
                if not failures and endpoint_id not in self._again:
                    break
                await self._pause(endpoint_id, failures)
        finally:
            del self._running[endpoint_id]
        if due_ms is not None:
            self.expect(endpoint_id, due_ms)

    async def _pause(self, endpoint_id: str, failures: int) -> None:
        if failures and self._handler is not None:
            self._pausing.add(endpoint_id)
            try:
                await self._clock.sleep(self._backoff.delay(failures, self._rng))
            finally:
                self._pausing.discard(endpoint_id)
