"""What a server has shown that it can do. Pure: it is told of answers, and says what to ask for."""

from __future__ import annotations

from dataclasses import replace

from runbell.client.trouble import is_transient, status_of
from runbell.client.view import Answer

__all__ = ["Server"]

HOLD_SECONDS = 50
"""How long a server is asked to hold a request: below the time limits of common proxies."""

REQUEST_SECONDS = 30.0
"""How long a request may take that nobody holds, where the client's own limit is not shorter."""

SHORTEST_HOLD = 5
"""Below this nothing on the way cuts a request that is held."""

GROWS_AFTER = 20
"""Requests that were held for all their time, after which a longer time is tried again."""

CLEAR = frozenset({400, 401, 403, 404, 405, 406, 410, 414, 421, 501})
"""What is answered by who has no such route, or does not take such a request. That a server is not
well says nothing about what it can do."""

STRANGE_ANSWERS = 3
"""5xx in a row to the first requests for several, after which the server is taken for one that has
no such route: a gateway may answer anything to what it does not know."""

HELD_AT_ONCE = 50
"""Requests that may be held at the same time; more runs are asked about together."""

MARGIN_SECONDS = 5.0
"""From the end of a hold to the time limit of its request."""


class Server:
    """What is known of the server behind a client.

    Args:
        client_limit: the time limit of the client's own requests, in seconds; None for none.

    Attributes:
        holds: it applies `Prefer: wait`; None while nobody knows.
        batches: it has `GET /runs?ids=`; None while nobody knows.
    """

    def __init__(self, client_limit: float | None = None) -> None:
        self._client_limit = client_limit
        self._longest = HOLD_SECONDS
        if client_limit is not None:
            self._longest = min(HOLD_SECONDS, int(client_limit - MARGIN_SECONDS))
        self.holds: bool | None = None if self._longest > 0 else False
        self.batches: bool | None = None
        self._most = self._longest
        self._held = self._strange = 0

    def asks_together(self, waits: int, may_hold: bool) -> bool:
        """Whether to ask about several of so many waits in one request.

        Few are better held one by one, where that may be done.
        """
        if self.batches is False or waits < 2:
            return False
        return waits > HELD_AT_ONCE or self.holds is False or not may_hold

    def hold(self, left: float) -> int | None:
        """The seconds for `Prefer: wait`; None to send none.

        Nobody is asked to wait who has not shown that he can: the first request asks for no
        seconds, and a server that applies that says so.

        Args:
            left: seconds to the deadline.
        """
        if self.holds is None:
            return 0
        seconds = int(min(self._longest, left - 1))
        return seconds if self.holds and seconds > 0 else None

    def limit(self, hold: int | None) -> float:
        """Seconds that a request may take."""
        limit = hold + MARGIN_SECONDS if hold else REQUEST_SECONDS
        return limit if self._client_limit is None else min(limit, self._client_limit)

    def answered(self, hold: int | None, applied: bool, took: float) -> None:
        """A request that asked for this hold was answered after `took` seconds.

        A server that showed that it holds is asked to from then on: whoever does not answer so now
        and then is the worse for nothing, since his answer is not taken for a pause.
        """
        if hold is None:
            return
        if self.holds is None or applied:
            self.holds = applied
        self._held += applied and 0 < hold <= took
        if self._held >= GROWS_AFTER:
            self._held, self._longest = 0, min(2 * self._longest, self._most)

    def broke(self, error: Exception, took: float) -> None:
        """A request that was held failed after `took` seconds: perhaps something on the way cuts
        what takes so long. One that fails sooner says nothing about that."""
        status = status_of(error)
        if status in (400, 501):
            self.holds = False
        elif status in (None, 408, 502, 504) and took >= SHORTEST_HOLD:
            self._held = 0
            self._longest = min(self._longest, max(SHORTEST_HOLD, int(took / 2)))

    def patient(self, answer: Answer, hold: int | None, took: float) -> Answer:
        """The answer, `held` only where the server did take its time; or where it just showed
        that it would, so that the next request is sent at once."""
        asked = hold is not None
        return replace(
            answer,
            held=asked and answer.held and took >= (hold or 0) / 2,
            holds=asked and self.holds is True,
        )

    def refuses_batches(self, error: Exception | None, found: dict[str, object] | None) -> bool:
        """Whether the answer to a request for several says that there are no such requests."""
        if error is None:
            self._strange = 0
            return found is None
        status = status_of(error)
        if status is None:
            return not is_transient(error)
        if status in CLEAR or not is_transient(error):
            return True
        self._strange += status >= 500
        return self.batches is None and self._strange >= STRANGE_ANSWERS
