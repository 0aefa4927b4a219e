"""Who delivers: what an endpoint is owed, in its order, at its pace, so many at a time.

Each endpoint has a lane of its own, and shares nothing with others but the process: one that never
answers fills its own places, and nobody else's. A lane holds a few deliveries; the rest stay in the
tables.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from itertools import chain

from runbell import faults
from runbell.pacing.deliveries import GONE, Meter, Pace, RetrySchedule, SlowDown
from runbell.service import logs
from runbell.service.changes import Watch
from runbell.service.delivery.recording import Outcome, Recorder
from runbell.service.jobs import Stopping
from runbell.service.operations.context import Context, Posted
from runbell.service.operations.endpoints import Keys, keys_of
from runbell.storage import endpoints, owed
from runbell.storage.deliveries import AT_ONCE, Attempt, DeliveryStatus
from runbell.storage.endpoints import Endpoint
from runbell.storage.owed import Due

__all__ = ["Deliverer"]

BATCH = 32
"""Deliveries that a lane takes from the tables at a time."""

LOOK_SECONDS = 30.0
"""How long a lane waits at the most until it looks into the tables again."""

JITTER = 0.1
"""By how much a gap between two attempts that a rate demands is longer than it had to be."""


class _Rhythm:
    """When the next attempt to an endpoint may begin; kept while its lane comes and goes."""

    __slots__ = ("meter", "next_at", "pace", "updated_at_ms")

    def __init__(self) -> None:
        self.updated_at_ms = 0
        self._begin()

    def _begin(self) -> None:
        self.pace = Pace()
        self.meter = Meter()
        self.next_at = float("-inf")

    def of(self, endpoint: Endpoint) -> None:
        """What the endpoint could bear before its owner changed it says nothing of it now."""
        if endpoint.updated_at_ms != self.updated_at_ms:
            self.updated_at_ms = endpoint.updated_at_ms
            self._begin()

    def began(self, now: float, limit: int | None, rng: random.Random) -> None:
        """An attempt begins."""
        self.meter.began(now)
        rates = [rate for rate in (limit, self.pace.per_second) if rate]
        interval = 1.0 / min(rates) if rates else 0.0
        self.next_at = now + interval * (1 + JITTER * rng.random())

    def answered(self, rule: SlowDown, posted: Posted, now: float, rng: random.Random) -> None:
        """An attempt has ended."""
        self.pace = rule.after(self.pace, posted.status, now, self.meter.per_second(now))
        hold = rule.hold(posted.status, posted.retry_after)
        if hold:
            self.next_at = max(self.next_at, now + hold * (1 + JITTER * rng.random()))


class _Waiting:
    """What a lane has taken from the tables: new deliveries, and retries.

    Attributes:
        new: not tried yet, in their order.
        retries: the longest due first.
    """

    def __init__(self, concurrency: int) -> None:
        self.new: deque[Due] = deque()
        self.retries: deque[Due] = deque()
        self._new_was_last = False
        # The others are for first attempts: what fails slowly holds up nothing that is new.
        self._retry_places = max(1, concurrency - max(1, concurrency // 4))
        self._retrying: set[int] = set()

    def positions(self) -> set[int]:
        return {due.position for due in chain(self.new, self.retries)}

    def may_take(self) -> bool:
        """There is one that may begin, where there is a place."""
        return bool(self.new) or self._may_retry()

    def _may_retry(self) -> bool:
        return bool(self.retries) and len(self._retrying) < self._retry_places

    def take(self) -> Due:
        """The next one; in turns, so that neither kind waits for the end of the other."""
        self._new_was_last = not (self._may_retry() and (self._new_was_last or not self.new))
        if self._new_was_last:
            return self.new.popleft()
        due = self.retries.popleft()
        self._retrying.add(due.position)
        return due

    def ended(self, due: Due) -> None:
        """An attempt has ended."""
        self._retrying.discard(due.position)


class Deliverer:
    """Delivers in this process. Its `deliver` is the handler of `deliver` jobs."""

    def __init__(self, ctx: Context, rng: random.Random | None = None) -> None:
        self.ctx = ctx
        self.rng = rng or random.Random()
        self.recorder = Recorder(ctx, self.rng)
        self.schedule = RetrySchedule(
            ctx.settings.retry_delays, patience=ctx.settings.webhook_patience
        )
        self.slow_down = SlowDown()
        self._rhythms: dict[str, _Rhythm] = {}

    async def deliver(self, endpoint_id: str) -> None:
        """Send an endpoint what it is owed, until nothing is due and nothing under way.

        When the process stops, nothing more is begun; what is under way may end.

        Raises:
            Stopping: then, in the end.
        """
        rhythm = self._rhythms.setdefault(endpoint_id, _Rhythm())
        try:
            await _Lane(self, endpoint_id, rhythm).drain()
        finally:
            if rhythm.pace.per_second is None and rhythm.next_at <= self.ctx.clock.monotonic():
                self._rhythms.pop(endpoint_id, None)
        if self.ctx.changes.closed:
            raise Stopping

    async def close(self) -> None:
        """After the last handler has ended."""
        await self.recorder.close()


class _Lane:
    """One endpoint's deliveries, from the first that is due until there is none."""

    def __init__(self, deliverer: Deliverer, endpoint_id: str, rhythm: _Rhythm) -> None:
        self._deliverer = deliverer
        self._ctx = deliverer.ctx
        self._endpoint_id = endpoint_id
        self._rhythm = rhythm
        self._waiting = _Waiting(deliverer.ctx.settings.webhook_concurrency)
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._defect: BaseException | None = None
        self._keys: tuple[Endpoint, Keys] | None = None

    async def drain(self) -> None:
        try:
            with self._ctx.changes.watch([self._endpoint_id]) as watch:
                try:
                    await self._send_all(watch)
                except Exception as error:  # noqa: BLE001 - raised below
                    # Only what could not be begun: whatever is under way would be sent again.
                    self._defect = error
                if self._under_way:
                    await asyncio.wait(self._under_way.values())
        finally:
            for task in self._under_way.values():
                task.cancel()
        if self._defect is not None:
            raise self._defect

    async def _send_all(self, watch: Watch) -> None:
        """Begin attempts until there is nothing more to begin."""
        while not self._ctx.changes.closed:
            seconds = await self._go_on(watch)
            if seconds is None:
                return
            await watch.changed(self._ctx.clock, seconds)

    async def _go_on(self, watch: Watch) -> float | None:
        """Begin every attempt that may begin now.

        Returns:
            Seconds until another one may, unless something happens before; None where there is
            nothing more to do.
        """
        looked = False
        while self._defect is None:
            if len(self._under_way) >= self._ctx.settings.webhook_concurrency:
                return LOOK_SECONDS
            if not (self._waiting.new or looked) or not self._waiting.may_take():
                # One moment for both looks: nothing becomes due between them.
                now_ms = self._ctx.clock.now_ms()
                await self._fetch(now_ms)
                looked = True
                if not self._waiting.may_take():
                    return await self._until_due(now_ms) if self._under_way else None
            # Looked at for each attempt: what was changed, disabled or deleted counts at once.
            endpoint = await self._ctx.store.read(lambda tx: endpoints.find(tx, self._endpoint_id))
            if endpoint is None or not endpoint.enabled:
                return None
            self._rhythm.of(endpoint)
            pause = self._rhythm.next_at - self._ctx.clock.monotonic()
            if pause > 0:
                return pause
            self._begin(self._waiting.take(), endpoint, watch)
        return None

    async def _fetch(self, now_ms: int) -> None:
        """Look for what is new, and for retries where there is none left."""
        waiting = self._waiting
        besides = waiting.positions() | self._under_way.keys()
        found = await self._ctx.store.read(
            lambda tx: owed.due(
                tx,
                self._endpoint_id,
                now_ms,
                BATCH,
                besides=besides,
                retries=not waiting.retries,
            )
        )
        # While that was read, an attempt may have ended; none has begun.
        waiting.new.extend(due for due in found if due.next_at_ms == AT_ONCE)
        waiting.retries.extend(due for due in found if due.next_at_ms != AT_ONCE)

    async def _until_due(self, now_ms: int) -> float:
        due_ms = await self._ctx.store.read(
            lambda tx: owed.next_due(tx, self._endpoint_id, after_ms=now_ms)
        )
        if due_ms is None:
            return LOOK_SECONDS
        return min(LOOK_SECONDS, (due_ms - now_ms) / 1000)

    def _begin(self, due: Due, endpoint: Endpoint, watch: Watch) -> None:
        ctx, now_ms = self._ctx, self._ctx.clock.now_ms()
        headers = self._signing(endpoint, now_ms).sign(due.id, now_ms, due.body)
        faults.hit("delivery.signed")
        self._rhythm.began(ctx.clock.monotonic(), endpoint.rate_limit, self._deliverer.rng)
        if not due.attempts:
            ctx.metrics.first_attempt((now_ms - due.created_at_ms) / 1000)
        self._under_way[due.position] = asyncio.create_task(
            self._attempt(due, endpoint, headers, now_ms, watch)
        )

    def _signing(self, endpoint: Endpoint, now_ms: int) -> Keys:
        """The endpoint's keys, decrypted once as long as it stays what it is."""
        if self._keys is None or self._keys[0] != endpoint or endpoint.old_secret is not None:
            self._keys = (endpoint, keys_of(self._ctx, endpoint, now_ms))
        return self._keys[1]

    async def _attempt(
        self, due: Due, endpoint: Endpoint, headers: dict[str, str], at_ms: int, watch: Watch
    ) -> None:
        try:
            posted = await self._ctx.poster.post(
                endpoint.url, headers, due.body, endpoint.project_id
            )
            faults.hit("delivery.posted")
            self._learn(endpoint, posted)
            outcome = self._outcome(due, endpoint, posted, at_ms)
            await self._deliverer.recorder.record(outcome)
            self._tell(due, outcome, posted)
        except Exception as error:  # noqa: BLE001 - the lane raises it
            self._defect = error
        finally:
            self._under_way.pop(due.position, None)
            self._waiting.ended(due)
            watch.wake()

    def _learn(self, endpoint: Endpoint, posted: Posted) -> None:
        """How fast to go on; an endpoint that was changed meanwhile is asked anew."""
        if endpoint.updated_at_ms == self._rhythm.updated_at_ms:
            deliverer = self._deliverer
            self._rhythm.answered(
                deliverer.slow_down, posted, self._ctx.clock.monotonic(), deliverer.rng
            )

    def _outcome(self, due: Due, endpoint: Endpoint, posted: Posted, at_ms: int) -> Outcome:
        attempt = Attempt(
            number=due.attempts + 1,
            at_ms=at_ms,
            duration_ms=posted.duration_ms,
            status_code=posted.status,
            error=None if posted.succeeded else posted.error or _refused(posted.status),
            excerpt=None if posted.excerpt is None else _text(posted.excerpt),
        )
        if posted.succeeded:
            return Outcome(endpoint.id, endpoint.updated_at_ms, due, attempt, "succeeded", None)
        next_at_ms = self._deliverer.schedule.next_attempt(
            due.failures + 1,
            due.since_ms,
            self._ctx.clock.now_ms(),
            self._deliverer.rng,
            posted.retry_after,
        )
        status: DeliveryStatus = "failed" if next_at_ms is None else "pending"
        gone = posted.status == GONE
        return Outcome(endpoint.id, endpoint.updated_at_ms, due, attempt, status, next_at_ms, gone)

    def _tell(self, due: Due, outcome: Outcome, posted: Posted) -> None:
        word = _word(posted)
        since_event = None
        if outcome.status == "succeeded":
            since_event = (self._ctx.clock.now_ms() - due.created_at_ms) / 1000
        self._ctx.metrics.attempted(word, posted.duration_ms / 1000, since_event)
        logs.attempted(
            self._endpoint_id,
            due.id,
            due.run_id,
            outcome=word,
            number=outcome.attempt.number,
            status=posted.status,
            milliseconds=posted.duration_ms,
            given_up=outcome.status == "failed",
        )


def _word(posted: Posted) -> str:
    """What came of an attempt, in a word for metrics and logs."""
    if posted.succeeded:
        return "succeeded"
    if posted.blocked:
        return "blocked"
    return "unanswered" if posted.status is None else "refused"


def _refused(status: int | None) -> str:
    if status is not None and 300 <= status < 400:
        return f"It answered {status}: webhooks follow no redirection."
    return f"It answered {status}."


def _text(excerpt: bytes) -> str:
    # Some databases can't hold the character 0 in a text.
    return excerpt.decode(errors="replace").replace("\x00", "\ufffd")
