"""What came: an event as handlers get it, and how its bytes are read. Pure; never raises on junk.

A body was signed by somebody who has the secret, which makes it no less strange: what can't be
read is said to be so, and kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import msgspec

from runbell.runs import RunStatus, ToolCall

__all__ = ["Envelope", "ReceivedEvent", "ReceivedRunEvent", "Unreadable", "event_of", "read"]

RUN_TYPES: Final = "thread.run."
"""What the types of a run's events begin with; `thread.run.step.…` are not among them."""

LONGEST_NAME: Final = 256
"""Characters of a type or an id; longer ones are nobody's."""

LARGEST_SEQUENCE: Final = 2**53


class Unreadable(Exception):
    """The bytes are no event; the message says why, without showing them."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What the inbox has to know of an event.

    Attributes:
        subject: the id of what it is about: a run, a response, a batch; None where it does not say.
        sequence: its number within its run; None for events that have no order.
        urgent: whoever waits for the run has to look now: it ended, or it wants tool outputs.
    """

    type: str
    subject: str | None
    sequence: int | None
    urgent: bool


@dataclass(frozen=True)
class ReceivedEvent:
    """An event, as a handler gets it.

    Attributes:
        id: the same in every delivery of it: go by it, or by `receiver.once`, for side effects.
        type: such as `response.completed`.
        body: the exact bytes.
        received_at_ms: when it was stored here, in milliseconds since the epoch.
        attempt: 1 the first time that it is handled.
    """

    id: str
    type: str
    body: bytes
    received_at_ms: int
    attempt: int = 1

    @cached_property
    def json(self) -> dict[str, Any]:
        """The whole body, decoded."""
        return dict(_decoder.decode(self.body))

    @property
    def data(self) -> dict[str, Any]:
        """What it is about; empty where it does not say."""
        data = self.json.get("data")
        return data if isinstance(data, dict) else {}

    @property
    def created_at(self) -> int | None:
        """When it happened, in seconds since the epoch, as the sender says."""
        at = self.json.get("created_at")
        return at if isinstance(at, int) else None

    @property
    def subject(self) -> str | None:
        """The id of the run, response or batch."""
        return self._text("id")

    def _text(self, name: str) -> str | None:
        value = self.data.get(name)
        return value if isinstance(value, str) else None

    def __repr__(self) -> str:
        # Not the body: it is the user's, and this ends up in logs.
        return f"<{type(self).__name__} {self.id} {self.type}>"


@dataclass(frozen=True, repr=False)
class ReceivedRunEvent(ReceivedEvent):
    """One status change of one run. `docs/events.md` says what each field of `data` means.

    Attributes:
        run_id: whose status changed.
        sequence: 1 is the run's creation, and each change has the next number.
    """

    run_id: str = ""
    sequence: int = 0

    @property
    def status(self) -> str:
        """The run's status after the change."""
        return self._text("status") or ""

    @property
    def thread_id(self) -> str | None:
        return self._text("thread_id")

    @property
    def assistant_id(self) -> str | None:
        return self._text("assistant_id")

    @property
    def has_ended(self) -> bool:
        """Nothing happens to the run any more."""
        return _is_urgent(self.type) and self.status != RunStatus.REQUIRES_ACTION

    @property
    def is_truncated(self) -> bool:
        """Parts were left out to keep it small: retrieve the run for them."""
        return self.data.get("truncated") is True

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """The calls whose outputs the run wants; empty where it wants none, or where they were
        left out (`is_truncated`)."""
        try:
            action = msgspec.convert(self.data.get("required_action"), _Action | None)
        except msgspec.ValidationError:
            return ()
        calls = action.submit_tool_outputs.tool_calls if action else ()
        return tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in calls)


def read(body: bytes) -> Envelope:
    """Look into the bytes of an event.

    Raises:
        Unreadable: they are none.
    """
    try:
        # All of it, not the fields that are wanted: what is skipped is not looked at, and a handler
        # would stumble over it.
        found = _decoder.decode(body)
    except UnicodeDecodeError:
        raise Unreadable("the body is not UTF-8") from None
    except RecursionError:
        raise Unreadable("the body is nested too deeply") from None
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        # msgspec names places and types, never values.
        raise Unreadable(f"the body is no event: {error}"[:200]) from None
    if not isinstance(found, dict):
        raise Unreadable("the body is JSON, and no object")
    kind = found.get("type")
    if not isinstance(kind, str) or not 0 < len(kind) <= LONGEST_NAME or not kind.isprintable():
        raise Unreadable("the event's type is no name")
    about = found.get("data")
    data = about if isinstance(about, dict) else {}
    subject, sequence = data.get("id"), data.get("sequence")
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_NAME:
        subject = None
    ordered = (
        subject is not None
        and kind.startswith(RUN_TYPES)
        and "." not in kind[len(RUN_TYPES) :]
        and type(sequence) is int
        and 0 < sequence <= LARGEST_SEQUENCE
    )
    return Envelope(kind, subject, sequence if ordered else None, _is_urgent(kind))


def event_of(
    event_id: str, envelope: Envelope, body: bytes, received_at_ms: int, attempt: int
) -> ReceivedEvent:
    """What a handler gets."""
    about = (event_id, envelope.type, body, received_at_ms, attempt)
    if envelope.subject is not None and envelope.sequence is not None:
        return ReceivedRunEvent(*about, envelope.subject, envelope.sequence)
    return ReceivedEvent(*about)


def _is_urgent(kind: str) -> bool:
    return kind in _URGENT


_URGENT = frozenset(f"{RUN_TYPES}{status}" for status in RunStatus if status.is_settled)


class _Function(msgspec.Struct):
    name: str
    arguments: str


class _Call(msgspec.Struct):
    id: str
    function: _Function


class _Outputs(msgspec.Struct):
    tool_calls: list[_Call]


class _Action(msgspec.Struct):
    submit_tool_outputs: _Outputs


_decoder = msgspec.json.Decoder()
