"""When to act next. Pure: functions of elapsed time and of what happened so far."""

from runbell.pacing.backoff import RetryBackoff
from runbell.pacing.bucket import Taken, TokenBucket
from runbell.pacing.deliveries import Pace, RetrySchedule, SlowDown, is_given_up
from runbell.pacing.retry_after import wait_seconds

__all__ = [
    "Pace",
    "RetryBackoff",
    "RetrySchedule",
    "SlowDown",
    "Taken",
    "TokenBucket",
    "is_given_up",
    "wait_seconds",
]
