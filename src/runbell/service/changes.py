"""Who is told, within this process, that a run has changed: wake-ups, never the truth."""

from __future__ import annotations

from collections.abc import Callable

from runbell.runs import Run

__all__ = ["Changes"]


class Changes:
    """Calls its listeners after each committed transition. Listeners are quick and never wait."""

    def __init__(self) -> None:
        self._listeners: list[Callable[[Run], None]] = []

    def subscribe(self, listener: Callable[[Run], None]) -> None:
        """Have `listener` called with each run that has changed, on the event loop."""
        self._listeners.append(listener)

    def publish(self, run: Run) -> None:
        """Tell everybody that the run is now as given."""
        for listener in self._listeners:
            listener(run)
