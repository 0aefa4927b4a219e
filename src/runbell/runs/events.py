"""What is an event: one status change of one run, as the same bytes for everybody.

The bytes are made once, in the transaction of the change. The feed's item, a webhook's body and
an inbox's row are these bytes; nobody encodes an event again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from runbell.runs.run import Run

__all__ = [
    "EVENT_TYPES",
    "MAX_EVENT_BYTES",
    "Event",
    "RunEvent",
    "RunEventData",
    "event_of",
    "event_type",
]

MAX_EVENT_BYTES = 20_000
"""Standard Webhooks asks for payloads under 20 kB; a larger event leaves its large parts out."""

EVENT_TYPES = (
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.requires_action",
    "thread.run.completed",
    "thread.run.incomplete",
    "thread.run.failed",
    "thread.run.cancelling",
    "thread.run.cancelled",
    "thread.run.expired",
)
"""Every type of event, in the order of a run's life."""

STAMPS = (
    "created_at",
    "expires_at",
    "started_at",
    "cancelling_at",
    "cancelled_at",
    "failed_at",
    "completed_at",
    "incomplete_at",
    "expired_at",
    "updated_at",
)
"""The stamps of a run: each stands in an event in seconds and, with `_ms`, in milliseconds."""


class RunEventData(TypedDict):
    """A run, as it was right after the change. `docs/events.md` says what each field means."""

    id: str
    object: Literal["thread.run"]
    thread_id: str
    assistant_id: str
    status: str
    sequence: int
    required_action: NotRequired[dict[str, Any] | None]
    last_error: dict[str, str] | None
    incomplete_details: dict[str, str] | None
    status_reason: str | None
    usage: dict[str, int] | None
    metadata: NotRequired[dict[str, str]]
    truncated: NotRequired[Literal[True]]
    created_at: int
    created_at_ms: int
    expires_at: int
    expires_at_ms: int
    started_at: int | None
    started_at_ms: int | None
    cancelling_at: int | None
    cancelling_at_ms: int | None
    cancelled_at: int | None
    cancelled_at_ms: int | None
    failed_at: int | None
    failed_at_ms: int | None
    completed_at: int | None
    completed_at_ms: int | None
    incomplete_at: int | None
    incomplete_at_ms: int | None
    expired_at: int | None
    expired_at_ms: int | None
    updated_at: int
    updated_at_ms: int


class RunEvent(TypedDict):
    """An event, as it is in the feed: what its bytes decode to."""

    object: Literal["event"]
    id: str
    type: str
    created_at: int
    data: RunEventData


_LARGE_PARTS = ("required_action", "metadata")
"""What an event leaves out when it is too large, one after the other."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. `body` is what everybody sees; the rest says where it belongs."""

    id: str
    project_id: str
    run_id: str
    sequence: int
    type: str
    created_at_ms: int
    body: bytes


def event_type(run: Run) -> str:
    """The type of the event for the run's latest transition; its creation is a type of its own."""
    return "thread.run.created" if run.sequence == 1 else f"thread.run.{run.status}"


def event_of(run: Run, event_id: str) -> Event:
    """The event for the run's latest transition."""
    kind = event_type(run)
    data = _data(run)
    body = _encode(event_id, kind, run, data)
    for part in _LARGE_PARTS:
        if len(body) <= MAX_EVENT_BYTES:
            break
        data.pop(part)
        data["truncated"] = True
        body = _encode(event_id, kind, run, data)
    return Event(
        id=event_id,
        project_id=run.project_id,
        run_id=run.id,
        sequence=run.sequence,
        type=kind,
        created_at_ms=run.updated_at_ms,
        body=body,
    )


def _data(run: Run) -> dict[str, Any]:
    data: dict[str, Any] = {
        "id": run.id,
        "object": "thread.run",
        "thread_id": run.thread_id,
        "assistant_id": run.assistant_id,
        "status": run.status,
        "sequence": run.sequence,
        "required_action": _required_action(run),
        "last_error": run.last_error
        and {"code": run.last_error.code, "message": run.last_error.message},
        "incomplete_details": run.incomplete_reason and {"reason": run.incomplete_reason},
        "status_reason": run.status_reason,
        "usage": _usage(run),
        "metadata": run.metadata,
    }
    for stamp in STAMPS:
        at_ms: int | None = getattr(run, f"{stamp}_ms")
        data[stamp] = None if at_ms is None else at_ms // 1000
        data[f"{stamp}_ms"] = at_ms
    return data


def _required_action(run: Run) -> dict[str, Any] | None:
    if not run.tool_calls:
        return None
    return {
        "type": "submit_tool_outputs",
        "submit_tool_outputs": {
            "tool_calls": [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in run.tool_calls
            ]
        },
    }


def _usage(run: Run) -> dict[str, int] | None:
    if not run.status.is_terminal:
        return None
    return {
        "prompt_tokens": run.usage.prompt_tokens,
        "completion_tokens": run.usage.completion_tokens,
        "total_tokens": run.usage.total_tokens,
    }


def _encode(event_id: str, kind: str, run: Run, data: dict[str, Any]) -> bytes:
    event = {
        "object": "event",
        "id": event_id,
        "type": kind,
        "created_at": run.updated_at_ms // 1000,
        "data": data,
    }
    return _json(event).encode()


_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
