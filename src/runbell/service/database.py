"""A database that is open: what belongs to its kind, and how processes on it work together.

This one is SQLite's, whose file has one process; PostgreSQL's is in `postgresql`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from runbell.clock import Clock, SystemClock
from runbell.service.changes import Changes
from runbell.service.jobs import Jobs, Lanes
from runbell.service.jobs.embedded import EmbeddedJobs
from runbell.service.operations.context import Context
from runbell.service.settings import Settings
from runbell.storage.store import Store

if TYPE_CHECKING:
    from runbell.service.shared_limits import SharedLimits

__all__ = ["Database", "ObservableStore"]


class ObservableStore(Store, Protocol):
    """A store that can be watched."""

    on_commit: Callable[[int, float], None]

    @property
    def waiting(self) -> int:
        """Units of work that wait, or are under way."""
        ...


class Database:
    """An open database, and how processes on it work together.

    Attributes:
        store: where everything is kept.
        changes: tells who waits that something has changed.
        clock: what time it is for everybody on this database.
        name: for messages; without a password.
        url: names it on a command line; without a password.
        file: the SQLite file; None where it is none.
    """

    def __init__(self, store: ObservableStore, name: str, file: Path | None) -> None:
        self.store = store
        self.name = name
        self.file = file
        self.url = name if file is None else f"sqlite:///{quote(str(file))}"
        self.changes = Changes()
        self.clock: Clock = SystemClock()

    def jobs(self, clock: Clock, lanes: Lanes, settings: Settings) -> Jobs:
        """The engine for jobs."""
        return EmbeddedJobs(
            self.store,
            clock,
            lanes,
            concurrency=settings.max_concurrent_runs,
            cancel_grace=settings.cancel_grace,
        )

    def limits(self, rpm: int) -> SharedLimits | None:
        """Counts requests where other processes do so too; None where there are none.

        Args:
            rpm: requests a minute of a key that has no limit of its own.
        """
        return None

    async def join(self, ctx: Context, missed: Callable[[], Awaitable[None]]) -> None:
        """Begin to hear what other processes change.

        Args:
            missed: is called when something of that may not have been heard.
        """

    async def close(self) -> None:
        """Let go of the database."""
        await self.store.close()
