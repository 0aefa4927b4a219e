"""What a server says about its limit of requests, in the headers of whatever it answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["Quota", "quota_in", "quota_of"]

_SPAN = re.compile(
    r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)(ms|s)?)?"
)
"""A span of time as OpenAI writes it, `6m0s`, `8.64s` or `120ms`, or in seconds without a unit."""


class Quota(NamedTuple):
    """What a server says about its limit of requests for this key.

    Attributes:
        remaining, limit: `x-ratelimit-remaining-requests`, `-limit-requests`.
        reset: the seconds of `x-ratelimit-reset-requests`, until all of it is there again; None
            where it does not say.
    """

    remaining: float
    limit: float
    reset: float | None = None


def quota_in(headers: Mapping[str, str]) -> Quota | None:
    """What headers say about the server's limit of requests; None where they do not."""
    try:
        remaining, limit = (
            float(headers[f"x-ratelimit-{name}-requests"]) for name in ("remaining", "limit")
        )
    except (KeyError, ValueError):
        return None
    return Quota(remaining, limit, _span(headers.get("x-ratelimit-reset-requests")))


def quota_of(error: BaseException) -> Quota | None:
    """The same of the answer that an error came from."""
    headers: Mapping[str, str] | None = getattr(getattr(error, "response", None), "headers", None)
    return None if headers is None else quota_in(headers)


def _span(text: str | None) -> float | None:
    """Seconds; None for what is no span of time."""
    found = _SPAN.fullmatch(text.strip()) if text else None
    if found is None or not any(found.groups()):
        return None
    days, hours, minutes, rest, unit = found.groups()
    seconds = float(rest or 0) * (0.001 if unit == "ms" else 1.0)
    return seconds + 60.0 * int(minutes or 0) + 3600.0 * int(hours or 0) + 86_400.0 * int(days or 0)
