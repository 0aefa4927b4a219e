"""How often may a key ask: requests a minute, counted in memory, told in OpenAI's words.

One process counts for itself, and a restart forgets; several count in `service/shared_limits.py`.
A key that has not asked for a minute costs no memory.
"""

from __future__ import annotations

from functools import cache
from math import ceil

from runbell.clock import Clock
from runbell.errors import RequestRefused
from runbell.pacing import Taken, TokenBucket
from runbell.service.operations.access import Caller

__all__ = ["Headers", "Limits", "bucket_of", "duration_text", "headers_of"]

SWEEP_SECONDS = 60.0
"""How often full buckets are dropped; an empty one is full after a minute."""

Headers = list[tuple[bytes, bytes]]


class Limits:
    """Counts the requests of every key that has a limit.

    Args:
        rpm: requests a minute of a key that has no limit of its own; 0 is no limit.
    """

    def __init__(self, clock: Clock, rpm: int) -> None:
        self._clock = clock
        self._rpm = rpm
        self._full_at: dict[str, float] = {}
        self._next_sweep = 0.0

    @property
    def counted(self) -> int:
        """Keys that are held in memory."""
        return len(self._full_at)

    def count(self, caller: Caller) -> Headers:
        """Count a request; headers for its answer, none where the key has no limit.

        Raises:
            RequestRefused: (429) the key has asked too often; carries the same headers.
        """
        rpm = self._rpm if caller.rpm is None else caller.rpm
        if rpm == 0:
            return []
        now = self._clock.monotonic()
        if now >= self._next_sweep:
            self._sweep(now)
        taken = bucket_of(rpm).take(self._full_at.get(caller.key_id, now), now)
        self._full_at[caller.key_id] = taken.full_at
        return headers_of(caller, rpm, taken)

    def _sweep(self, now: float) -> None:
        self._full_at = {key: at for key, at in self._full_at.items() if at > now}
        self._next_sweep = now + SWEEP_SECONDS


def duration_text(seconds: float) -> str:
    """A duration as OpenAI writes it, rounded up to milliseconds: `120ms`, `8.64s`, `6m0s`."""
    ms = _milliseconds(seconds)
    if 0 < ms < 1000:
        return f"{ms}ms"
    minutes, ms = divmod(ms, 60_000)
    return f"{minutes}m{ms / 1000:g}s" if minutes else f"{ms / 1000:g}s"


def _milliseconds(seconds: float) -> int:
    # Up, since who comes back too early is refused again; what floats add is not a millisecond.
    return ceil(round(seconds * 1000, 3))


@cache
def bucket_of(rpm: int) -> TokenBucket:
    """The bucket of a key that may make so many requests a minute."""
    return TokenBucket.per_minute(rpm)


def headers_of(caller: Caller, rpm: int, taken: Taken) -> Headers:
    """What an answer says about a limit.

    Raises:
        RequestRefused: (429) there was no token.
    """
    if not taken.granted:
        raise _limit_reached(caller, rpm, taken)
    return _headers(rpm, taken)


def _headers(rpm: int, taken: Taken) -> Headers:
    return [
        (b"x-ratelimit-limit-requests", b"%d" % rpm),
        (b"x-ratelimit-remaining-requests", b"%d" % taken.left),
        (b"x-ratelimit-reset-requests", duration_text(taken.reset_after).encode()),
    ]


def _limit_reached(caller: Caller, rpm: int, taken: Taken) -> RequestRefused:
    ms = _milliseconds(taken.retry_after)
    return RequestRefused(
        429,
        f"Rate limit reached for API key {caller.hint} on requests per min (RPM): "
        f"Limit {rpm}, Used {rpm}, Requested 1. "
        f"Please try again in {duration_text(taken.retry_after)}.",
        type="requests",
        code="rate_limit_exceeded",
        headers={
            "retry-after": str(ceil(ms / 1000)),
            "retry-after-ms": str(ms),
            **{name.decode(): value.decode() for name, value in _headers(rpm, taken)},
        },
    )
