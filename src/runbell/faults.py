"""Named places where a process can die: they do nothing unless a test arms one.

A point stands at each commit and at each step after which the process owes work to somebody. The
crash tests kill a real process at every one of them (`runbell.testing.faults` arms them), restart
it, and look for what was lost or doubled.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["POINTS", "arm", "disarm", "hit"]

POINTS: dict[str, str] = {
    "storage.group.begun": "units of work were collected, none has been executed",
    "storage.group.executed": "every unit of a group has been executed, nothing is committed",
    "storage.group.committed": "the group is committed, no caller knows it yet",
    "operations.committed": "a change is committed, the request has not been answered",
    "executor.claimed": "a run is in progress, its model has not been called",
    "executor.answered": "the model has answered, nothing of it is stored",
    "executor.settled": "the outcome of a turn is committed, the job is not yet done",
    "executor.cancelling": "a model call was stopped, the run is not yet cancelled",
    "delivery.signed": "an attempt of a delivery is signed, nothing is sent",
    "delivery.posted": "an endpoint has answered, nothing of it is stored",
    "delivery.recorded": "what came of attempts is committed, nobody knows it yet",
    "receiver.verified": "a webhook is its sender's, nothing of it is stored",
    "receiver.committed": "an event is stored, its sender has no answer",
    "receiver.claimed": "events are claimed, no handler has been called",
    "receiver.handling": "a handler is about to be called",
    "receiver.handled": "the handlers of an event have returned, nothing says so",
    "receiver.finished": "an event is marked as handled",
    "jobs.woken": "jobs are due, none has been handed to its handler",
}
"""Every fault point and what is true there."""

_armed: Callable[[str], None] | None = None


def hit(point: str) -> None:
    """Say that execution is at `point`; costs one comparison when nothing is armed."""
    if _armed is not None:
        _armed(point)


def arm(action: Callable[[str], None]) -> None:
    """Call `action` with the name of every point that is reached from now on."""
    global _armed
    _armed = action


def disarm() -> None:
    """Make every point do nothing again."""
    global _armed
    _armed = None
