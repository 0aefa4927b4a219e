"""Who is asked about in the same request: one, several by their ids, or those of one thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from runbell.client.deeds import Deed, Retrieve, RetrieveMany, RetrieveThread
from runbell.client.server import Server
from runbell.client.wait import Wait
from runbell.client.wishes import Look
from runbell.pacing import Pacer

__all__ = ["Asking"]

BATCH = 200
"""Runs in one request: what Runbell's service takes."""

ALONG_SECONDS = 10.0
"""Who is due this soon is asked about along with who is due now."""


class Asking:
    """Makes one request out of the looks that are due.

    Args:
        server: what it has shown that it can do.
        pacer: knows who else wants a look.
    """

    def __init__(self, server: Server, pacer: Pacer) -> None:
        self._server = server
        self._pacer = pacer
        self._by_thread: defaultdict[str, set[Wait]] = defaultdict(set)
        self._alone: set[Wait] = set()

    def joined(self, wait: Wait) -> None:
        """Somebody may be looked at, under the ids that it has now."""
        if self._server.batches is False:
            self._by_thread[_thread_of(wait)].add(wait)

    def left(self, wait: Wait) -> None:
        """That is over."""
        self._alone.discard(wait)
        together = self._by_thread.get(_thread_of(wait))
        if together is not None:
            together.discard(wait)
            if not together:
                del self._by_thread[_thread_of(wait)]

    def alone(self, wait: Wait) -> None:
        """Ask about this one by itself from now on: the server may say more about it then."""
        self._alone.add(wait)

    def one_by_one(self, waits: Iterable[Wait]) -> None:
        """The server has no requests for several; these are all waits that there are."""
        if self._server.batches is not False:
            self._server.batches = False
            for wait in waits:
                self.joined(wait)

    def request(
        self, wait: Wait, now: float, waits: int
    ) -> tuple[Sequence[Wait], Deed, int | None]:
        """What becomes of a look: about whom, which request, and the seconds that it is held.

        Args:
            waits: how many there are.
        """
        server, provider = self._server, wait.terms.provider
        if wait not in self._alone and hasattr(provider, "retrieve_many"):
            if server.batches is False:
                together = self._of_its_thread(wait)
                if len(together) > 1:
                    return together, RetrieveThread(_thread_of(wait)), None
            elif server.asks_together(waits, self.may_hold(wait)):
                together = [wait, *self._along(wait, now)]
                if len(together) > 1:
                    hold = self._hold(together, now)
                    items = [each.item for each in together]
                    return together, RetrieveMany(items, hold), hold
        hold = self._hold([wait], now)
        return [wait], Retrieve(wait.item, hold), hold

    @staticmethod
    def may_hold(wait: Wait) -> bool:
        """Whether a server may be asked to hold requests about it."""
        terms = wait.terms
        return terms.hold and not terms.pushed and getattr(terms.provider, "holds", False)

    def _of_its_thread(self, wait: Wait) -> list[Wait]:
        """It and the others of its thread that want a look, now or later."""
        found = [
            other
            for other in self._by_thread.get(_thread_of(wait), ())
            if other is wait or (isinstance(other.wish, Look) and other.order is None)
        ]
        if len(found) > 1:
            for other in found:
                self._pacer.forget(other)
        return found

    def _along(self, wait: Wait, now: float) -> list[Wait]:
        """Whoever else can be asked about in the same request."""
        found: list[Any] = self._pacer.along(BATCH - 1, now + ALONG_SECONDS)
        fitting = []
        for other in found:
            if other.terms.provider is wait.terms.provider and other not in self._alone:
                fitting.append(other)
            else:
                self._pacer.want(other, other.wish.at)
        return fitting

    def _hold(self, waits: Sequence[Wait], now: float) -> int | None:
        """Seconds for which the server is asked to hold the request; None to say nothing."""
        if not self.may_hold(waits[0]):
            return None
        left = min(wait.deadline for wait in waits) - now
        return self._server.hold(left)


def _thread_of(wait: Wait) -> str:
    return wait.thread_id or ""
