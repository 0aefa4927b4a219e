"""What is said about webhook endpoints and deliveries: requests, answers, and queries.

The fields that OpenAI's API has come first, as its SDK names them; what is ours stands behind.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from runbell.errors import RequestRefused
from runbell.runs import EVENT_TYPES
from runbell.service.wire import refusals
from runbell.service.wire.annotations import OURS, about, rule
from runbell.service.wire.objects import seconds
from runbell.service.wire.requests import Id, Metadata, Request
from runbell.storage.deliveries import Attempt, Delivery, DeliveryStatus
from runbell.storage.endpoints import Endpoint, Subscription

__all__ = [
    "ALL_EVENTS",
    "AttemptObject",
    "CreateEndpoint",
    "DeliveryObject",
    "EndpointFields",
    "EndpointObject",
    "EndpointTestObject",
    "EndpointWithSecretObject",
    "EventTypesObject",
    "Filters",
    "RecoverDeliveries",
    "RecoveryObject",
    "RotateSecret",
    "SendTest",
    "UpdateEndpoint",
    "delivery_object",
    "endpoint_object",
    "endpoint_with_secret",
]

ALL_EVENTS = "thread.run.*"
"""The type that stands for every one."""

KNOWN_TYPES = (*EVENT_TYPES, ALL_EVENTS)

MAX_RATE = 10_000
HEADER_NAME = "^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}$"
HEADER_VALUE = "^[!-~]([ -~]*[!-~])?$"

_RESERVED = frozenset(
    {
        "connection",
        "date",
        "expect",
        "forwarded",
        "host",
        "http2-settings",
        "keep-alive",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    }
)
_RESERVED_BEGINNINGS = ("webhook-", "svix-", "content-", "proxy-", "sec-")
"""Headers that say who sends what and how; an endpoint's own must not contradict them."""

_EventTypes = Annotated[
    tuple[Annotated[str, rule(enum=list(KNOWN_TYPES))], ...],
    Meta(min_length=1, max_length=20),
    about("Which events are pushed; `thread.run.*` stands for all."),
]
_Name = Annotated[str, Meta(min_length=1, max_length=256)]
_Url = Annotated[
    str,
    Meta(min_length=1, max_length=2_048),
    rule(pattern="^https?://[!-~]+$"),
    about("Where they are POSTed: https, at a public address."),
]
_Rate = Annotated[
    Annotated[int, Meta(ge=0, le=MAX_RATE)] | None,
    OURS,
    about("Attempts a second at the most; 0 is no limit."),
]
_Headers = Annotated[
    dict[
        Annotated[str, Meta(max_length=64), rule(pattern=HEADER_NAME)],
        Annotated[str, Meta(max_length=1_024), rule(pattern=HEADER_VALUE)],
    ],
    Meta(max_length=16),
]


class Filters(Struct, frozen=True, forbid_unknown_fields=True):
    """Which runs' events are pushed; without a filter, those of all."""

    assistant_ids: Annotated[tuple[Id, ...], Meta(max_length=100)] | None = None
    metadata: Metadata | None = None


class EndpointFields(Request, frozen=True, kw_only=True):
    """What the creation and the update of an endpoint have in common."""

    enabled: Annotated[
        bool | None, OURS, about("Whether anything is pushed; what is owed already waits.")
    ] = None
    rate_limit: _Rate = None
    filters: Annotated[
        Filters | None, OURS, about("Only events of runs of these assistants, with this metadata.")
    ] = None
    headers: Annotated[
        _Headers | None, OURS, about("Sent with each webhook; kept encrypted, shown to you.")
    ] = None
    metadata: Annotated[Metadata | None, OURS] = None

    def __repr__(self) -> str:
        # Headers hold keys, and so do many URLs.
        return f"{type(self).__name__}(…)"

    def check(self) -> None:
        _check_types("event_types", getattr(self, "event_types", None) or ())
        _check_headers(self.headers or {})


class CreateEndpoint(EndpointFields, frozen=True, kw_only=True):
    event_types: _EventTypes
    name: _Name
    url: _Url


class UpdateEndpoint(EndpointFields, frozen=True, kw_only=True):
    event_types: _EventTypes | None = None
    name: _Name | None = None
    url: _Url | None = None


class RotateSecret(Request, frozen=True, kw_only=True):
    keep_old_secret_active_for_24_hours: bool | None = None


class SendTest(Request, frozen=True, kw_only=True):
    event_type: Annotated[str, rule(enum=list(EVENT_TYPES))]

    def check(self) -> None:
        if self.event_type not in EVENT_TYPES:
            raise refusals.unsupported_value("event_type", self.event_type, EVENT_TYPES)


class RecoverDeliveries(Request, frozen=True, kw_only=True):
    since: Annotated[
        Annotated[int, Meta(ge=0, le=999_999_999_999)] | None,
        about("Only events since this moment, in seconds since the epoch; else of 7 days."),
    ] = None


class FiltersObject(Struct, frozen=True, kw_only=True):
    assistant_ids: tuple[str, ...]
    metadata: dict[str, str]


class EndpointObject(Struct, frozen=True, kw_only=True):
    """A URL to which events are pushed."""

    id: str
    object: Literal["webhook_endpoint"] = "webhook_endpoint"
    created_at: int
    event_types: tuple[str, ...]
    name: str
    url: str
    signing_secret_hint: str
    updated_at: int
    enabled: Annotated[bool, OURS]
    disabled_reason: Annotated[str | None, OURS]
    failing_since: Annotated[int | None, OURS]
    rate_limit: Annotated[int | None, OURS]
    filters: Annotated[FiltersObject, OURS]
    headers: Annotated[dict[str, str], OURS]
    metadata: Annotated[dict[str, str], OURS]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.id!r})"


