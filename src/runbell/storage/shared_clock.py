"""What time is it, for all processes on a database: the database's time.

Runs are made on one machine, expire on another and are shown by a third; and PostgreSQL itself
says when a job is due. What one receiver holds, another takes when its time is over. So there is
one clock, and that of a machine may be wrong, or jump.
"""

from __future__ import annotations

import asyncio
import logging
import time

from runbell.storage.lasting import lasting
from runbell.storage.postgresql import PostgresqlStore

__all__ = ["SharedClock"]

logger = logging.getLogger(__name__)

SAMPLES = 3
"""Questions each time; the one that was answered fastest counts."""

SET_SECONDS = 10.0
"""How often the database is asked: machines' clocks drift apart by a millisecond in that time."""

JUMP_SECONDS = 1.0
"""A difference that is worth a line in the log."""

NOW = "SELECT extract(epoch FROM clock_timestamp())::float8"


class SharedClock:
    """The database's wall clock, counted on from the last question by this machine's own monotonic
    one. `set` it before it is used."""

    def __init__(self, store: PostgresqlStore) -> None:
        self._store = store
        self._ahead: float | None = None
        self._keeping: asyncio.Task[None] | None = None

    def now_ms(self) -> int:
        assert self._ahead is not None, "the clock was not set"
        return int((time.monotonic() + self._ahead) * 1000)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))

    async def set(self) -> None:
        """Ask the database for its time. What is left is half of the way there and back.

        Raises:
            StorageUnavailable: it can't be asked; the clock goes on as it was.
        """
        answers: list[tuple[float, float]] = []
        for _ in range(SAMPLES):
            began = time.monotonic()
            now = (await self._store.fetch(NOW))[0][0]
            ended = time.monotonic()
            answers.append((ended - began, now - (began + ended) / 2))
        ahead = min(answers)[1]
        if self._ahead is not None and abs(ahead - self._ahead) > JUMP_SECONDS:
            logger.warning("the database's clock has jumped by %.1f s", ahead - self._ahead)
        self._ahead = ahead

    def start(self) -> None:
        """Keep it right, until it is stopped."""
        self._keeping = asyncio.create_task(
            lasting("asking for the time", self._keep), name="shared-clock"
        )

    async def _keep(self) -> None:
        await asyncio.sleep(SET_SECONDS)
        await self.set()

    async def stop(self) -> None:
        """Ask no more."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
