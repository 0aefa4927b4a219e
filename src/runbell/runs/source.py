"""Where events of runs come from: what a waiter needs in order to be told instead of asking."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Deliver", "EventSource"]

Deliver = Callable[[dict[str, Any]], None]
"""Takes one event, as its bytes decode (`RunEvent` for runs). It never blocks and never raises,
and may be called from any thread."""


class EventSource(Protocol):
    """Something that hears of status changes: a receiver, or the inbox of another process.

    A source pushes, so that one protocol serves programs with an event loop and those without. One
    that has to look for news itself, such as an inbox, has a thread or a task for that while
    anybody is subscribed.

    Events may come twice, late, out of order, or never: whoever waits has to bear it.
    """

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        """Call `deliver` with every event of this run from now on.

        An event of the run that came earlier and is still there is delivered too: the change may
        have been faster than the subscription.
        """
        ...

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        """Stop that. One that is not subscribed is left as it is."""
        ...
