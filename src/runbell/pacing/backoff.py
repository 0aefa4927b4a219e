"""When to try again after a failure."""

from __future__ import annotations

import random
from dataclasses import dataclass

__all__ = ["RetryBackoff"]


@dataclass(frozen=True, slots=True)
class RetryBackoff:
    """Exponential backoff with equal jitter: half of each delay is fixed, half is drawn.

    The fixed half keeps a failing dependency from being hit at once by everybody; the drawn half
    keeps everybody from coming back at the same moment. Source: "Exponential Backoff And Jitter",
    AWS Architecture Blog, 2015.

    Attributes:
        start: seconds before the first retry.
        factor: by what each delay is longer than the one before.
        cap: the longest delay, in seconds.
    """

    start: float = 0.05
    factor: float = 2.0
    cap: float = 5.0

    def delay(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after `failures` failures in a row (1 for the first)."""
        # The exponent is bounded because a float overflows long before patience does.
        full = min(self.cap, self.start * self.factor ** min(failures - 1, 64))
        return full * (0.5 + 0.5 * rng.random())
