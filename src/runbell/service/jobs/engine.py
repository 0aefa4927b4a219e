"""PgQueuer's loop, as we use it: it hands out what is wanted, as much as there is room for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from dataclasses import dataclass, field
from datetime import timedelta

from pgqueuer.core.executors import AbstractEntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.domain.models import Context, Job
from pgqueuer.domain.types import QueueEntrypoint
from pgqueuer.ports.repository import EntrypointExecutionParameter

from runbell.service.jobs.drivers import PooledDriver
from runbell.service.jobs.queries import LookingAhead

__all__ = ["Manager", "Place"]

SOON = timedelta(milliseconds=5)
"""From a look that found jobs to the next request for them: somebody else may be taking them."""

BATCHES = 10
"""Full batches in a row, behind which it is looked what else has become due."""

_UNLIMITED = EntrypointExecutionParameter(concurrency_limit=0)


@dataclass(frozen=True, slots=True)
class Place:
    """Jobs that stand in one line.

    Attributes:
        names: what they are called.
        room: how many of them may be taken now.
    """

    names: frozenset[str]
    room: int


@dataclass
class _Handled(AbstractEntrypointExecutor):
    """Has every job done by the same function."""

    handle: Callable[[Job], Awaitable[None]] = field(kw_only=True)

    async def execute(self, job: Job, context: Context) -> None:
        await self.handle(job)


class Manager(QueueManager):
    """Hands out the jobs that are wanted at the moment when it asks for some."""

    def attach(
        self,
        ahead: LookingAhead,
        driver: PooledDriver,
        places: Callable[[], Collection[Place]],
        handle: Callable[[Job], Awaitable[None]],
        deferred: frozenset[str],
    ) -> None:
        """Say which jobs are wanted, who does them, and which of them are not due when they are
        put."""
        self._ahead = ahead
        self._driver = driver
        self._places = places
        self._handle = handle
        self._deferred = deferred
        self.min_dequeue_poll_interval = SOON
        self.entrypoints_below_capacity_limits()

    async def fetch_jobs(
        self,
        batch_size: int,
        global_concurrency_limit: int | None,
        heartbeat_timeout: timedelta,
    ) -> AsyncGenerator[Job, None]:
        """As PgQueuer's own, but it takes no more than there is room for, which others may have;
        does not ask again when it got less than it had asked for; and looks now and then what has
        become due behind a long line."""
        for _ in range(BATCHES):
            if self.shutdown.is_set():
                return
            self._driver.looks()
            more = False
            # Who has little room is asked for alone; all others together.
            for names, room in self._shares(batch_size):
                jobs = await self.queries.dequeue(
                    batch_size=room,
                    entrypoints=dict.fromkeys(names, _UNLIMITED),
                    queue_manager_id=self.queue_manager_id,
                    global_concurrency_limit=global_concurrency_limit,
                    heartbeat_timeout=heartbeat_timeout,
                )
                for job in jobs:
                    yield job
                more = more or len(jobs) == room
            if not more:
                return
            # What was handed out takes its place before it is asked how many there are.
            await asyncio.sleep(0)

    def _shares(self, batch_size: int) -> list[tuple[set[QueueEntrypoint], int]]:
        """What is asked for at once, and how much of it."""
        roomy: set[QueueEntrypoint] = set()
        shares = [(roomy, batch_size)]
        for place in self._places():
            names = self._known(place)
            if place.room >= batch_size:
                roomy |= names
            else:
                shares.append((names, place.room))
        return [share for share in shares if share[0]]

    def entrypoints_below_capacity_limits(self) -> set[QueueEntrypoint]:
        return {name for place in self._places() for name in self._known(place)}

    def _known(self, place: Place) -> set[QueueEntrypoint]:
        """The jobs of a place that may be due; PgQueuer is told who does them."""
        names = {
            QueueEntrypoint(name)
            for name in place.names
            if name not in self._deferred or name in self._ahead.due
        }
        for name in names:
            if name not in self.entrypoint_registry:
                self.register_executor(name, _Handled(self._kept_aside(), handle=self._handle))
        return names

    def _kept_aside(self) -> EntrypointExecutorParameters:
        """A job that fails for good stays, for somebody to look at; by default it would be gone."""
        return EntrypointExecutorParameters(
            concurrency_limit=0, func=self._handle, on_failure="hold"
        )
