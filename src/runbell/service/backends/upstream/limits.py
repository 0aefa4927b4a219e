"""The time that a call may take: until its answer begins, in a pause of it, and as a whole."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from runbell.clock import Clock
from runbell.service.backends.upstream.answer import AnswerReader

__all__ = ["TimeLimits"]

TAIL_SECONDS: Final = 5.0
"""How long the count of tokens may follow an answer that is over."""


class TimeLimits:
    """Watches over one call, and aborts it when it takes too long.

    One task a call, which sleeps until the next limit; a chunk that comes in time costs nothing.

    Args:
        answer: seconds until the answer has to begin, and that a pause of it may last.
        total: seconds that the call may take; 0 for any number.

    Attributes:
        exceeded: what took too long, as a sentence; None as long as nothing did.
    """

    def __init__(self, clock: Clock, answer: float, total: float = 0.0) -> None:
        self._clock = clock
        self._answer = answer
        self._total = total
        self._abort: Callable[[], object] = _nothing
        self._begun = False
        self._tail = False
        self._due = clock.monotonic() + answer
        self._end = clock.monotonic() + total if total else math.inf
        self.exceeded: str | None = None

    async def __aenter__(self) -> Self:
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watching.cancel()

    def abort_with(self, abort: Callable[[], object]) -> None:
        """What ends the call from now on."""
        self._abort = abort

    def follow(self, answer: AnswerReader) -> None:
        """More came, and whoever reads the answer is back from it: the next limit counts from now.

        What is not part of the answer, such as a sign of life before it, is no more.
        """
        if answer.ended:
            if not self._tail:
                self._tail = True
                self._due = self._clock.monotonic() + min(TAIL_SECONDS, self._answer)
                # It sleeps until a moment that is now too late.
                self._watching.cancel()
                self._watching = asyncio.create_task(self._watch())
        elif answer.began:
            self._begun = True
            self._due = self._clock.monotonic() + self._answer

    async def _watch(self) -> None:
        while (left := min(self._due, self._end) - self._clock.monotonic()) > 0:
            await self._clock.sleep(left)
        if self._end <= self._due:
            self.exceeded = f"The model's answer was not whole after {self._total:g} s."
        elif self._begun:
            self.exceeded = f"The model server paused for {self._answer:g} s in its answer."
        else:
            self.exceeded = f"The model server did not begin to answer within {self._answer:g} s."
        self._abort()


def _nothing() -> None:
    pass
