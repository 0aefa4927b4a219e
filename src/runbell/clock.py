"""What time is it: time as an argument, so that code that waits can be tested without waiting."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock", "VirtualClock"]


class Clock(Protocol):
    """Three questions about time. Everything in Runbell that needs time is handed one of these."""

    def now_ms(self) -> int:
        """The wall clock: milliseconds since the epoch. Can jump; for stamps that are kept."""
        ...

    def monotonic(self) -> float:
        """Seconds from an arbitrary start, never going back; for durations and deadlines."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds`, at once (but yielding) where that is not positive."""
        ...


class SystemClock:
    """The machine's own time."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(0.0, seconds))


class VirtualClock:
    """Time that moves only when told to, for tests and simulations.

    Args:
        start_ms: the wall clock at the beginning, in milliseconds since the epoch.
    """

    def __init__(self, start_ms: int = 1_800_000_000_000) -> None:
        self._start_ms = start_ms
        self._elapsed = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._tie = itertools.count()

    def now_ms(self) -> int:
        return self._start_ms + round(self._elapsed * 1000)

    def monotonic(self) -> float:
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._elapsed + seconds, next(self._tie), woken))
        await woken

    def next_wake(self) -> float | None:
        """Seconds until the first sleeper wakes; None where nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] - self._elapsed if self._sleepers else None

    def advance(self, seconds: float) -> None:
        """Move on by `seconds`, waking every sleeper whose time has come, in order.

        Raises:
            ValueError: `seconds` is negative.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards")
        target = self._elapsed + seconds
        while (wait := self.next_wake()) is not None and self._elapsed + wait <= target:
            self._elapsed, _, woken = heapq.heappop(self._sleepers)
            woken.set_result(None)
        self._elapsed = target