class EndpointWithSecretObject(EndpointObject, frozen=True, kw_only=True):
    """The same, with its signing secret, which no other answer shows."""

    signing_secret: str


def endpoint_object(endpoint: Endpoint, headers: Mapping[str, str]) -> EndpointObject:
    return EndpointObject(**_endpoint_fields(endpoint, headers))


def endpoint_with_secret(
    endpoint: Endpoint, headers: Mapping[str, str], secret: str
) -> EndpointWithSecretObject:
    fields = _endpoint_fields(endpoint, headers)
    return EndpointWithSecretObject(**fields, signing_secret=secret)


def _endpoint_fields(endpoint: Endpoint, headers: Mapping[str, str]) -> dict[str, Any]:
    wanted: Subscription = endpoint.subscription
    since = endpoint.failing_since_ms
    return {
        "id": endpoint.id,
        "created_at": seconds(endpoint.created_at_ms),
        "event_types": wanted.event_types,
        "name": endpoint.name,
        "url": endpoint.url,
        "signing_secret_hint": endpoint.secret_hint,
        "updated_at": seconds(endpoint.updated_at_ms),
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since": None if since is None else seconds(since),
        "rate_limit": endpoint.rate_limit,
        "filters": FiltersObject(assistant_ids=wanted.assistant_ids, metadata=wanted.metadata),
        "headers": dict(headers),
        "metadata": endpoint.metadata or {},
    }


class EndpointTestObject(Struct, frozen=True, kw_only=True):
    """That a sample was sent, and the status with which it was answered."""

    object: Literal["webhook_endpoint.test"] = "webhook_endpoint.test"
    event_type: str
    status_code: int
    success: bool = True
    webhook_endpoint_id: str


class EventTypesObject(Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: tuple[str, ...] = KNOWN_TYPES


class AttemptObject(Struct, frozen=True, kw_only=True):
    """One POST of a delivery, and what came of it."""

    number: int
    at: int
    at_ms: int
    duration_ms: int
    status_code: int | None
    error: str | None
    response: Annotated[
        str | None, about("The beginning of what the endpoint answered, up to 1 KiB.")
    ]


class DeliveryObject(Struct, frozen=True, kw_only=True):
    """One event that is owed to one endpoint; its id is the event's, and the `webhook-id`."""

    id: str
    object: Literal["webhook_endpoint.delivery"] = "webhook_endpoint.delivery"
    webhook_endpoint_id: str
    event_type: str
    run_id: str
    status: DeliveryStatus
    created_at: int
    created_at_ms: int
    next_attempt_at: int | None
    next_attempt_at_ms: int | None
    settled_at: int | None
    settled_at_ms: int | None
    attempt_count: int
    attempts: Annotated[tuple[AttemptObject, ...], about("In their order; the latest 50.")]


def delivery_object(delivery: Delivery, attempts: list[Attempt]) -> DeliveryObject:
    # One that was not tried yet is due since its event.
    due_ms = delivery.next_at_ms
    due_ms = delivery.created_at_ms if due_ms == 0 else due_ms
    settled_ms = delivery.settled_at_ms
    return DeliveryObject(
        id=delivery.id,
        webhook_endpoint_id=delivery.endpoint_id,
        event_type=delivery.type,
        run_id=delivery.run_id,
        status=delivery.status,
        created_at=seconds(delivery.created_at_ms),
        created_at_ms=delivery.created_at_ms,
        next_attempt_at=None if due_ms is None else seconds(due_ms),
        next_attempt_at_ms=due_ms,
        settled_at=None if settled_ms is None else seconds(settled_ms),
        settled_at_ms=settled_ms,
        attempt_count=delivery.attempts,
        attempts=tuple(
            AttemptObject(
                number=each.number,
                at=seconds(each.at_ms),
                at_ms=each.at_ms,
                duration_ms=each.duration_ms,
                status_code=each.status_code,
                error=each.error,
                response=each.excerpt,
            )
            for each in attempts
        ),
    )


class RecoveryObject(Struct, frozen=True, kw_only=True):
    """How many deliveries that had failed are owed anew."""

    object: Literal["webhook_endpoint.recovery"] = "webhook_endpoint.recovery"
    webhook_endpoint_id: str
    recovered: int


def _check_types(path: str, types: tuple[str, ...]) -> None:
    for index, name in enumerate(types):
        if name not in KNOWN_TYPES:
            raise refusals.unsupported_value(f"{path}[{index}]", name, KNOWN_TYPES)


def _check_headers(headers: Mapping[str, str]) -> None:
    """Names and values that can be sent, and that leave ours alone."""
    seen: set[str] = set()
    for name, value in headers.items():
        path = f"headers.{refusals.clipped(name)}"
        if not re.fullmatch(HEADER_NAME[1:-1], name):
            raise refusals.invalid_value(path, "this is not the name of an HTTP header")
        lower = name.lower()
        if lower in _RESERVED or lower.startswith(_RESERVED_BEGINNINGS):
            raise _reserved(path)
        if lower in seen:
            raise refusals.invalid_value(path, "the header is named twice")
        seen.add(lower)
        # The value is not repeated: it may be a key.
        if not re.fullmatch(HEADER_VALUE[1:-1], value):
            raise refusals.invalid_value(
                path, "a header's value is printable ASCII, without spaces around it or line ends"
            )


def _reserved(path: str) -> RequestRefused:
    return refusals.invalid_value(
        path, "this header is reserved: the service or HTTP itself sets it"
    )
