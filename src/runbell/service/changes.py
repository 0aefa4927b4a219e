"""Who is told, within this process, that a run has changed: wake-ups, never the truth."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from runbell.runs import Run

__all__ = ["Changes", "Watch"]


class Changes:
    """Tells of each committed change: to listeners, which are quick and never wait, and to those
    who wait for certain runs or for a project."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Run], None]] = []
        self._watches: dict[str, set[Watch]] = {}
        self._closed = False

    def subscribe(self, listener: Callable[[Run], None]) -> None:
        """Have `listener` called with each run that has changed, on the event loop."""
        self._listeners.append(listener)

    def publish(self, run: Run) -> None:
        """Tell everybody that the run is now as given."""
        for listener in self._listeners:
            listener(run)
        for key in (run.id, run.project_id):
            for watch in self._watches.get(key, ()):
                watch.wake()

    def watch(self, keys: Iterable[str]) -> Watch:
        """Wait for changes of these runs, or of any run of these projects, by their ids."""
        return Watch(self, frozenset(keys))

    @property
    def waiting(self) -> int:
        """Watches that are held at this moment."""
        return len({watch for watches in self._watches.values() for watch in watches})

    def close(self) -> None:
        """Wake everybody for the last time: the process stops."""
        self._closed = True
        for watches in self._watches.values():
            for watch in watches:
                watch.wake()

    @property
    def closed(self) -> bool:
        """The process stops: there is nothing to wait for any more."""
        return self._closed

    def _add(self, key: str, watch: Watch) -> None:
        self._watches.setdefault(key, set()).add(watch)

    def _remove(self, key: str, watch: Watch) -> None:
        watches = self._watches.get(key)
        if watches is not None:
            watches.discard(watch)
            if not watches:
                del self._watches[key]


class Watch:
    """Hears of changes from when it is entered until it is left.

    Look at the rows first, then wait, then look again: what changes between the look and the wait
    is not missed.
    """

    __slots__ = ("_changes", "_keys", "_woken")

    def __init__(self, changes: Changes, keys: frozenset[str]) -> None:
        self._changes = changes
        self._keys = keys
        self._woken = asyncio.Event()

    def __enter__(self) -> Self:
        for key in self._keys:
            self._changes._add(key, self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for key in self._keys:
            self._changes._remove(key, self)

    def wake(self) -> None:
        """Something has changed."""
        self._woken.set()

    async def changed(self) -> None:
        """Return when something has changed since the last time that this returned."""
        if not self._changes.closed:
            await self._woken.wait()
            self._woken.clear()
