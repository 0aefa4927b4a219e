"""When to act next. Pure: functions of elapsed time and of what happened so far."""

from runbell.pacing.backoff import RetryBackoff

__all__ = ["RetryBackoff"]
