"""One POST: every way in which a receiver can misbehave, and every way to a private address."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from email.utils import formatdate
from typing import Any, TypeVar

import aiohttp
import pytest
import uvloop

from runbell.clock import VirtualClock
from runbell.errors import AddressRefused
from runbell.service.delivery import dialling
from runbell.service.delivery.dialling import EXCERPT_BYTES, READ_BYTES, Posted, Poster
from runbell.service.delivery.lookups import KEPT_SECONDS, LOOKUPS, LOOKUPS_EACH
from runbell.testing.certificates import Kind, tls
from runbell.testing.receivers import (
    Answer,
    Received,
    Receiver,
    closed_port,
    endless,
    gzip_bomb,
    hang_up,
    huge_headers,
    informational,
    lying_length,
    raw,
    redirect,
    reset,
    silent,
    status,
    trickle,
)

T = TypeVar("T")

HEADERS = {"content-type": "application/json", "webhook-id": "evt_1"}
BODY = '{"name": "Zoë"}'.encode()
SECRET = "s3cret-path"

PATIENT: dict[str, Any] = {"connect_timeout": 60, "answer_timeout": 60, "whole_timeout": 60}
"""Limits that no machine is too slow for; a test of a limit makes that one small."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def with_poster(use: Callable[[Poster], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        poster = Poster(**{"allow_private": True, **PATIENT, **options})
        try:
            return await use(poster)
        finally:
            await poster.close()

    # As the service runs: uvloop's sockets and errors are its own.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def posted(url: str, **options: Any) -> Posted:
    return with_poster(lambda poster: poster.post(url, HEADERS, BODY), **options)


def leads_to(*addresses: str) -> Callable[[str, int], list[Any]]:
    """A lookup that gives every name these addresses."""

    def lookup(host: str, port: int) -> list[Any]:
        families = [socket.AF_INET6 if ":" in each else socket.AF_INET for each in addresses]
        return [
            (family, socket.SOCK_STREAM, 6, "", (address, port))
            for family, address in zip(families, addresses, strict=True)
        ]

    return lookup


# What is sent, and what is taken for a success.


def test_what_is_sent_is_what_was_given(receiver: Receiver) -> None:
    result = posted(f"{receiver.url}?a=%2F%20b")
    (request,) = receiver.requests
    assert result == Posted(200, None, result.duration_ms, excerpt=b"ok")
    assert result.succeeded
    assert (request.method, request.path, request.body) == ("POST", "/hooks?a=%2F%20b", BODY)
    names = {name.lower() for name, _ in request.headers}
    assert names == {"host", "content-type", "webhook-id", "user-agent", "content-length"}


@pytest.mark.parametrize(
    ("code", "succeeds"),
    [
        *((code, True) for code in (200, 201, 204, 299)),
        *((code, False) for code in (300, 304, 400, 410, 429, 500, 599)),
    ],
)
def test_200_to_299_is_a_success(receiver: Receiver, code: int, succeeds: bool) -> None:
    receiver.will(raw(f"HTTP/1.1 {code} X\r\nContent-Length: 0\r\n\r\n".encode()))
    result = posted(receiver.url)
    assert (result.status, result.succeeded, result.error) == (code, succeeds, None)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(receiver: Receiver, code: int) -> None:
    receiver.will(redirect(receiver.url, code))
    result = posted(receiver.url)
    assert (result.status, result.succeeded, len(receiver.requests)) == (code, False, 1)


