"""Calls of tools for many waits: each is made once, and its output is there for whoever asks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from runbell.client import records
from runbell.client.deeds import UseTool
from runbell.client.hands import ToolOutcome
from runbell.client.tools import Tool
from runbell.client.wait import Wait
from runbell.client.wishes import UseTools
from runbell.runs import ToolCall

__all__ = ["Calls"]

MAX_THREADS = 64
"""Functions that are at work in threads at the same time; further ones wait for a place."""

Key = tuple[str, str]
"""The ids of a run and of a call."""


class Calls:
    """The calls that were made, are being made, or wait for a place.

    Args:
        order: has a function called: what it gives back is a number, under which `landed` is told.
        takes_thread: whether a tool's function blocks a thread for as long as it is at work.
        remembered: outputs that are kept in memory, for waits that begin again.
    """

    def __init__(
        self,
        order: Callable[[UseTool], int],
        takes_thread: Callable[[Tool], bool],
        remembered: int,
    ) -> None:
        self._order = order
        self._takes_thread = takes_thread
        self._most = remembered
        self._outcomes: dict[Key, ToolOutcome | None] = {}
        self._at_work: dict[int, UseTool] = {}
        self._threads = 0
        self._line: deque[UseTool] = deque()
        self._acting: set[Wait] = set()

    def __len__(self) -> int:
        """Functions that are at work."""
        return len(self._at_work)

    def __contains__(self, number: object) -> bool:
        return number in self._at_work

    def use(self, wait: Wait, wish: UseTools, now: float) -> dict[str, str] | None:
        """Have the calls made that are not made yet: the outputs, None where some are not there."""
        # First of all: what it has is needed while the rest begins.
        self._acting.add(wait)
        if now < wish.until:
            for call in wish.calls:
                if (wait.id, call.id) not in self._outcomes:
                    self._use(wait, call, wish.tools[call.name])
        outputs = self.outputs(wait, wish)
        if now >= wish.until or len(outputs) == len({call.id for call in wish.calls}):
            self._acting.discard(wait)
            return outputs
        return None

    def outputs(self, wait: Wait, wish: UseTools) -> dict[str, str]:
        """Those that are there, by call id."""
        found = {call.id: self._outcomes.get((wait.id, call.id)) for call in wish.calls}
        return {call_id: each.output for call_id, each in found.items() if each is not None}

    def landed(
        self, number: int, outcome: ToolOutcome | None, error: Exception | None
    ) -> list[tuple[Wait, dict[str, str], Exception | None]]:
        """A function has ended: whose flows go on with which outputs, or which error."""
        deed = self._at_work.pop(number)
        if self._takes_thread(deed.tool):
            self._threads -= 1
        error = self._noted(deed, outcome, error)
        found = []
        for wait in list(self._acting):
            wish = wait.wish
            if not isinstance(wish, UseTools):
                self._acting.discard(wait)
            elif wait.id == deed.run_id:
                outputs = self.outputs(wait, wish)
                if error is not None or all(call.id in outputs for call in wish.calls):
                    found.append((wait, outputs, error))
        self._advance()
        return found

    def left(self, wait: Wait) -> None:
        """It wants nothing any more; what was begun for it goes on."""
        self._acting.discard(wait)

    def abandon(self) -> None:
        """Forget what is under way: nobody will hear of it."""
        for deed in (*self._at_work.values(), *self._line):
            self._outcomes.pop((deed.run_id, deed.call.id), None)
        self._at_work.clear()
        self._line.clear()
        self._threads = 0

    def _use(self, wait: Wait, call: ToolCall, tool: Tool) -> None:
        terms = wait.terms
        deed = UseTool(
            run_id=wait.id,
            call=call,
            tool=tool,
            limit=terms.tool_timeout,
            forget_errors=terms.raise_tool_errors,
            context=terms.context,
            tell=wait.tell,
        )
        self._remember((deed.run_id, call.id))
        if self._takes_thread(tool) and self._threads >= MAX_THREADS:
            self._line.append(deed)
        else:
            self._begin(deed)

    def _begin(self, deed: UseTool) -> None:
        self._threads += self._takes_thread(deed.tool)
        self._at_work[self._order(deed)] = deed

    def _advance(self) -> None:
        """Begin what waited for a place, where somebody still wants its output."""
        needed = set(self._needed()) if self._line else set()
        while self._line and self._threads < MAX_THREADS:
            deed = self._line.popleft()
            if (deed.run_id, deed.call.id) in needed:
                self._begin(deed)
            else:  # it was given up, and its run was told so
                self._outcomes.pop((deed.run_id, deed.call.id), None)

    def _noted(
        self, deed: UseTool, outcome: ToolOutcome | None, error: Exception | None
    ) -> Exception | None:
        """Keep an outcome: the error that whoever waits is to hear of."""
        key = (deed.run_id, deed.call.id)
        if outcome is not None:
            self._outcomes[key] = outcome
            deed.tell(
                records.ToolCalled,
                run_id=deed.run_id,
                call_id=deed.call.id,
                name=deed.call.name,
                seconds=outcome.seconds,
                error=outcome.error,
                recorded=outcome.recorded,
            )
            if deed.forget_errors:
                error = outcome.raised
        if error is not None:  # nothing came of it, so it may be called again
            del self._outcomes[key]
        return error

    def _needed(self) -> Iterator[Key]:
        for wait in self._acting:
            wish: Any = wait.wish
            if isinstance(wish, UseTools):
                yield from ((wait.id, call.id) for call in wish.calls)

    def _remember(self, key: Key) -> None:
        """Keep a place for the output of a call that is being made."""
        self._outcomes[key] = None
        if len(self._outcomes) > self._most:
            needed = set(self._needed())
            done = (old for old, each in self._outcomes.items() if each and old not in needed)
            if (oldest := next(done, None)) is not None:
                del self._outcomes[oldest]
