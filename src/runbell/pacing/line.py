"""Who comes first: waits in the order of moments."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Hashable

__all__ = ["Line"]


class Line:
    """Waits by the moments that they want, each once. Those of one moment keep their order."""

    def __init__(self) -> None:
        self._turns = itertools.count()
        self._heap: list[tuple[float, int, Hashable]] = []
        self._wanted: dict[Hashable, int] = {}

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, wait: Hashable) -> bool:
        return wait in self._wanted

    def add(self, wait: Hashable, at: float) -> None:
        turn = next(self._turns)
        self._wanted[wait] = turn
        heapq.heappush(self._heap, (at, turn, wait))
        # Wishes that were replaced are not searched for: they go when they are most of the heap.
        if len(self._heap) > 64 and len(self._heap) > 2 * len(self._wanted):
            self._heap = [each for each in self._heap if self._wanted.get(each[2]) == each[1]]
            heapq.heapify(self._heap)

    def remove(self, wait: Hashable) -> None:
        self._wanted.pop(wait, None)

    def first(self) -> float | None:
        """The first moment that anybody wants; None where nobody wants any."""
        while self._heap and self._wanted.get(self._heap[0][2]) != self._heap[0][1]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def pop(self) -> Hashable:
        """Whoever comes first, who is not in the line from then on."""
        self.first()
        wait = heapq.heappop(self._heap)[2]
        del self._wanted[wait]
        return wait
