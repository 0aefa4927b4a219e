"""In which order events of one run are handled. Pure: a function of what the inbox knows.

Deliveries overtake each other, and an endpoint may have subscribed to some types alone. So an event
waits for the one in front of it, but never for long, and those that matter most never wait for what
may never come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Verdict", "decide"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What to do with an event that is due.

    Attributes:
        what: `handle` it, mark it as `stale`, or `wait`.
        until_ms: for how long to wait, in milliseconds since the epoch.
    """

    what: Literal["handle", "stale", "wait"]
    until_ms: int = 0


HANDLE, STALE = Verdict("handle"), Verdict("stale")


def decide(
    sequence: int,
    *,
    urgent: bool,
    handled: int,
    ahead_due_ms: int | None,
    gap_until_ms: int,
    now_ms: int,
) -> Verdict:
    """Whether it is the turn of the event with this number.

    Args:
        urgent: it is terminal or `requires_action`: it does not wait for what has not come.
        handled: the highest number of the run that is done with; 0 for none.
        ahead_due_ms: when the event in front of it, which is there and not done with, is tried
            again, or taken from whoever holds it; None where there is none.
        gap_until_ms: how long it waits for one that is not there.
    """
    if sequence <= handled:
        return STALE
    if ahead_due_ms is not None:
        # One that is being handled, or that failed, is not missing: order holds for all.
        return Verdict("wait", max(ahead_due_ms, now_ms + 1))
    if urgent or sequence == handled + 1 or now_ms >= gap_until_ms:
        return HANDLE
    return Verdict("wait", gap_until_ms)
