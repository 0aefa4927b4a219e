"""The way to one model server: requests, and the events of their answers."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import AsyncGenerator
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec

from runbell import __version__
from runbell.clock import Clock
from runbell.service.backends.upstream.failures import CallFailed, Secret, refusal
from runbell.service.backends.upstream.limits import TimeLimits
from runbell.service.backends.upstream.sse import MAX_EVENT, Event, EventDecoder, EventTooLong

__all__ = ["Connection"]

CONNECT_SECONDS: Final = 10.0
KEEP_ALIVE_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 1.0
MAX_ERROR: Final = 65_536
"""Bytes of an error's body that are read."""


class Connection:
    """Speaks HTTP with one model server, and turns what goes wrong there into `CallFailed`.

    Nothing that it raises holds the key, or the exception of the HTTP library, which may.
    """

    def __init__(self, url: str, key: str | None, clock: Clock) -> None:
        self._url = url
        self._clock = clock
        self._secret = Secret(key)
        self._headers = {
            "Accept-Encoding": "identity",  # what is compressed comes in larger lumps, and later
            "User-Agent": f"runbell/{__version__}",
        }
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._proxy = _proxy(url)
        self._session: aiohttp.ClientSession | None = None
        self._drains: set[asyncio.Task[None]] = set()

    async def get(self, path: str, limits: TimeLimits) -> bytes:
        """The body of a GET.

        Raises:
            CallFailed: there is none to be had.
        """
        response = await self._open("GET", path, None, limits)
        try:
            return await self._document(response, limits)
        except EventTooLong:
            raise _too_large() from None
        finally:
            response.close()

    async def events(
        self, path: str, body: dict[str, Any], limits: TimeLimits
    ) -> AsyncGenerator[Event, None]:
        """The events of the answer to a POST; a JSON document is one event of the kind `document`.

        Closing the generator ends the request at once, unless its last event was the end.

        Raises:
            CallFailed: the server refused, or its answer broke off.
        """
        response = await self._open("POST", path, body, limits)
        done = False
        try:
            if response.content_type == "text/html":
                message = "The model server answered with a web page."
                raise CallFailed("server_error", message, misplaced=True)
            if response.content_type == "application/json":
                yield Event("document", await self._document(response, limits))
                return
            decoder = EventDecoder()
            while data := await self._more(response, limits):
                for event in decoder.feed(data):
                    done = event.data.startswith(b"[DONE]")
                    yield event
            for event in decoder.end():
                yield event
        except EventTooLong:
            raise _too_large() from None
        finally:
            self._let_go(response, whole=done)

    async def close(self) -> None:
        """End all connections."""
        for drain in self._drains:
            drain.cancel()
        if self._session is not None:
            await self._session.close()

    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None, limits: TimeLimits
    ) -> aiohttp.ClientResponse:
        headers = dict(self._headers)
        if body is not None:
            headers["Content-Type"] = "application/json"
        asking = asyncio.ensure_future(
            self._http().request(
                method,
                f"{self._url}{path}",
                data=msgspec.json.encode(body) if body is not None else None,
                headers=headers,
                proxy=self._proxy,
                # A key is for this server alone, and a POST that is sent on becomes a GET.
                allow_redirects=False,
            )
        )
        limits.abort_with(asking.cancel)
        try:
            response = await asking
        except asyncio.CancelledError:
            if limits.exceeded is not None:
                raise CallFailed("server_error", limits.exceeded) from None
            if asking.done() and not asking.cancelled() and asking.exception() is None:
                asking.result().close()
            raise
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _unreachable(error) from None
        limits.abort_with(response.close)
        if response.status == 200:
            return response
        try:
            text = await self._read(response, limits, MAX_ERROR)
        except CallFailed:
            text = b""
        finally:
            response.close()
        raise refusal(response.status, response.headers, text, self._secret, self._clock.now_ms())

    async def _document(self, response: aiohttp.ClientResponse, limits: TimeLimits) -> bytes:
        body = await self._read(response, limits, MAX_EVENT + 1)
        if len(body) > MAX_EVENT:
            raise EventTooLong
        return body

    async def _read(self, response: aiohttp.ClientResponse, limits: TimeLimits, most: int) -> bytes:
        """The body, or its first `most` bytes and a few more."""
        body = bytearray()
        while len(body) < most and (data := await self._more(response, limits)):
            body += data
        return bytes(body)

    async def _more(self, response: aiohttp.ClientResponse, limits: TimeLimits) -> bytes:
        """More of the body; nothing at its end."""
        try:
            return await response.content.readany()
        except (aiohttp.ClientError, OSError, ValueError):
            if limits.exceeded is not None:
                raise CallFailed("server_error", limits.exceeded) from None
            message = "The connection to the model server broke in the middle of its answer."
            raise CallFailed("server_error", message, again=True) from None

    def _http(self) -> aiohttp.ClientSession:
        # Made here, since it needs the running loop.
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=True,
            )
        return self._session

    def _let_go(self, response: aiohttp.ClientResponse, *, whole: bool) -> None:
        """Give the connection back, if the answer is over; else end the request."""
        if not whole:
            response.close()
        elif response.content.is_eof():
            response.release()
        else:
            # The last bytes of the body follow in a moment; the connection is good for more then.
            drain = asyncio.create_task(_drain(response))
            self._drains.add(drain)
            drain.add_done_callback(self._drains.discard)


async def _drain(response: aiohttp.ClientResponse) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while await response.content.readany():
                pass
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass
    finally:
        response.close()


def _unreachable(error: Exception) -> CallFailed:
    """Why there was no answer. The library's exceptions can hold headers, so they end here."""
    again = True
    match error:
        case aiohttp.ClientProxyConnectionError():
            why = "the proxy that the environment names does not take the connection"
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            message = "The model server refused the connection: is it running?"
            return CallFailed("server_error", message, again=True)
        case (
            aiohttp.ServerTimeoutError()
            | TimeoutError()
            | aiohttp.ClientConnectorError(os_error=TimeoutError())
        ):
            message = "The model server did not answer in time: no connection could be made."
            return CallFailed("server_error", message, again=True)
        case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
            why, again = "its certificate is not trusted", False
        case aiohttp.ClientConnectorDNSError():
            why = "its name is not known"
        case aiohttp.ClientSSLError():
            why, again = "it does not speak TLS as it should", False
        case aiohttp.ClientConnectorError():
            # The error's own text has addresses in it, as tuples.
            number = error.os_error.errno
            why = "none of its addresses answered" if number is None else os.strerror(number)
            why = why.lower()
        case aiohttp.ServerDisconnectedError() | ConnectionError():
            why = "it ended the connection without an answer"
        case aiohttp.ClientResponseError():
            why = "its answer is no HTTP"
        case _:
            why = type(error).__name__
    return CallFailed("server_error", f"The model server cannot be reached: {why}.", again=again)


def _too_large() -> CallFailed:
    return CallFailed("server_error", f"The model server sent more than {MAX_EVENT} bytes at once.")


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this server, as other programs use it."""
    parts = urlsplit(url)
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return getproxies().get(parts.scheme)
