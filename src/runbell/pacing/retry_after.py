"""How long a server asks to be left alone: the header Retry-After."""

from __future__ import annotations

import math
from email.utils import parsedate_to_datetime

__all__ = ["wait_seconds"]

LONGEST_VALUE = 64
"""Characters of the header that are looked at: a number, or a date of 29."""


def wait_seconds(value: str | None, now_ms: int) -> float | None:
    """Seconds that a value of Retry-After asks for; None where it asks for nothing sensible.

    A number of seconds, or a date (RFC 9110, 10.2.3). A date that has passed is 0; a negative
    number is nothing. There is no upper limit here: whoever waits knows what is too long.

    Args:
        now_ms: the wall clock, for a date.
    """
    text = (value or "").strip()
    if not text or len(text) > LONGEST_VALUE:
        return None
    try:
        seconds = float(text)
    except ValueError:
        return _until(text, now_ms)
    return seconds if 0 <= seconds < math.inf else None


def _until(date: str, now_ms: int) -> float | None:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now_ms / 1000)
    except (ValueError, TypeError, OverflowError):
        return None
