"""What a new run has to know of the tables, read in one go."""

from __future__ import annotations

from dataclasses import dataclass

from runbell.storage import assistants, holding, threads
from runbell.storage.records import Assistant
from runbell.storage.store import Transaction

__all__ = ["Opening", "look"]


@dataclass(frozen=True, slots=True)
class Opening:
    """Where a run is to begin.

    Attributes:
        has_thread: the project has the thread.
        assistant: None where the project has none with this id.
        active: the id of the run that holds the thread.
    """

    has_thread: bool
    assistant: Assistant | None
    active: str | None


async def look(tx: Transaction, project: str, thread_id: str, assistant_id: str) -> Opening:
    """What there is for a run of this assistant on this thread."""
    thread, assistant, active = await tx.fetch_first(
        (threads.GET, {"project": project, "key": thread_id}),
        (assistants.GET, {"project": project, "key": assistant_id}),
        (holding.ACTIVE, {"thread": thread_id}),
    )
    return Opening(
        thread is not None,
        assistants.decoded(assistant) if assistant is not None else None,
        active[0] if active is not None else None,
    )
