"""Webhook endpoints: where events go, what is wanted there, and how it fares.

Secrets and headers are kept as they are given: encrypted. Nothing here can read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msgspec import Struct
from sqlalchemy import bindparam, delete, func, or_, select, text

from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.paging import Page, PagedList
from runbell.storage.statements import Statement, insert_row, limited, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = [
    "Endpoint",
    "Listening",
    "Subscription",
    "all_enabled",
    "count",
    "disable",
    "find",
    "get",
    "ids_behind",
    "insert",
    "listening",
    "listening_of",
    "mark_failing",
    "mark_succeeding",
    "page",
    "remove",
    "some_sealed",
    "update",
]

PAGE = 500
"""Ids that are read at once."""

_w = schema.webhook_endpoints.c
_own = (_w.project_id == bindparam("project"), _w.id == bindparam("key"))
_by_id = _w.id == bindparam("key")
_as_it_was = (_by_id, _w.updated_at_ms == bindparam("was_updated_at_ms"))

INSERT = Statement(
    "webhook_endpoints.insert", "A new endpoint.", insert_row(schema.webhook_endpoints)
)
GET = Statement(
    "webhook_endpoints.get",
    "One endpoint.",
    select_row(schema.webhook_endpoints).where(*_own),
    locks=True,
)
FIND = Statement(
    "webhook_endpoints.find",
    "An endpoint by its id alone.",
    select_row(schema.webhook_endpoints).where(_by_id),
    locks=True,
)
COUNT = Statement(
    "webhook_endpoints.count",
    "How many endpoints a project has.",
    select(func.count()).where(_w.project_id == bindparam("project")),
)
LISTENING = Statement(
    "webhook_endpoints.listening",
    "What the project's endpoints want to which events are owed.",
    select(_w.id, _w.subscription, _w.enabled).where(
        _w.project_id == bindparam("project"),
        # In the words of the partial index.
        text(f"({schema.LISTENING})"),
        or_(text("enabled"), _w.owed_until_ms > bindparam("now_ms")),
    ),
    apart=True,
)
UPDATE = Statement(
    "webhook_endpoints.update",
    "Replace everything that the owner of an endpoint chose.",
    update_row(
        schema.webhook_endpoints,
        "updated_at_ms",
        "name",
        "url",
        "subscription",
        "rate_limit",
        "headers",
        "metadata",
        "secret",
        "secret_hint",
        "old_secret",
        "old_secret_until_ms",
        "enabled",
        "disabled_reason",
        "failing_since_ms",
        "owed_until_ms",
    ).where(*_own),
)
DISABLE = Statement(
    "webhook_endpoints.disable",
    "Send nothing more to an endpoint, and say why, if its owner has not changed it since.",
    update_row(schema.webhook_endpoints, "enabled", "disabled_reason", "owed_until_ms").where(
        *_as_it_was, text("enabled")
    ),
)
FAILING = Statement(
    "webhook_endpoints.failing",
    "The first failure since the endpoint last answered well.",
    update_row(schema.webhook_endpoints, "failing_since_ms").where(
        *_as_it_was, _w.failing_since_ms.is_(None)
    ),
)
SUCCEEDING = Statement(
    "webhook_endpoints.succeeding",
    "The endpoint has answered well.",
    update_row(schema.webhook_endpoints, "failing_since_ms").where(
        *_as_it_was, _w.failing_since_ms.is_not(None)
    ),
)
DELETE = Statement(
    "webhook_endpoints.delete",
    "Forget one endpoint.",
    delete(schema.webhook_endpoints).where(*_own),
)
PAGES = PagedList(
    "webhook_endpoints.list",
    schema.webhook_endpoints,
    _w.project_id == bindparam("project"),
)
ALL_ENABLED = Statement(
    "webhook_endpoints.all_enabled",
    "Every enabled endpoint.",
    select_row(schema.webhook_endpoints).where(text("enabled")),
)
IDS_BEHIND = Statement(
    "webhook_endpoints.ids_behind",
    "The ids of endpoints of all projects, a page at a time.",
    limited(select(_w.id).where(_w.id > bindparam("after")).order_by(_w.id)),
)
SOME_SEALED = Statement(
    "webhook_endpoints.some_sealed",
    "Any endpoint's secret: to see whether the key is the one of then.",
    limited(select(_w.secret, _w.id)),
)


class Subscription(Struct, frozen=True):
    """Which events an endpoint wants.

    Attributes:
        event_types: types, or `thread.run.*` for all.
        assistant_ids: only those of runs of these assistants; empty is all.
        metadata: only those of runs whose metadata has all of this.
    """

    event_types: tuple[str, ...]
    assistant_ids: tuple[str, ...] = ()
    metadata: dict[str, str] = {}


@dataclass(frozen=True, slots=True, repr=False)
class Endpoint:
    """An endpoint's row.

    Attributes:
        updated_at_ms: when its owner changed it last; later each time, so that it tells what was
            seen before a change from what was seen after it.
        rate_limit: attempts a second; None is no limit.
        headers: encrypted; None where there are none.
        secret: encrypted.
        old_secret: those before it that sign too, and until when each does; encrypted.
        old_secret_until_ms: until when the last of them does.
        disabled_reason: why it is not enabled, a sentence.
        failing_since_ms: its first failure since it last answered well; None while it does.
        owed_until_ms: until when events go on to be owed to it though it is disabled; None where
            they are as long as it is enabled.
    """

    project_id: str
    id: str
    created_at_ms: int
    updated_at_ms: int
    name: str
    url: str
    subscription: Subscription
    secret: bytes
    secret_hint: str
    rate_limit: int | None = None
    headers: bytes | None = None
    metadata: dict[str, str] | None = None
    old_secret: bytes | None = None
    old_secret_until_ms: int | None = None
    enabled: bool = True
    disabled_reason: str | None = None
    failing_since_ms: int | None = None
    owed_until_ms: int | None = None

    def __repr__(self) -> str:
        # Many URLs hold a key.
        return f"Endpoint({self.id!r}, updated_at_ms={self.updated_at_ms})"


@dataclass(frozen=True, slots=True)
class Listening:
    """An endpoint to which events are owed, and what it wants.

    Attributes:
        enabled: they are sent, too.
    """

    id: str
    subscription: Subscription
    enabled: bool


_subscription = JsonColumn(Subscription)
_metadata = JsonColumn(dict[str, str])


async def insert(tx: Transaction, endpoint: Endpoint) -> None:
    """Add an endpoint."""
    await tx.execute(INSERT, _params(endpoint))


async def get(tx: Transaction, project: str, endpoint_id: str) -> Endpoint | None:
    """One endpoint of the project."""
    row = await tx.fetch_one(GET, {"project": project, "key": endpoint_id})
    return _endpoint(row) if row is not None else None


async def find(tx: Transaction, endpoint_id: str) -> Endpoint | None:
    """An endpoint by its id alone, whosever it is."""
    row = await tx.fetch_one(FIND, {"key": endpoint_id})
    return _endpoint(row) if row is not None else None


async def count(tx: Transaction, project: str) -> int:
    """How many endpoints a project has, enabled or not."""
    row = await tx.fetch_one(COUNT, {"project": project})
    return int(row[0]) if row is not None else 0


async def listening(tx: Transaction, project: str, now_ms: int) -> list[Listening]:
    """The project's endpoints to which events are owed, as this transaction sees them."""
    rows = await tx.fetch_all(LISTENING, {"project": project, "now_ms": now_ms})
    return [listening_of(row) for row in rows]


