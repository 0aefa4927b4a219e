"""One POST to an endpoint: where it may go, how long it may take, and what came of it.

The URL is a stranger's, and so is whoever answers. The name is resolved here, all its addresses are
looked at, and the socket is made only for an address that is allowed, so what was checked is what
is dialled. Nothing of the answer but its status, one header and its first bytes is looked at.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from runbell import __version__
from runbell.clock import Clock, SystemClock
from runbell.errors import AddressRefused
from runbell.pacing import wait_seconds
from runbell.service.delivery.lookups import AddressInfo, Lookup, Lookups
from runbell.webhooks import check_url, is_public

__all__ = ["EXCERPT_BYTES", "READ_BYTES", "Lookup", "Posted", "Poster"]

READ_BYTES: Final = 16_384
"""Bytes of an answer that are read; the connection of a longer one is closed."""

EXCERPT_BYTES: Final = 1_024
"""Bytes of an answer that are kept."""

BUFFER_BYTES: Final = 16_384
"""What is taken from the network ahead of whoever reads an answer; twice as much at the most."""

KEEP_ALIVE_SECONDS: Final = 15.0
"""How long an idle connection is kept; fewer than most servers do, so that it is we who close."""

LOOKUP_SECONDS: Final = 5.0
CACHED_URLS: Final = 4_096


@dataclass(frozen=True, slots=True)
class Posted:
    """What came of one POST.

    Attributes:
        status: of the answer; None where there was none.
        error: what went wrong, as a sentence without secrets; None where the answer was whole, and
            also where its status says that the receiver failed.
        duration_ms: from the beginning to the end, or to giving up.
        retry_after: seconds that the receiver wants to be left alone, as it says: there is no
            limit to it yet.
        excerpt: the first bytes of the answer; None where there was none.
        blocked: nothing was sent, since the URL or the address is not allowed.
    """

    status: int | None
    error: str | None
    duration_ms: int
    retry_after: float | None = None
    excerpt: bytes | None = None
    blocked: bool = False

    @property
    def succeeded(self) -> bool:
        """The receiver has it: a whole answer of 200 to 299."""
        return self.error is None and self.status is not None and 200 <= self.status < 300


class _Blocked(OSError):
    """An address that must not be dialled; an OSError, as aiohttp expects of what it calls."""


class _Dial:
    """What is known of one POST's way to its connection."""

    __slots__ = ("blocked", "fresh", "project")

    def __init__(self, project: str) -> None:
        self.project = project
        self.blocked = False
        self.fresh = False


_dial: ContextVar[_Dial] = ContextVar("dial")


