"""Who answers: the ASGI application, from the table of routes.

Every request takes the same way: who is it, what does it ask for, do it, answer. What goes wrong
on that way ends here as an error body in OpenAI's shape; no traceback leaves the process.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from runbell import faults
from runbell.errors import OutcomeUnknown, RequestRefused, StorageUnavailable
from runbell.service import logs, openapi
from runbell.service.connection import AT_ONCE, AnswerAtOnce
from runbell.service.limits import Limits
from runbell.service.once import handle_once, key_of, request_digest
from runbell.service.operations import backlog
from runbell.service.operations.access import Access, comes_from_here
from runbell.service.operations.context import Context
from runbell.service.operations.ids import new_request_id
from runbell.service.operations.refusals import MODEL_NOT_FOUND
from runbell.service.routes import ROUTES, Route
from runbell.service.routes.routing import Answer, Call, ClientLeft, EventStream, answer
from runbell.service.wire.decode import decode
from runbell.service.wire.objects import encode, error_body
from runbell.service.wire.pages import MAX_IDS
from runbell.storage.probes import probe

__all__ = ["App"]

if TYPE_CHECKING:
    from runbell.service.shared_limits import SharedLimits

logger = logging.getLogger(__name__)

MAX_FIELDS = 2 * MAX_IDS
"""Parameters that a query may have: as many ids as can be asked for, each on its own, and more."""

PROBE_SECONDS = 3.0
"""How long a write may take in a process that says that it is ready: longer than one row that
somebody holds keeps all of its connections."""

_PREFIXES = ("/openai/v1/", "/openai/")
"""Where Azure's clients look for the API."""


class _Paths:
    """Finds what a path names: one regular expression each, tried among those of its depth."""

    def __init__(self, routes: Iterable[Route]) -> None:
        by_path: dict[str, dict[str, Route]] = {}
        for route in routes:
            by_path.setdefault(route.path, {})[route.method] = route
        self._by_depth: dict[int | None, list[tuple[re.Pattern[str], dict[str, Route]]]] = {}
        # A fixed word goes before a parameter: /threads/runs is not the thread "runs".
        for path in sorted(by_path, key=lambda path: path.replace("{", "\x7f")):
            pattern, _, _ = compile_path(path)
            # A parameter of the kind `path` holds slashes, so its route has no depth.
            depth = None if ":path}" in path else path.count("/")
            self._by_depth.setdefault(depth, []).append((pattern, by_path[path]))

    def find(self, path: str) -> tuple[dict[str, Route], dict[str, str]] | None:
        """The routes of a path by method, and its parameters."""
        for depth in (path.count("/"), None):
            for pattern, routes in self._by_depth.get(depth, ()):
                match = pattern.match(path)
                if match is not None:
                    return routes, match.groupdict()
        return None


_PAGES = logs.PROBES | frozenset(openapi.PATHS) | {"/"}