def test_no_cookie_is_kept(receiver: Receiver) -> None:
    receiver.will(status(200, headers=[("Set-Cookie", "a=b; Path=/")]))

    async def twice(poster: Poster) -> None:
        await poster.post(receiver.url, HEADERS, BODY)
        await poster.post(receiver.url, HEADERS, BODY)

    with_poster(twice)
    assert receiver.requests[1].header("cookie") is None


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_is_used(
    receiver: Receiver, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Receiver() as proxy:
        monkeypatch.setenv(variable, proxy.url)
        assert posted(receiver.url).succeeded
        assert proxy.connections == 0


# Retry-After.


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("315360000", 315_360_000.0),
        ("-5", None),
        ("soon", None),
        ("nan", None),
        ("9" * 5_000, None),
        (formatdate(1_800_000_060, usegmt=True), 60.0),
        (formatdate(1_700_000_000, usegmt=True), 0.0),
        ("Sun, 99 Foo 2026 99:99:99 GMT", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(
    receiver: Receiver, value: str, seconds: float | None
) -> None:
    receiver.will(status(503, headers=[("Retry-After", value)]))
    result = posted(receiver.url, clock=VirtualClock(1_800_000_000_000))
    assert (result.status, result.retry_after) == (503, seconds)


# What a receiver can do wrong. Each is told as a sentence, in time, and nothing is raised.

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n"


NOT_HTTP = "The answer is not HTTP, or its headers are too large."


@pytest.mark.parametrize(
    ("answer", "limit", "code", "sentence"),
    [
        (silent(), "answer", None, "Nothing of an answer came for 0.2 s."),
        (raw(OK, b"."), "answer", 200, "Nothing of an answer came for 0.2 s."),
        (trickle(0.01), "whole", None, "The answer was not whole after 0.2 s."),
        (raw(OK, *[b"."] * 99, pause=0.01), "whole", 200, "The answer was not whole after 0.2 s."),
        (informational(), "whole", None, "The answer was not whole after 0.2 s."),
        (reset(), None, None, "The connection broke before there was an answer."),
        (reset(OK + b"."), None, 200, "The connection broke in the middle of the answer."),
        (hang_up(), None, None, "The connection was closed without an answer."),
        (lying_length(), None, 200, "The connection broke in the middle of the answer."),
        (huge_headers(), None, None, NOT_HTTP),
        (raw(b"SSH-2.0-OpenSSH_9.6\r\n"), None, None, NOT_HTTP),
        (raw(b"HTTP/1.1 two hundred\r\n\r\n"), None, None, NOT_HTTP),
        (raw(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), None, None, NOT_HTTP),
        (
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
            None,
            None,
            NOT_HTTP,
        ),
    ],
)
def test_a_receiver_that_misbehaves(
    receiver: Receiver, answer: Answer, limit: str | None, code: int | None, sentence: str
) -> None:
    receiver.otherwise = answer
    tries = 0
    for seconds in (0.2, 2.0, 20.0):
        given = {f"{limit}_timeout": seconds} if limit else {}
        result = posted(f"{receiver.url}/{SECRET}", **given)
        tries += 1
        if limit is None or (result.status is None) == (code is None):
            break
        # On a busy machine the answer had not even begun: it gets more time.
    sentence = sentence.replace("0.2 s", f"{seconds:g} s")
    assert (result.status, result.error, result.succeeded) == (code, sentence, False)
    assert (result.excerpt is None) == (code is None)
    assert SECRET not in repr(result)
    receiver.wait_for(tries)
    assert len(receiver.requests) == tries, "a connection that was new is not tried twice"


def test_an_endless_answer_is_left_after_its_first_bytes(receiver: Receiver) -> None:
    receiver.will(endless())

    async def twice(poster: Poster) -> Posted:
        first = await poster.post(receiver.url, HEADERS, BODY)
        assert (await poster.post(receiver.url, HEADERS, BODY)).succeeded
        return first

    result = with_poster(twice)
    assert result.succeeded, "the receiver said 200: it has it, whatever it goes on to say"
    assert result.excerpt == b"." * EXCERPT_BYTES
    assert receiver.connections == 2, "the connection of an answer that goes on is not used again"


def test_an_answer_is_read_to_16_kib_and_kept_to_1(receiver: Receiver) -> None:
    body = bytes(range(256)) * (READ_BYTES // 256)
    receiver.will(status(500, body[:-1]), status(500, body * 64))

    async def thrice(poster: Poster) -> list[Posted]:
        return [await poster.post(receiver.url, HEADERS, BODY) for _ in range(3)]

    results = with_poster(thrice)
    assert [result.excerpt for result in results[:2]] == [body[:EXCERPT_BYTES]] * 2
    assert [request.connection for request in receiver.requests] == [1, 1, 2]


def test_a_compressed_answer_is_not_decompressed(receiver: Receiver) -> None:
    receiver.will(gzip_bomb())
    result = posted(receiver.url)
    assert result.excerpt is not None
    assert result.excerpt.startswith(b"\x1f\x8b")


def test_nobody_listens() -> None:
    result = posted(f"http://127.0.0.1:{closed_port()}/")
    assert (result.status, result.error) == (None, "There was no connection: Connection refused.")
    assert not result.blocked


def test_a_name_that_does_not_exist() -> None:
    def lookup(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    result = posted("https://hooks.example.com/", allow_private=False, lookup=lookup)
    assert (result.status, result.error) == (None, "The name could not be resolved.")
    assert not result.blocked


def test_a_name_whose_servers_do_not_answer_delays_no_other(receiver: Receiver) -> None:
    let_go = threading.Event()
    url = receiver.url.replace("127.0.0.1", "quick.example.com")

    def lookup(host: str, port: int) -> list[Any]:
        if host.startswith("slow"):
            let_go.wait(60)
        return leads_to("127.0.0.1")(host, port)

    async def run(poster: Poster) -> None:
        slow = [
            asyncio.ensure_future(poster.post(f"http://slow-{n}.example.com/", HEADERS, BODY))
            for n in range(LOOKUPS_EACH - 1)
        ]
        await asyncio.sleep(0)
        assert (await poster.post(url, HEADERS, BODY)).succeeded
        assert not any(each.done() for each in slow)
        let_go.set()
        for each in slow:
            await each

    with_poster(run, lookup=lookup)


def test_lookups_of_one_project_delay_no_other_project(receiver: Receiver) -> None:
    """However many names it has, and be it of the same name: each has places of its own."""
    let_go = threading.Event()
    asked: list[str] = []

    async def asked_for(count: int) -> None:
        async with asyncio.timeout(60):
            while len(asked) < count:
                await asyncio.sleep(0.001)

    name = "shared.example.com"
    url = receiver.url.replace("127.0.0.1", name)

    def lookup(host: str, port: int) -> list[Any]:
        asked.append(host)
        if asked.count(name) < 2:
            let_go.wait(60)
        return leads_to("127.0.0.1")(host, port)

    async def run(poster: Poster) -> None:
        hosts = [name, *(f"slow-{n}.example.com" for n in range(2 * LOOKUPS))]
        slow = [
            asyncio.ensure_future(poster.post(f"http://{host}/", HEADERS, BODY, "theirs"))
            for host in hosts
            for _ in range(2)
        ]
        await asked_for(LOOKUPS_EACH)
        assert (await poster.post(url, HEADERS, BODY, "ours")).succeeded
        assert len(asked) == LOOKUPS_EACH + 1
        let_go.set()
        for each in slow:
            each.cancel()

    with_poster(run, lookup=lookup)


def test_an_address_is_kept_for_some_seconds(receiver: Receiver) -> None:
    """A receiver that hangs up after each answer costs no lookup each; one that moves is found."""
    asked: list[str] = []
    clock = VirtualClock()
    url = receiver.url.replace("127.0.0.1", "hooks.example.com")
    receiver.will(*[status(200, headers=[("Connection", "close")])] * 3)

    def lookup(host: str, port: int) -> list[Any]:
        asked.append(host)
        return leads_to("127.0.0.1")(host, port)

    async def run(poster: Poster) -> None:
        for seconds, lookups in ((0, 1), (KEPT_SECONDS - 1, 1), (2, 2)):
            clock.advance(seconds)
            assert (await poster.post(url, HEADERS, BODY)).succeeded
            assert len(asked) == lookups

    with_poster(run, lookup=lookup, clock=clock)


def test_a_process_that_ends_waits_for_no_lookup() -> None:
    """Also where the servers of a name do not answer for a minute."""
    program = """
import asyncio, time
from runbell.service.delivery.dialling import Poster

async def main():
    poster = Poster(connect_timeout=0.1, lookup=lambda host, port: time.sleep(60))
    posted = await poster.post("https://slow.example.com/", {}, b"")
    await poster.close()
    print(posted.error)

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True
    )
    assert done.stdout == "There was no connection within 0.1 s.\n"


def test_a_lookup_has_its_time_too() -> None:
    let_go = threading.Event()

    def lookup(host: str, port: int) -> list[Any]:
        let_go.wait(60)
        return []

    async def run(poster: Poster) -> Posted:
        result = await poster.post("http://slow.example.com/", HEADERS, BODY)
        let_go.set()
        return result

    result = with_poster(run, lookup=lookup, connect_timeout=0.2)
    assert result.error == "There was no connection within 0.2 s."


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("expired", "The certificate is not trusted (certificate has expired)."),
        ("wrong_host", "The certificate is not trusted (Hostname mismatch"),
        ("self_signed", "The certificate is not trusted (unable to get local issuer certificate"),
    ],
)
def test_a_certificate_that_is_not_good(kind: Kind, sentence: str) -> None:
    made = tls(kind)
    with Receiver(tls=made.server, host="localhost") as receiver:
        result = posted(receiver.url, tls=made.client)
        assert result.status is None
        assert sentence in str(result.error)
        assert receiver.requests == []


def test_a_good_certificate() -> None:
    made = tls()
    with Receiver(tls=made.server, host="localhost") as receiver:
        assert posted(receiver.url, tls=made.client).succeeded
        receiver.will(reset())
        assert posted(receiver.url, tls=made.client).error
        # Without the authority: it is verified against those of the system.
        assert "not trusted" in str(posted(receiver.url).error)


def test_tls_with_somebody_who_speaks_none(receiver: Receiver) -> None:
    result = posted(receiver.url.replace("http:", "https:"), connect_timeout=1)
    assert result.error in {
        "There was no TLS to be spoken.",
        "There was no connection within 1 s.",
    }


# Connections.


def test_connections_are_used_again(receiver: Receiver) -> None:
    async def many(poster: Poster) -> None:
        for _ in range(20):
            assert (await poster.post(receiver.url, HEADERS, BODY)).succeeded

    with_poster(many)
    assert receiver.connections == 1


def test_a_kept_connection_that_was_closed_meanwhile_costs_no_attempt(receiver: Receiver) -> None:
    receiver.will(status(200), hang_up(), status(201))

    async def twice(poster: Poster) -> list[int | None]:
        return [(await poster.post(receiver.url, HEADERS, BODY)).status for _ in range(2)]

    assert with_poster(twice) == [200, 201]
    second, third = receiver.requests[1:]
    assert (second.connection, third.connection) == (1, 2)
    ours = [header for header in third.headers if header != ("Connection", "close")]
    assert (list(second.headers), second.body) == (ours, third.body)


def test_a_receiver_that_hangs_up_has_read_a_post_twice_at_the_most(receiver: Receiver) -> None:
    """Many connections are kept, and all are dead: the second try is on a new one."""
    receiver.will(*[status(200, after=0.2)] * 20)
    receiver.otherwise = hang_up()

    async def run(poster: Poster) -> Posted:
        await asyncio.gather(*(poster.post(receiver.url, HEADERS, BODY) for _ in range(20)))
        return await poster.post(receiver.url, HEADERS, BODY)

    assert with_poster(run).error == "The connection was closed without an answer."
    assert len(receiver.requests) == 20 + 2
    assert receiver.requests[-1].connection == receiver.connections


def test_many_that_hang_take_no_place_of_one_on_the_same_host(receiver: Receiver) -> None:
    """As many endpoints behind one gateway do: nothing but its own lane bounds an endpoint."""
    receiver.will(*[silent()] * 300)

    async def run(poster: Poster) -> Posted:
        hanging = [
            asyncio.ensure_future(poster.post(receiver.url, HEADERS, BODY)) for _ in range(300)
        ]
        try:
            async with asyncio.timeout(60):
                while len(receiver.requests) < 300:
                    await asyncio.sleep(0.01)
                return await poster.post(receiver.url, HEADERS, BODY)
        finally:
            for each in hanging:
                each.cancel()
            await asyncio.gather(*hanging, return_exceptions=True)

    assert with_poster(run).succeeded


def test_little_of_an_answer_is_held_that_nobody_has_read_yet(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a receiver pours out, for each of many attempts."""
    limits: list[tuple[int, int]] = []

    async def look(response: aiohttp.ClientResponse, excerpt: bytearray) -> None:
        limits.append(response.content.get_read_buffer_limits())
        response.close()

    monkeypatch.setattr(dialling, "_read", look)
    posted(receiver.url)
    assert limits == [(READ_BYTES, 2 * READ_BYTES)]


# Where it may go.

PRIVATE_URLS = [
    "https://127.0.0.1/",
    "https://[::1]/",
    "https://10.0.0.1/",
    "https://169.254.169.254/latest/meta-data/",
    "https://100.64.0.1/",
    "https://0.0.0.0/",
    "https://[::ffff:127.0.0.1]/",
    "https://[64:ff9b::7f00:1]/",
    "https://[2002:7f00:1::1]/",
    "https://2130706433/",
    "https://0x7f.1/",
    "https://127.1/",
    "https://user:password@example.com/",
    "https://example.com./",
    "https://localhost/",
    "http://example.com/",
]


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_a_url_that_is_not_allowed_is_not_dialled(url: str) -> None:
    def lookup(host: str, port: int) -> list[Any]:
        raise AssertionError("it is not even looked up")

    result = posted(url, allow_private=False, lookup=lookup)
    assert (result.status, result.blocked, result.excerpt) == (None, True, None)
    assert str(result.error).startswith("Nothing was sent: ")
    assert "password" not in str(result.error).replace("user name or password", "")


@pytest.mark.parametrize(
    "addresses",
    [
        ("127.0.0.1",),
        ("::1",),
        ("8.8.8.8", "127.0.0.1"),
        ("127.0.0.1", "8.8.8.8"),
        ("2606:4700::1111", "fe80::1"),
        ("::ffff:127.0.0.1",),
        ("64:ff9b::7f00:1",),
        ("169.254.169.254",),
    ],
)
def test_a_name_with_any_private_address_is_not_dialled(
    addresses: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    no_sockets(monkeypatch)
    result = posted("https://hooks.example.com/", allow_private=False, lookup=leads_to(*addresses))
    assert result.error == "Nothing was sent: the address is not public."
    assert (result.status, result.blocked, result.excerpt) == (None, True, None)


def test_everybody_who_waits_for_a_name_hears_that_it_is_not_allowed() -> None:
    """Lookups of one name are shared; the refusal is everybody's."""

    async def run(poster: Poster) -> list[Posted]:
        posts = [poster.post("https://hooks.example.com/", HEADERS, BODY) for _ in range(10)]
        return list(await asyncio.gather(*posts))

    results = with_poster(run, allow_private=False, lookup=leads_to("127.0.0.1"))
    assert {(each.error, each.blocked) for each in results} == {
        ("Nothing was sent: the address is not public.", True)
    }


def test_an_address_is_looked_at_again_when_its_socket_is_made(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The syntax of the URL and the resolver's look are taken away: the last look is enough."""
    from runbell.webhooks import check_url

    monkeypatch.setattr(dialling, "check_url", lambda url, **_: check_url(url, allow_private=True))
    result = posted(receiver.url, allow_private=False)
    assert (result.blocked, result.error) == (True, "Nothing was sent: the address is not public.")
    assert receiver.connections == 0


def test_a_name_that_means_something_else_by_now(receiver: Receiver) -> None:
    """Rebinding: public when it was registered, loopback when it is dialled."""
    answers = [leads_to("8.8.8.8"), leads_to("127.0.0.1")]
    clock = VirtualClock()
    made = tls("good", "hooks.example.com")
    with Receiver(tls=made.server, host="hooks.example.com") as secure:

        async def run(poster: Poster) -> Posted:
            await poster.check_reachable_address(secure.url)
            clock.advance(KEPT_SECONDS)
            return await poster.post(secure.url, HEADERS, BODY)

        result = with_poster(
            run,
            allow_private=False,
            tls=made.client,
            lookup=lambda host, port: answers.pop(0)(host, port),
            clock=clock,
        )
        assert result.blocked
        assert secure.connections == 0


def test_private_addresses_can_be_allowed(receiver: Receiver) -> None:
    url = receiver.url.replace("127.0.0.1", "localhost")
    assert posted(url, lookup=leads_to("127.0.0.1")).succeeded


def test_when_it_is_registered() -> None:
    def check(lookup: Any, **options: Any) -> None:
        with_poster(
            lambda poster: poster.check_reachable_address("https://hooks.example.com/"),
            lookup=lookup,
            **options,
        )

    def unknown(host: str, port: int) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    check(leads_to("8.8.8.8"), allow_private=False)
    check(unknown, allow_private=False)
    check(leads_to("127.0.0.1"), allow_private=True)
    with pytest.raises(AddressRefused, match="--allow-private-webhooks") as refused:
        check(leads_to("8.8.8.8", "127.0.0.1"), allow_private=False)
    assert refused.value.reason == "private"


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_what_would_not_be_dialled_is_not_registered(url: str) -> None:
    with pytest.raises(AddressRefused):
        with_poster(lambda poster: poster.check_reachable_address(url), allow_private=False)


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_header_cannot_bring_another(receiver: Receiver, value: str) -> None:
    result = with_poster(
        lambda poster: poster.post(receiver.url, {**HEADERS, "x-mine": value}, BODY)
    )
    assert (result.status, result.error) == (None, "The request could not be sent (ValueError).")
    assert all(each.header("x-evil") is None for each in receiver.requests)


def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Poster, info: Any) -> socket.socket:
        raise AssertionError(f"{info} would have been dialled")

    monkeypatch.setattr(Poster, "_socket", refuse)


def test_the_receiver_keeps_what_it_got(receiver: Receiver) -> None:
    posted(receiver.url)
    (request,) = receiver.wait_for(1)
    assert isinstance(request, Received)
    assert request.json == {"name": "Zoë"}
    with pytest.raises(AssertionError, match="1 of 2 requests came"):
        receiver.wait_for(2, limit_s=0.01)
