"""How a run lives: the one table of statuses, and the one function that changes a status.

Start reading here. A run is created `queued`; from then on only `apply` moves it, along a way that
`TRANSITIONS` has. Everything that happens to a run, wherever it comes from (a request, a model's
answer, the clock), is a `Change`; the caller stores what `apply` returns together with the event
that says so, in one transaction.

    queued ──────────► in_progress ──► completed · failed · incomplete
      ▲                  │      │
      │ outputs          │      └────► cancelling ──► cancelled (or what won the race)
      │                  ▼
      └──────── requires_action ─────► cancelled

and from every status that is not terminal to `expired` at `expires_at`. Source of the table: the
Assistants API's "run lifecycle", with two ways of our own: a queued run fails when it can't start
(its model is no longer served), and a cancelled one that never started needs no `cancelling`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from runbell.errors import ErrorCode, TransitionNotAllowed
from runbell.runs.run import NO_USAGE, LastError, Run, RunStatus, ToolCall, Usage

__all__ = [
    "TRANSITIONS",
    "Change",
    "apply",
    "cancel",
    "cancelled",
    "completed",
    "expired",
    "failed",
    "incomplete",
    "requires_action",
    "resumed",
    "started",
    "take_over",
]

_S = RunStatus

TRANSITIONS: dict[RunStatus, frozenset[RunStatus]] = {
    _S.QUEUED: frozenset({_S.IN_PROGRESS, _S.CANCELLED, _S.FAILED, _S.EXPIRED}),
    _S.IN_PROGRESS: frozenset(
        {
            _S.COMPLETED,
            _S.FAILED,
            _S.INCOMPLETE,
            _S.REQUIRES_ACTION,
            _S.CANCELLING,
            _S.EXPIRED,
        }
    ),
    _S.REQUIRES_ACTION: frozenset({_S.QUEUED, _S.CANCELLED, _S.EXPIRED}),
    _S.CANCELLING: frozenset({_S.CANCELLED, _S.COMPLETED, _S.FAILED, _S.INCOMPLETE, _S.EXPIRED}),
    _S.CANCELLED: frozenset(),
    _S.FAILED: frozenset(),
    _S.COMPLETED: frozenset(),
    _S.INCOMPLETE: frozenset(),
    _S.EXPIRED: frozenset(),
}
"""From each status, the statuses that may follow."""

_MAX_REASON = 1_000
"""Characters of `status_reason` and of an error's message: they travel in every event."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is about to happen to a run. Made by the functions below, applied by `apply`."""

    to: RunStatus
    reason: str | None = None
    usage: Usage = NO_USAGE
    tool_calls: tuple[ToolCall, ...] = ()
    last_error: LastError | None = None
    incomplete_reason: str | None = None


def started() -> Change:
    """A worker takes the queued run up."""
    return Change(_S.IN_PROGRESS)


def requires_action(calls: tuple[ToolCall, ...], usage: Usage) -> Change:
    """The model wants these functions called."""
    return Change(_S.REQUIRES_ACTION, tool_calls=calls, usage=usage)


def resumed() -> Change:
    """All tool outputs are in: the run queues for its next turn."""
    return Change(_S.QUEUED)


def completed(usage: Usage) -> Change:
    """The model gave its answer."""
    return Change(_S.COMPLETED, reason="The model gave its answer.", usage=usage)


def failed(code: ErrorCode, message: str, usage: Usage | None = None) -> Change:
    """Something went wrong that trying again inside this run will not mend."""
    return Change(
        _S.FAILED,
        reason=f"The run failed ({code}): {message}",
        last_error=LastError(code, message[:_MAX_REASON]),
        usage=usage or Usage(),
    )


def incomplete(reason: str, usage: Usage) -> Change:
    """The model stopped before its answer was whole (`max_completion_tokens` or the like)."""
    return Change(
        _S.INCOMPLETE,
        reason=f"The answer is not whole: the run reached {reason}.",
        incomplete_reason=reason,
        usage=usage,
    )


def cancel(run: Run) -> Change:
    """Somebody wants the run to end: at once, or as soon as its worker has let go.

    Raises:
        TransitionNotAllowed: the run has ended, or is being cancelled already.
    """
    if run.status is _S.IN_PROGRESS:
        return Change(_S.CANCELLING)
    if run.status in (_S.QUEUED, _S.REQUIRES_ACTION):
        return Change(_S.CANCELLED, reason=f"Cancelled on request while {run.status}.")
    raise TransitionNotAllowed(run.status, _S.CANCELLING)


def cancelled(reason: str, usage: Usage | None = None) -> Change:
    """The worker has let go of a run that was being cancelled."""
    return Change(_S.CANCELLED, reason=reason, usage=usage or Usage())


def expired(run: Run) -> Change:
    """The run's time is over."""
    seconds = (run.expires_at_ms - run.created_at_ms) / 1000
    return Change(
        _S.EXPIRED,
        reason=f"Not finished {seconds:g} s after its creation; it was {run.status}.",
    )


def apply(run: Run, change: Change, *, now_ms: int) -> Run:
    """Move `run` along `change`; this alone changes a status.

    Args:
        now_ms: the wall clock, milliseconds since the epoch. A clock that went back does not put
            a run's stamps out of order.

    Returns:
        The run in its new status, with the next `sequence`: its event is owed.

    Raises:
        TransitionNotAllowed: `TRANSITIONS` has no such way.
    """
    if change.to not in TRANSITIONS[run.status]:
        raise TransitionNotAllowed(run.status, change.to)
    now_ms = max(now_ms, run.updated_at_ms)
    fields: dict[str, Any] = {
        "status": change.to,
        "sequence": run.sequence + 1,
        "updated_at_ms": now_ms,
        "tool_calls": change.tool_calls,
        "usage": run.usage + change.usage,
        "takeovers": 0,
    }
    stamp = _STAMPS.get(change.to)
    if stamp is not None and getattr(run, stamp) is None:
        fields[stamp] = now_ms
    if change.to is _S.IN_PROGRESS:
        fields["attempt"] = run.attempt + 1
    if change.to.is_terminal:
        fields["status_reason"] = (change.reason or str(change.to))[:_MAX_REASON]
        fields["last_error"] = change.last_error
        fields["incomplete_reason"] = change.incomplete_reason
        fields["waits_turn"] = False
    return replace(run, **fields)


def take_over(run: Run) -> Run:
    """Give a run whose worker was lost to another one: a new attempt, not a new status.

    Raises:
        TransitionNotAllowed: the run is not in progress.
    """
    if run.status is not _S.IN_PROGRESS:
        raise TransitionNotAllowed(run.status, _S.IN_PROGRESS)
    return replace(run, attempt=run.attempt + 1, takeovers=run.takeovers + 1)


_STAMPS = {
    _S.IN_PROGRESS: "started_at_ms",
    _S.CANCELLING: "cancelling_at_ms",
    _S.CANCELLED: "cancelled_at_ms",
    _S.FAILED: "failed_at_ms",
    _S.COMPLETED: "completed_at_ms",
    _S.INCOMPLETE: "incomplete_at_ms",
    _S.EXPIRED: "expired_at_ms",
}
