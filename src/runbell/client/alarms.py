"""When each of many waits has to be woken at the latest: one moment for each, the nearest it gave.

A wait that has ended may have had a day left. What is cancelled is not searched for in the heap: it
goes when it is most of it, so that an alarm costs the same however many there are, and those who
have ended never outnumber those who wait.
"""

from __future__ import annotations

import heapq
import itertools
import math

from runbell.client.wait import Wait

__all__ = ["Alarms"]


class Alarms:
    """The alarms of waits, at moments of their clock. `Wait.alarm` is the one that counts."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._heap: list[tuple[float, int, Wait]] = []
        self._set = 0

    def __len__(self) -> int:
        """Waits that have one."""
        return self._set

    def set(self, wait: Wait, at: float) -> None:
        """Have a wait woken at this moment, unless it is woken sooner; never at infinity."""
        if at == math.inf or (wait.alarm is not None and wait.alarm[0] <= at):
            return
        self._set += wait.alarm is None
        wait.alarm = (at, next(self._numbers), wait)
        heapq.heappush(self._heap, wait.alarm)
        self._tidy()

    def cancel(self, wait: Wait) -> None:
        """Do not wake it; it is not held on to, or not for long."""
        if wait.alarm is not None:
            wait.alarm = None
            self._set -= 1
            self._tidy()

    def next_at(self) -> float | None:
        """The moment at which the first is to be woken; None where nobody is."""
        while self._heap and self._heap[0][2].alarm is not self._heap[0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> Wait | None:
        """The next one whose moment has come, which has no alarm from then on; None for nobody."""
        at = self.next_at()
        if at is None or at > now:
            return None
        wait = heapq.heappop(self._heap)[2]
        self.cancel(wait)
        return wait

    def _tidy(self) -> None:
        # Half of what is looked at here goes, and was set since the last time.
        if len(self._heap) > 2 * self._set:
            self._heap = [each for each in self._heap if each[2].alarm is each]
            heapq.heapify(self._heap)
