"""How much at once, and how much in the long run: the token bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Taken", "TokenBucket"]

_ROUNDING_SECONDS = 1e-6
"""A token that is still missing this much of its time counts as there: floats round."""


class Taken(NamedTuple):
    """What came of asking a bucket for a token.

    Attributes:
        granted: a token was there, and is gone now.
        full_at: the bucket's state from now on: the moment at which it is full again.
        left: whole tokens that are left.
        retry_after: seconds until there is a token; 0 where one was granted.
        reset_after: seconds until the bucket is full.
    """

    granted: bool
    full_at: float
    left: int
    retry_after: float
    reset_after: float


@dataclass(frozen=True, slots=True)
class TokenBucket:
    """A rule: `capacity` tokens at the most, and one more every `interval` seconds.

    It is written as the generic cell rate algorithm (ITU-T I.371, "virtual scheduling"), which is
    a token bucket whose state is a single number: the moment at which the bucket is full again. A
    bucket whose moment has passed is full, like one that nobody has used, and need not be kept.

    Within any `w` seconds at most `capacity + w / interval` tokens are granted.
    """

    capacity: int
    interval: float

    @classmethod
    def per_minute(cls, count: int) -> TokenBucket:
        """`count` a minute, all of them at once if need be. `count` is at least 1."""
        return cls(count, 60.0 / count)

    def take(self, full_at: float, now: float) -> Taken:
        """Ask for one token.

        Args:
            full_at: the state; for a bucket that is not kept, any moment that is not after `now`.
            now: the moment, in seconds of a clock that never goes back.
        """
        span = self.capacity * self.interval
        missing = max(full_at - now, 0.0)
        late = missing + self.interval - span
        if late > _ROUNDING_SECONDS:
            return Taken(False, full_at, 0, late, missing)
        missing += self.interval
        left = int((span - missing + _ROUNDING_SECONDS) / self.interval)
        return Taken(True, now + missing, left, 0.0, missing)
