"""When to act next. Pure: functions of elapsed time and of what happened so far."""

from runbell.pacing.backoff import RetryBackoff
from runbell.pacing.bucket import Taken, TokenBucket
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

__all__ = [
    "Advised",
    "Backoff",
    "Backstop",
    "FairPacer",
    "Fixed",
    "Jittered",
    "Pacer",
    "Policy",
    "PolicySource",
    "RetryBackoff",
    "SqrtElapsed",
    "Taken",
    "TokenBucket",
]
