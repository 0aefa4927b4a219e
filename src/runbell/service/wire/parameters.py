"""What a request may say beside its body, and an answer beside its own: for the documents.

`pages` and `preferences` read these parameters; the limits here are theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta

from runbell.runs import EVENT_TYPES, RunStatus
from runbell.service.wire.annotations import rule
from runbell.service.wire.pages import (
    DEFAULT_LIMIT,
    INCLUDABLE,
    MAX_IDS,
    MAX_LIMIT,
    MAX_TIME,
    Order,
)
from runbell.service.wire.preferences import MAX_WAIT_SECONDS
from runbell.storage.deliveries import DeliveryStatus

__all__ = [
    "AFTER",
    "API_VERSION",
    "CREATED_AFTER",
    "CREATED_BEFORE",
    "DELIVERY_RUN",
    "DELIVERY_STATUS",
    "ETAG",
    "EVENT_AFTER",
    "EVENT_BEFORE",
    "IDEMPOTENCY_KEY",
    "IDS",
    "IF_NONE_MATCH",
    "INCLUDE",
    "LAST_EVENT_ID",
    "LIMIT",
    "OF_RUN",
    "PAGING",
    "POLL_AFTER",
    "PREFER",
    "PREFERENCE_APPLIED",
    "PROCESSING_MS",
    "RATE_LIMITS",
    "REPLAYED",
    "REQUEST_ID",
    "RETRY_AFTER",
    "RETRY_AFTER_MS",
    "SHOULD_RETRY",
    "STATUS",
    "TYPES",
    "Header",
    "Parameter",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a query, or a header of a request.

    Attributes:
        type: of its value; for a list, of the list.
        default: what is taken where it is absent, if anything is.
        commas: of a list: may be written as one value, separated by commas, too.
        ours: OpenAI's API does not have it.
    """

    name: str
    type: Any
    about: str
    place: Literal["query", "header"] = "query"
    default: Any = None
    commas: bool = False
    ours: bool = False
    example: Any = None


@dataclass(frozen=True, slots=True)
class Header:
    """A header of an answer.

    Attributes:
        always: every answer of this kind carries it.
    """

    name: str
    type: Any
    about: str
    example: Any
    always: bool = False
    ours: bool = False


# Paging.

_Cursor = Annotated[str, Meta(min_length=1)]
_Name = Annotated[str, rule(pattern=r"^[^,\s]+$")]
_Seconds = Annotated[int, Meta(ge=0, le=MAX_TIME)]
_PREFIXES = dict.fromkeys(
    f"{kind.rsplit('.', dots)[0]}.*" for dots in (1, 2) for kind in EVENT_TYPES
)

LIMIT = Parameter(
    "limit",
    Annotated[int, Meta(ge=1, le=MAX_LIMIT)],
    "How many at the most.",
    default=DEFAULT_LIMIT,
)
ORDER = Parameter("order", Order, "By time of creation.", default="desc")
AFTER = Parameter(
    "after", _Cursor, "An id: only what stands behind it. One that the list does not have is a 404."
)
BEFORE = Parameter("before", _Cursor, "An id: only what stands just in front of it.")
PAGING = (LIMIT, ORDER, AFTER, BEFORE)

OF_RUN = Parameter("run_id", _Cursor, "Only messages that this run made.")
INCLUDE = Parameter(
    "include",
    list[Annotated[str, rule(enum=[INCLUDABLE])]],
    "Accepted, and without effect: no run searches files. `include[]` means the same.",
)
API_VERSION = Parameter("api-version", str, "Sent by Azure's clients, and ignored.")

# Runs across threads, and events.

