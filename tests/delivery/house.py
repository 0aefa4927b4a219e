"""What the tests of deliveries share: a service in virtual time, with endpoints."""

from __future__ import annotations

from typing import Any

from runbell.runs import Event
from runbell.service.operations import deliveries as operations
from runbell.service.operations import endpoints
from runbell.service.wire.webhooks import CreateEndpoint, UpdateEndpoint
from runbell.storage import events, owed
from runbell.storage.deliveries import Attempt, Delivery, DeliveryFilter
from runbell.storage.endpoints import Endpoint
from runbell.storage.paging import Page
from runbell.testing.embedded import EmbeddedService
from runbell.webhooks import Secret, verify

ALL = ("thread.run.*",)
MINUTE, HOUR, DAY = 60.0, 3600.0, 86_400.0


async def register(service: EmbeddedService, name: str = "a", **fields: Any) -> tuple[str, Secret]:
    """A new endpoint, at a URL of its name: its id and its secret."""
    given = {"event_types": ALL, "url": f"https://{name}.example.com/hooks", **fields}
    request = CreateEndpoint(name=name, **given)
    endpoint, _, secret = await endpoints.create(service.ctx, service.project, request)
    return endpoint.id, secret


async def update(service: EmbeddedService, endpoint_id: str, **fields: Any) -> None:
    request = UpdateEndpoint(**fields)
    await endpoints.prepare_update(service.ctx, service.project, endpoint_id, request)
    await endpoints.update(service.ctx, service.project, endpoint_id, request)


async def find(service: EmbeddedService, endpoint_id: str) -> Endpoint:
    endpoint, _ = await endpoints.retrieve(service.ctx, service.project, endpoint_id)
    return endpoint


async def run_once(service: EmbeddedService, text: str = "hello") -> str:
    """A run on a thread of its own, to its end: three events. Its id."""
    thread = await service.thread(text)
    run_id = await service.run(thread, model="echo")
    await service.settle()
    return run_id


async def seen(
    service: EmbeddedService, endpoint_id: str, **wanted: Any
) -> list[tuple[Delivery, list[Attempt]]]:
    """An endpoint's deliveries, the oldest first, at most 100."""
    page = Page(limit=100, order="asc")
    found, _ = await operations.list_page(
        service.ctx, service.project, endpoint_id, page, DeliveryFilter(**wanted)
    )
    return found


async def owe_many(
    service: EmbeddedService,
    endpoint_id: str,
    count: int,
    *,
    run: str = "run_many",
    body: bytes = b"{}",
) -> None:
    """Owe an endpoint many events of one run, as if they had happened while nobody delivered."""
    now_ms = service.clock.now_ms()
    for start in range(0, count, 500):

        async def work(tx: Any, first: int = start) -> None:
            for number in range(first, min(first + 500, count)):
                event = Event(
                    f"evt_{run.removeprefix('run_many')}{number:06}",
                    service.project,
                    run,
                    number + 1,
                    "thread.run.queued",
                    now_ms,
                    body,
                )
                await events.append(tx, event)
                await owed.owe(tx, endpoint_id, event)

        await service.store.write(work)


def signed(post: Any, *secrets: Secret) -> int:
    """Which second a POST was signed in; fails where one of the secrets did not sign it."""
    found = {
        verify(
            [secret], post.headers, post.body, now_ms=1000 * int(post.headers["webhook-timestamp"])
        )
        for secret in secrets
    }
    (one,) = found
    assert len(post.headers["webhook-signature"].split()) == len(secrets)
    return one.timestamp


async def jump(service: EmbeddedService, seconds: float) -> None:
    """Let so much time pass at once: what became due on the way is done at its end."""
    service.clock.advance(seconds)
    await service.settle()