class App:
    """The application.

    Args:
        shared: counts requests where other processes do so too.
        api: answer the API's requests; a worker answers those of its probes and metrics alone.
    """

    def __init__(
        self,
        ctx: Context,
        access: Access,
        shared: SharedLimits | None = None,
        *,
        api: bool = True,
    ) -> None:
        self._ctx = ctx
        self._access = access
        self._shared = shared
        self._limits = Limits(ctx.clock, ctx.settings.rpm)
        self._stopping = False
        self._probe_again = float("-inf")
        self._unwritable: str | None = None
        self._paths = _Paths(ROUTES if api else ())
        self._pages = _PAGES if api else logs.PROBES

    def stop(self) -> None:
        """From now on the service says that it is not ready; whoever waits is sent away."""
        self._stopping = True
        self._ctx.changes.close()
        self._ctx.live.close()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path: str = scope["path"]
            for prefix in _PREFIXES:
                if path.startswith(prefix):
                    scope["path"] = f"/v1/{path[len(prefix) :]}"
                    break
            await self._respond(scope, receive, send)

    async def _respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        started = time.perf_counter()
        request_id = new_request_id()
        told: list[tuple[bytes, bytes]] = []
        exchange = scope["runbell"] = logs.Exchange(request_id, scope["method"])
        try:
            result = await self._result(scope, receive, told)
        except ClientLeft:
            self._record(exchange, logs.CLIENT_LEFT, time.perf_counter() - started)
            return
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # The service stops and can't wait longer: whether it was done, a repetition will tell.
            result = _refusal(_stopping())
        except RequestRefused as refused:
            result = _refusal(refused)
        except StorageUnavailable as error:
            logger.warning("%s", error, extra=_about(exchange))
            result = _refusal(_unavailable(error, scope))
        except Exception:
            logger.exception("a request failed", extra=_about(exchange))
            result = _refusal(_server_error(request_id))
        seconds = time.perf_counter() - started
        milliseconds = round(seconds * 1000)
        headers = [
            (b"x-request-id", request_id.encode()),
            (b"openai-processing-ms", b"%d" % milliseconds),
            *told,
        ]
        if isinstance(result, EventStream):
            try:
                with self._ctx.metrics.streams_held.track_inprogress():
                    await _send_stream(result, exchange, headers, receive, send)
            finally:
                streamed = time.perf_counter() - started - seconds
                self._record(exchange, 200, seconds, streamed)
        else:
            await _send_answer(result, headers, scope, send)
            self._record(exchange, result.status, seconds)

    def _record(
        self,
        exchange: logs.Exchange,
        status: int,
        seconds: float,
        streamed: float | None = None,
    ) -> None:
        self._ctx.metrics.answered(exchange.method, exchange.route, status, seconds)
        logs.answered(exchange, status, seconds, streamed)

    async def _result(
        self, scope: Scope, receive: Receive, told: list[tuple[bytes, bytes]]
    ) -> Answer | EventStream:
        """What to answer; `told` gets headers that go with it, also where it ends in an error."""
        method: str = scope["method"]
        path: str = scope["path"]
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        exchange: logs.Exchange = scope["runbell"]
        if path in self._pages:
            exchange.route = path
            return await self._page(method, path, scope)
        found = self._paths.find(path)
        if found is not None:
            template = next(iter(found[0].values())).path
            exchange.route, exchange.path = template.replace(":path}", "}"), found[1]
        caller = await self._access.caller(_key(headers))
        exchange.project = caller.project
        if self._shared is not None:
            told += await self._shared.count(caller)
        else:
            told += self._limits.count(caller)
        if found is None:
            raise _no_such_path(method, path)
        routes, parameters = found
        route = routes.get(method)
        if route is None:
            raise _wrong_method(method, sorted(routes))
        query = route.query(_query(scope["query_string"]))
        body, raw = None, b""
        if route.body is not None:
            raw = await self._body(headers, receive)
            body = decode(raw, route.body)
        call = Call(
            self._ctx,
            caller.project,
            parameters,
            body,
            query,
            headers=headers,
            left=lambda: _left(receive),
        )
        key = key_of(headers) if method == "POST" else None
        if route.before is not None:
            await route.before(call)
        if key is None:
            result = await self._handled(lambda: route.handle(call))
        else:
            digest = request_digest(method, path, raw)
            result = await self._handled(lambda: handle_once(route, call, key, digest))
        exchange.made = result.made if isinstance(result, Answer) else result
        if method != "GET":
            faults.hit("operations.committed")
        return result if isinstance(result, Answer | EventStream) else answer(result)

    async def _handled(self, handle: Callable[[], Awaitable[Any]]) -> Any:
        """Handle a request; where nobody serves its model, once more when the servers were asked.

        Here, and not in an operation, since that may be in the middle of a transaction.
        """
        try:
            return await handle()
        except RequestRefused as refused:
            if refused.code != MODEL_NOT_FOUND or not await self._ctx.backends.refresh():
                raise
        return await handle()

    async def _body(self, headers: list[tuple[bytes, bytes]], receive: Receive) -> bytes:
        limit = self._ctx.settings.max_body
        if any(name == b"content-encoding" and value != b"identity" for name, value in headers):
            raise RequestRefused(
                415, "Compressed bodies are not supported: send it without Content-Encoding."
            )
        declared = next((value for name, value in headers if name == b"content-length"), b"0")
        if declared.isdigit() and int(declared[:20]) > limit:
            raise _too_large(limit)
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._ctx.settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    chunk: bytes = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise _too_large(limit)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise RequestRefused(
                408, "The request's body did not arrive in time.", headers={"connection": "close"}
            ) from None

    async def _page(self, method: str, path: str, scope: Scope) -> Answer:
        """What is no part of the API: probes, metrics, the document."""
        if path == "/":
            return _to_the_docs(method)
        if path in openapi.PATHS:
            return await _published(method, path, scope["headers"])
        if path == "/metrics":
            return await self._metrics(method, scope)
        return await self._health(method, path)

    async def _health(self, method: str, path: str) -> Answer:
        if method not in ("GET", "HEAD"):
            raise _wrong_method(method, ["GET", "HEAD"])
        if path == "/healthz":
            return Answer(200, b'{"status":"ok"}')
        reason = await self._not_ready()
        if reason is None:
            return Answer(200, b'{"status":"ready"}')
        return Answer(503, encode({"status": "not ready", "reason": reason}))

    async def _metrics(self, method: str, scope: Scope) -> Answer:
        if method not in ("GET", "HEAD"):
            raise _wrong_method(method, ["GET", "HEAD"])
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        if not comes_from_here(scope.get("client"), headers):
            await self._access.operator(_key(headers))
        accept = next((value for name, value in headers if name == b"accept"), b"")
        page = self._ctx.metrics.page(accept.decode("latin-1"), await backlog.look(self._ctx))
        return Answer(200, page.body, content_type=page.content_type)

    async def _not_ready(self) -> str | None:
        if self._stopping:
            return "the service is stopping"
        if not self._ctx.jobs.alive:
            return "jobs are not handed out"
        if self._ctx.changes.deaf:
            return "what other processes change is not heard of"
        now = self._ctx.clock.monotonic()
        if now >= self._probe_again:
            # Kept for a moment: whoever asks, with no key, must not keep the writer busy.
            self._probe_again = now + 1.0
            self._unwritable = await self._probe()
        return self._unwritable

    async def _probe(self) -> str | None:
        """Write, as a request does; what is wrong with that."""
        now_ms = self._ctx.clock.now_ms()
        try:
            # In line with all others: where they wait for so long, others can serve them better.
            async with asyncio.timeout(PROBE_SECONDS):
                await self._ctx.store.write(lambda tx: probe(tx, now_ms))
        except StorageUnavailable:
            return "the database cannot be written"
        except TimeoutError:
            return f"a write to the database takes longer than {PROBE_SECONDS:g} s"
        return None


