"""What `watch` tells: every change of a run's status that is seen, and the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from runbell.client.records import Polled, Record, Told
from runbell.client.wait import Wait

__all__ = ["End", "Update", "Updates"]


@dataclass(frozen=True, slots=True)
class Update:
    """A change of the run's status, as `watch` tells it.

    Attributes:
        status: as the server calls it.
        previous: the status before; None for the first.
        elapsed: seconds since the watch began.
        run: the SDK's object.
    """

    status: str
    previous: str | None
    elapsed: float
    run: Any


@dataclass(frozen=True, slots=True)
class End:
    """A watch is over.

    Attributes:
        error: what ended it; None where the run has ended.
    """

    error: BaseException | None


class Updates:
    """Passes changes of the status on, and the end, which shows at least one status.

    Args:
        put: takes each `Update`, and an `End` after the last.
    """

    def __init__(self, put: Callable[[Any], None]) -> None:
        self._put = put
        self._told: str | None = None

    def hook(self, record: Record) -> None:
        """Hear of what happens in the wait."""
        if isinstance(record, Polled | Told) and record.status != record.previous:
            self._tell(record.status, record.elapsed, record.run)

    def done(self, wait: Wait, run: Any, error: BaseException | None) -> None:
        """Hear of the end of the wait."""
        if error is None and wait.view.status != self._told:
            self._tell(wait.view.status, wait.now - wait.began, run)
        self._put(End(error))

    def _tell(self, status: str, elapsed: float, run: Any) -> None:
        previous, self._told = self._told, status
        self._put(Update(status, previous, elapsed, run))
