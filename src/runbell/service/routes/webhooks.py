"""Routes: webhook endpoints, and what is delivered to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runbell.service.operations import deliveries, endpoints
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import DeletedObject, ListPage
from runbell.service.wire.pages import (
    DeliveriesQuery,
    PageQuery,
    deliveries_query,
    page_of,
    page_query,
)
from runbell.service.wire.parameters import (
    DELIVERY_RUN,
    DELIVERY_STATUS,
    EVENT_AFTER,
    EVENT_BEFORE,
    PAGING,
)
from runbell.service.wire.webhooks import (
    CreateEndpoint,
    DeliveryObject,
    EndpointObject,
    EndpointTestObject,
    EndpointWithSecretObject,
    EventTypesObject,
    RecoverDeliveries,
    RecoveryObject,
    RotateSecret,
    SendTest,
    UpdateEndpoint,
    delivery_object,
    endpoint_object,
    endpoint_with_secret,
)
from runbell.storage.deliveries import Attempt, Delivery
from runbell.storage.endpoints import Endpoint

__all__ = ["ROUTES"]


async def _check_url(call: Call[Any, Any]) -> None:
    await endpoints.check_address(call.ctx, call.project, call.body.url)


async def _prepare_update(call: Call[UpdateEndpoint, None]) -> None:
    await endpoints.prepare_update(call.ctx, call.project, _key(call), call.body)


async def _create(call: Call[CreateEndpoint, None]) -> EndpointWithSecretObject:
    endpoint, headers, secret = await endpoints.create(call.ctx, call.project, call.body)
    return endpoint_with_secret(endpoint, headers, secret.text)


async def _retrieve(call: Call[None, None]) -> EndpointObject:
    return endpoint_object(*await endpoints.retrieve(call.ctx, call.project, _key(call)))


async def _update(call: Call[UpdateEndpoint, None]) -> EndpointObject:
    found = await endpoints.update(call.ctx, call.project, _key(call), call.body)
    return endpoint_object(*found)


async def _delete(call: Call[None, None]) -> DeletedObject:
    await endpoints.delete(call.ctx, call.project, _key(call))
    return DeletedObject(id=_key(call), object="webhook_endpoint.deleted")


async def _list(call: Call[None, PageQuery]) -> ListPage[Any]:
    found = await endpoints.list_page(call.ctx, call.project, call.query.page)

    def make(each: tuple[Endpoint, Mapping[str, str]]) -> EndpointObject:
        return endpoint_object(*each)

    return page_of(found, make, id_of=lambda each: each[0].id)


async def _rotate(call: Call[RotateSecret, None]) -> EndpointWithSecretObject:
    keep = bool(call.body.keep_old_secret_active_for_24_hours)
    endpoint, headers, secret = await endpoints.rotate_secret(
        call.ctx, call.project, _key(call), keep_old=keep
    )
    return endpoint_with_secret(endpoint, headers, secret.text)


async def _test(call: Call[SendTest, None]) -> EndpointTestObject:
    kind = call.body.event_type
    status = await endpoints.test(call.ctx, call.project, _key(call), kind)
    return EndpointTestObject(event_type=kind, status_code=status, webhook_endpoint_id=_key(call))


async def _event_types(call: Call[None, None]) -> EventTypesObject:
    return EventTypesObject()


async def _deliveries(call: Call[None, DeliveriesQuery]) -> ListPage[Any]:
    query = call.query
    found = await deliveries.list_page(call.ctx, call.project, _key(call), query.page, query.wanted)

    def make(each: tuple[Delivery, list[Attempt]]) -> DeliveryObject:
        return delivery_object(*each)

    return page_of(found, make, id_of=lambda each: each[0].id)


async def _delivery(call: Call[None, None]) -> DeliveryObject:
    key = call.path["delivery_id"]
    return delivery_object(*await deliveries.retrieve(call.ctx, call.project, _key(call), key))


async def _resend(call: Call[None, None]) -> DeliveryObject:
    key = call.path["delivery_id"]
    return delivery_object(*await deliveries.resend(call.ctx, call.project, _key(call), key))


async def _recover(call: Call[RecoverDeliveries, None]) -> RecoveryObject:
    count = await deliveries.recover(call.ctx, call.project, _key(call), call.body.since)
    return RecoveryObject(webhook_endpoint_id=_key(call), recovered=count)


def _key(call: Call[Any, Any]) -> str:
    return call.path["webhook_endpoint_id"]


_ALL = "/v1/webhook_endpoints"
_ONE = "/v1/webhook_endpoints/{webhook_endpoint_id}"
_DELIVERIES = f"{_ONE}/deliveries"
_DELIVERY = f"{_DELIVERIES}/{{delivery_id}}"

ROUTES = (
    Route(
        "GET",
        _ALL,
        _list,
        "List webhook endpoints",
        query=page_query,
        operation="listWebhookEndpoints",
        answer=ListPage[EndpointObject],
        parameters=PAGING,
    ),
    Route(
        "POST",
        _ALL,
        _create,
        "Create a webhook endpoint",
        body=CreateEndpoint,
        operation="createWebhookEndpoint",
        answer=EndpointWithSecretObject,
        about="From then on every status change that it wants is POSTed there, signed by Standard "
        "Webhooks with the secret of this answer. A URL that leads to an address that is not "
        "public is a 400.",
        before=_check_url,
        secret=True,
    ),
    Route(
        "GET",
        _ONE,
        _retrieve,
        "Retrieve a webhook endpoint",
        operation="getWebhookEndpoint",
        answer=EndpointObject,
    ),
    Route(
        "POST",
        _ONE,
        _update,
        "Update a webhook endpoint",
        body=UpdateEndpoint,
        operation="updateWebhookEndpoint",
        answer=EndpointObject,
        about="What is absent or null stays as it is. `enabled: true` sends what waited while it "
        "was disabled, of the last 7 days; a new `url` gets what is owed already, too.",
        before=_prepare_update,
    ),
    Route(
        "DELETE",
        _ONE,
        _delete,
        "Delete a webhook endpoint",
        operation="deleteWebhookEndpoint",
        answer=DeletedObject,
        about="Nothing is sent to it any more, and its deliveries are forgotten.",
    ),
    Route(
        "POST",
        f"{_ONE}/rotate_secret",
        _rotate,
        "Rotate an endpoint's signing secret",
        body=RotateSecret,
        operation="rotateWebhookEndpointSecret",
        answer=EndpointWithSecretObject,
        about="With `keep_old_secret_active_for_24_hours`, webhooks are signed with both for a "
        "day; else with the new one alone, at once.",
        secret=True,
    ),
    Route(
        "POST",
        f"{_ONE}/test",
        _test,
        "Send a sample event to an endpoint",
        body=SendTest,
        operation="testWebhookEndpoint",
        answer=EndpointTestObject,
        about="Answers with the status that the endpoint answered with, also if that is a 500; "
        "an endpoint that gives no answer is a 424. The sample's metadata is "
        '`{"runbell_test": "true"}`. It is sent each time: `Idempotency-Key` is a 400 here.',
        refuses=(424,),
        repeats=True,
    ),
    Route(
        "GET",
        "/v1/webhook_event_types",
        _event_types,
        "List the types of events",
        operation="listWebhookEventTypes",
        answer=EventTypesObject,
    ),
    Route(
        "GET",
        _DELIVERIES,
        _deliveries,
        "List an endpoint's deliveries",
        query=deliveries_query,
        operation="listDeliveries",
        answer=ListPage[DeliveryObject],
        parameters=(*PAGING, DELIVERY_STATUS, DELIVERY_RUN, EVENT_BEFORE, EVENT_AFTER),
        about="Each with its attempts.",
        ours=True,
    ),
    Route(
        "GET",
        _DELIVERY,
        _delivery,
        "Retrieve a delivery",
        operation="getDelivery",
        answer=DeliveryObject,
        ours=True,
    ),
    Route(
        "POST",
        f"{_DELIVERY}/resend",
        _resend,
        "Send a delivery again",
        operation="resendDelivery",
        answer=DeliveryObject,
        about="Whatever became of it; with the same id, and from the beginning of the schedule.",
        ours=True,
    ),
    Route(
        "POST",
        f"{_ONE}/recover",
        _recover,
        "Send again what has failed",
        body=RecoverDeliveries,
        operation="recoverDeliveries",
        answer=RecoveryObject,
        about="Every failed delivery of an event of the last 7 days, or since `since`; with the "
        "same ids.",
        ours=True,
    ),
)