def _to_the_docs(method: str) -> Answer:
    """For somebody who looks at the service with a browser."""
    if method not in ("GET", "HEAD"):
        raise _wrong_method(method, ["GET", "HEAD"])
    return Answer(302, b"", {"location": "/docs"})


async def _published(method: str, path: str, headers: list[tuple[bytes, bytes]]) -> Answer:
    if method not in ("GET", "HEAD"):
        raise _wrong_method(method, ["GET", "HEAD"])
    found = (value for name, value in headers if name == b"if-none-match")
    known = next(found, b"").decode("latin-1")
    # The first one takes a tenth of a second to make: time that others need not wait.
    return await asyncio.to_thread(openapi.published, path, known)


async def _send_answer(
    result: Answer, headers: list[tuple[bytes, bytes]], scope: Scope, send: Send
) -> None:
    headers += [(name.encode(), value.encode()) for name, value in result.headers.items()]
    if result.status != 304:
        headers += [
            (b"content-type", result.content_type.encode()),
            (b"content-length", b"%d" % len(result.body)),
        ]
    at_once: AnswerAtOnce | None = scope.get(AT_ONCE)
    if result.status == 200 and at_once is not None and at_once(headers, result.body):
        return
    await send({"type": "http.response.start", "status": result.status, "headers": headers})
    await send({"type": "http.response.body", "body": result.body})


