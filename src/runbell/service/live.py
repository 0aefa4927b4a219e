"""What is happening to a run at this moment, for those who stream it: told once, kept nowhere.

Telling costs one look into a dictionary where nobody follows. A follower that reads slowly holds
back nobody: what it has not read yet is merged, so that it costs no more memory than the answer
that it follows.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Delta", "Follower", "Live", "Told"]

MAX_BEHIND = 64
"""Pieces that a follower may be behind before further text is merged into the last of them."""


@dataclass(slots=True)
class Delta:
    """More of a text: of a message, or of the arguments of a function call.

    Deltas with the same `key` follow each other and can be merged; `make` gives what is sent.
    """

    key: tuple[object, ...]
    parts: list[str]
    make: Callable[[str], Any]


@dataclass(slots=True)
class Told:
    """One thing that happened: the event's name, and its data."""

    event: str
    data: Any


class Follower:
    """Follows one run: iterate over it. Made by `Live.follow`, ended by `close`."""

    def __init__(self, live: Live, run_id: str) -> None:
        self._live = live
        self._run_id = run_id
        self._untold: deque[Told] = deque()
        self._news = asyncio.Event()
        self._closed = False

    def close(self) -> None:
        """Stop following; what was not read yet is dropped."""
        self._closed = True
        self._untold.clear()
        self._news.set()
        self._live.forget(self._run_id, self)

    def tell(self, event: str, data: Any) -> None:
        """Add what happened behind what was not read yet."""
        if isinstance(data, Delta) and len(self._untold) > MAX_BEHIND:
            last = self._untold[-1].data
            if isinstance(last, Delta) and last.key == data.key:
                last.parts.extend(data.parts)
                return
        self._untold.append(Told(event, data))
        self._news.set()

    async def __aiter__(self) -> AsyncIterator[Told]:
        while not self._closed:
            if not self._untold:
                self._news.clear()
                await self._news.wait()
                continue
            told = self._untold.popleft()
            if isinstance(told.data, Delta):
                told = Told(told.event, told.data.make("".join(told.data.parts)))
            yield told


class Live:
    """All followers of this process's runs."""

    def __init__(self) -> None:
        self._followers: dict[str, list[Follower]] = {}

    def follow(self, run_id: str) -> Follower:
        """Begin to follow a run: everything that is told from now on."""
        follower = Follower(self, run_id)
        self._followers.setdefault(run_id, []).append(follower)
        return follower

    def followed(self, run_id: str) -> bool:
        """Somebody follows this run."""
        return run_id in self._followers

    def tell(self, run_id: str, event: str, data: Callable[[], Any]) -> None:
        """Tell what happened; `data` is called only where somebody follows, once for each."""
        for follower in self._followers.get(run_id, ()):
            follower.tell(event, data())

    def forget(self, run_id: str, follower: Follower) -> None:
        """Take a follower off the list."""
        followers = self._followers.get(run_id, [])
        if follower in followers:
            followers.remove(follower)
        if not followers:
            self._followers.pop(run_id, None)

    def close(self) -> None:
        """End everybody's following: the process stops."""
        for followers in list(self._followers.values()):
            for follower in list(followers):
                follower.close()
