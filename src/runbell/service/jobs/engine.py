"""PgQueuer, as we use it: on the service's connections, and within its transactions."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pgqueuer.adapters.drivers.asyncpg import AsyncpgDriver
from pgqueuer.adapters.persistence import qb
from pgqueuer.adapters.persistence.queries import Queries
from pgqueuer.core.executors import AbstractEntrypointExecutor, EntrypointExecutorParameters
from pgqueuer.core.qm import QueueManager
from pgqueuer.core.tm import TaskManager
from pgqueuer.domain.models import Context, Job
from pgqueuer.domain.settings import DBSettings, Durability
from pgqueuer.domain.types import QueueEntrypoint
from pgqueuer.ports.driver import Driver, NotifyCallback

from runbell.errors import StorageUnavailable
from runbell.storage.listening import Listener
from runbell.storage.migrate_postgresql import tend
from runbell.storage.postgresql import PostgresqlStore, PostgresqlTransaction

if TYPE_CHECKING:
    import asyncpg

__all__ = ["CHANNEL", "Manager", "PooledDriver", "install", "queries", "within"]

logger = logging.getLogger(__name__)

# Its log says what happened to each job; nothing here reads it, so a crash may take it.
SETTINGS = DBSettings(durability=Durability.balanced)
CHANNEL = SETTINGS.channel
"""Where PgQueuer tells that there is something to do."""

VACUUM = {
    "autovacuum_vacuum_scale_factor": "0",
    "autovacuum_vacuum_threshold": "5000",
    "autovacuum_analyze_scale_factor": "0.05",
    "autovacuum_vacuum_cost_delay": "0",
}
"""Every job is a row that comes, is changed twice and goes: a search for the next one passes over
the dead, however few are alive. PgQueuer's own advice would leave a million of them in its log."""

AGAIN_SECONDS = 0.2
"""From a request that found the database away to the next try."""

_NEWS = json.dumps(
    {
        "channel": CHANNEL,
        "operation": "update",
        "sent_at": "1970-01-01T00:00:00Z",
        "table": SETTINGS.queue_table,
        "type": "table_changed_event",
    }
)
_qbe = qb.QueryBuilderEnvironment(settings=SETTINGS)
_qbq = qb.QueryQueueBuilder(settings=SETTINGS)
_qbs = qb.QuerySchedulerBuilder(settings=SETTINGS)


def queries(driver: Driver) -> Queries:
    """PgQueuer's statements, executed by this driver."""
    return Queries(driver, qbe=_qbe, qbq=_qbq, qbs=_qbs)


async def install(connection: asyncpg.Connection) -> None:
    """Make PgQueuer's tables, or bring them up to the version that is installed.

    By one process at a time: the caller sees to that.
    """
    own = queries(AsyncpgDriver(connection))
    if await own.schema_is_installed():
        await own.upgrade()
    else:
        await own.install()
    for table in (SETTINGS.queue_table, SETTINGS.queue_table_log):
        await tend(connection, table, VACUUM)


class _Bare(Driver):
    """What every driver has and ours need not."""

    def __init__(self) -> None:
        self._shutdown = asyncio.Event()

    async def execute(self, query: str, *args: object) -> str:
        await self.fetch(query, *args)
        return ""

    async def notify(self, channel: str, payload: str) -> None:
        await self.fetch("SELECT pg_notify($1, $2)", channel, payload)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        raise NotImplementedError

    @property
    def shutdown(self) -> asyncio.Event:
        return self._shutdown

    @property
    def tm(self) -> TaskManager:
        return TaskManager()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class _WithinDriver(_Bare):
    """Executes in a transaction that has begun."""

    def __init__(self, tx: PostgresqlTransaction) -> None:
        self._tx = tx

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        return [dict(row) for row in await self._tx.fetch(query, *args)]


def within(tx: PostgresqlTransaction) -> Driver:
    """A driver that makes what it executes part of a transaction."""
    return _WithinDriver(tx)


class PooledDriver(_Bare):
    """Executes on the store's connections, and hears on the process's one that listens.

    A database that is away is waited for: PgQueuer would give up, and with it every job that is
    under way.
    """

    def __init__(self, store: PostgresqlStore, listener: Listener) -> None:
        super().__init__()
        self._store = store
        self._callbacks: list[Callable[[str], None]] = []
        self._told = False
        listener.subscribe(CHANNEL, self._hear)
        listener.on_gap(self.wake)

    def wake(self) -> None:
        """Let PgQueuer look for jobs, as if it had been told."""
        self._tell(_NEWS)

    def _hear(self, payload: str) -> None:
        """Pass on that there are new jobs, once until PgQueuer looks for them.

        It would look once for each change of its table, three times a job, and most of those are
        its own.
        """
        if '"table_changed_event"' not in payload:
            self._tell(payload)
        elif '"insert"' in payload and not self._told:
            self._told = True
            self._tell(payload)

    def _tell(self, payload: str) -> None:
        for callback in self._callbacks:
            callback(payload)

    async def fetch(self, query: str, *args: object) -> list[dict[str, object]]:
        # Whatever it looks for, what was committed until now is there.
        self._told = False
        while True:
            try:
                return [dict(row) for row in await self._store.fetch(query, *args)]
            except StorageUnavailable as error:
                logger.warning("jobs wait for the database: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)

    async def add_listener(self, channel: str, callback: NotifyCallback) -> None:
        self._callbacks.append(callback)

    async def __aexit__(self, *_: object) -> None:
        self._callbacks = []


@dataclass
class _Handled(AbstractEntrypointExecutor):
    """Has every job done by the same function."""

    handle: Callable[[Job], Awaitable[None]] = field(kw_only=True)

    async def execute(self, job: Job, context: Context) -> None:
        await self.handle(job)


class Manager(QueueManager):
    """Hands out the jobs that are wanted at the moment when it asks for some."""

    def attach(
        self, wanted: Callable[[], set[str]], handle: Callable[[Job], Awaitable[None]]
    ) -> None:
        """Say which jobs are wanted, by their names, and who does them."""
        self._wanted = wanted
        self._handle = handle
        self.entrypoints_below_capacity_limits()

    def entrypoints_below_capacity_limits(self) -> set[QueueEntrypoint]:
        names = {QueueEntrypoint(name) for name in self._wanted()}
        for name in names:
            if name not in self.entrypoint_registry:
                self.register_executor(name, _Handled(self._kept_aside(), handle=self._handle))
        return names

    def _kept_aside(self) -> EntrypointExecutorParameters:
        """A job that fails for good stays, for somebody to look at; by default it would be gone."""
        return EntrypointExecutorParameters(
            concurrency_limit=0, func=self._handle, on_failure="hold"
        )