def listening_of(row: Row) -> Listening:
    """What a row of `LISTENING` says."""
    return Listening(row[0], _wanted(row[1]), bool(row[2]))


async def update(tx: Transaction, endpoint: Endpoint) -> None:
    """Store an endpoint that was changed."""
    params = _params(endpoint)
    await tx.execute(UPDATE, {**params, "project": endpoint.project_id, "key": endpoint.id})


async def disable(
    tx: Transaction, endpoint_id: str, updated_at_ms: int, reason: str, owed_until_ms: int
) -> bool:
    """Send nothing more to an endpoint; False where it is not enabled anyway.

    Args:
        updated_at_ms: of the endpoint that was seen: to one that was changed since, it says
            nothing. So it is for the next two.
        owed_until_ms: until when events go on to be owed to it, for when it is enabled again.
    """
    params = {
        **_seen(endpoint_id, updated_at_ms),
        "enabled": False,
        "disabled_reason": reason,
        "owed_until_ms": owed_until_ms,
    }
    return await tx.execute(DISABLE, params) == 1


async def mark_failing(
    tx: Transaction, endpoint_id: str, updated_at_ms: int, since_ms: int
) -> None:
    """An attempt has failed: where it is the first in a row, that is the moment."""
    params = {**_seen(endpoint_id, updated_at_ms), "failing_since_ms": since_ms}
    await tx.execute(FAILING, params)


