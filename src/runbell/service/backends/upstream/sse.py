"""Server-sent events, as model servers send them: bytes in, events out.

More forgiving than the standard, which drops an event that no empty line follows: servers forget
that line behind their last event. Bounded: a line or an event without an end is an error.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["MAX_EVENT", "Event", "EventDecoder", "EventTooLong"]

MAX_EVENT: Final = 16 * 1024 * 1024
"""Bytes of one event. Some servers send a whole answer as one."""

_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One event: its kind, which is mostly empty, and its data."""

    kind: str
    data: bytes


class EventTooLong(Exception):
    """An event has more than `MAX_EVENT` bytes."""


class EventDecoder:
    """Takes the bytes as they come, cut anywhere.

    Attributes:
        begins_behind: the id that came in front of every event, if one did.
    """

    def __init__(self) -> None:
        self._partial: list[bytes] = []
        self._size = 0
        self._after_return = False
        self._kind = ""
        self._data: list[bytes] = []
        self._begun = False
        self._id = ""
        self.begins_behind: str | None = None

    def feed(self, data: bytes) -> list[Event]:
        """The events that these bytes complete.

        Raises:
            EventTooLong: one never ends.
        """
        if self._after_return and data.startswith(b"\n"):
            data = data[1:]
        self._after_return = data.endswith(b"\r")
        if b"\r" in data:
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._size += len(data)
        *lines, rest = data.split(b"\n")
        events: list[Event] = []
        if lines:
            lines[0] = b"".join((*self._partial, lines[0]))
            self._partial.clear()
            for line in lines:
                self._take(line, events)
        if rest:
            self._partial.append(rest)
        if self._size > MAX_EVENT:
            raise EventTooLong
        return events

    def end(self) -> list[Event]:
        """What is left when no more bytes come."""
        events: list[Event] = []
        self._take(b"".join(self._partial), events)
        self._take(b"", events)
        self._partial.clear()
        return events

    def _take(self, line: bytes, events: list[Event]) -> None:
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BOM)
        if not line:
            if self._data:
                events.append(Event(self._kind, b"\n".join(self._data)))
            elif self._id:
                self.begins_behind = self.begins_behind or self._id
            self._id = ""
            self._data.clear()
            self._kind = ""
            self._size = 0
            return
        if line.startswith(b"{"):
            # No field begins so: an error that was written into the stream without a name.
            events.append(Event("error", line))
            return
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode(errors="replace")
        elif name == b"id":
            self._id = value.decode(errors="replace")
        elif name == b"error":
            # llama.cpp's server names the field so.
            events.append(Event("error", value))
