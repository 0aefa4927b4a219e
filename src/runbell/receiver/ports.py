"""What a place of an inbox is to the receiver, and what it has to know of those who wait."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Final, Protocol

from runbell.clock import Clock
from runbell.receiver.arrivals import Arrival, Stored
from runbell.runs import Deliver
from runbell.storage.store import Store

__all__ = [
    "FRESH_AT_ONCE",
    "LINGER_SECONDS",
    "PAGE",
    "Audience",
    "Idle",
    "OpenInbox",
    "Place",
    "TakeIn",
]

LINGER_SECONDS: Final = 5.0
"""How long an inbox is watched when nobody waits: the next wait often comes soon."""

PAGE: Final = 1_000
FRESH_AT_ONCE: Final = 100
"""Rows that are read at once, and newcomers that are told at once what is there already."""


TakeIn = Callable[[Arrival], Awaitable[Stored]]


class Audience(Protocol):
    """Those who wait for events, as whoever watches an inbox for them sees them."""

    def subjects(self) -> Iterable[str]:
        """What somebody waits for."""
        ...

    def anybody(self) -> bool:
        """Somebody waits."""
        ...

    def wants(self, subject: str | None) -> bool:
        """Somebody waits for it."""
        ...

    def tell(self, subject: str | None, body: bytes) -> None:
        """Deliver an event to everybody who waits for it."""
        ...

    def tell_one(self, subject: str, deliver: Deliver, body: bytes) -> None:
        """Deliver an event to one of them, if it still waits."""
        ...

    def fresh(self, most: int) -> Sequence[tuple[str, Deliver]]:
        """The first of those who do not know yet what is there already."""
        ...

    def served(self, count: int) -> None:
        """So many of those know it now."""
        ...

    def rest(self, seconds: float) -> None:
        """Return after so many seconds, or when somebody has come."""
        ...

    def on_news(self, nudge: Callable[[], None]) -> None:
        """Have `nudge` called, from any thread, when somebody has come, or it is over."""
        ...

    def is_over(self, *, idle: bool) -> bool:
        """Nobody watches any longer, or nobody needs to: the thread ends.

        Args:
            idle: nobody has waited for a while.
        """
        ...


@dataclass(frozen=True, slots=True)
class OpenInbox:
    """An inbox whose schema is up to date.

    Attributes:
        take_in: keeps what came, and returns when that is committed; raises StorageUnavailable.
        announce: tells other processes that an event about this was stored; never waits.
        clock: what time it is for all who share the inbox.
    """

    store: Store
    take_in: TakeIn
    announce: Callable[[str | None], None]
    clock: Clock


class Place(Protocol):
    """What a URL names.

    Attributes:
        name: for messages; without a password.
    """

    name: str

    def open(self) -> AbstractAsyncContextManager[OpenInbox]:
        """Open it for a receiver, and make it where it is missing; closed at the end.

        Raises:
            ConfigurationError: it can't be used; says what to change.
            StorageUnavailable: it can't be reached, or is locked.
        """
        ...

    def open_existing(self) -> AbstractAsyncContextManager[Store]:
        """Open it for an operator, if it is there; raises the same."""
        ...

    def follow(self, audience: Audience) -> None:
        """Tell the audience what is stored, until nobody has waited for a while.

        In a thread of its own, which it may keep. Raises the same when it can't be read now, and
        `sqlite3.Error`.
        """
        ...


class Idle:
    """Since when nobody waits."""

    def __init__(self) -> None:
        self.since: float | None = None

    def for_long(self, audience: Audience) -> bool:
        """Nobody has waited for a while."""
        self.since = None if audience.anybody() else self.since or time.monotonic()
        return self.since is not None and time.monotonic() - self.since > LINGER_SECONDS