IDS = Parameter(
    "ids",
    Annotated[list[_Name], Meta(min_length=1, max_length=MAX_IDS)],
    "These runs, in this order; goes with no other parameter.",
    commas=True,
    ours=True,
)
STATUS = Parameter(
    "status", list[RunStatus], "Only runs in one of these statuses.", commas=True, ours=True
)
CREATED_AFTER = Parameter(
    "created_after", _Seconds, "Only runs created later, in seconds since the epoch.", ours=True
)
CREATED_BEFORE = Parameter(
    "created_before", _Seconds, "Only runs created earlier, in seconds since the epoch.", ours=True
)
DELIVERY_STATUS = Parameter("status", DeliveryStatus, "Only deliveries in this status.", ours=True)
DELIVERY_RUN = Parameter("run_id", _Cursor, "Only events of this run.", ours=True)
EVENT_AFTER = Parameter(
    "created_after", _Seconds, "Only events that are later, in seconds since the epoch.", ours=True
)
EVENT_BEFORE = Parameter(
    "created_before",
    _Seconds,
    "Only events that are earlier, in seconds since the epoch.",
    ours=True,
)
TYPES = Parameter(
    "types",
    list[Annotated[str, rule(enum=[*EVENT_TYPES, *_PREFIXES])]],
    "Only events of these types.",
    commas=True,
    ours=True,
)

# Headers of requests.

PREFER = Parameter(
    "Prefer",
    str,
    f"`wait=N` (RFC 7240) holds the answer for up to N seconds, at most {MAX_WAIT_SECONDS}.",
    place="header",
    ours=True,
    example="wait=30",
)
IF_NONE_MATCH = Parameter(
    "If-None-Match",
    str,
    "An `ETag`: a 304 where nothing has changed. With `Prefer: wait`, the answer is held until "
    "something has.",
    place="header",
    ours=True,
    example='"3f1-8d0e6a3c"',
)
LAST_EVENT_ID = Parameter(
    "Last-Event-ID",
    str,
    "Of a stream: the last event that you have; goes before `after`.",
    place="header",
    ours=True,
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    Annotated[str, rule(pattern="^[!-~]([ -~]{0,253}[!-~])?$")],
    "Of any POST: the same key and body within 24 hours get the first answer again; another body "
    "is a 409.",
    place="header",
    example="5f2c1b0e-7d4a-4e0f-9a55-1c8f3b6d2e70",
)

# Headers of answers.

REQUEST_ID = Header(
    "x-request-id",
    Annotated[str, rule(pattern="^req_[0-9a-f]{32}$")],
    "Names this request in the service's log.",
    "req_0a1b2c3d4e5f60718293a4b5c6d7e8f9",
    always=True,
)
PROCESSING_MS = Header(
    "openai-processing-ms",
    Annotated[int, Meta(ge=0)],
    "Milliseconds from the request's arrival to its answer.",
    3,
    always=True,
)
ETAG = Header("etag", str, "Changes with any byte of the answer.", '"3f1-8d0e6a3c"', ours=True)
PREFERENCE_APPLIED = Header(
    "preference-applied", str, "That `Prefer: wait=N` was heard.", "wait=30", ours=True
)
POLL_AFTER = Header(
    "openai-poll-after-ms",
    Annotated[int, Meta(ge=1)],
    "On runs that have not ended: milliseconds after which to look again. The stock SDK's `poll` "
    "reads it.",
    500,
)
RETRY_AFTER = Header(
    "retry-after", Annotated[int, Meta(ge=0)], "Seconds after which to try again.", 1, always=True
)
RETRY_AFTER_MS = Header("retry-after-ms", Annotated[int, Meta(ge=0)], "The same, finer.", 640)
SHOULD_RETRY = Header(
    "x-should-retry", str, "Keeps stock SDKs from trying again.", "false", always=True
)
REPLAYED = Header(
    "idempotent-replayed", Literal["true"], "The answer was given before.", "true", ours=True
)
RATE_LIMITS = (
    Header(
        "x-ratelimit-limit-requests",
        Annotated[int, Meta(ge=1)],
        "Where the key has a limit: requests a minute.",
        60,
    ),
    Header(
        "x-ratelimit-remaining-requests",
        Annotated[int, Meta(ge=0)],
        "Where the key has a limit: requests that are left now.",
        59,
    ),
    Header(
        "x-ratelimit-reset-requests",
        str,
        "Where the key has a limit: the time until nothing of it is used up.",
        "1s",
    ),
)
