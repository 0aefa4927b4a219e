"""Who clears away: runs that ended long ago, with their steps, events and deliveries, what was owed
to endpoints that are gone, and first answers.

Threads are not touched. A thread and its messages are somebody's conversation: they go when they
are deleted, not by age.
"""

from __future__ import annotations

import logging
from functools import partial

from runbell.errors import StorageUnavailable
from runbell.service.operations.context import Context
from runbell.storage import idempotency, retention

__all__ = ["ROWS", "SWEEP_SECONDS", "remove_forgotten", "remove_old", "sweep"]

logger = logging.getLogger(__name__)

SWEEP_SECONDS = 600.0
"""From the end of a look for what is old to the next."""

ROWS = 100
"""Rows that one unit of work removes at the most: a few milliseconds of the writer's time."""

PAUSE_SECONDS = 0.02
"""Between two units, so that most of the writer's time stays with those who wait for answers."""

DAY_MS = 86_400_000


async def sweep(ctx: Context) -> None:
    """Remove what is old, and what belonged to endpoints that were deleted, now and again, until
    this is cancelled."""
    while True:
        try:
            removed = await remove_forgotten(ctx)
            if ctx.settings.retain_days:
                removed += await remove_old(ctx)
        except StorageUnavailable as error:
            logger.warning("retention waits for the database: %s", error)
        except Exception:
            logger.exception("retention failed; it is tried again")
        else:
            if removed:
                logger.info("retention has removed %d rows", removed)
        await ctx.clock.sleep(SWEEP_SECONDS)


async def remove_old(ctx: Context) -> int:
    """Remove everything that is old now: how many rows. Runs stay where all is kept."""
    removed = await _remove_answers(ctx)
    if ctx.settings.retain_days > 0:
        before_ms = ctx.clock.now_ms() - round(ctx.settings.retain_days * DAY_MS)
        removed += await _remove_runs(ctx, before_ms)
    return removed


async def _remove_answers(ctx: Context) -> int:
    """First answers that count no more; their table shrinks by itself only while it is used."""
    before_ms, removed = ctx.clock.now_ms() - idempotency.KEPT_MS, 0
    while True:
        rows = await ctx.store.write(
            lambda tx: idempotency.prune(tx, before_ms=before_ms, limit=ROWS)
        )
        removed += rows
        ctx.metrics.retention_removed.inc(rows)
        if rows < ROWS:
            return removed
        await ctx.clock.sleep(PAUSE_SECONDS)


async def _remove_runs(ctx: Context, before_ms: int) -> int:
    position, removed = 0, 0
    while True:
        events = await _events_behind(ctx, position)
        old = [event.run_id for event in events if event.created_at_ms < before_ms]
        if not old:
            return removed
        rows = await _remove(ctx, list(dict.fromkeys(old)), before_ms)
        removed += rows
        ctx.metrics.retention_removed.inc(rows)
        if rows == 0:
            # What is here has to stay for now.
            position = events[-1].position
        await ctx.clock.sleep(PAUSE_SECONDS)


async def remove_forgotten(ctx: Context) -> int:
    """Remove what was owed to endpoints that are not there any more: how many rows."""
    removed, after = 0, ""
    while True:
        found = await ctx.store.scan(partial(retention.gone_endpoint, after=after))
        if found is None:
            return removed
        rows = await ctx.store.write(
            partial(retention.remove_of_endpoint, endpoint_id=found, limit=ROWS)
        )
        removed += rows
        ctx.metrics.retention_removed.inc(rows)
        if rows < ROWS:
            after = found
        await ctx.clock.sleep(PAUSE_SECONDS)


async def _events_behind(ctx: Context, position: int) -> list[retention.Old]:
    return await ctx.store.scan(lambda tx: retention.events_behind(tx, position, ROWS))


async def _remove(ctx: Context, run_ids: list[str], before_ms: int) -> int:
    now_ms = ctx.clock.now_ms()
    return await ctx.store.write(
        lambda tx: retention.remove(tx, run_ids, before_ms, ROWS, now_ms=now_ms)
    )
