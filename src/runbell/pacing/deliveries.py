"""When to deliver a webhook again, how fast to go on, and when to give an endpoint up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

__all__ = ["DISABLE_AFTER_MS", "GONE", "Meter", "Pace", "RetrySchedule", "SlowDown", "is_given_up"]

SECOND, MINUTE, HOUR = 1.0, 60.0, 3600.0

GONE: Final = 410
"""The status with which a receiver says that its endpoint is not there any more."""

DISABLE_AFTER_MS: Final = 5 * 24 * 3_600_000
"""For how long an endpoint may fail, without one success, until it is disabled; as at Svix."""


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """When each attempt of a delivery is made, after the one before it has failed.

    Standard Webhooks 1.0.0 ("Retry schedule") suggests such a list, with jitter. Durations are
    seconds.

    Attributes:
        delays: before the first attempt, the second, and so on; there are no more than these.
        jitter: the share by which each delay is made longer or shorter, drawn evenly.
        patience: from the moment the delivery was owed; there is no attempt later than that.
        longest_wait: what a Retry-After can ask for at the most.
    """

    delays: tuple[float, ...] = (
        0.0,
        5 * SECOND,
        1 * MINUTE,
        5 * MINUTE,
        30 * MINUTE,
        2 * HOUR,
        5 * HOUR,
        10 * HOUR,
        14 * HOUR,
        20 * HOUR,
        20 * HOUR,
    )
    jitter: float = 0.1
    patience: float = 72 * HOUR
    longest_wait: float = 6 * HOUR

    def next_attempt(
        self,
        attempts_made: int,
        first_owed_ms: int,
        now_ms: int,
        rng: random.Random,
        retry_after: float | None = None,
    ) -> int | None:
        """The moment of the next attempt, in milliseconds since the epoch; None to give up.

        A delay that would end after the patience does is cut short, so that the last attempt is
        made, and a receiver that comes back in time has its event.

        Args:
            attempts_made: since `first_owed_ms`; 0 asks for the first one.
            first_owed_ms: when the delivery was owed, or was asked for again.
            retry_after: seconds that the receiver wants to be left alone. It makes a delay longer,
                never shorter, and no longer than `longest_wait`.
        """
        end_ms = first_owed_ms + round(self.patience * 1000)
        if attempts_made >= len(self.delays) or (attempts_made and now_ms >= end_ms):
            return None
        delay = self.delays[attempts_made] * (1 + self.jitter * (2 * rng.random() - 1))
        if retry_after is not None:
            # Later only: whoever comes before its time is sent away again.
            wanted = min(max(retry_after, 0.0), self.longest_wait)
            delay = max(delay, wanted * (1 + self.jitter * rng.random()))
        return min(now_ms + round(delay * 1000), max(end_ms, now_ms))


class Meter:
    """How many attempts a second an endpoint was sent of late: those of the last second, as far as
    two counts know, of this full second and of the one before."""

    __slots__ = ("_before", "_count", "_second")

    def __init__(self) -> None:
        self._second = 0
        self._count = self._before = 0

    def began(self, now: float) -> None:
        """An attempt has begun, at a moment of a clock that never goes back."""
        self._turn_to(now)
        self._count += 1

    def per_second(self, now: float) -> float:
        """The rate; 1 at least, as whoever asks has an answer in hand."""
        self._turn_to(now)
        return max(1.0, self._count + self._before * (1.0 - now % 1.0))

    def _turn_to(self, now: float) -> None:
        second = int(now)
        if second != self._second:
            self._before = self._count if second == self._second + 1 else 0
            self._second, self._count = second, 0


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one endpoint is sent to, as far as its own answers decide.

    Attributes:
        per_second: attempts a second; None for as many as its limit allows.
        since: when that was decided, in seconds of a clock that never goes back.
        before: the rate that was too much for it, from which it was slowed down.
    """

    per_second: float | None = None
    since: float = 0.0
    before: float = 0.0

    @property
    def interval(self) -> float:
        """Seconds from one attempt to the next; 0 where nothing slows it down."""
        return 1.0 / self.per_second if self.per_second else 0.0


@dataclass(frozen=True, slots=True)
class SlowDown:
    """The rule by which an endpoint that is overloaded is sent to more slowly, and then faster.

    As in congestion control: the rate that it had is cut when the endpoint says that it is too
    much, and grows while it is content, until it is what it was. It changes once in `settle`
    seconds at the most, since answers that are under way all tell of the same overload. Rates are
    attempts a second.

    Attributes:
        statuses: the answers that say so: too many requests, and those of an overloaded proxy.
        floor: the slowest that it gets.
        cut: by what the rate is multiplied then.
        growth: by what it is multiplied when an attempt succeeds.
        settle: seconds.
        longest_hold: seconds for which a Retry-After stops everything that goes to an endpoint, at
            the most. Shorter than what it asks of one delivery, since a mistake in one answer would
            keep every event back.
    """

    statuses: frozenset[int] = frozenset({429, 502, 503, 504})
    floor: float = 0.1
    cut: float = 0.5
    growth: float = 1.25
    settle: float = 1.0
    longest_hold: float = HOUR

    def after(self, pace: Pace, status: int | None, now: float, observed: float) -> Pace:
        """The pace after an attempt.

        Args:
            status: of the answer; None where there was none, which says nothing of the load.
            now: the moment, in seconds of the clock that `pace.since` is read from.
            observed: the rate that the endpoint was sent to of late.
        """
        overloaded = status in self.statuses
        content = status is not None and 200 <= status < 300
        if pace.per_second is None:
            if not overloaded:
                return pace
            return Pace(max(self.floor, observed * self.cut), now, observed)
        if not (overloaded or content) or now - pace.since < self.settle:
            return pace
        if overloaded:
            slower = min(pace.per_second, observed) * self.cut
            return Pace(max(self.floor, slower), now, pace.before)
        faster = pace.per_second * self.growth
        return Pace(None, now) if faster >= pace.before else Pace(faster, now, pace.before)

    def hold(self, status: int | None, retry_after: float | None) -> float:
        """For how many seconds nothing is sent to an endpoint, after such an answer."""
        if status not in self.statuses or retry_after is None:
            return 0.0
        return min(max(retry_after, 0.0), self.longest_hold)


def is_given_up(failing_since_ms: int | None, now_ms: int) -> bool:
    """Whether an endpoint is to be disabled.

    Args:
        failing_since_ms: its first failure since its last success; None where there is none.
        now_ms: the moment of the latest failure.
    """
    return failing_since_ms is not None and now_ms - failing_since_ms >= DISABLE_AFTER_MS
