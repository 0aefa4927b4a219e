"""What came of attempts, stored: many at a time, in one transaction.

A result that is not stored yet keeps its place among those under way to its endpoint. So a database
that is away stops the sending by itself, and a process that dies sends again no more than those.
"""

from __future__ import annotations

import asyncio
import logging
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count

from runbell import faults
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.pacing.deliveries import is_given_up
from runbell.service import logs
from runbell.service.jobs import Job, JobKind
from runbell.service.operations.context import Context
from runbell.service.operations.deliveries import RECOVERY_MS
from runbell.storage import endpoints, owed
from runbell.storage.deliveries import Attempt, DeliveryStatus
from runbell.storage.owed import Due
from runbell.storage.store import Transaction

__all__ = ["Outcome", "Recorder"]

logger = logging.getLogger(__name__)

MOST_AT_ONCE = 256
"""Results in one unit of work: bounds how long others wait for the writer."""

GONE_REASON = "It answered 410: it is not there any more."
DEAD_REASON = "It failed for 5 days without one success."


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one attempt, and what follows from it.

    Attributes:
        updated_at_ms: of the endpoint as it was when the attempt began: what is said of a URL that
            was changed meanwhile, or of an endpoint that was enabled again, is not said of this.
        due: the delivery, as it was when the attempt began.
        next_at_ms: when it is tried again; None where it is not.
        gone: the endpoint says that it is not there any more.
    """

    endpoint_id: str
    updated_at_ms: int
    due: Due
    attempt: Attempt
    status: DeliveryStatus
    next_at_ms: int | None
    gone: bool = False


@dataclass(slots=True)
class _Seen:
    """What the attempts of one transaction say of one endpoint."""

    succeeded: bool = False
    failed_at_ms: int | None = None
    gone: bool = False


class Recorder:
    """Stores outcomes, in the order in which they come."""

    def __init__(self, ctx: Context, rng: random.Random) -> None:
        self._ctx = ctx
        self._rng = rng
        self._backoff = RetryBackoff(start=0.05, cap=2.0)
        self._waiting: list[tuple[Outcome, asyncio.Future[None]]] = []
        self._storing: asyncio.Task[None] | None = None

    async def record(self, outcome: Outcome) -> None:
        """Store what came of an attempt; returns when it is durable."""
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((outcome, stored))
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_all(), name="deliveries-recording")
        await stored

    async def close(self) -> None:
        """Give up what could not be stored until now: it is sent again by the next process."""
        if self._storing is not None:
            self._storing.cancel()
            await asyncio.gather(self._storing, return_exceptions=True)

    async def _store_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:MOST_AT_ONCE], self._waiting[MOST_AT_ONCE:]
            # Whoever was cancelled meanwhile has had its answer all the same.
            error = await self._stored(batch)
            if error is None:
                continue
            for outcome, stored in batch:
                if len(batch) > 1:
                    # One of them may be at fault, and they are of all endpoints.
                    error = await self._stored([(outcome, stored)])
                if error is not None and not stored.done():
                    stored.set_exception(error)

    async def _stored(self, batch: list[tuple[Outcome, asyncio.Future[None]]]) -> Exception | None:
        """Store a batch and tell those who wait for it; what is wrong with it, if anything is."""
        try:
            await self._store([outcome for outcome, _ in batch])
        except Exception as error:
            logger.exception("what came of %d attempts cannot be stored", len(batch))
            return error
        faults.hit("delivery.recorded")
        for _, stored in batch:
            if not stored.done():
                stored.set_result(None)
        return None

    async def _store(self, outcomes: list[Outcome]) -> None:
        for failures in count(1):
            try:
                await self._ctx.store.write(lambda tx: self._work(tx, outcomes))
                return
            except StorageUnavailable as error:
                logger.warning("what came of attempts waits for the database: %s", error)
            await self._ctx.clock.sleep(self._backoff.delay(failures, self._rng))

    async def _work(self, tx: Transaction, outcomes: list[Outcome]) -> None:
        seen: dict[tuple[str, int], _Seen] = {}
        for outcome in outcomes:
            stored = await owed.record(
                tx,
                outcome.due,
                outcome.attempt,
                status=outcome.status,
                next_at_ms=outcome.next_at_ms,
            )
            if not stored:
                # The delivery is gone, or somebody else was faster.
                continue
            if outcome.next_at_ms is not None:
                job = Job(JobKind.DELIVER, outcome.endpoint_id, due_ms=outcome.next_at_ms)
                await self._ctx.jobs.enqueue(tx, job)
            endpoint = seen.setdefault((outcome.endpoint_id, outcome.updated_at_ms), _Seen())
            endpoint.gone |= outcome.gone
            if outcome.status == "succeeded":
                endpoint.succeeded = True
            else:
                endpoint.failed_at_ms = outcome.attempt.at_ms + outcome.attempt.duration_ms
        for (endpoint_id, updated_at_ms), endpoint in seen.items():
            await self._mark(tx, endpoint_id, updated_at_ms, endpoint)

    async def _mark(
        self, tx: Transaction, endpoint_id: str, updated_at_ms: int, seen: _Seen
    ) -> None:
        """How the endpoint fares, and whether anything is sent to it any more."""
        reason = GONE_REASON if seen.gone else None
        if seen.succeeded:
            await endpoints.mark_succeeding(tx, endpoint_id, updated_at_ms)
        elif seen.failed_at_ms is not None:
            await endpoints.mark_failing(tx, endpoint_id, updated_at_ms, seen.failed_at_ms)
            endpoint = await endpoints.find(tx, endpoint_id)
            since_ms = endpoint.failing_since_ms if endpoint is not None else None
            if reason is None and is_given_up(since_ms, seen.failed_at_ms):
                reason = DEAD_REASON
        if reason is not None:
            await self._disable(tx, endpoint_id, updated_at_ms, reason)

    async def _disable(
        self, tx: Transaction, endpoint_id: str, updated_at_ms: int, reason: str
    ) -> None:
        """Send it nothing more; but one answer may be a mistake, so that nothing is lost yet."""
        until_ms = self._ctx.clock.now_ms() + RECOVERY_MS
        said = f"{reason} Its events are kept until {_date(until_ms)}, for when it is enabled."
        if await endpoints.disable(tx, endpoint_id, updated_at_ms, said, until_ms):
            tx.after_commit(lambda: logs.endpoint_disabled(endpoint_id, said))


def _date(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
