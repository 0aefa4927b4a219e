"""An HTTP front that stands before a real service and does to its answers what networks do.

with Front("http://127.0.0.1:8100/v1") as front:
    front.do(refuse(429, retry_after=0.2), reset(), slow(0.3))     # to the next three requests
    client = OpenAI(base_url=front.base_url, api_key=…)

What is done is counted by `front.seen`: every request that came, with what became of it.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Self

from aiohttp import ClientSession, ClientTimeout, web

__all__ = [
    "Fault",
    "Front",
    "Request",
    "again",
    "garbage",
    "lost",
    "passed",
    "refuse",
    "reset",
    "slow",
    "stale",
]

HOP_BY_HOP = ("transfer-encoding", "connection", "content-length", "content-encoding", "host")
START_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Request:
    """A request that came to the front, and the status of its answer; 0 where it got none.

    Header names are lower case.
    """

    method: str
    path: str
    headers: dict[str, str]
    status: int

    @property
    def is_look(self) -> bool:
        """It asks how one run, or several, stand."""
        return self.method == "GET" and "/runs" in self.path


@dataclass(slots=True)
class _Exchange:
    """One request while something is done to it."""

    front: Front
    request: web.Request
    body: bytes

    async def forward(self) -> web.Response:
        """What the service answers."""
        response = await self.front.forward(self.request, self.body)
        self.front.remember(self.request, response)
        return response


Fault = Callable[[_Exchange], Awaitable[web.StreamResponse]]
"""What is done to one request. Each of the functions below makes one."""


def passed() -> Fault:
    """Nothing: the service answers."""
    return lambda exchange: exchange.forward()


def refuse(status: int, retry_after: float | None = None, message: str = "Not now.") -> Fault:
    """An error in the service's place; `retry_after` in seconds goes into both headers."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        headers = {}
        if retry_after is not None:
            whole = str(max(1, round(retry_after)))
            headers = {"retry-after": whole, "retry-after-ms": str(int(retry_after * 1000))}
        error = {"message": message, "type": "front", "param": None, "code": None}
        return web.json_response({"error": error}, status=status, headers=headers)

    return fault


def reset() -> Fault:
    """The connection breaks before the service has seen the request."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        raise ConnectionResetError

    return fault


def lost() -> Fault:
    """The service does what was asked, and the connection breaks before its answer is there."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        await exchange.forward()
        raise ConnectionResetError

    return fault


def slow(seconds: float) -> Fault:
    """The service's answer comes late."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        response = await exchange.forward()
        await asyncio.sleep(seconds)
        return response

    return fault


def garbage() -> Fault:
    """A page of a proxy, with a 200."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        return web.Response(text="<html>Welcome!</html>", content_type="text/html")

    return fault


def again(back: int = 1) -> Fault:
    """An answer to the same path that was given before, `back` answers ago: as from a replica that
    is behind, or from a cache. Where there is none, the service answers."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        return exchange.front.recall(exchange.request, back) or await exchange.forward()

    return fault


def stale(status: str) -> Fault:
    """The latest answer to the same path in which the run had this status, if there was one."""

    async def fault(exchange: _Exchange) -> web.StreamResponse:
        old = exchange.front.recall(exchange.request, status=status)
        return old or await exchange.forward()

    return fault


class Front:
    """A server on a free loopback port, in a thread of its own.

    Args:
        target: the base URL of the service, with its `/v1`.

    Attributes:
        base_url: for a client.
        seen: the requests that came, in order of their answers.
    """

    def __init__(self, target: str) -> None:
        self.base_url = ""
        self.seen: list[Request] = []
        self._target = target.removesuffix("/v1")
        self._next: deque[Fault] = deque()
        self._rule: Callable[[web.Request], Fault | None] = lambda request: None
        self._bodies: defaultdict[str, list[bytes]] = defaultdict(list)
        self._lock = threading.Lock()

    def do(self, *faults: Fault) -> None:
        """Do these to the next requests, one each."""
        with self._lock:
            self._next.extend(faults)

    def rule(self, rule: Callable[[web.Request], Fault | None]) -> None:
        """Ask this function what to do to each request for which `do` has nothing."""
        self._rule = rule

    @property
    def looks(self) -> list[Request]:
        """The requests that asked how runs stand."""
        return [each for each in list(self.seen) if each.is_look]

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(START_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # What faults use.

    async def forward(self, request: web.Request, body: bytes) -> web.Response:
        """Ask the service."""
        headers = {k: v for k, v in request.headers.items() if k.lower() not in HOP_BY_HOP}
        url = self._target + request.raw_path
        async with self._session.request(
            request.method, url, data=body, headers=headers
        ) as response:
            given = {k: v for k, v in response.headers.items() if k.lower() not in HOP_BY_HOP}
            return web.Response(body=await response.read(), status=response.status, headers=given)

    def remember(self, request: web.Request, response: web.Response) -> None:
        """Keep the answers to looks."""
        if request.method == "GET" and response.status == 200 and isinstance(response.body, bytes):
            self._bodies[request.raw_path].append(response.body)

    def recall(
        self, request: web.Request, back: int = 1, status: str | None = None
    ) -> web.Response | None:
        """An answer that was given before."""
        bodies = self._bodies[request.raw_path] if request.method == "GET" else []
        if status is not None:
            bodies = [body for body in bodies if json.loads(body).get("status") == status]
        if len(bodies) < back:
            return None
        return web.Response(body=bodies[-back], content_type="application/json")

    # The server.

    async def _start(self) -> None:
        self._session = ClientSession(timeout=ClientTimeout(total=None), auto_decompress=True)
        self._runner = web.AppRunner(self._app(), access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _app(self) -> web.Application:
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        return app

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        with self._lock:
            fault = self._next.popleft() if self._next else self._rule(request)
        headers = {name.lower(): value for name, value in request.headers.items()}
        exchange = _Exchange(self, request, await request.read())
        status = 0
        try:
            response = await (fault or passed())(exchange)
            status = response.status
        except ConnectionResetError:
            assert request.transport is not None
            request.transport.abort()
            raise
        finally:
            self.seen.append(Request(request.method, request.raw_path, headers, status))
        return response