async def mark_succeeding(tx: Transaction, endpoint_id: str, updated_at_ms: int) -> None:
    """An attempt has succeeded."""
    params = {**_seen(endpoint_id, updated_at_ms), "failing_since_ms": None}
    await tx.execute(SUCCEEDING, params)


async def remove(tx: Transaction, project: str, endpoint_id: str) -> bool:
    """Forget an endpoint; False where the project has none with this id.

    What was owed to it is not owed any more, and is cleared away later.
    """
    return await tx.execute(DELETE, {"project": project, "key": endpoint_id}) == 1


async def page(tx: Transaction, project: str, page: Page) -> tuple[list[Endpoint], bool]:
    """A page of the project's endpoints, and whether there are more."""
    rows, more = await PAGES.fetch(tx, page, {"project": project})
    return [_endpoint(row) for row in rows], more


async def all_enabled(tx: Transaction) -> list[Endpoint]:
    """Every enabled endpoint, of all projects: for checks."""
    return [_endpoint(row) for row in await tx.fetch_all(ALL_ENABLED, {})]


async def ids_behind(tx: Transaction, after: str) -> list[str]:
    """The next endpoints' ids, of all projects, in their order; none behind the last."""
    rows = await tx.fetch_all(IDS_BEHIND, {"after": after, "limit": PAGE})
    return [row[0] for row in rows]


async def some_sealed(tx: Transaction) -> tuple[bytes, str] | None:
    """The secret of any endpoint, and the endpoint's id; None where there is no endpoint."""
    row = await tx.fetch_one(SOME_SEALED, {"limit": 1})
    return (row[0], row[1]) if row is not None else None


_known: dict[str, Subscription] = {}
_MAX_KNOWN = 1_000


def _wanted(encoded: str) -> Subscription:
    """Decoded once for each text: every change of a run asks for those of its project."""
    found = _known.get(encoded)
    if found is None:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        found = _known[encoded] = _subscription.decode(encoded)
    return found


def _seen(endpoint_id: str, updated_at_ms: int) -> dict[str, Any]:
    return {"key": endpoint_id, "was_updated_at_ms": updated_at_ms}


def _params(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "project_id": endpoint.project_id,
        "id": endpoint.id,
        "created_at_ms": endpoint.created_at_ms,
        "updated_at_ms": endpoint.updated_at_ms,
        "name": endpoint.name,
        "url": endpoint.url,
        "subscription": to_json(endpoint.subscription),
        "rate_limit": endpoint.rate_limit,
        "headers": endpoint.headers,
        "metadata": to_json(endpoint.metadata or {}),
        "secret": endpoint.secret,
        "secret_hint": endpoint.secret_hint,
        "old_secret": endpoint.old_secret,
        "old_secret_until_ms": endpoint.old_secret_until_ms,
        "enabled": endpoint.enabled,
        "disabled_reason": endpoint.disabled_reason,
        "failing_since_ms": endpoint.failing_since_ms,
        "owed_until_ms": endpoint.owed_until_ms,
    }


def _endpoint(row: Row) -> Endpoint:
    (
        project_id,
        endpoint_id,
        created_at_ms,
        updated_at_ms,
        name,
        url,
        subscription,
        rate_limit,
        headers,
        metadata,
        secret,
        secret_hint,
        old_secret,
        old_secret_until_ms,
        enabled,
        disabled_reason,
        failing_since_ms,
        owed_until_ms,
    ) = row
    return Endpoint(
        project_id=project_id,
        id=endpoint_id,
        created_at_ms=created_at_ms,
        updated_at_ms=updated_at_ms,
        name=name,
        url=url,
        subscription=_wanted(subscription),
        secret=secret,
        secret_hint=secret_hint,
        rate_limit=rate_limit,
        headers=headers,
        metadata=_metadata.decode(metadata),
        old_secret=old_secret,
        old_secret_until_ms=old_secret_until_ms,
        enabled=bool(enabled),
        disabled_reason=disabled_reason,
        failing_since_ms=failing_since_ms,
        owed_until_ms=owed_until_ms,
    )
