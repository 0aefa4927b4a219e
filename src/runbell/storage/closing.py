"""What a change that frees a thread has to know of the tables, read in one go."""

from __future__ import annotations

from dataclasses import dataclass

from runbell.storage import endpoints, holding
from runbell.storage.endpoints import Listening
from runbell.storage.runs import RunRecord
from runbell.storage.store import Transaction

__all__ = ["Closing", "look"]


@dataclass(frozen=True, slots=True)
class Closing:
    """What follows the end of the run that held a thread.

    Attributes:
        listening: the project's endpoints to which events are owed.
        waiting: the run whose turn comes, of those that can be read.
    """

    listening: list[Listening]
    waiting: RunRecord | None


async def look(tx: Transaction, project: str, thread_id: str, now_ms: int) -> Closing:
    """What follows the end of the run that holds this thread.

    The unit has read that run, and so locked it, before: who has seen it hold the thread, and
    queued another behind it, has been committed by then.
    """
    listening, waiting = await tx.fetch_both(
        (endpoints.LISTENING, {"project": project, "now_ms": now_ms}),
        (holding.NEXT_WAITING, {"thread": thread_id}),
    )
    return Closing(
        [endpoints.listening_of(row) for row in listening],
        await holding.readable(tx, thread_id, waiting),
    )
