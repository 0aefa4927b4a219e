"""Sample events: what a test of an endpoint sends, of a run that never was."""

from __future__ import annotations

from collections.abc import Callable

from runbell.runs import Change, Event, Run, RunStatus, ToolCall, Usage, apply, event_of, lifecycle

__all__ = ["event"]

METADATA = {"runbell_test": "true"}
"""By this a receiver tells a sample from a real event."""


def event(kind: str, new_id: Callable[[str], str], now_ms: int) -> Event:
    """An event of this type, as a run would have it that was created just now.

    Raises:
        KeyError: there is no such type.
    """
    run = Run(
        id=new_id("run"),
        project_id="",
        thread_id=new_id("thread"),
        assistant_id=new_id("asst"),
        status=RunStatus.QUEUED,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + 600_000,
        updated_at_ms=now_ms,
        metadata=METADATA,
    )
    for change in _way(kind, run, new_id):
        run = apply(run, change, now_ms=now_ms)
    return event_of(run, new_id("evt"))


def _way(kind: str, run: Run, new_id: Callable[[str], str]) -> tuple[Change, ...]:
    """The changes that lead a new run there."""
    started = lifecycle.started()
    call = ToolCall(new_id("call"), "get-weather", '{"city": "Oslo"}')
    wanting = lifecycle.requires_action((call,), Usage(12, 5))
    ways: dict[str, tuple[Change, ...]] = {
        "created": (),
        "queued": (started, wanting, lifecycle.resumed()),
        "in_progress": (started,),
        "requires_action": (started, wanting),
        "completed": (started, lifecycle.completed(Usage(12, 5))),
        "incomplete": (started, lifecycle.incomplete("max_completion_tokens", Usage(12, 256))),
        "failed": (started, lifecycle.failed("server_error", "This is a sample.")),
        "cancelling": (started, Change(RunStatus.CANCELLING)),
        "cancelled": (lifecycle.cancel(run),),
        "expired": (lifecycle.expired(run),),
    }
    return ways[kind.removeprefix("thread.run.")]
