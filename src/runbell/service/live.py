"""What is happening to a run at this moment, for those who stream it: told once, kept nowhere.

Telling costs one look into a dictionary where nobody follows. A follower that reads slowly holds
back nobody: what it has not read yet is merged, so that it costs no more memory than the answer
that it follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from runbell.runs import RunStatus
from runbell.service.changes import Moved
from runbell.storage.store import Transaction

__all__ = ["Delta", "Follower", "Latest", "Live", "Told"]

MAX_BEHIND = 64
"""Pieces that a follower may be behind before further text is merged into what it has not read."""


@dataclass(slots=True)
class Delta:
    """More of a text: of a message, or of the arguments of a function call.

    Deltas with the same `key` can be merged, whatever stands between them: texts that grow side
    by side do not care in which order. `make` gives what is sent.
    """

    key: tuple[object, ...]
    parts: list[str]
    make: Callable[[str], Any]


@dataclass(slots=True)
class Told:
    """One thing that happened: the event's name, and its data."""

    event: str
    data: Any


@dataclass(frozen=True, slots=True)
class Latest:
    """The latest event of a run that its followers were told of, or that they know of.

    Attributes:
        sequence: its number.
        status: the run's, by it; None where that is not known.
        at_ms: when it happened, in milliseconds since the epoch.
    """

    sequence: int
    status: RunStatus | None
    at_ms: int


_NOTHING = Latest(0, None, 0)


class Follower:
    """Follows a run: iterate over it. Joined by `Live.join` or `Live.follow`, ended by `close`.

    Attributes:
        gone: it was ended because the run is not there any more.
    """

    def __init__(self) -> None:
        self.gone = False
        self._left: Callable[[], None] | None = None
        self._untold: deque[Told] = deque()
        self._growing: dict[tuple[object, ...], Delta] = {}
        self._news = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Stop following; what was not read yet is dropped."""
        self._closed = True
        self._untold.clear()
        self._growing.clear()
        self._news.set()
        if self._left is not None:
            self._left()

    def joined(self, left: Callable[[], None]) -> None:
        """From now on it is told; `left` is called when it wants to hear no more."""
        self._left = left
        if self._closed:
            left()

    def tell(self, event: str, data: Any) -> None:
        """Add what happened behind what was not read yet."""
        if isinstance(data, Delta):
            last = self._growing.get(data.key)
            if last is not None and len(self._untold) > MAX_BEHIND:
                last.parts.extend(data.parts)
                return
            self._growing[data.key] = data
        self._untold.append(Told(event, data))
        self._news.set()

    async def __aiter__(self) -> AsyncGenerator[Told, None]:
        while not self._closed:
            if not self._untold:
                self._news.clear()
                await self._news.wait()
                continue
            told = self._untold.popleft()
            delta = told.data
            if isinstance(delta, Delta):
                if self._growing.get(delta.key) is delta:
                    del self._growing[delta.key]
                told = Told(told.event, delta.make("".join(delta.parts)))
            yield told


class Live:
    """All followers of this process's runs."""

    def __init__(self) -> None:
        self._followers: dict[str, list[Follower]] = {}
        self._latest: dict[str, Latest] = {}
        self._closed = False
        self._on_join: Callable[[str, int], None] = _nothing

    def on_join(self, callback: Callable[[str, int], None]) -> None:
        """Have `callback` called when somebody has joined a run, with the run's id and the number
        of the latest event that it had before that."""
        self._on_join = callback

    @property
    def following(self) -> int:
        """Followers at this moment."""
        return sum(map(len, self._followers.values()))

    def follow(self, run_id: str) -> Follower:
        """Begin to follow a run: everything that is told from now on."""
        follower = Follower()
        self._add(run_id, follower)
        return follower

    def join(self, tx: Transaction, run_id: str, follower: Follower, behind: int = 0) -> None:
        """Follow a run from this transaction on: from the first change in it that comes behind
        this call, and of none before.

        Who began to follow outside of it could miss what others do to the run as soon as it is
        committed, or hear of what was committed before and is told only now.

        Args:
            behind: the number of the run's latest event before that.
        """

        def joined() -> None:
            self._add(run_id, follower)
            if behind > self.latest(run_id).sequence:
                self._latest[run_id] = Latest(behind, None, 0)
            self._on_join(run_id, behind)

        tx.after_commit(joined)

    def _add(self, run_id: str, follower: Follower) -> None:
        self._followers.setdefault(run_id, []).append(follower)
        follower.joined(lambda: self._forget(run_id, follower))
        if self._closed:
            follower.close()

    def followed(self, run_id: str) -> bool:
        """Somebody follows this run."""
        return run_id in self._followers

    @property
    def runs(self) -> list[str]:
        """The runs that somebody follows, by their ids."""
        return list(self._followers)

    def latest(self, run_id: str) -> Latest:
        """Of a run that somebody follows, the latest event that was told."""
        return self._latest.get(run_id, _NOTHING)

    def move(self, run: Moved, data: Callable[[], Any]) -> None:
        """Tell that a run has changed, as `tell`."""
        if run.id in self._followers:
            if run.sequence > self.latest(run.id).sequence:
                self._latest[run.id] = Latest(run.sequence, run.status, run.updated_at_ms)
            self.tell(run.id, f"thread.run.{run.status}", data)

    def end(self, run_id: str) -> None:
        """End everybody's following of a run that is not there any more. Who was told that it has
        settled finds the end without that."""
        status = self.latest(run_id).status
        if status is None or not status.is_settled:
            for follower in list(self._followers.get(run_id, ())):
                follower.gone = True
                follower.close()

    def tell(self, run_id: str, event: str, data: Callable[[], Any]) -> None:
        """Tell what happened; `data` is called only where somebody follows, once for each."""
        for follower in self._followers.get(run_id, ()):
            follower.tell(event, data())

    def _forget(self, run_id: str, follower: Follower) -> None:
        followers = self._followers.get(run_id, [])
        if follower in followers:
            followers.remove(follower)
            if not followers:
                del self._followers[run_id]
                self._latest.pop(run_id, None)

    def close(self) -> None:
        """End everybody's following, also of those who come later: the process stops."""
        self._closed = True
        for followers in list(self._followers.values()):
            for follower in list(followers):
                follower.close()


def _nothing(run_id: str, behind: int) -> None:
    """There is nobody else who could have changed the run."""
