"""The inbox as a source of events for whoever waits, in this process or in another one."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Final

import msgspec

from runbell.errors import ConfigurationError, StorageError
from runbell.receiver.places import place_of
from runbell.receiver.ports import Place
from runbell.runs import Deliver

__all__ = ["Inbox", "Watch"]

logger = logging.getLogger(__name__)

AWAY_SECONDS: Final = 0.5
"""How often an inbox that can't be read is tried again."""

_decode = msgspec.json.Decoder().decode


class Watch:
    """Tells subscribers what is stored in an inbox, whoever stores it. Safe for any thread.

    It is the `Audience` of the place that it watches, in a thread of its own.

    Args:
        place: of the inbox, which need not be there yet.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._lock = threading.Lock()
        self._subscribers: dict[str, list[Deliver]] = {}
        self._fresh: deque[tuple[str, Deliver]] = deque()
        self._news = threading.Event()
        self._nudge: Callable[[], None] | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        """See `runbell.runs.EventSource`."""
        with self._lock:
            if self._closed:
                return
            self._subscribers.setdefault(run_id, []).append(deliver)
            self._fresh.append((run_id, deliver))
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._watch, name="runbell-inbox", daemon=True
                )
                self._thread.start()
            self._wake()

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """See `runbell.runs.EventSource`."""
        with self._lock:
            delivers = self._subscribers.get(run_id, [])
            if deliver in delivers:
                delivers.remove(deliver)
            if not delivers:
                self._subscribers.pop(run_id, None)

    def close(self) -> None:
        """Deliver nothing more, and let go of the inbox."""
        with self._lock:
            self._closed = True
            self._subscribers.clear()
            thread = self._thread
            self._wake()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def subjects(self) -> tuple[str, ...]:
        """See `runbell.receiver.ports.Audience`; likewise what follows."""
        with self._lock:
            return tuple(self._subscribers)

    def anybody(self) -> bool:
        return bool(self._subscribers)

    def wants(self, subject: str | None) -> bool:
        return subject in self._subscribers

    def tell(self, subject: str | None, body: bytes) -> None:
        """Deliver an event to all who wait for it, at once; also from where it was stored."""
        if subject is not None and (delivers := self._subscribers.get(subject)):
            _deliver(tuple(delivers), body)

    def tell_one(self, subject: str, deliver: Deliver, body: bytes) -> None:
        if deliver in self._subscribers.get(subject, ()):
            _deliver((deliver,), body)

    def fresh(self, most: int) -> Sequence[tuple[str, Deliver]]:
        with self._lock:
            return list(islice(self._fresh, most))

    def served(self, count: int) -> None:
        with self._lock:
            for _ in range(count):
                self._fresh.popleft()

    def rest(self, seconds: float) -> None:
        # Whoever could not be served at once is served in the next round.
        if self._news.wait(0 if self._fresh else seconds):
            self._news.clear()

    def on_news(self, nudge: Callable[[], None]) -> None:
        with self._lock:
            self._nudge = nudge

    def is_over(self, *, idle: bool) -> bool:
        with self._lock:
            over = self._closed or (idle and not self._subscribers and not self._fresh)
            if over:
                self._thread = self._nudge = None
            return over

    def _wake(self) -> None:
        self._news.set()
        if self._nudge is not None:
            self._nudge()

    def _watch(self) -> None:
        away = False
        while not self.is_over(idle=away):
            began = time.monotonic()
            try:
                self._place.follow(self)
                return
            except (ConfigurationError, StorageError, sqlite3.Error) as error:
                if not away or time.monotonic() - began > AWAY_SECONDS:
                    logger.warning("the inbox cannot be watched now, trying again: %s", error)
            except Exception:
                # Or nobody would be told of anything any more.
                logger.exception("the inbox cannot be watched, trying again")
            away = True
            self._begin_anew()
            self._news.wait(AWAY_SECONDS)
            self._news.clear()

    def _begin_anew(self) -> None:
        """Nobody knows what was stored meanwhile: everybody is told again what is there."""
        with self._lock:
            self._nudge = None
            self._fresh = deque(
                (run_id, deliver)
                for run_id, delivers in self._subscribers.items()
                for deliver in delivers
            )


class Inbox:
    """An inbox that another process fills, as an `EventSource`.

        waiter = AsyncWaiter(client, events=Inbox("sqlite:///inbox.db"))

    It has a thread that watches the inbox while anybody waits. Nothing is handled and nothing is
    written here.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`, as the receiver has it.

    Raises:
        ConfigurationError: the URL is not one that this version can use.
        MissingExtra: PostgreSQL's driver is not installed.
    """

    def __init__(self, url: str = "sqlite:///inbox.db") -> None:
        self._watch = Watch(place_of(url))

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        """Call `deliver` with every event of this run, those too that are there already."""
        self._watch.subscribe(run_id, deliver)

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """Stop that. One that is not subscribed is left as it is."""
        self._watch.unsubscribe(run_id, deliver)

    def close(self) -> None:
        """Deliver nothing more, and let go of the inbox."""
        self._watch.close()


def _deliver(delivers: tuple[Deliver, ...], body: bytes) -> None:
    for deliver in delivers:
        try:
            # Decoded for each: nobody can change what another one sees.
            deliver(_decode(body))
        except Exception:
            logger.exception("a subscriber raised, which none may")
