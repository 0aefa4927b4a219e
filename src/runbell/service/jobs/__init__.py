"""What has to be done later: the port behind which an engine for jobs stands, and its drivers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from runbell.storage.store import Transaction

__all__ = ["Handler", "Job", "JobKind", "Jobs", "Lane", "Lanes", "Stopping"]


class JobKind(StrEnum):
    """Every kind of job. The key of each is a run's id, except where it says otherwise."""

    RUN = "run"
    """Call the model for a queued run; due at once."""

    EXPIRE = "expire"
    """End a run whose time is over; put once a run, when it is created."""

    FINISH_CANCEL = "finish_cancel"
    """End a run that is being cancelled and whose worker does not answer."""

    DELIVER = "deliver"
    """Send an endpoint what it is owed and is due; the key is the endpoint's id. One job an
    endpoint at a time: its order, its rate and its concurrency are then one worker's business."""


@dataclass(frozen=True, slots=True)
class Job:
    """One thing to do.

    Attributes:
        due_ms: not before this time, in milliseconds since the epoch; None is at once.
        model: of a run that is to be executed: it stands in line with others of its server.
        turn: which of the run's turns, or cancels, this is; the same job is never put twice.
    """

    kind: JobKind
    key: str
    due_ms: int | None = None
    model: str = ""
    turn: int = 0


Handler = Callable[..., Awaitable[None]]
"""Does a job, given its key, and of a run also its turn, where the engine knows that. It may be
called twice for one job: it looks at the row first."""


class Stopping(Exception):
    """Raised by a handler: the process stops, and what it leaves is found at the next start."""


class Lane(Protocol):
    """One of several lines: runs in it wait for each other, and for none in another line."""

    def takes(self, running: int) -> bool:
        """One more run may begin, where so many of this lane are under way."""
        ...


class Lanes(Protocol):
    """Which lanes there are. The same lane is the same object."""

    def lane(self, model: str) -> Lane:
        """Where runs of this model stand now."""
        ...

    def models(self) -> Collection[str]:
        """Every model that is known to be served."""
        ...

    def subscribe(self, room: Callable[[], None], moved: Callable[[], None]) -> None:
        """Have `room` called when a lane may take one more, other than because a run has ended,
        and `moved` when runs may belong into other lanes."""
        ...


class Jobs(Protocol):
    """An engine for jobs.

    The rows are the truth: whatever is enqueued can be derived from them again, and an engine that
    forgot a job finds it by its sweep.
    """

    async def enqueue(self, tx: Transaction, job: Job) -> None:
        """Put a job that becomes visible with the transaction, or not at all."""
        ...

    async def forget(self, tx: Transaction, job: Job) -> None:
        """Take back a job that has nothing to do any more. That saves work, and is no promise: its
        handler looks at the row first."""
        ...

    def start(self, handlers: Mapping[JobKind, Handler]) -> None:
        """Begin to hand out jobs, those of an earlier process first."""
        ...

    @property
    def alive(self) -> bool:
        """Jobs are being handed out."""
        ...

    async def held(self, tx: Transaction) -> Mapping[JobKind, int]:
        """How many jobs of each kind failed too often and were kept aside; every kind is there."""
        ...

    async def stop(self, grace: float) -> None:
        """Hand out nothing more, and give running handlers `grace` seconds before they are
        cancelled. What they did not finish is found again at the next start."""
        ...
