"""Function calls, put in order: servers disagree about how the parts of parallel calls are told
apart.

OpenAI's stream numbers the calls (`index`) and gives id and name with the first part of each.
Others number all calls 0, or none; send whole calls; leave ids empty, repeat them or make a new
one for each part; repeat the name with every part; send arguments as null or as an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from runbell.service.backends.base import ToolCallDelta
from runbell.service.backends.upstream.text import PairedText, storable

__all__ = ["CallReader"]

MAX_ID: Final = 16_384
"""Characters of a call's id. Some servers keep a model's state in it, so it can be long."""


_MARKS: Final = re.compile(r'[{}\[\]"\\]')
_BREAK: Final = re.compile(r"[^ \t\n\r]")
"""Anything but JSON's white space."""


class _Object:
    """Watches a JSON object come in pieces: each is looked at once, however long the whole is."""

    def __init__(self) -> None:
        self._depth = 0
        self._quoted = False
        self._escaped = False
        self._begun = False
        self.closed = False
        self.overrun = False

    def feed(self, text: str) -> None:
        """See more of it.

        `closed` is then whether its last bracket has come, which does not make it JSON yet;
        `overrun` is whether it is none for certain: something else stands before or behind it.
        """
        start = 0
        while not self.overrun and start < len(text):
            read = self._inside if self._depth else self._outside
            start = read(text, start)

    def _outside(self, text: str, start: int) -> int:
        found = _BREAK.search(text, start)
        if found is None:
            return len(text)
        self.overrun = self._begun or found[0] != "{"
        self._begun = True
        self._depth = 1
        return found.end()

    def _inside(self, text: str, start: int) -> int:
        if self._escaped:
            self._escaped = False
            return start + 1
        found = _MARKS.search(text, start)
        if found is None:
            return len(text)
        mark = found[0]
        if self._quoted:
            self._escaped = mark == "\\"
            self._quoted = mark != '"'
        elif mark == '"':
            self._quoted = True
        elif mark in "{[":
            self._depth += 1
        elif mark in "}]":
            self._depth -= 1
            self.closed = not self._depth
        return found.end()


@dataclass(slots=True)
class _Call:
    """One call. `id` is what the server said; whether the run's call keeps it is another matter."""

    number: int
    id: str = ""
    name: str = ""
    parts: list[str] = field(default_factory=list)
    length: int = 0
    told: bool = False
    text: PairedText = field(default_factory=PairedText)
    _object: _Object = field(default_factory=_Object)
    _parsed: bool | None = None

    @property
    def arguments(self) -> str:
        return "".join(self.parts)

    def add(self, arguments: str) -> None:
        self.parts.append(arguments)
        self.length += len(arguments)
        self._object.feed(arguments)

    def is_complete(self) -> bool:
        """Its arguments are whole: more of them would belong to another call."""
        if not self._object.closed or self._object.overrun:
            return False
        if self._parsed is None:
            # Asked once, when the last bracket is there: what follows can only be white space.
            self._parsed = _is_json(self.arguments)
        return self._parsed


class CallReader:
    """Reads the calls of one answer.

    Args:
        taken: ids that calls of earlier turns have; a call that comes with one gets an id of ours.
        single: the run wants one call at a time: all behind the first are dropped.

    Attributes:
        size: characters of names and arguments so far.
    """

    def __init__(self, taken: Iterable[str] = (), *, single: bool = False) -> None:
        self._taken = set(taken)
        self._single = single
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self.size = 0

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def nameless(self) -> bool:
        """Some call never said which function it means."""
        return not all(call.name for call in self._calls)

    def add(self, part: Any) -> Iterator[ToolCallDelta]:
        """What a part of a call says that is new."""
        if not isinstance(part, dict):
            return
        function = part.get("function")
        # Without the object around them in the form that OpenAI gave up in 2023.
        source = function if isinstance(function, dict) else part
        key = _text(part.get("id"))
        name = storable(_text(source.get("name")))
        arguments = _arguments(source.get("arguments"))
        call = self._of(part.get("index"), key, name, arguments)
        if call.is_complete() and _says_again(call, key, name, arguments):
            return
        if key and not call.id:
            call.id = key
            self._by_id.setdefault(key, call)
        call.name = call.name or name
        self.size += len(name) + len(arguments)
        if not (self._single and call.number > 0):
            yield from self._say(call, call.text.add(arguments))

    def end(self) -> Iterator[ToolCallDelta]:
        """What is left to say when the answer is whole."""
        for call in self._calls[: 1 if self._single else None]:
            rest = call.text.end()
            if not (call.arguments + rest).strip():
                # A function without parameters: programs parse the arguments nevertheless.
                rest = "{}"
            yield from self._say(call, rest)

    def _of(self, index: Any, key: str, name: str, arguments: str) -> _Call:
        """The call that a part belongs to; a new one where it belongs to none."""
        last = self._calls[-1] if self._calls else None
        if isinstance(index, int):
            current = self._by_index.get(index)
            if current is None and not key and not name:
                current = last
        else:
            current = self._by_id.get(key, last)
        if current is None or _begins_another(current, key, name, arguments):
            current = _Call(len(self._calls))
            self._calls.append(current)
        if isinstance(index, int):
            self._by_index[index] = current
        return current

    def _say(self, call: _Call, arguments: str) -> Iterator[ToolCallDelta]:
        if arguments:
            call.add(arguments)
        if call.told:
            if arguments:
                yield ToolCallDelta(call.number, arguments=arguments)
        elif call.name:
            # Held back until it has a name: whoever follows the stream needs that first.
            call.told = True
            yield ToolCallDelta(call.number, call.name, call.arguments, self._own_id(call.id))

    def _own_id(self, key: str) -> str | None:
        """The id, where the call can keep it."""
        if not key.strip() or key in self._taken or len(key) > MAX_ID or storable(key) != key:
            return None
        self._taken.add(key)
        return key


def _begins_another(call: _Call, key: str, name: str, arguments: str) -> bool:
    """Whether a part that seems to be of this call is the first of another one."""
    if not name or not call.name:
        return False
    if name != call.name:
        return True
    if key and call.id and key != call.id:
        return not call.parts or call.is_complete()
    if not arguments.strip() or not call.is_complete():
        return False
    return not _says_again(call, key, name, arguments)


def _says_again(call: _Call, key: str, name: str, arguments: str) -> bool:
    """Whether a part is the whole call once more, as some servers send it at the end."""
    if not key or key != call.id or name != call.name or len(arguments) != call.length:
        return False
    return arguments == call.arguments


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: Any) -> str:
    """Arguments are JSON text; some servers send the object itself, or null."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else ""
