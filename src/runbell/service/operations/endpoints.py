"""Webhook endpoints: registered, changed, tried out, forgotten."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec

from runbell.errors import AddressRefused, RequestRefused, UnknownCursor
from runbell.runs import Event
from runbell.service.jobs import Job, JobKind
from runbell.service.operations import deliveries, refusals, samples
from runbell.service.operations.context import Context, Posted
from runbell.service.vault import Vault
from runbell.service.wire import refusals as wire_refusals
from runbell.service.wire.webhooks import CreateEndpoint, EndpointFields, UpdateEndpoint
from runbell.storage import endpoints
from runbell.storage.endpoints import Endpoint, Subscription
from runbell.storage.paging import Page
from runbell.storage.store import Store, Transaction
from runbell.webhooks import Secret, check_url, headers_for

__all__ = [
    "OVERLAP_MS",
    "Keys",
    "check_address",
    "create",
    "delete",
    "keys_of",
    "list_page",
    "prepare_update",
    "reencrypt",
    "retrieve",
    "rotate_secret",
    "test",
    "update",
]

OVERLAP_MS = 24 * 3_600_000
"""For how long an old secret goes on to sign beside the new one, where that is wanted."""

MOST_ENDPOINTS = 500
"""Of one project: each change of a run asks every one of them whether it wants the event."""

MOST_OLD_SECRETS = 4
"""Of those that still sign: whoever rotates more often gives up the oldest before its day is over.
Each is a signature in the headers of every webhook."""

DISABLED_BY_OWNER = "It was disabled by an update."


@dataclass(frozen=True, slots=True, repr=False)
class Keys:
    """What of an endpoint is encrypted, in the clear.

    Attributes:
        secrets: those that sign now, the newest first.
    """

    secrets: tuple[Secret, ...]
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Keys({len(self.secrets)} secrets, {len(self.headers)} headers)"

    def sign(self, message_id: str, now_ms: int, body: bytes) -> dict[str, str]:
        """The headers of one attempt: the endpoint's own, and those that nothing can replace."""
        return {**self.headers, **headers_for(self.secrets, message_id, now_ms // 1000, body)}


def keys_of(ctx: Context, endpoint: Endpoint, now_ms: int) -> Keys:
    """Decrypt what signing needs.

    Raises:
        CannotDecrypt: it was encrypted with another key than the service has.
    """
    secrets = [Secret(ctx.vault.open(endpoint.secret, endpoint.id))]
    secrets += [Secret(key) for key, _ in _old_secrets(ctx, endpoint, now_ms)]
    return Keys(tuple(secrets), _headers(ctx, endpoint))


async def check_address(ctx: Context, project: str, url: str | None) -> None:
    """Refuse a URL that leads where webhooks must not go. Its name is resolved, so that this
    belongs in front of a transaction; whoever dials it looks again.

    Raises:
        RequestRefused: (400) says what to change.
    """
    if url is None:
        return
    try:
        await ctx.poster.check_reachable_address(url, project)
    except AddressRefused as error:
        raise _refused(error) from None


async def prepare_update(
    ctx: Context, project: str, endpoint_id: str, request: UpdateEndpoint
) -> None:
    """What belongs in front of the transaction of an update: a look at the URL's address; and
    before an endpoint is enabled, what waited for it begins anew, in as many transactions as that
    takes.

    Raises:
        RequestRefused: (400) the address says what to change.
    """
    await check_address(ctx, project, request.url)
    if request.enabled:
        await deliveries.begin_anew(ctx, project, endpoint_id)


async def create(
    ctx: Context, project: str, request: CreateEndpoint
) -> tuple[Endpoint, Mapping[str, str], Secret]:
    """Register an endpoint: its row, its headers, and its secret, which is not shown again."""
    secret = Secret.generate()

    async def work(tx: Transaction) -> Endpoint:
        now_ms = ctx.clock.now_ms()
        key = ctx.new_id("wh")
        blank = Endpoint(
            project_id=project,
            id=key,
            created_at_ms=now_ms,
            updated_at_ms=now_ms,
            name=request.name,
            url=request.url,
            subscription=Subscription(request.event_types),
            secret=ctx.vault.seal(secret.key, key),
            secret_hint=secret.hint,
        )
        endpoint = _changed(ctx, blank, request)
        if await endpoints.count(tx, project) >= MOST_ENDPOINTS:
            raise refusals.too_many_endpoints(MOST_ENDPOINTS)
        await endpoints.insert(tx, endpoint)
        return endpoint

    return await ctx.store.write(work), request.headers or {}, secret


async def retrieve(
    ctx: Context, project: str, endpoint_id: str
) -> tuple[Endpoint, Mapping[str, str]]:
    """One endpoint, and its headers."""
    endpoint = await ctx.store.read(lambda tx: endpoints.get(tx, project, endpoint_id))
    if endpoint is None:
        raise refusals.not_found("webhook endpoint", endpoint_id)
    return endpoint, _headers(ctx, endpoint)


async def update(
    ctx: Context, project: str, endpoint_id: str, request: UpdateEndpoint
) -> tuple[Endpoint, Mapping[str, str]]:
    """Change what the request names, behind `prepare_update`. What is owed already goes where the
    endpoint is then."""

    async def work(tx: Transaction) -> tuple[Endpoint, Mapping[str, str]]:
        before = await _get(tx, project, endpoint_id)
        after = _changed(ctx, before, request)
        headers = _headers(ctx, before) if request.headers is None else request.headers
        if after != before:
            after = replace(after, updated_at_ms=_later(ctx, before))
            await endpoints.update(tx, after)
            await _resume(ctx, tx, after)
        return after, headers

    return await ctx.store.write(work)


async def rotate_secret(
    ctx: Context, project: str, endpoint_id: str, *, keep_old: bool
) -> tuple[Endpoint, Mapping[str, str], Secret]:
    """Sign with a new secret from now on; for a day with the old one too, where that is kept, and
    with those before it whose day is not over. Where it is not kept, none of them signs again."""
    secret = Secret.generate()

    async def work(tx: Transaction) -> Endpoint:
        before = await _get(tx, project, endpoint_id)
        now_ms = ctx.clock.now_ms()
        after = replace(
            before,
            updated_at_ms=_later(ctx, before),
            secret=ctx.vault.seal(secret.key, endpoint_id),
            secret_hint=secret.hint,
            **_overlap(ctx, before, now_ms, keep_old=keep_old),
        )
        await endpoints.update(tx, after)
        return after

    endpoint = await ctx.store.write(work)
    return endpoint, _headers(ctx, endpoint), secret


async def delete(ctx: Context, project: str, endpoint_id: str) -> None:
    """Forget an endpoint, and what is owed to it. Nothing is sent to it any more."""

    async def work(tx: Transaction) -> None:
        if not await endpoints.remove(tx, project, endpoint_id):
            raise refusals.not_found("webhook endpoint", endpoint_id)
        ctx.changes.announce_wake(tx, endpoint_id)

    await ctx.store.write(work)


async def list_page(
    ctx: Context, project: str, page: Page
) -> tuple[list[tuple[Endpoint, Mapping[str, str]]], bool]:
    """A page of the project's endpoints, each with its headers."""
    try:
        found, more = await ctx.store.scan(lambda tx: endpoints.page(tx, project, page))
    except UnknownCursor as error:
        raise refusals.unknown_cursor("webhook endpoint", error) from None
    return [(endpoint, _headers(ctx, endpoint)) for endpoint in found], more


async def test(ctx: Context, project: str, endpoint_id: str, kind: str) -> int:
    """Send a sample event to an endpoint, signed as the real ones are; once, and not recorded.

    Returns:
        The status that it was answered with, whichever that is.

    Raises:
        RequestRefused: (404) there is no such endpoint; (424) there was no answer, and why.
    """
    endpoint, _ = await retrieve(ctx, project, endpoint_id)
    now_ms = ctx.clock.now_ms()
    event: Event = samples.event(kind, ctx.new_id, now_ms)
    headers = keys_of(ctx, endpoint, now_ms).sign(event.id, now_ms, event.body)
    posted: Posted = await ctx.poster.post(endpoint.url, headers, event.body, project)
    if posted.status is None:
        raise refusals.unreachable(posted.error or "There was no answer.")
    return posted.status


async def _get(tx: Transaction, project: str, endpoint_id: str) -> Endpoint:
    endpoint = await endpoints.get(tx, project, endpoint_id)
    if endpoint is None:
        raise refusals.not_found("webhook endpoint", endpoint_id)
    return endpoint


def _later(ctx: Context, endpoint: Endpoint) -> int:
    """The moment of a change, which no other change of the endpoint has."""
    return max(ctx.clock.now_ms(), endpoint.updated_at_ms + 1)


async def _resume(ctx: Context, tx: Transaction, endpoint: Endpoint) -> None:
    """What waited for an endpoint may go on now."""
    if endpoint.enabled:
        await ctx.jobs.enqueue(tx, Job(JobKind.DELIVER, endpoint.id))
    ctx.changes.announce_wake(tx, endpoint.id)


def _changed(ctx: Context, endpoint: Endpoint, request: EndpointFields) -> Endpoint:
    given = {
        name: value
        for name in ("name", "metadata")
        if (value := getattr(request, name, None)) is not None
    }
    url: str | None = getattr(request, "url", None)
    if url is not None:
        given["url"] = _url(ctx, url)
        if given["url"] != endpoint.url:
            # Its failures were the other one's.
            given["failing_since_ms"] = None
    if request.rate_limit is not None:
        given["rate_limit"] = request.rate_limit or None
    if request.headers is not None and request.headers != _headers(ctx, endpoint):
        given["headers"] = _sealed(ctx, request.headers, endpoint.id)
    given["subscription"] = _subscription(endpoint.subscription, request)
    return dataclasses.replace(endpoint, **given, **_switched(endpoint, request.enabled))


def _subscription(before: Subscription, request: EndpointFields) -> Subscription:
    given: dict[str, Any] = {}
    types: tuple[str, ...] | None = getattr(request, "event_types", None)
    if types is not None:
        given["event_types"] = tuple(dict.fromkeys(types))
    if request.filters is not None:
        given["assistant_ids"] = tuple(dict.fromkeys(request.filters.assistant_ids or ()))
        given["metadata"] = request.filters.metadata or {}
    return msgspec.structs.replace(before, **given)


def _switched(endpoint: Endpoint, enabled: bool | None) -> dict[str, Any]:
    """Enabling begins anew: what failed before counts no more."""
    if enabled is None or enabled == endpoint.enabled:
        return {}
    if enabled:
        return {
            "enabled": True,
            "disabled_reason": None,
            "failing_since_ms": None,
            "owed_until_ms": None,
        }
    return {"enabled": False, "disabled_reason": DISABLED_BY_OWNER}


def _url(ctx: Context, url: str) -> str:
    try:
        return check_url(url, allow_private=ctx.settings.allow_private_webhooks).url
    except AddressRefused as error:
        raise _refused(error) from None


def _refused(error: AddressRefused) -> RequestRefused:
    return wire_refusals.invalid_value("url", str(error))


async def reencrypt(store: Store, vault: Vault) -> tuple[int, int]:
    """Encrypt with the vault's first key what was encrypted with an older one.

    One endpoint a transaction, beside services that serve; done again, it goes on where it was.

    Returns:
        how many endpoints were changed, and how many there are.

    Raises:
        CannotDecrypt: something was encrypted with a key that the vault has not.
    """
    changed, count, after = 0, 0, ""
    while ids := await store.scan(partial(endpoints.ids_behind, after=after)):
        for endpoint_id in ids:
            changed += await store.write(partial(_reencrypt, vault=vault, endpoint_id=endpoint_id))
        count, after = count + len(ids), ids[-1]
    return changed, count


async def _reencrypt(tx: Transaction, vault: Vault, endpoint_id: str) -> bool:
    endpoint = await endpoints.find(tx, endpoint_id)
    if endpoint is None:
        return False

    def renewed(sealed: bytes | None, about: str) -> bytes | None:
        return None if sealed is None else vault.renew(sealed, about)

    # It was not changed by its owner: what was seen of it before counts as it did.
    same = dataclasses.replace(
        endpoint,
        secret=vault.renew(endpoint.secret, endpoint_id),
        old_secret=renewed(endpoint.old_secret, _of_old(endpoint_id)),
        headers=renewed(endpoint.headers, _of_headers(endpoint_id)),
    )
    if same == endpoint:
        return False
    await endpoints.update(tx, same)
    return True


# What each secret is encrypted for.


def _of_old(endpoint_id: str) -> str:
    return f"{endpoint_id} old secrets"


def _of_headers(endpoint_id: str) -> str:
    return f"{endpoint_id} headers"


_encode = msgspec.json.Encoder(order="deterministic").encode
_decode = msgspec.json.Decoder(dict[str, str]).decode


_encode_old = msgspec.json.Encoder().encode
_decode_old = msgspec.json.Decoder(tuple[tuple[bytes, int], ...]).decode


def _old_secrets(ctx: Context, endpoint: Endpoint, now_ms: int) -> tuple[tuple[bytes, int], ...]:
    """The keys that sign beside the newest one, the latest first, and until when each does."""
    if endpoint.old_secret is None or now_ms >= (endpoint.old_secret_until_ms or 0):
        return ()
    kept = _decode_old(ctx.vault.open(endpoint.old_secret, _of_old(endpoint.id)))
    return tuple((key, until_ms) for key, until_ms in kept if now_ms < until_ms)


def _overlap(ctx: Context, before: Endpoint, now_ms: int, *, keep_old: bool) -> dict[str, Any]:
    """What becomes of the secrets that an endpoint had, when it gets another."""
    if not keep_old:
        return {"old_secret": None, "old_secret_until_ms": None}
    until_ms = now_ms + OVERLAP_MS
    latest = (ctx.vault.open(before.secret, before.id), until_ms)
    kept = (latest, *_old_secrets(ctx, before, now_ms))[:MOST_OLD_SECRETS]
    sealed = ctx.vault.seal(_encode_old(kept), _of_old(before.id))
    return {"old_secret": sealed, "old_secret_until_ms": until_ms}


def _sealed(ctx: Context, headers: Mapping[str, str], endpoint_id: str) -> bytes | None:
    return ctx.vault.seal(_encode(headers), _of_headers(endpoint_id)) if headers else None


def _headers(ctx: Context, endpoint: Endpoint) -> dict[str, str]:
    if endpoint.headers is None:
        return {}
    return _decode(ctx.vault.open(endpoint.headers, _of_headers(endpoint.id)))
