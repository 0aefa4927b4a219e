"""Once: requests with the same `Idempotency-Key` have one effect, and get one answer.

The handler of such a request runs inside a transaction that first claims the key and at last keeps
the answer. So they are there together or not at all, whenever the process dies; and a duplicate,
which claims the same key, waits until that transaction has ended and finds the answer.

What failed had no effect and is not kept: the same key may try again.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any, TypeVar

import msgspec

from runbell.errors import RequestRefused, StorageUnavailable
from runbell.service.routes.routing import Answer, Call, EventStream, Route, answer
from runbell.service.routes.streaming import replay_run
from runbell.storage import idempotency
from runbell.storage.idempotency import FirstAnswer
from runbell.storage.store import Transaction, Work

__all__ = ["handle_once", "key_of", "request_digest"]

T = TypeVar("T")

PRUNED_AT_ONCE = 10
"""Old answers that one new one takes the place of; more than one, so that the table shrinks."""

REPLAYED = {"idempotent-replayed": "true"}
"""Says that an answer was given before."""

_KEY = re.compile(r"[ -~]{1,255}")


def key_of(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    """The request's `Idempotency-Key`, if it has one.

    Raises:
        RequestRefused: (400) it can't be used.
    """
    values = [value for name, value in headers if name == b"idempotency-key"]
    if not values:
        return None
    key = values[0].decode("latin-1").strip()
    if len(values) > 1 or not _KEY.fullmatch(key):
        raise RequestRefused(
            400,
            "Invalid 'Idempotency-Key' header: expected one value of 1 to 255 printable ASCII "
            "characters, such as a UUID.",
            param="Idempotency-Key",
            code="invalid_idempotency_key",
        )
    return key


def request_digest(method: str, path: str, body: bytes) -> bytes:
    """What two requests have in common that are the same."""
    place = f"{method} {path}".encode(errors="surrogatepass")
    # With its length in front, since a path may hold anything, decoded as it is.
    return sha256(b"%d %b%b" % (len(place), place, body)).digest()


Handle = Callable[[Call[Any, Any]], Awaitable[Any]]


async def handle_once(
    route: Route, call: Call[Any, Any], key: str, digest: bytes
) -> Answer | EventStream:
    """Handle a request, unless it was handled before: then its first answer again.

    Raises:
        RequestRefused: by its handler; (409) another request had this key; or (400) it can't be
            made sure that it happens once.
    """
    if route.repeats:
        raise _repeats()
    seal, unseal = _sealing(call, digest) if route.secret else (_plain, _plain)
    project, now_ms = call.project, call.ctx.clock.now_ms()
    oldest_ms = now_ms - idempotency.KEPT_MS

    async def work(tx: Transaction) -> FirstAnswer | Answer | EventStream:
        await idempotency.prune(tx, before_ms=oldest_ms, limit=PRUNED_AT_ONCE)
        first = await idempotency.claim(
            tx, project, key, digest, now_ms=now_ms, oldest_ms=oldest_ms
        )
        if first is not None:
            if first.digest != digest:
                raise _reused()
            return first
        given = await _handle_within(tx, route.handle, call)
        await idempotency.keep(tx, project, key, _first_answer(given, digest, seal))
        return given

    result = await call.ctx.store.write(work)
    if isinstance(result, FirstAnswer):
        return await _replay(call, replace(result, body=unseal(result.body)))
    return result


async def _handle_within(
    tx: Transaction, handle: Handle, call: Call[Any, Any]
) -> Answer | EventStream:
    """Let a handler do in this transaction what it would else do in transactions of its own."""
    store = _Within(tx)
    ctx = replace(call.ctx, store=store)
    try:
        given = await handle(replace(call, ctx=ctx))
    finally:
        await store.close()
    return given if isinstance(given, Answer | EventStream) else answer(given)


def _first_answer(
    given: Answer | EventStream, digest: bytes, seal: Callable[[bytes], bytes]
) -> FirstAnswer:
    if isinstance(given, Answer):
        return FirstAnswer(digest, given.status, given.headers, seal(given.body), None)
    if given.run_id is None:
        raise TypeError("a stream that is asked for with POST is that of a run")
    return FirstAnswer(digest, 200, given.headers, b"", given.run_id)


def _sealing(
    call: Call[Any, Any], digest: bytes
) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    """How an answer with a secret in it is kept; it can be had again for the same request alone."""
    vault, about = call.ctx.vault, f"the answer to {call.project} {digest.hex()}"
    return lambda body: vault.seal(body, about), lambda body: vault.open(body, about)


def _plain(body: bytes) -> bytes:
    return body


async def _replay(call: Call[Any, Any], first: FirstAnswer) -> Answer | EventStream:
    headers = {**first.headers, **REPLAYED}
    if first.run_id is None:
        return Answer(first.status, first.body, headers, made=_told(first.body))
    return replace(await replay_run(call.ctx, call.project, first.run_id), headers=headers)


class _Told(msgspec.Struct):
    """What the log tells of an answer that is there as bytes alone."""

    object: str | None = None
    id: str | None = None
    thread_id: str | None = None
    run_id: str | None = None


def _told(body: bytes) -> _Told | None:
    try:
        return msgspec.json.decode(body, type=_Told)
    except msgspec.MsgspecError:
        return None


def _repeats() -> RequestRefused:
    return RequestRefused(
        400,
        "This request does something each time that it is sent: leave 'Idempotency-Key' out.",
        param="Idempotency-Key",
        code="invalid_idempotency_key",
    )


def _reused() -> RequestRefused:
    return RequestRefused(
        409,
        "This 'Idempotency-Key' was used for another request within the last 24 hours: send the "
        "same method, path and body again, or use a new key.",
        param="Idempotency-Key",
        code="idempotency_key_reused",
        # Without it the stock SDK tries every 409 again.
        headers={"x-should-retry": "false"},
    )


class _Within:
    """A transaction that has begun, as a store: what is written through it becomes part of it."""

    def __init__(self, tx: Transaction) -> None:
        self._tx: Transaction | None = tx

    async def write(self, work: Work[T]) -> T:
        if self._tx is None:
            raise StorageUnavailable("the transaction has ended")
        return await work(self._tx)

    read = write
    scan = write

    async def close(self) -> None:
        self._tx = None