class Poster:
    """Sends webhooks. One for all endpoints of a process; it keeps connections for some seconds.

    Redirections are not followed, variables that name a proxy are not read, cookies are not kept,
    answers are not decompressed, and certificates are verified.

    Args:
        allow_private: `http` URLs, and addresses that are not public, are allowed.
        connect_timeout: seconds until there is a connection, with its name resolved and TLS.
        answer_timeout: seconds in which nothing of the answer comes.
        whole_timeout: seconds that everything may take.
        clock: for durations, and for a Retry-After that is a date.
        lookup: resolves names; in a thread.
        tls: whom to trust, instead of whom the system trusts.
    """

    def __init__(
        self,
        *,
        allow_private: bool = False,
        connect_timeout: float = 5.0,
        answer_timeout: float = 15.0,
        whole_timeout: float = 20.0,
        clock: Clock | None = None,
        lookup: Lookup | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._allow_private = allow_private
        self._connect_timeout = connect_timeout
        self._answer_timeout = answer_timeout
        self._whole_timeout = whole_timeout
        self._clock = clock or SystemClock()
        self._resolver = _Resolver(
            lookup or _system_lookup, self._clock, allow_private=allow_private
        )
        self._tls = tls
        self._url = lru_cache(CACHED_URLS)(self._checked_url)
        self._sessions: tuple[aiohttp.ClientSession, aiohttp.ClientSession] | None = None

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, project: str = ""
    ) -> Posted:
        """Send `body` to `url`; whatever happens there is told, and nothing is raised.

        A connection that was kept may have been closed by the receiver just now: then the same is
        sent once more, on a new one. Nobody can know whether the receiver had read it before it
        hung up, so that it gets the same twice at the most; one that goes by `webhook-id` does not
        mind.

        Args:
            headers: all of them but `Host`, `Content-Length` and `User-Agent`.
            project: whose endpoint it is. Lookups of names that take long delay those of the same
                project alone.
        """
        began = self._clock.monotonic()
        dial = _Dial(project)
        _dial.set(dial)
        status = retry_after = error = excerpt = None
        try:
            async with asyncio.timeout(self._whole_timeout):
                response = await self._send(self._url(url), headers, body, dial)
                status = response.status
                retry_after = wait_seconds(
                    response.headers.get("retry-after"), self._clock.now_ms()
                )
                excerpt = bytearray()
                await _read(response, excerpt)
        except AddressRefused as refused:
            error, dial.blocked = f"Nothing was sent: {refused}.", True
        except TimeoutError as late:
            error = self._too_late(late)
        except (aiohttp.ClientError, OSError, ValueError) as failure:
            dial.blocked |= isinstance(getattr(failure, "os_error", None), _Blocked)
            error = (
                "Nothing was sent: the address is not public." if dial.blocked else _why(failure)
            )
        duration_ms = round((self._clock.monotonic() - began) * 1000)
        first = None if excerpt is None else bytes(excerpt)
        return Posted(status, error, duration_ms, retry_after, first, dial.blocked)

    async def check_reachable_address(self, url: str, project: str = "") -> None:
        """Refuse a URL that webhooks could not be sent to anyway; for when it is registered.

        A name that cannot be resolved is accepted: it may be about to be set up. Whenever it is
        dialled, it is looked at again.

        Raises:
            AddressRefused: the URL is none, or leads to an address that is not public.
        """
        target = check_url(url, allow_private=self._allow_private)
        if target.address is not None or self._allow_private:
            return
        _dial.set(_Dial(project))
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                await self._resolver.resolve(target.host, target.port)
        except _Blocked:
            raise AddressRefused(
                "the URL's host has an address that is not public: webhooks go to the public "
                "internet; for local receivers start the service with --allow-private-webhooks",
                "private",
            ) from None
        except (OSError, UnicodeError):
            return

    async def close(self) -> None:
        """End all connections."""
        for session in self._sessions or ():
            await session.close()
        await self._resolver.close()

    async def _send(
        self, url: URL, headers: Mapping[str, str], body: bytes, dial: _Dial
    ) -> aiohttp.ClientResponse:
        session, fresh_session = self._sessions or self._open()
        try:
            return await session.post(url, headers=headers, data=body, allow_redirects=False)
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if dial.fresh:
                raise
        # Those that were kept beside it may be as dead: none of them is tried.
        return await fresh_session.post(url, headers=headers, data=body, allow_redirects=False)

    def _open(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientSession]:
        # Made here, since it needs the running loop.
        self._sessions = (
            self._session(keepalive_timeout=KEEP_ALIVE_SECONDS),
            self._session(force_close=True),
        )
        return self._sessions

    def _session(self, **keeping: Any) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            # Whoever waited for a place would be taken for an endpoint that cannot be connected to.
            # Each endpoint has a limit of its own; many of them may be on one host.
            limit=0,
            limit_per_host=0,
            resolver=self._resolver,
            # Theirs makes one project wait for the lookup of another one.
            use_dns_cache=False,
            socket_factory=self._socket,
            ssl=self._tls or True,
            **keeping,
        )
        return aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(
                total=None, connect=self._connect_timeout, sock_read=self._answer_timeout
            ),
            headers={"User-Agent": f"Runbell/{__version__}"},
            skip_auto_headers=("Accept", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=BUFFER_BYTES,
        )

    def _checked_url(self, url: str) -> URL:
        return URL(check_url(url, allow_private=self._allow_private).url, encoded=True)

    def _socket(self, info: AddressInfo) -> socket.socket:
        """A socket for an address: the last look at it, which addresses in URLs come to as well."""
        family, kind, protocol, _, address = info
        dial = _dial.get()
        dial.fresh = True
        if not self._allow_private and not is_public(address[0]):
            dial.blocked = True
            raise _Blocked
        return socket.socket(family, kind, protocol)

    def _too_late(self, error: TimeoutError) -> str:
        match error:
            case aiohttp.ConnectionTimeoutError():
                return f"There was no connection within {self._connect_timeout:g} s."
            case aiohttp.SocketTimeoutError():
                return f"Nothing of an answer came for {self._answer_timeout:g} s."
        return f"The answer was not whole after {self._whole_timeout:g} s."


class _Resolver(AbstractResolver):
    """Resolves names, and refuses those of which any address is not allowed.

    Any, not the first: which of them is dialled in the end is up to the weather.
    """

    def __init__(self, lookup: Lookup, clock: Clock, *, allow_private: bool) -> None:
        self._lookups = Lookups(lookup, clock)
        self._allow_private = allow_private

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        infos = await self._lookups.find(_dial.get().project, host, port)
        addresses = list(dict.fromkeys((info[0], str(info[4][0])) for info in infos))
        if not addresses:
            raise OSError("no address")
        if not self._allow_private and not all(is_public(address) for _, address in addresses):
            raise _Blocked
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=family,
                proto=0,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for family, address in addresses
        ]

    async def close(self) -> None:
        self._lookups.close()


def _system_lookup(host: str, port: int) -> Sequence[AddressInfo]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)


async def _read(response: aiohttp.ClientResponse, excerpt: bytearray) -> None:
    """Read an answer, and keep its first bytes, also of one that breaks off.

    Its connection is kept if all of it was read, else closed.
    """
    size = 0
    try:
        while size < READ_BYTES and (data := await response.content.readany()):
            excerpt += data[: EXCERPT_BYTES - len(excerpt)]
            size += len(data)
    finally:
        if response.content.at_eof():
            response.release()
        else:
            response.close()


def _why(error: Exception) -> str:
    """What went wrong, in our words: the library's own may hold headers and URLs."""
    match error:
        case aiohttp.ClientConnectorCertificateError(certificate_error=ssl.SSLError() as cause):
            said = getattr(cause, "verify_message", "")
            return f"The certificate is not trusted{f' ({said})' if said else ''}."
        case aiohttp.ClientConnectorDNSError():
            return "The name could not be resolved."
        case aiohttp.ClientSSLError():
            return "There was no TLS to be spoken."
        case aiohttp.ClientConnectorError():
            return f"There was no connection: {_said(error.os_error)}."
        case aiohttp.ServerDisconnectedError():
            return "The connection was closed without an answer."
        case aiohttp.ClientPayloadError():
            return "The connection broke in the middle of the answer."
        case aiohttp.ClientOSError() | ConnectionError():
            return "The connection broke before there was an answer."
        case aiohttp.ClientResponseError():
            return "The answer is not HTTP, or its headers are too large."
    return f"The request could not be sent ({type(error).__name__})."


def _said(error: OSError) -> str:
    return "none of its addresses answered" if error.errno is None else os.strerror(error.errno)
