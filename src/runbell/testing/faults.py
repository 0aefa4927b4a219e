"""Arming the named fault points of `runbell.faults`: to die there, or to look."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count

from runbell import faults

__all__ = ["Kill", "armed"]


@dataclass(frozen=True, slots=True)
class Kill:
    """Where a process is to die: at the `hit`-th time that it reaches `point`.

    Raises:
        ValueError: there is no such point, or `hit` is not positive.
    """

    point: str
    hit: int = 1

    def __post_init__(self) -> None:
        if self.point not in faults.POINTS:
            known = ", ".join(sorted(faults.POINTS))
            raise ValueError(f"no fault point is called {self.point!r}; there are: {known}")
        if self.hit < 1:
            raise ValueError(f"the first hit is number 1, not {self.hit}")

    @classmethod
    def parse(cls, text: str) -> Kill:
        """From `POINT` or `POINT:HIT`.

        Raises:
            ValueError: it does not name a point, or the number is none.
        """
        point, _, hit = text.partition(":")
        return cls(point, int(hit or "1"))

    def __str__(self) -> str:
        return f"{self.point}:{self.hit}"

    @property
    def last_words(self) -> str:
        """The line that the process leaves on stderr, so that no other death is taken for this."""
        return f"killed at {self}"

    def arm(self) -> None:
        """Have this process killed with SIGKILL there: nothing is flushed, nothing is closed."""
        hits = count(1)

        # Points are reached on several threads; `next` of a count is one step for all of them.
        def die(point: str) -> None:
            if point == self.point and next(hits) == self.hit:
                os.write(2, f"{self.last_words}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)

        faults.arm(die)


@contextlib.contextmanager
def armed(action: Callable[[str], None]) -> Iterator[None]:
    """Have `action` called with the name of every point that is reached inside the block.

    It is called on the thread that is there, and what it raises is raised there.
    """
    faults.arm(action)
    try:
        yield
    finally:
        faults.disarm()
