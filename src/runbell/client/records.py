"""What hooks are told: one frozen record for each thing that happened in a wait."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = [
    "Ended",
    "ExpiryNear",
    "Hook",
    "Planned",
    "Polled",
    "Record",
    "Restarted",
    "Retried",
    "Submitted",
    "Told",
    "ToolCalled",
    "tell",
]

log = logging.getLogger("runbell")


@dataclass(frozen=True, slots=True)
class Record:
    """What every record has.

    Attributes:
        run_id: which run.
        elapsed: seconds since the wait began.
    """

    run_id: str
    elapsed: float


@dataclass(frozen=True, slots=True)
class Polled(Record):
    """The server was asked, and said how the run stands.

    Attributes:
        status: as the server calls it.
        previous: the status before; None for the first.
        polls: looks of this wait so far, this one included.
        run: the SDK's object.
    """

    status: str
    previous: str | None
    polls: int
    run: Any


@dataclass(frozen=True, slots=True)
class Told(Record):
    """An event said how the run stands: nobody was asked, and it cost no call.

    Attributes:
        status: as the server calls it.
        previous: the status before; None for the first.
        run: the SDK's object.
    """

    status: str
    previous: str | None
    run: Any


@dataclass(frozen=True, slots=True)
class Planned(Record):
    """The next look is `delay` seconds away; None where only an event or the deadline can help."""

    delay: float | None


@dataclass(frozen=True, slots=True)
class Retried(Record):
    """A request failed, and is tried again.

    Attributes:
        error: what the SDK raised.
        failures: how many in a row.
        delay: seconds until the next try.
    """

    error: Exception
    failures: int
    delay: float


@dataclass(frozen=True, slots=True)
class ToolCalled(Record):
    """A function gave its output.

    Attributes:
        call_id, name: of the call.
        seconds: how long it took.
        error: what went wrong, None if nothing did; the model is told in the output.
        recorded: the output was in the journal, the function was not called.
    """

    call_id: str
    name: str
    seconds: float
    error: str | None
    recorded: bool


@dataclass(frozen=True, slots=True)
class Submitted(Record):
    """The outputs of these calls were submitted."""

    call_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExpiryNear(Record):
    """The run expires in `seconds`, and these calls have no output yet."""

    seconds: float
    call_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Restarted(Record):
    """The run ended, and `new_run_id` does the same work; `reason` is a status or an error code."""

    new_run_id: str
    reason: str
    restarts: int


@dataclass(frozen=True, slots=True)
class Ended(Record):
    """The wait is over: `error` is what it raised, None where it gave the run back.

    `pending_until` and `ended_by` bound the end: seconds of the wait at which the run was last
    seen pending and first seen ended.
    """

    status: str
    polls: int
    run: Any
    error: BaseException | None
    pending_until: float
    ended_by: float


Hook = Callable[[Record], None]


def tell(hooks: Sequence[Hook], record: Record) -> None:
    """Hand a record to every hook; one that raises is logged, and harms nobody."""
    for hook in hooks:
        try:
            hook(record)
        except Exception:
            log.exception("a hook raised at %r", record)
