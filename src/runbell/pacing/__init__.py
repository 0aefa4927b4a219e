"""When to act next. Pure: functions of elapsed time and of what happened so far."""

from runbell.pacing.backoff import RetryBackoff
from runbell.pacing.bucket import Taken, TokenBucket
from runbell.pacing.deliveries import Meter, Pace, RetrySchedule, SlowDown, is_given_up
from runbell.pacing.fleet import WorthPacer
from runbell.pacing.foresight import Foresight
from runbell.pacing.pacer import FairPacer, Pacer
from runbell.pacing.policies import (
    Advised,
    Backoff,
    Backstop,
    Fixed,
    Jittered,
    Policy,
    PolicySource,
    SqrtElapsed,
)
from runbell.pacing.retry_after import wait_seconds

__all__ = [
    "Advised",
    "Backoff",
    "Backstop",
    "FairPacer",
    "Fixed",
    "Foresight",
    "Jittered",
    "Meter",
    "Pace",
    "Pacer",
    "Policy",
    "PolicySource",
    "RetryBackoff",
    "RetrySchedule",
    "SlowDown",
    "SqrtElapsed",
    "Taken",
    "TokenBucket",
    "WorthPacer",
    "is_given_up",
    "wait_seconds",
]
