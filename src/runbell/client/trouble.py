"""What an error says: whether trying again can help, and when. Pure: no error is raised here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

from runbell.errors import BadAnswer

__all__ = [
    "copy_of",
    "date_seconds",
    "header",
    "is_not_accepting",
    "is_stale_submission",
    "is_transient",
    "may_have_worked",
    "retry_after",
    "status_of",
]

TRANSIENT_STATUSES = frozenset({408, 425, 429})
"""4xx statuses after which the same request may succeed; every 5xx is another."""

LONGEST_RETRY_AFTER = 86_400.0

NOT_WANTED = re.compile(r"do not accept tool outputs|Expected tool outputs for call_ids")


def status_of(error: BaseException) -> int | None:
    """The HTTP status of an SDK's error, None where there was no answer."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later.

    `APIConnectionError` of the SDK, and its `APITimeoutError`, have no status: nobody answered.
    """
    if isinstance(error, BadAnswer | TimeoutError | ConnectionError):
        return True
    status = status_of(error)
    if status is None:
        from openai import APIConnectionError

        return isinstance(error, APIConnectionError)
    if status == 409:  # as the SDK does it: a conflict passes, unless the server says otherwise
        return header(error, "x-should-retry") != "false"
    return status >= 500 or status in TRANSIENT_STATUSES


def may_have_worked(error: BaseException) -> bool:
    """Whether a request that failed may have had its effect: its answer was lost, or is not the
    server's own."""
    status = status_of(error)
    return status is None or status == 408 or status >= 500


def retry_after(error: BaseException, now: float) -> float | None:
    """The seconds that the server wants to be left alone for; None where it does not say.

    `retry-after-ms`, else `Retry-After` (RFC 9110, section 10.2.3), in seconds or as a date.

    Args:
        now: seconds since the epoch.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        text = header(error, name)
        if text is None:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            at = date_seconds(text)
            if at is None:
                continue
            seconds = at - now
        if seconds == seconds and seconds > 0:  # a number, and not in the past
            return min(seconds, LONGEST_RETRY_AFTER)
    return None


def copy_of(error: Exception) -> Exception:
    """The same error for somebody else, with notes and a traceback of its own."""
    try:
        found = type(error).__new__(type(error), *error.args)
    except TypeError:
        return error
    found.args = error.args
    found.__dict__.update(error.__dict__)
    if notes := getattr(error, "__notes__", None):
        found.__notes__ = list(notes)
    found.__cause__, found.__context__ = error.__cause__, error.__context__
    return found.with_traceback(error.__traceback__)


def is_stale_submission(error: BaseException) -> bool:
    """A 400 that says that the run does not want these outputs any more: look again."""
    return status_of(error) == 400 and NOT_WANTED.search(str(error)) is not None


def is_not_accepting(error: BaseException) -> bool:
    """A 400 that says that the run waits for no outputs at all."""
    return status_of(error) == 400 and "do not accept tool outputs" in str(error)


def header(error: BaseException, name: str) -> str | None:
    """A header of the answer that an error came from."""
    headers: Mapping[str, str] | None = getattr(getattr(error, "response", None), "headers", None)
    return None if headers is None else headers.get(name)


def date_seconds(text: str | None) -> float | None:
    """An HTTP date in seconds since the epoch; None where it is none."""
    try:
        return None if text is None else parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
