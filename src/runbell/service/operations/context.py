"""What every operation needs at hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from runbell.clock import Clock
from runbell.service.backends import Backends
from runbell.service.changes import Changes
from runbell.service.feeds import Feeds
from runbell.service.hints import Hints
from runbell.service.jobs import Jobs
from runbell.service.live import Live
from runbell.service.metrics import Metrics
from runbell.service.operations.ids import new_id
from runbell.service.settings import Settings
from runbell.service.vault import Vault
from runbell.storage.store import Store

__all__ = ["Context", "Posted", "Poster"]


class Posted(Protocol):
    """What came of one POST."""

    @property
    def status(self) -> int | None:
        """Of the answer; None where there was none."""
        ...

    @property
    def error(self) -> str | None:
        """Why there was no whole answer, as a sentence without secrets."""
        ...

    @property
    def duration_ms(self) -> int: ...

    @property
    def retry_after(self) -> float | None:
        """Seconds that the receiver wants to be left alone."""
        ...

    @property
    def excerpt(self) -> bytes | None:
        """The first bytes of the answer."""
        ...

    @property
    def blocked(self) -> bool:
        """Nothing was sent: the address is not allowed."""
        ...

    @property
    def succeeded(self) -> bool: ...


class Poster(Protocol):
    """Sends webhooks; `service/delivery/dialling.py` does."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, project: str) -> Posted:
        """Send `body`; whatever happens is told, and nothing is raised."""
        ...

    async def check_reachable_address(self, url: str, project: str) -> None:
        """Raise AddressRefused for a URL that nothing could be sent to."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...


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
    hints: Hints
    backends: Backends
    poster: Poster
    vault: Vault
    metrics: Metrics = field(default_factory=Metrics)

    def new_id(self, prefix: str) -> str:
        """A new id that begins with `prefix`."""
        return new_id(prefix, self.clock)
