"""Who is told, within this process, that a run has changed: wake-ups, never the truth.

Where there are several processes, `service/neighbours.py` tells the others too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Protocol, Self

from runbell.clock import Clock
from runbell.runs import RunStatus
from runbell.storage.store import Transaction

__all__ = ["Changes", "Moved", "Watch"]


class Moved(Protocol):
    """What is told of a run that has changed; a `Run` says it, and more."""

    @property
    def id(self) -> str: ...

    @property
    def project_id(self) -> str: ...

    @property
    def status(self) -> RunStatus: ...

    @property
    def attempt(self) -> int: ...

    @property
    def sequence(self) -> int: ...

    @property
    def updated_at_ms(self) -> int:
        """When it changed, in milliseconds since the epoch."""
        ...


class Changes:
    """Tells of each committed change: to listeners, which are quick and never wait, and to those
    who wait for certain runs or for a project.

    Attributes:
        look_seconds: after so long without news whoever waits looks again; not at all, where no
            change can be made without being told.
    """

    look_seconds = math.inf

    def __init__(self) -> None:
        self._listeners: list[Callable[[Moved], None]] = []
        # Most runs have one watch, and a set of one would take most of the memory of a wait.
        self._watches: dict[str, Watch | set[Watch]] = {}
        self._closed = False

    def subscribe(self, listener: Callable[[Moved], None]) -> None:
        """Have `listener` called with each run that has changed, on the event loop."""
        self._listeners.append(listener)

    def announce(self, tx: Transaction, run: Moved) -> None:
        """Tell everybody that the run is as given, when this transaction is committed."""
        tx.after_commit(lambda: self.publish(run))

    def announce_wake(self, tx: Transaction, key: str) -> None:
        """Wake those who wait for what has this id, when this transaction is committed."""
        tx.after_commit(lambda: self.wake(key))

    def publish(self, run: Moved) -> None:
        """Tell everybody that the run is now as given."""
        for listener in self._listeners:
            listener(run)
        settled = run.status.is_settled
        for key in (run.id, run.project_id):
            for watch in self._of(key):
                if settled or not watch.settled_alone:
                    watch.wake()

    def wake(self, key: str) -> None:
        """Wake those who wait for what has this id."""
        for watch in self._of(key):
            watch.wake()

    def wake_all(self) -> None:
        """Wake everybody who waits: something may have been missed."""
        for key in list(self._watches):
            self.wake(key)

    def watch(self, keys: Iterable[str], *, settled_alone: bool = False) -> Watch:
        """Wait for changes of these runs, of any run of these projects, or of what is owed to
        these endpoints, by their ids.

        Args:
            settled_alone: other changes than that a run settles do not wake.
        """
        return Watch(self, frozenset(keys), settled_alone)

    @property
    def waiting(self) -> int:
        """Watches that are held at this moment."""
        return len({watch for key in self._watches for watch in self._of(key)})

    def close(self) -> None:
        """Wake everybody for the last time: the process stops."""
        self._closed = True
        for key in self._watches:
            for watch in self._of(key):
                watch.wake()

    @property
    def deaf(self) -> bool:
        """What other processes change has not been heard of for too long."""
        return False

    @property
    def closed(self) -> bool:
        """The process stops: there is nothing to wait for any more."""
        return self._closed

    def _add(self, key: str, watch: Watch) -> None:
        there = self._watches.get(key)
        if there is None:
            self._watches[key] = watch
        elif isinstance(there, Watch):
            self._watches[key] = {there, watch}
        else:
            there.add(watch)

    def _remove(self, key: str, watch: Watch) -> None:
        there = self._watches.get(key)
        if isinstance(there, set):
            there.discard(watch)
        if there is watch or not there:
            self._watches.pop(key, None)

    def _of(self, key: str) -> Iterable[Watch]:
        there = self._watches.get(key, ())
        return (there,) if isinstance(there, Watch) else there


class Watch:
    """Hears of changes from when it is entered until it is left.

    Look at the rows first, then wait, then look again: what changes between the look and the wait
    is not missed.
    """

    __slots__ = ("_changes", "_keys", "_sleeping", "_woken", "settled_alone")

    def __init__(self, changes: Changes, keys: frozenset[str], settled_alone: bool) -> None:
        self._changes = changes
        self._keys = keys
        self.settled_alone = settled_alone
        self._woken = False
        # A future instead of an asyncio.Event, which is ten times as large: thousands are held.
        self._sleeping: asyncio.Future[None] | None = None

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
        self._woken = True
        if self._sleeping is not None:
            _rouse(self._sleeping)

    async def changed(self, clock: Clock, seconds: float) -> bool:
        """Return when something has changed since the last time that this returned.

        Args:
            seconds: how long to wait for that at the most.

        Returns:
            False where nothing but time has passed.
        """
        if not (self._woken or self._changes.closed):
            sleeping = self._sleeping = asyncio.get_running_loop().create_future()
            timer = asyncio.ensure_future(clock.sleep(seconds))
            # This sleep's own future: a timer that was cancelled calls back in the next one's time.
            timer.add_done_callback(lambda _: _rouse(sleeping))
            try:
                await sleeping
            finally:
                self._sleeping = None
                timer.cancel()
        woken, self._woken = self._woken, False
        return woken or self._changes.closed


def _rouse(sleeping: asyncio.Future[None]) -> None:
    if not sleeping.done():
        sleeping.set_result(None)
