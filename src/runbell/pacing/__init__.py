"""When to act next. Pure: functions of elapsed time and of what happened so far."""

from runbell.pacing.backoff import RetryBackoff
from runbell.pacing.bucket import Taken, TokenBucket

__all__ = ["RetryBackoff", "Taken", "TokenBucket"]
