"""What every operation needs at hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from runbell.clock import Clock
from runbell.service.backends import Backends
from runbell.service.changes import Changes
from runbell.service.feeds import Feeds
from runbell.service.jobs import Jobs
from runbell.service.live import Live
from runbell.service.metrics import Metrics
from runbell.service.operations.ids import new_id
from runbell.service.settings import Settings
from runbell.storage.store import Store

__all__ = ["Context"]


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one service process."""

    settings: Settings
    clock: Clock
    store: Store
    jobs: Jobs
    changes: Changes
    feeds: Feeds
    live: Live
    backends: Backends
    metrics: Metrics = field(default_factory=Metrics)

    def new_id(self, prefix: str) -> str:
        """A new id that begins with `prefix`."""
        return new_id(prefix, self.clock)