async def _send_stream(
    stream: EventStream,
    exchange: logs.Exchange,
    headers: list[tuple[bytes, bytes]],
    receive: Receive,
    send: Send,
) -> None:
    """Send a stream; when the client leaves, its frames end, and nothing else does.

    What goes wrong on the way can't be answered any more: it ends the stream.
    """
    headers += [(name.encode(), value.encode()) for name, value in stream.headers.items()]
    headers += [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        # Proxies that buffer answers would hold the events back.
        (b"x-accel-buffering", b"no"),
    ]
    watching = asyncio.ensure_future(_left(receive))
    watching.add_done_callback(lambda _: stream.close())
    try:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            async with aclosing(stream.frames) as frames:
                async for frame in frames:
                    await send({"type": "http.response.body", "body": frame, "more_body": True})
        except StorageUnavailable as error:
            logger.warning("a stream was ended: %s", error, extra=_about(exchange))
        except Exception:
            logger.exception("a stream was ended", extra=_about(exchange))
        await send({"type": "http.response.body", "body": b""})
    finally:
        watching.cancel()
        stream.close()


def _about(exchange: logs.Exchange) -> dict[str, Any]:
    """The `extra` of a record about a request."""
    return logs.having(
        {
            "method": exchange.method,
            "route": exchange.route,
            "request_id": exchange.request_id,
            "project_id": exchange.project,
        }
    )


async def _left(receive: Receive) -> None:
    """Return when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _key(headers: list[tuple[bytes, bytes]]) -> str | None:
    for name, value in headers:
        if name == b"authorization":
            scheme, _, key = value.decode("latin-1").partition(" ")
            if scheme.lower() == "bearer":
                return key.strip()
        elif name == b"api-key":
            return value.decode("latin-1").strip()
    return None


def _query(text: bytes) -> list[tuple[str, str]]:
    try:
        # Empty pairs, as `?a=1&` has one, say nothing.
        pairs = "&".join(filter(None, text.decode("ascii").split("&")))
        if not pairs:
            return []
        return parse_qsl(
            pairs,
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MAX_FIELDS,
        )
    except ValueError:
        raise RequestRefused(400, "We could not parse the query of your request.") from None


def _refusal(refused: RequestRefused) -> Answer:
    return Answer(refused.status, encode(error_body(refused)), refused.headers)


def _no_such_path(method: str, path: str) -> RequestRefused:
    advice = " Runbell serves assistants, threads and runs: /docs shows all of it."
    if not path.startswith("/v1/"):
        advice = " The API is below /v1: does your base_url end in /v1?"
    elif "/openai/" in path:
        advice = " An azure_endpoint is the address alone, without /v1."
    return RequestRefused(404, f"Invalid URL ({method} {path[:200]}).{advice}")


def _wrong_method(method: str, allowed: list[str]) -> RequestRefused:
    return RequestRefused(
        405,
        f"Not allowed to {method} here: use {' or '.join(allowed)}.",
        code="method_not_supported",
        headers={"allow": ", ".join(allowed)},
    )


def _too_large(limit: int) -> RequestRefused:
    return RequestRefused(
        413,
        f"The request's body is larger than {limit} bytes.",
        code="request_too_large",
        # The rest of the body is not read, so the connection cannot be used again.
        headers={"connection": "close"},
    )


def _stopping() -> RequestRefused:
    return RequestRefused(
        503,
        "The service is stopping. Please try again.",
        type="server_error",
        code="service_unavailable",
        headers={"retry-after": "1", "connection": "close"},
    )


def _unavailable(error: StorageUnavailable, scope: Scope) -> RequestRefused:
    message = "The database cannot be used at the moment; nothing was changed. Please try again."
    headers = {"retry-after": "1"}
    if isinstance(error, OutcomeUnknown):
        message = (
            "The database was lost while this was being stored: it may have happened or not. With "
            "an Idempotency-Key it can be repeated and happens once; without one, look first."
        )
        if scope["method"] == "POST" and key_of(scope["headers"]) is None:
            # The stock SDK would repeat it by itself.
            headers["x-should-retry"] = "false"
    return RequestRefused(
        503, message, type="server_error", code="service_unavailable", headers=headers
    )


def _server_error(request_id: str) -> RequestRefused:
    return RequestRefused(
        500,
        f"The server had an error while processing your request (request ID {request_id}).",
        type="server_error",
        code="server_error",
    )
