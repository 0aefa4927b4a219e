"""What is a run: its statuses, the table of its transitions, its events. Pure: no I/O, no clock."""

from runbell.runs.events import (
    EVENT_TYPES,
    MAX_EVENT_BYTES,
    Event,
    RunEvent,
    RunEventData,
    event_of,
    event_type,
)
from runbell.runs.lifecycle import TRANSITIONS, Change, apply, take_over
from runbell.runs.run import LastError, Run, RunStatus, ToolCall, Usage
from runbell.runs.source import Deliver, EventSource

__all__ = [
    "EVENT_TYPES",
    "MAX_EVENT_BYTES",
    "TRANSITIONS",
    "Change",
    "Deliver",
    "Event",
    "EventSource",
    "LastError",
    "Run",
    "RunEvent",
    "RunEventData",
    "RunStatus",
    "ToolCall",
    "Usage",
    "apply",
    "event_of",
    "event_type",
    "take_over",
]
