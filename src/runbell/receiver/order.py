"""In which order events of one run are handled. Pure: a function of what the inbox knows.

Deliveries overtake each other, and an endpoint may have subscribed to some types alone. So an event
waits for the one in front of it, but never for long, and those that matter most never wait for what
may never come, nor behind one that waits for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["HANDLE", "Around", "Verdict", "decide"]


@dataclass(frozen=True, slots=True)
class Around:
    """What the inbox knows of a run, around one of its events.

    Attributes:
        handled: the highest number of the run that is done with; 0 for none.
        ahead_due_ms: when the event in front of it, which is there and not done with, is tried
            again, or taken from whoever holds it; None where there is none.
        held_until_ms: until when somebody holds an event behind it; None where nobody does.
        is_overtaken: an event behind it has been handed to a handler, and is not done with.
        is_hurried: an event behind it is one that somebody waits for.
    """

    handled: int = 0
    ahead_due_ms: int | None = None
    held_until_ms: int | None = None
    is_overtaken: bool = False
    is_hurried: bool = False


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
    around: Around,
    *,
    urgent: bool,
    forced: bool,
    gap_until_ms: int,
    now_ms: int,
) -> Verdict:
    """Whether it is the turn of the event with this number.

    Args:
        urgent: it is terminal or `requires_action`: it does not wait for what has not come.
        forced: somebody asked for it by hand: it is no less news for what came after it.
        gap_until_ms: how long it waits for one that is not there.
    """
    if not forced and (sequence <= around.handled or around.is_overtaken):
        return STALE
    if around.ahead_due_ms is not None:
        # One that is being handled, or that failed, is not missing: order holds for all.
        return Verdict("wait", max(around.ahead_due_ms, now_ms + 1))
    if forced:
        held_ms = around.held_until_ms
        return HANDLE if held_ms is None else Verdict("wait", max(held_ms, now_ms + 1))
    in_turn = urgent or sequence == around.handled + 1 or around.is_hurried
    return HANDLE if in_turn or now_ms >= gap_until_ms else Verdict("wait", gap_until_ms)
