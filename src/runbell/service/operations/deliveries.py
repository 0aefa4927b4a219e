"""Deliveries, for those who look after endpoints: what became of each event, and sending it again.

What is sent again keeps its id, by which receivers know it, and begins anew in the schedule.
"""

from __future__ import annotations

from functools import partial

from runbell.errors import UnknownCursor
from runbell.service.jobs import Job, JobKind
from runbell.service.operations import refusals
from runbell.service.operations.context import Context
from runbell.storage import deliveries, endpoints
from runbell.storage.deliveries import Attempt, Delivery, DeliveryFilter
from runbell.storage.paging import Page
from runbell.storage.store import Transaction

__all__ = ["RECOVERY_MS", "begin_anew", "list_page", "recover", "resend", "retrieve"]

RECOVERY_MS = 7 * 24 * 3_600_000
"""How far back a recovery reaches. With the 72 hours of retries behind it, receivers have to know
for 11 days which events they have had."""

MOST_ATTEMPTS = 50
"""Attempts of one delivery that an answer lists."""

RECOVERED_AT_ONCE = 500
"""Deliveries that one unit of work owes anew: a few milliseconds of the writer's time."""

Seen = tuple[Delivery, list[Attempt]]


async def list_page(
    ctx: Context, project: str, endpoint_id: str, page: Page, wanted: DeliveryFilter
) -> tuple[list[Seen], bool]:
    """A page of an endpoint's deliveries, each with its attempts."""

    async def work(tx: Transaction) -> tuple[list[Seen], bool]:
        await _check_endpoint(tx, project, endpoint_id)
        found, more = await deliveries.page(tx, endpoint_id, page, wanted)
        return [await _seen(tx, each) for each in found], more

    try:
        return await ctx.store.scan(work)
    except UnknownCursor as error:
        raise refusals.unknown_cursor("delivery", error) from None


async def retrieve(ctx: Context, project: str, endpoint_id: str, delivery_id: str) -> Seen:
    """One delivery, with its attempts."""

    async def work(tx: Transaction) -> Seen:
        await _check_endpoint(tx, project, endpoint_id)
        return await _seen(tx, await _get(tx, endpoint_id, delivery_id))

    return await ctx.store.read(work)


async def resend(ctx: Context, project: str, endpoint_id: str, delivery_id: str) -> Seen:
    """Send a delivery again, whatever became of it; one that is pending, now.

    One whose endpoint is disabled waits until that is enabled.
    """

    async def work(tx: Transaction) -> Seen:
        await _check_endpoint(tx, project, endpoint_id)
        delivery = await _get(tx, endpoint_id, delivery_id)
        await deliveries.send_again(tx, delivery, ctx.clock.now_ms())
        await ctx.jobs.enqueue(tx, Job(JobKind.DELIVER, endpoint_id))
        ctx.changes.announce_wake(tx, endpoint_id)
        return await _seen(tx, await _get(tx, endpoint_id, delivery_id))

    return await ctx.store.write(work)


async def recover(ctx: Context, project: str, endpoint_id: str, since: int | None) -> int:
    """Send everything again that has failed.

    Args:
        since: only events since then, in seconds since the epoch; at the most `RECOVERY_MS` ago.

    Returns:
        How many deliveries are owed anew.
    """
    now_ms = ctx.clock.now_ms()
    since_ms = max(now_ms - RECOVERY_MS, 1000 * (since or 0))

    async def look(tx: Transaction, low: int) -> list[int]:
        await _check_endpoint(tx, project, endpoint_id)
        return await deliveries.failed_since(tx, endpoint_id, since_ms, RECOVERED_AT_ONCE, low=low)

    async def work(tx: Transaction, found: list[int]) -> int:
        await _check_endpoint(tx, project, endpoint_id)
        count = 0
        for position in found:
            count += await deliveries.recover(tx, position, now_ms)
        await ctx.jobs.enqueue(tx, Job(JobKind.DELIVER, endpoint_id))
        ctx.changes.announce_wake(tx, endpoint_id)
        return count

    recovered, low = 0, 0
    # Looked for in nobody's way, and behind what was found: what failed too long ago to be sent
    # again stays where it is, and would be passed each time.
    while found := await ctx.store.scan(partial(look, low=low)):
        recovered += await ctx.store.write(partial(work, found=found))
        low = found[-1]
    return recovered


async def begin_anew(ctx: Context, project: str, endpoint_id: str) -> None:
    """Before an endpoint is enabled: what is pending is owed anew, as if it had never failed.

    Otherwise an event that is older than the patience would be tried once, by a receiver that has
    just come back. What is older than a recovery reaches has failed: receivers may have forgotten
    its id.
    """
    now_ms = ctx.clock.now_ms()

    async def look(tx: Transaction, low: int) -> list[int]:
        endpoint = await endpoints.get(tx, project, endpoint_id)
        if endpoint is None or endpoint.enabled:
            return []
        return await deliveries.pending_behind(tx, endpoint_id, low, RECOVERED_AT_ONCE)

    async def work(tx: Transaction, span: tuple[int, int]) -> None:
        await deliveries.begin_anew(tx, endpoint_id, span, now_ms - RECOVERY_MS, now_ms)

    low = 0
    while found := await ctx.store.scan(partial(look, low=low)):
        await ctx.store.write(partial(work, span=(low, found[-1])))
        low = found[-1]


async def _check_endpoint(tx: Transaction, project: str, endpoint_id: str) -> None:
    if await endpoints.get(tx, project, endpoint_id) is None:
        raise refusals.not_found("webhook endpoint", endpoint_id)


async def _get(tx: Transaction, endpoint_id: str, delivery_id: str) -> Delivery:
    delivery = await deliveries.get(tx, endpoint_id, delivery_id)
    if delivery is None:
        raise refusals.not_found("delivery", delivery_id)
    return delivery


async def _seen(tx: Transaction, delivery: Delivery) -> Seen:
    return delivery, await deliveries.attempts_of(tx, delivery, MOST_ATTEMPTS)
