"""How a wait ends: what each ending raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from runbell.errors import (
    ActionRequired,
    RunCancelled,
    RunError,
    RunExpired,
    RunFailed,
    RunIncomplete,
    WaitTimeout,
)
from runbell.runs import ToolCall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from runbell.client.providers import Provider
    from runbell.client.view import View

__all__ = ["action_required", "error_of", "raise_for_status", "timed_out"]

T = TypeVar("T")

ERRORS: dict[str, type[RunError]] = {
    "failed": RunFailed,
    "cancelled": RunCancelled,
    "expired": RunExpired,
    "incomplete": RunIncomplete,
}
RETRYABLE_CODES = frozenset({"server_error", "rate_limit_exceeded"})


def raise_for_status(run: T, *, providers: Sequence[Provider[Any]] = ()) -> T:
    """Give a completed run back; raise for any other, also for one that has not ended.

    Args:
        providers: adapters of one's own, as for a waiter.

    Raises:
        RunFailed, RunCancelled, RunExpired, RunIncomplete: that is how it ended.
        ActionRequired: it waits for tool outputs.
        RunError: it is in another status: it goes on, or ended in a way that is not known here.
    """
    from runbell.client.providers import provider_of

    view = provider_of(run, providers).view(run)
    if view.stage == "completed":
        return run
    if view.stage == "wants":
        raise action_required(run, view, view.calls)
    raise error_of(run, view)


def error_of(run: Any, view: View) -> RunError:
    """The error for a run that did not complete."""
    sentence = f"{view.name} is {view.status}"
    if view.stage == "pending":
        sentence += " and has not ended"
    if view.code or view.message:
        sentence += f" ({view.code}): " if view.code else ": "
        sentence += view.message or "no more was said"
    return ERRORS.get(view.status, RunError)(
        sentence,
        **_about(run, view),
        code=view.code,
        message=view.message,
        retryable=view.status == "expired" or view.code in RETRYABLE_CODES,
    )


def action_required(run: Any, view: View, missing: tuple[ToolCall, ...]) -> ActionRequired:
    """The error for calls that nobody here can answer."""
    names = ", ".join(f"{call.name} ({call.id})" for call in missing)
    return ActionRequired(
        f"{view.name} waits for the outputs of {names}: pass functions of these names as tools=…, "
        "or submit the outputs and wait again",
        calls=missing,
        **_about(run, view),
    )


def timed_out(
    run: Any, view: View, waited: float, polls: int, why: str, cancelled: bool = False
) -> WaitTimeout:
    """The error for a run that has not ended yet; `cancelled`: the server took a cancel for it."""
    outlook = "its cancel was asked for" if cancelled else "it goes on: wait for it again to resume"
    if not polls and not cancelled:  # nobody can say that
        outlook = "wait for it again to resume"
    looks = "1 look" if polls == 1 else f"{polls} looks"
    return WaitTimeout(
        f"{view.name} was {view.status} when {why} after {waited:.1f} s and {looks}; {outlook}",
        polls=polls,
        waited=waited,
        retryable=True,
        **_about(run, view),
    )


def _about(run: Any, view: View) -> dict[str, Any]:
    return {
        "run": run,
        "run_id": view.id,
        "thread_id": view.thread_id,
        "status": view.status,
    }
