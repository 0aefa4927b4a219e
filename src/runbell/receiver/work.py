"""Who handles what came: claims events, calls their handlers, and says how that ended.

Several processes may share one inbox: a claim keeps an event to one of them, is renewed while its
handlers run, and lapses when the process is gone. Nothing is kept in memory that the inbox does not
know.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeVar

from runbell import faults
from runbell.clock import Clock
from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff
from runbell.receiver import desk, rows
from runbell.receiver.events import event_of
from runbell.receiver.handlers import Handler, Handlers, Threads
from runbell.receiver.numbers import Numbers
from runbell.receiver.once import InProgress
from runbell.receiver.rows import Claimed
from runbell.receiver.settings import Options
from runbell.storage.store import Store, Work

__all__ = ["Worker"]

T = TypeVar("T")
logger = logging.getLogger(__name__)

DAY_MS: Final = 86_400_000
SWEEP_SECONDS: Final = 3_600.0
SWEEP_ROWS: Final = 500
"""Events that one transaction forgets: others wait for it."""

MOST_CLAIMED: Final = 256
"""Events that one transaction claims: the runs of all of them are held meanwhile."""

STORAGE_BACKOFF: Final = RetryBackoff(start=0.05, cap=5.0)


class Worker:
    """One process's share of the handling."""

    def __init__(
        self,
        store: Store,
        handlers: Handlers,
        options: Options,
        clock: Clock,
        numbers: Numbers,
        rng: random.Random,
    ) -> None:
        self._store = store
        self._handlers = handlers
        self._options = options
        self._clock = clock
        self._numbers = numbers
        self._rng = rng
        self._holder = secrets.token_hex(8)
        self._backoff = RetryBackoff(start=options.retry_start, factor=2.0, cap=options.retry_cap)
        self._threads = Threads(options.threads)
        self._news = asyncio.Event()
        self._held: dict[asyncio.Task[None], Claimed] = {}
        self._background: list[asyncio.Task[None]] = []
        self._units: set[asyncio.Future[Any]] = set()

    def start(self) -> None:
        """Begin to handle; without a handler, only to forget what is old."""
        work = [self._forget_old]
        if self._handlers:
            work += [self._hand_out, self._renew]
        self._background = [asyncio.create_task(self._lasting(each)) for each in work]

    def wake(self) -> None:
        """Something was stored."""
        self._news.set()

    async def stop(self) -> None:
        """Take nothing up any more, and let handlers end; what does not end is let go of."""
        for task in self._background[:2]:
            task.cancel()
        if self._held:
            await asyncio.wait(self._held, timeout=self._options.shutdown_grace)
        for task in self._background:
            task.cancel()
        left = list(self._held)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, *self._background, return_exceptions=True)
        # What nobody waits for any more is executed all the same, maybe beside what follows.
        await asyncio.gather(*self._units, return_exceptions=True)
        now_ms = self._clock.now_ms()
        with contextlib.suppress(StorageUnavailable):  # then the claims lapse
            # Also what was being claimed at that moment, of which nobody here knows.
            await self._store.write(lambda tx: rows.release(tx, self._holder, now_ms))

    async def _lasting(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do it for ever. What nobody thought of is loud, and does not end the handling."""
        failures = 0
        while True:
            try:
                await work()
            except Exception:
                failures += 1
                logger.exception("a part of the receiver failed; it begins anew")
                await self._clock.sleep(STORAGE_BACKOFF.delay(failures, self._rng))

    async def _hand_out(self) -> None:
        while True:
            self._news.clear()
            free = min(self._options.concurrency - len(self._held), MOST_CLAIMED)
            due_ms = None
            if free > 0:
                due_ms = await self._until_stored(lambda: self._store.read(rows.next_due))
                if due_ms is not None and due_ms <= self._clock.now_ms():
                    claims = await self._until_stored(partial(self._claim, free))
                    for claimed in claims.taken:
                        self._take_up(claimed)
                    if claims.taken or claims.full:
                        continue
            await self._rest(due_ms)

    async def _claim(self, limit: int) -> rows.Claims:
        options, now_ms = self._options, self._clock.now_ms()
        held = {claimed.position for claimed in self._held.values()}
        claims = await self._unit(
            lambda tx: rows.claim(
                tx,
                self._holder,
                now_ms=now_ms,
                lease_ms=round(options.lease * 1000),
                gap_ms=round(options.gap_wait * 1000),
                max_attempts=options.max_attempts,
                limit=limit,
                held=held,
            )
        )
        faults.hit("receiver.claimed")
        await asyncio.gather(
            *(self._mark(over) for over in claims.over),
            *(self._hurry(run) for run in claims.hurried),
        )
        return claims

    async def _mark(self, over: rows.Over) -> None:
        if await self._write(lambda tx: rows.mark(tx, over, self._clock.now_ms())):
            self._numbers.ended[over.outcome].inc()
            if over.outcome == "dead":
                event_id = over.claimed.id
                logger.error("%s is a dead letter: no process survived its handlers", event_id)

    async def _hurry(self, run: str) -> None:
        await self._write(lambda tx: rows.hurry(tx, run, self._clock.now_ms()))

    def _take_up(self, claimed: Claimed) -> None:
        if claimed.lapsed:
            logger.warning("%s is taken from a process that let go of it", claimed.id)
        task = asyncio.create_task(self._handle(claimed))
        self._held[task] = claimed
        task.add_done_callback(self._let_go)

    def _let_go(self, task: asyncio.Task[None]) -> None:
        if len(self._held) >= self._options.concurrency:
            self._news.set()
        del self._held[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("an event was not handled to its end", exc_info=error)

    async def _rest(self, due_ms: int | None) -> None:
        """Return when there may be something to do.

        Args:
            due_ms: when the next event is due; None where none is, or where there is no room.
        """
        seconds = self._options.poll
        if due_ms is not None:
            seconds = min(seconds, max(0.0, (due_ms - self._clock.now_ms()) / 1000))
        if self._news.is_set() or not seconds:
            return
        sleeping = asyncio.ensure_future(self._clock.sleep(seconds))
        waiting = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait((sleeping, waiting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            waiting.cancel()

    async def _handle(self, claimed: Claimed) -> None:
        """Call the handlers of one event that is held, and write down how that ended."""
        handlers = self._handlers.of(claimed.envelope.type)
        began_ms = self._clock.now_ms()
        if claimed.is_first:
            self._numbers.lag.observe(max(0, began_ms - claimed.received_at_ms) / 1000)
        done = set(claimed.done)
        failures: list[tuple[Handler, BaseException]] = []
        faults.hit("receiver.handling")
        for handler in handlers:
            if handler.name not in done:
                error = await self._call(handler, claimed)
                if error is None:
                    done.add(handler.name)
                else:
                    failures.append((handler, error))
        faults.hit("receiver.handled")
        self._numbers.handling.observe(max(0, self._clock.now_ms() - began_ms) / 1000)
        outcome, kept = await self._write_down(claimed, bool(handlers), frozenset(done), failures)
        faults.hit("receiver.finished")
        self._numbers.ended[outcome if kept else "lost"].inc()
        if not kept:
            logger.warning("%s was handled for longer than its claim held", claimed.id)
        if claimed.envelope.sequence is not None:
            self._news.set()  # it may be the turn of the run's next event

    async def _write_down(
        self,
        claimed: Claimed,
        wanted: bool,
        done: frozenset[str],
        failures: list[tuple[Handler, BaseException]],
    ) -> tuple[str, bool]:
        """How an event ended, and whether it was still held here to say so."""
        if not failures:
            finish = partial(rows.finish, claimed=claimed, holder=self._holder, wanted=wanted)
            kept = await self._write(lambda tx: finish(tx, now_ms=self._clock.now_ms()))
            return "handled" if wanted else "unhandled", kept
        for handler, error in failures:
            if not isinstance(error, InProgress):
                dead = claimed.attempt >= self._options.max_attempts
                return "dead" if dead else "failed", await self._fail(claimed, done, handler, error)
        # Nothing has failed. Whoever is in the block ends it, or is dead and loses it.
        ends_ms = min(error.until_ms for _, error in failures if isinstance(error, InProgress))
        now_ms = self._clock.now_ms()
        # As long again as it has waited: most blocks are short, and a dead one is long dead.
        pause = min(max(now_ms - claimed.received_at_ms, 1_000), self._options.lease * 1000)
        until_ms = max(now_ms + 1, min(ends_ms, now_ms + round(pause)))
        logger.info("%s waits for a side effect that somebody else is about to have", claimed.id)
        aside = partial(rows.set_aside, claimed=claimed, holder=self._holder, done=done)
        return "set_aside", await self._write(lambda tx: aside(tx, until_ms=until_ms))

    async def _call(self, handler: Handler, claimed: Claimed) -> BaseException | None:
        event = event_of(
            claimed.id, claimed.envelope, claimed.body, claimed.received_at_ms, claimed.attempt
        )
        if not handler.is_async:
            await self._threads.place()  # its time begins when it does
        try:
            async with asyncio.timeout(self._options.handler_timeout) as limit:
                await handler.call(event, self._threads)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise  # the receiver stops
            return error
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it has failed
            if limit.expired():
                rest = "" if handler.is_async else "; its thread goes on"
                return TimeoutError(f"longer than {self._options.handler_timeout:g} s{rest}")
            return error
        return None

    async def _fail(
        self, claimed: Claimed, done: frozenset[str], handler: Handler, error: BaseException
    ) -> bool:
        attempt, most = claimed.attempt, self._options.max_attempts
        why = f"{handler.name}: {type(error).__name__}: {error}"
        if attempt >= most:
            logger.error(
                "%s (%s) is a dead letter: it failed %d times; `runbell inbox replay %s` tries it "
                "again",
                claimed.id,
                claimed.envelope.type,
                attempt,
                claimed.id,
                exc_info=error,
            )
            return await self._write(
                lambda tx: rows.bury(tx, claimed, self._holder, self._clock.now_ms(), why)
            )
        delay = self._backoff.delay(attempt, self._rng)
        logger.warning(
            "%s (%s) failed, attempt %d of %d; it is tried again in %.1f s",
            claimed.id,
            claimed.envelope.type,
            attempt,
            most,
            delay,
            exc_info=error,
        )
        until_ms = self._clock.now_ms() + round(delay * 1000)
        return await self._write(
            lambda tx: rows.retry(
                tx, claimed, self._holder, until_ms=until_ms, done=done, error=why
            )
        )

    async def _renew(self) -> None:
        """Hold on to what is held, three times a lease."""
        while True:
            await self._clock.sleep(self._options.lease / 3)
            held = list(self._held.values())
            if held:
                until_ms = self._clock.now_ms() + round(self._options.lease * 1000)
                try:
                    await self._store.write(
                        lambda tx: rows.renew(tx, held, self._holder, until_ms)  # noqa: B023
                    )
                except StorageUnavailable as error:
                    logger.warning("claims could not be renewed: %s", error)

    async def _forget_old(self) -> None:
        """Remove what is older than the inbox has to know."""
        while True:
            before_ms = self._clock.now_ms() - round(self._options.retain_days * DAY_MS)
            removed = desk.Removed()
            unheard = 0
            while removed.full:
                removed = await self._until_stored(
                    lambda: self._store.write(
                        lambda tx: desk.prune(tx, before_ms=before_ms, limit=SWEEP_ROWS)  # noqa: B023
                    )
                )
                unheard += removed.unheard
            if unheard and self._handlers:
                logger.error(
                    "%d events were removed that waited for their handling for %g days",
                    unheard,
                    self._options.retain_days,
                )
            await self._clock.sleep(SWEEP_SECONDS)

    async def _write(self, work: Work[T]) -> T:
        return await self._until_stored(lambda: self._unit(work))

    async def _unit(self, work: Work[T]) -> T:
        """Execute a unit of work; `stop` waits for its end, if nobody else does."""
        unit = asyncio.ensure_future(self._store.write(work))
        self._units.add(unit)
        unit.add_done_callback(self._units.discard)
        return await asyncio.shield(unit)

    async def _until_stored(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, again and again while the inbox can't be used."""
        failures = 0
        while True:
            try:
                return await work()
            except StorageUnavailable as error:
                failures += 1
                if failures == 1:
                    logger.warning("the inbox cannot be used now, trying again: %s", error)
                await self._clock.sleep(STORAGE_BACKOFF.delay(failures, self._rng))
