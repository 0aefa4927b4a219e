"""How many calls may be made: what was agreed, and what the server says that it allows."""

from __future__ import annotations

import math
from collections import deque

from runbell.pacing.bucket import TokenBucket

__all__ = ["Allowance"]

_MARGIN, _LEAST_MARGIN = 0.02, 2.0
"""Of the server's limit, and in calls, what is left to other processes."""

_WINDOW = 1.05
"""A limit that comes back this many times faster than evenly within a minute does not come back
evenly: all of it is there again at the reset, and nothing before that."""

_SOON = 1.0
"""Seconds before a reset at which it may have come already: some are told in whole seconds."""

_MINUTE = 60.0
_REMEMBERED = 10_000
"""Grants of the last minute that are kept. Who makes more has no use for a limit a minute."""

_CUT, _GROWTH, _LEAST = 0.7, 1.01, 30.0
"""After a refusal by a server that does not tell its limit, this share of what it took within a
minute is granted, but so many calls a minute at least; and this many times more after each call
that it does not refuse."""

_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
"""Seconds without calls after a refusal that does not say how long; each further one in a row
doubles them."""


class Allowance:
    """What may be spent, and when. Moments are monotonic seconds.

    Calls come evenly, with a second's worth of credit. What the server has left, and what others
    take of it, is seen in its answers; so is a limit that is lower than what was agreed. A server
    that tells nothing is found out about by what it refuses.

    Args:
        calls_per_minute: calls that are granted within any 60 seconds; None for any number.

    Raises:
        ValueError: the budget is below one call a minute.
    """

    def __init__(self, calls_per_minute: float | None = None) -> None:
        if calls_per_minute is not None and not calls_per_minute >= 1:
            raise ValueError("calls_per_minute has to be at least 1")
        self._bucket = None if calls_per_minute is None else _even(calls_per_minute)
        self._full_at = self._not_before = -math.inf
        self._spent: deque[float] = deque(maxlen=_REMEMBERED)
        self._left: float | None = None
        self._limit = math.inf
        self._left_at = self._heard_of = -math.inf
        self._rate = 0.0
        self._reset_at = -math.inf
        self._remaining = 0.0
        self._window = False
        self._guess: TokenBucket | None = None
        self._guess_full_at = -math.inf
        self._guessed = math.inf
        self._cut_at = -math.inf
        self._refusals = 0

    @property
    def is_scarce(self) -> bool:
        """Whether there is any limit to heed."""
        return not (self._bucket is None and self._left is None and self._guess is None)

    def pause(self, until: float) -> None:
        """Grant nothing before `until`: the server has said so."""
        self._not_before = max(self._not_before, until)

    def next_at(self) -> float:
        """The moment from which a call may be made; minus infinity for at once."""
        at = self._not_before
        for bucket, full_at in ((self._bucket, self._full_at), (self._guess, self._guess_full_at)):
            if bucket is not None:
                at = max(at, full_at - (bucket.capacity - 1) * bucket.interval)
        if self._left is not None and self._left < 1:
            if self._rate:
                at = max(at, self._left_at + (1 - self._left) / self._rate)
            else:
                at = max(at, self._reset_at)
        return at

    def spend(self, now: float) -> None:
        """A call is made now."""
        if self._bucket is not None:
            self._full_at = self._bucket.take(self._full_at, now).full_at
        if self._guess is not None:
            self._guess_full_at = self._guess.take(self._guess_full_at, now).full_at
        if self._left is not None:
            self._come_back(now)
            self._left -= 1
        self._spent.append(now)

    def saw_remaining(
        self,
        remaining: float,
        limit: float,
        now: float,
        *,
        sent: float | None = None,
        reset: float | None = None,
    ) -> None:
        """Take note of what an answer says about the server's limit.

        Args:
            remaining: `x-ratelimit-remaining-requests`.
            limit: `x-ratelimit-limit-requests`.
            sent: when the request was; what was granted since may not be counted yet.
            reset: the seconds of `x-ratelimit-reset-requests`, until all of it is there again;
                None where the answer does not say.
        """
        sent = now if sent is None else sent
        if not (0 <= remaining <= limit < math.inf) or limit <= 0 or sent < self._heard_of:
            return
        margin = min(max(_LEAST_MARGIN, _MARGIN * limit), limit / 4)
        self._heard_of, self._limit = sent, limit - margin
        since = 0
        for moment in reversed(self._spent):
            if moment <= sent:
                break
            since += 1
        if remaining > self._remaining and now < self._reset_at - _SOON:
            self._window = False  # some of it came back meanwhile
        self._left, self._left_at, self._remaining = remaining - margin, sent, remaining
        self._rate, self._reset_at = limit / _MINUTE, now
        if reset is not None and 0 < reset < math.inf:
            self._reset_at = now + reset
            if 2 * remaining <= limit:
                even = (limit - remaining) / reset
                # A bucket fills up evenly, perhaps in a day instead of a minute.
                self._rate = min(self._rate, even) if even < _WINDOW * self._rate else 0.0
            if self._window:
                self._rate = 0.0
        self._come_back(now)
        self._left -= since

    def answered(self) -> None:
        """A call was not refused."""
        self._refusals = 0
        if self._guess is not None:
            self._guessed *= _GROWTH
            self._guess = _even(self._guessed)

    def refused(self, now: float, sent: float, told: bool) -> None:
        """A call that was sent at `sent` was refused (429).

        Args:
            told: the answer said when to come again, or what the limit is.
        """
        if sent <= self._cut_at:
            return  # it was on its way when that was known already
        self._cut_at = now
        if self._left is not None and now < self._reset_at:
            # Less came back than was believed: nothing does until the reset.
            self._window, self._rate, self._left = True, 0.0, min(self._left, 0.0)
        if told:
            return
        self._not_before = max(
            self._not_before, now + min(_PAUSE * 2.0**self._refusals, _LONGEST_PAUSE)
        )
        self._refusals = min(self._refusals + 1, 10)
        within = sum(moment > now - _MINUTE for moment in self._spent)
        self._guessed = max(_CUT * min(within, self._guessed), _LEAST)
        self._guess, self._guess_full_at = _even(self._guessed), now

    def _come_back(self, now: float) -> None:
        """Count what came back of the server's limit since it was last counted."""
        assert self._left is not None
        if now >= self._reset_at > self._left_at and not self._rate:
            self._left, self._rate = self._limit, self._limit / _MINUTE
        else:
            back = max(now - self._left_at, 0.0) * self._rate
            self._left = max(self._left, min(self._left + back, self._limit))
        self._left_at = max(now, self._left_at)


def _even(calls_per_minute: float) -> TokenBucket:
    """A bucket that grants at most this many within 60 seconds, and a second's worth at once.

    One of capacity c and interval i grants up to c - 1 + 60/i of them.
    """
    burst = max(1, int(calls_per_minute // _MINUTE))
    return TokenBucket(burst, _MINUTE / (calls_per_minute - (burst - 1)))
