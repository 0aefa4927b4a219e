"""The inbox as a source of events for whoever waits, in this process or in another one."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec

from runbell.errors import ConfigurationError, StorageError
from runbell.receiver import desk
from runbell.receiver.schema import INBOX
from runbell.receiver.settings import inbox_path
from runbell.runs import Deliver
from runbell.storage.migrate import require_current
from runbell.storage.sqlite import Observer

__all__ = ["Inbox", "Watch"]

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.02
"""How often the inbox is looked at while somebody waits: what was stored is known 10 ms later on
average. A look that finds nothing costs a few µs."""

LINGER_SECONDS: Final = 5.0
"""How long the thread stays when nobody waits: the next wait often comes soon."""

AWAY_SECONDS: Final = 0.5
"""How often an inbox that can't be read is tried again."""

PAGE: Final = 1_000
FRESH_AT_ONCE: Final = 100

_decode = msgspec.json.Decoder().decode


class Watch:
    """Tells subscribers what is stored in an inbox, whoever stores it. Safe for any thread.

    Args:
        path: of the inbox, which need not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._subscribers: dict[str, list[Deliver]] = {}
        self._fresh: deque[tuple[str, Deliver]] = deque()
        self._news = threading.Event()
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
        self._news.set()

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """See `runbell.runs.EventSource`."""
        with self._lock:
            delivers = self._subscribers.get(run_id, [])
            if deliver in delivers:
                delivers.remove(deliver)
            if not delivers:
                self._subscribers.pop(run_id, None)

    def tell(self, subject: str | None, body: bytes) -> None:
        """Deliver an event that was stored in this process, at once."""
        if subject is not None and (delivers := self._subscribers.get(subject)):
            _deliver(tuple(delivers), body)

    def close(self) -> None:
        """Deliver nothing more, and let go of the inbox."""
        with self._lock:
            self._closed = True
            self._subscribers.clear()
            thread = self._thread
        self._news.set()
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _watch(self) -> None:
        away = False
        while not self._is_over(idle=away):
            try:
                require_current(self._path, INBOX)
                with contextlib.closing(Observer(self._path)) as observer:
                    away = False
                    self._follow(observer)
                    return
            except (ConfigurationError, StorageError, sqlite3.Error) as error:
                if not away:
                    logger.warning("the inbox cannot be watched now, trying again: %s", error)
                away = True
                self._begin_anew()
                self._news.wait(AWAY_SECONDS)
                self._news.clear()

    def _begin_anew(self) -> None:
        """Nobody knows what was stored meanwhile: everybody is told again what is there."""
        with self._lock:
            self._fresh = deque(
                (run_id, deliver)
                for run_id, delivers in self._subscribers.items()
                for deliver in delivers
            )

    def _follow(self, observer: Observer) -> None:
        """Deliver what is stored, until nobody has waited for a while."""
        position = observer.read(desk.newest)
        idle_since: float | None = None
        while True:
            self._tell_fresh(observer)
            if observer.changed():
                position = self._tell_behind(observer, position)
            idle_since = None if self._subscribers else idle_since or time.monotonic()
            idle = idle_since is not None and time.monotonic() - idle_since > LINGER_SECONDS
            if self._is_over(idle=idle):
                return
            # A subscription ends the pause; without one there is nothing to look for.
            if self._news.wait(LOOK_SECONDS if self._subscribers else LINGER_SECONDS):
                self._news.clear()

    def _is_over(self, *, idle: bool) -> bool:
        with self._lock:
            over = self._closed or (idle and not self._subscribers and not self._fresh)
            if over:
                self._thread = None
            return over

    def _tell_fresh(self, observer: Observer) -> None:
        """What came before somebody subscribed; some of it, so that news does not wait for all."""
        for _ in range(FRESH_AT_ONCE):
            if not self._fresh:
                return
            run_id, deliver = self._fresh[0]
            for body in observer.read(lambda tx: desk.of_subject(tx, run_id)):  # noqa: B023
                if deliver in self._subscribers.get(run_id, ()):
                    _deliver((deliver,), body)
            self._fresh.popleft()
        self._news.set()

    def _tell_behind(self, observer: Observer, position: int) -> int:
        while True:
            found = observer.read(lambda tx: desk.news(tx, position, PAGE))  # noqa: B023
            for place, subject in found:
                delivers = self._subscribers.get(subject or "")
                if delivers:
                    body = observer.read(lambda tx: desk.body_at(tx, place))  # noqa: B023
                    if body is not None:
                        _deliver(tuple(delivers), body)
                position = place
            if len(found) < PAGE:
                return position


class Inbox:
    """An inbox that another process fills, as an `EventSource`.

        waiter = AsyncWaiter(client, events=Inbox("sqlite:///inbox.db"))

    It has a thread that looks at the file while anybody waits. Nothing is handled and nothing is
    written here.

    Args:
        url: `sqlite:///FILE`, as the receiver has it.

    Raises:
        ConfigurationError: the URL is not one that this version can use.
    """

    def __init__(self, url: str = "sqlite:///inbox.db") -> None:
        self._watch = Watch(inbox_path(url))

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        """Call `deliver` with every event of this run, those too that are there already."""
        self._watch.subscribe(run_id, deliver)

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """Stop that. One that is not subscribed is left as it is."""
        self._watch.unsubscribe(run_id, deliver)

    def close(self) -> None:
        """Deliver nothing more, and let go of the file."""
        self._watch.close()


def _deliver(delivers: tuple[Deliver, ...], body: bytes) -> None:
    for deliver in delivers:
        try:
            # Decoded for each: nobody can change what another one sees.
            deliver(_decode(body))
        except Exception:
            logger.exception("a subscriber raised, which none may")
