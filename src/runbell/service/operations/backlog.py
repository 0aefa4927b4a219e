"""What the service owes, for those who look after it."""

from __future__ import annotations

from runbell.errors import StorageUnavailable
from runbell.service.jobs import JobKind
from runbell.service.metrics import Backlog, Due
from runbell.service.operations.context import Context
from runbell.storage import backlog, owed
from runbell.storage.backlog import Owed
from runbell.storage.store import Transaction

__all__ = ["look"]


async def look(ctx: Context) -> Backlog | None:
    """Runs that have not ended and jobs that are due; None while the database can't be read."""
    now_ms = ctx.clock.now_ms()
    grace_ms = round(ctx.settings.cancel_grace * 1000)

    def due(jobs: Owed, delay_ms: int = 0) -> Due:
        if jobs.since_ms is None:
            return Due(0, 0.0)
        return Due(jobs.count, max(0, now_ms - jobs.since_ms - delay_ms) / 1000)

    async def work(tx: Transaction) -> Backlog:
        undelivered = await owed.undelivered(tx, now_ms)
        oldest_ms = now_ms if undelivered.oldest_ms is None else undelivered.oldest_ms
        return Backlog(
            await backlog.live_by_status(tx),
            {
                JobKind.RUN: due(await backlog.turns(tx)),
                JobKind.EXPIRE: due(await backlog.expiries(tx, now_ms)),
                JobKind.FINISH_CANCEL: due(await backlog.cancels(tx, now_ms - grace_ms), grace_ms),
                JobKind.DELIVER: due(Owed(undelivered.due, undelivered.due_since_ms)),
            },
            max(0, now_ms - oldest_ms) / 1000,
            {str(kind): count for kind, count in (await ctx.jobs.held(tx)).items()},
        )

    try:
        return await ctx.store.scan(work)
    except StorageUnavailable:
        return None
