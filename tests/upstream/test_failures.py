"""What fails becomes the run's `last_error`; what may pass is tried again, in the run's time."""

from __future__ import annotations

import asyncio
import errno
import logging
import random
import shutil
import socket
import ssl
import subprocess
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from runbell.errors import ModelError
from runbell.service.backends.upstream.connection import _unreachable
from runbell.service.backends.upstream.failures import MAX_SENTENCE, Secret, wait_wanted
from tests.upstream.model_server import (
    STOP,
    Cut,
    ModelServer,
    Pause,
    chunk,
    finish,
    refuse,
    silent,
    stream,
    text,
    tool,
)
from tests.upstream.talk import (
    FIRST_ANSWER,
    Talk,
    function,
    on_a_server,
    request,
    rest,
    soon,
    talking,
)

MINUTE_MS = 60_000


def failure_of(reply: Any, asked: Any = None, **settings: Any) -> ModelError:
    """The error of a turn that this reply ends: of one whose time is over, so without a pause."""

    async def story() -> ModelError:
        async with talking(**settings) as talk, asyncio.timeout(100):
            talk.server.otherwise = reply
            with pytest.raises(ModelError) as caught:
                await talk.said(asked or request(expires_at_ms=talk.clock.now_ms()))
            assert len(talk.server.chats) == 1
            return caught.value

    return asyncio.run(story())


# What an error means.


@pytest.mark.parametrize(
    ("status", "code", "beginning"),
    [
        (400, "invalid_prompt", "The model server refused the request (400): why"),
        (422, "invalid_prompt", "The model server refused the request (422): why"),
        (413, "invalid_prompt", "The model server refused the request (413): why"),
        (429, "rate_limit_exceeded", "The model server is over its limit (429): why"),
        (401, "server_error", "The model server does not accept the key that it was given (401)"),
        (403, "server_error", "The model server does not accept the key that it was given (403)"),
        (404, "server_error", "The model server has no such model or path (404): why"),
        (307, "server_error", "The model server sends its callers elsewhere"),
        (418, "server_error", "The model server failed (418): why"),
        (500, "server_error", "The model server failed (500): why"),
        (503, "server_error", "The model server failed (503): why"),
        (202, "server_error", "The model server failed (202): why"),
    ],
)
def test_a_status_becomes_a_code(status: int, code: str, beginning: str) -> None:
    error = failure_of(refuse(status, {"error": {"message": "why"}}))
    assert (error.code, error.message[: len(beginning)]) == (code, beginning)


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "why", "type": "x", "param": None, "code": None}},
        {"error": "why"},
        {"object": "error", "message": "why", "code": 400},
        {"detail": "why"},
        {"detail": [{"loc": ["body"], "msg": "why"}]},
        [{"error": {"code": 400, "message": "why", "status": "INVALID_ARGUMENT"}}],
        {"error": {"message": {"error": "why"}}},
        b"why",
        b'"why"',
        b"  why\n",
    ],
)
def test_the_sentence_is_found_in_every_shape(body: Any) -> None:
    assert failure_of(refuse(400, body)).message.endswith("(400): why")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>oh</html>", {}, [], {"error": None}, {"error": []}, b"null", b"7", b"[" * 9_999],
)
def test_what_holds_no_sentence_is_not_shown(body: Any) -> None:
    message = failure_of(refuse(400, body)).message
    assert message.startswith("The model server refused the request (400)")
    assert "html" not in message


def test_a_sentence_is_cut_and_can_be_stored() -> None:
    message = failure_of(refuse(400, {"error": "\ud83d" + "x" * 100_000})).message
    assert len(message) < MAX_SENTENCE + 100
    assert message.encode()


def test_googles_word_for_a_wrong_key() -> None:
    error = failure_of(refuse(400, [{"error": {"message": "API key not valid."}}]))
    assert "does not accept the key" in error.message
    assert error.code == "server_error"


@pytest.mark.parametrize(
    ("event", "code"),
    [
        ({"error": {"message": "why", "code": 429}}, "rate_limit_exceeded"),
        ({"error": {"message": "why", "code": "429"}}, "rate_limit_exceeded"),
        ({"error": {"message": "why", "type": "rate_limit_error"}}, "rate_limit_exceeded"),
        ({"error": {"message": "why", "code": 400}}, "invalid_prompt"),
        ({"error": {"message": "why", "type": "server_error", "code": None}}, "server_error"),
        ({"error": "why"}, "server_error"),
        ({"error": {"message": "why", "code": 7}}, "server_error"),
        (b'event: error\ndata: {"message": "why", "code": 503}\n\n', "server_error"),
        (b'event: error\ndata: {"error": {"message": "why"}}\n\n', "server_error"),
        (b"event: error\ndata: why\n\n", "server_error"),
        (b'error: {"code": 500, "message": "why"}\n\n', "server_error"),
        (b'{"error": {"message": "why"}}\n', "server_error"),
        (b'{"error": {"message": "why"}}', "server_error"),
        ({**chunk({}, "error"), "error": {"message": "why", "code": 502}}, "server_error"),
    ],
)
@pytest.mark.parametrize("before", [[], [text("a")]])
def test_an_error_in_the_stream(event: Any, code: str, before: list[Any]) -> None:
    """In the place of a chunk, in all the ways in which servers put it there."""
    error = failure_of(stream(*before, event))
    assert (error.code, "why" in error.message) == (code, True), error.message


# Trying again.

TRANSIENT = [
    pytest.param(refuse(429, {"error": "slow down"}), id="429"),
    pytest.param(refuse(500, {}), id="500"),
    pytest.param(refuse(503, b"<html>"), id="503"),
    pytest.param(refuse(529, {}), id="overloaded"),
    pytest.param(refuse(408, {}), id="408"),
    pytest.param(refuse(400, {}, x_should_retry="true"), id="the server wants it"),
    pytest.param(stream({"error": {"message": "why", "code": 503}}), id="an error first"),
    pytest.param(stream(Cut()), id="cut before the answer"),
    pytest.param(stream(chunk({"role": "assistant"}), Cut()), id="cut behind the role"),
    pytest.param(stream(chunk({"reasoning_content": "hm"}), Cut()), id="cut while it thinks"),
    pytest.param(stream(), id="nothing at all"),
    pytest.param(stream(finish("error")), id="given up"),
]


@pytest.mark.parametrize("reply", TRANSIENT)
def test_what_may_pass_is_tried_again(reply: Any) -> None:
    """After pauses that grow, with jitter."""

    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(*[reply] * 3)
            turn = talk.begin()
            pauses = [await talk.skip() for _ in range(3)]
            assert (await turn).text == "ok"
            assert len(talk.server.chats) == 4
            bounds = [(0.25, 0.5), (0.5, 1), (1, 2)]
            assert all(low <= p <= high for p, (low, high) in zip(pauses, bounds, strict=True))

    asyncio.run(story())


@pytest.mark.parametrize(
    "reply",
    [
        refuse(400, {}),
        refuse(401, {}),
        refuse(404, {}),
        refuse(307, {}, location="http://127.0.0.1:1/"),
        refuse(501, {}),
        refuse(503, {}, x_should_retry="false"),
        refuse(429, {"error": {"message": "why", "code": "insufficient_quota"}}),
        stream({"error": {"message": "why", "code": 400}}),
        stream(finish("content_filter")),
        stream(b"data: what?\n\n"),
    ],
)
def test_what_will_not_pass_is_tried_once(reply: Any) -> None:
    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.otherwise = reply
            with pytest.raises(ModelError):
                await talk.said()
            assert len(talk.server.chats) == 1

    asyncio.run(story())


@pytest.mark.parametrize(
    "said", [text("a"), tool({"index": 0, "id": "a", "name": "f", "arguments": "{"})]
)
@pytest.mark.parametrize("end", [Cut(), {"error": {"message": "why", "code": 503}}])
def test_what_was_said_is_not_taken_back(said: Any, end: Any) -> None:
    """Somebody may have read it: the run fails, though another try may have succeeded."""

    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(stream(said, end))
            with pytest.raises(ModelError) as caught:
                await talk.said(request(tools=(function("f"),)))
            assert caught.value.code == "server_error"
            assert len(talk.server.chats) == 1

    asyncio.run(story())


@on_a_server()
async def test_a_server_that_is_away_is_waited_for(talk: Talk) -> None:
    """Its port refuses connections; then it is back."""
    port = talk.server.port
    await talk.server.__aexit__()
    turn = talk.begin()
    await talk.skip()
    await talk.waits()
    again = await asyncio.start_server(talk.server._accept, "127.0.0.1", port)
    async with again:
        await talk.skip()
        assert (await turn).text == "ok"


@on_a_server()
async def test_a_server_that_hangs_up_without_an_answer_is_tried_again(talk: Talk) -> None:
    async def hang_up(exchange: Any) -> None:
        exchange.writer.transport.abort()

    talk.server.will(hang_up)
    turn = talk.begin()
    await talk.skip()
    assert (await turn).text == "ok"


@on_a_server()
async def test_what_is_no_http_is_said_so(talk: Talk) -> None:
    async def babble(exchange: Any) -> None:
        await exchange.send(b"SSH-2.0-OpenSSH\r\n\r\n")
        exchange.writer.close()

    talk.server.otherwise = babble
    with pytest.raises(ModelError, match=r"cannot be reached: its answer is no HTTP"):
        await talk.said(request(expires_at_ms=talk.clock.now_ms()))


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1:{port}/v1", "refused the connection: is it running?"),
        ("http://no.such.host.invalid/v1", "cannot be reached: its name is not known"),
    ],
)
def test_why_a_server_cannot_be_reached(url: str, why: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

        async def story() -> None:
            async with talking(url=url.format(port=port)) as talk, asyncio.timeout(100):
                with pytest.raises(ModelError) as caught:
                    await talk.said(request(expires_at_ms=talk.clock.now_ms()))
                assert caught.value.code == "server_error"
                short = "the run's time is too short for another try"
                assert caught.value.message.rstrip(".") == f"The model server {why} ({short})"

        asyncio.run(story())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_that_is_not_trusted_will_not_pass(tmp_path: Path) -> None:
    """Nothing is sent to a server that cannot say who it is; another try would change nothing."""
    pem = tmp_path / "server.pem"
    made = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2")
    files = ("-keyout", str(pem), "-out", str(tmp_path / "cert.pem"))
    subprocess.run(["openssl", *made, *files], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "cert.pem", pem)

    async def story() -> None:
        server = ModelServer()
        served = await asyncio.start_server(server._accept, "127.0.0.1", 0, ssl=context)
        port = served.sockets[0].getsockname()[1]
        async with served, talking(url=f"https://localhost:{port}/v1") as talk:
            with pytest.raises(ModelError, match="its certificate is not trusted"):
                await talk.said()
        assert not server.exchanges

    asyncio.run(story())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (TimeoutError(), "did not answer in time: no connection could be made."),
        (OSError(errno.ETIMEDOUT, "('192.0.2.1', 1)"), "did not answer in time: no connection"),
        (OSError(errno.EHOSTUNREACH, "('192.0.2.1', 1)"), "cannot be reached: no route to host."),
        (OSError("Multiple exceptions: ('192.0.2.1', 1)"), "cannot be reached: none of its addr"),
    ],
)
def test_an_error_of_the_network_is_told_in_words(error: Exception, why: str) -> None:
    """Those of the library have addresses in them, as Python writes them."""
    if isinstance(error, OSError) and error.args:
        key: Any = SimpleNamespace(host="h", port=1, ssl=False)
        error = aiohttp.ClientConnectorError(key, error)
    failed = _unreachable(error)
    assert failed.message.startswith(f"The model server {why}")
    assert "(" not in failed.message
    assert failed.again


# A base URL that is not quite right.


@pytest.mark.parametrize(
    ("reply", "beginning"),
    [
        (
            refuse(404, b"why"),
            "The model server has no such model or path (404): why (asked for the model 'm'; ",
        ),
        (
            refuse(200, b"<html></html>", content_type="text/html"),
            "The model server answered with a web page (",
        ),
        (
            stream(b"data: what?\n\n"),
            "The model server sent something that is no chat completion (",
        ),
    ],
)
def test_a_base_url_without_a_version_is_doubted(reply: Any, beginning: str) -> None:
    """Where nothing that was expected is found there; the address itself is not told."""
    hint = "a base URL mostly ends in /v1: try …/v1)."

    async def story() -> None:
        async with ModelServer() as server:
            for path, ending in (("", hint), ("/v1", "")):
                talk = Talk(server, url=f"http://127.0.0.1:{server.port}{path}")
                server.otherwise = reply
                with pytest.raises(ModelError) as caught:
                    await talk.said()
                if ending:
                    assert caught.value.message == beginning + ending
                else:
                    assert "/v1" not in caught.value.message
                await talk.upstream.close()

    asyncio.run(story())


@on_a_server()
async def test_what_is_not_there_is_named(talk: Talk) -> None:
    talk.server.will(refuse(404, {"error": "no such model"}))
    with pytest.raises(ModelError, match=r"no such model \(asked for the model 'llama9'\)\.$"):
        await talk.said(request(model="llama9"))


@on_a_server()
async def test_why_it_was_given_up_is_said(talk: Talk) -> None:
    """After how many tries, and what stood against another one."""
    talk.server.will(refuse(503, {}), refuse(400, {"error": "no"}))
    turn = talk.begin()
    await talk.skip()
    with pytest.raises(ModelError, match=r"\(400\): no \(tried 2 times\)\.$"):
        await turn
    talk.server.will(stream(text("a"), Cut()))
    why = "not tried again, since a part of the answer was delivered"
    with pytest.raises(ModelError, match=rf"in the middle of its answer \({why}\)\.$"):
        await talk.said()


# Retry-After.


@pytest.mark.parametrize(
    ("headers", "low", "high"),
    [
        ({"retry_after": "7"}, 7, 7.7),
        ({"retry_after": "0.6"}, 0.6, 0.66),
        ({"retry_after_ms": "3000", "retry_after": "7"}, 3, 3.3),
        ({"retry_after": "90"}, 90, 99),
        ({"retry_after_ms": "1"}, 0.25, 0.5),
        ({"retry_after": "0"}, 0.25, 0.5),
        ({"retry_after": "-5"}, 0.25, 0.5),
        ({"retry_after": "soon"}, 0.25, 0.5),
        ({"retry_after": "nan"}, 0.25, 0.5),
        ({"retry_after": "inf"}, 0.25, 0.5),
        ({"retry_after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0.25, 0.5),
        ({"retry_after": "Mon, 99 Jan 2001 00:00:00 GMT"}, 0.25, 0.5),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_server_is_left_alone_for_as_long_as_it_asks(
    status: int, headers: dict[str, str], low: float, high: float
) -> None:
    """A little longer at random, so that not everybody is back at the same moment."""

    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(refuse(status, {}, **headers))
            turn = talk.begin()
            assert low <= await talk.skip() <= high
            assert (await turn).text == "ok"

    asyncio.run(story())


@on_a_server()
async def test_a_server_may_ask_for_more_patience_never_for_less(talk: Talk) -> None:
    """The pauses grow, whatever it says: a server in trouble is not hammered on its own word."""
    talk.server.will(*[refuse(429, {}, retry_after_ms="1")] * 6)
    turn = talk.begin()
    for number in range(6):
        pause = await talk.skip()
        assert 0.25 * 2**number <= pause <= 0.5 * 2**number
        await soon(lambda number=number: len(talk.server.chats) > number + 1)
    assert (await turn).text == "ok"


def test_a_date_is_meant_by_the_wall_clock() -> None:
    now_ms = 1_800_000_000_000
    headers = {"retry-after": formatdate(now_ms / 1000 + 42, usegmt=True)}
    assert wait_wanted(headers, now_ms) == 42


@on_a_server()
async def test_a_pause_that_the_run_has_no_time_for_is_not_begun(talk: Talk) -> None:
    """The run fails at once and says why, rather than to expire without a reason."""
    talk.server.will(refuse(429, {"error": "slow down"}, retry_after="120"))
    with pytest.raises(ModelError) as caught:
        await talk.said(request(expires_at_ms=talk.clock.now_ms() + MINUTE_MS))
    assert caught.value.code == "rate_limit_exceeded"
    assert caught.value.message == (
        "The model server is over its limit (429): slow down "
        "(the run's time is too short for another try)."
    )


@on_a_server()
async def test_a_run_tries_until_its_time_is_over(talk: Talk) -> None:
    """And fails in time, with the number of tries."""
    talk.server.otherwise = refuse(503, {"error": "down"})
    begun = talk.clock.monotonic()
    turn = talk.begin(request(expires_at_ms=talk.clock.now_ms() + 10 * MINUTE_MS))
    while True:
        waiting = asyncio.ensure_future(talk.waits())
        await asyncio.wait([waiting, turn], return_when=asyncio.FIRST_COMPLETED)
        if turn.done():
            waiting.cancel()
            break
        talk.clock.advance(waiting.result())
        count = len(talk.server.chats)
        await soon(lambda count=count: len(talk.server.chats) > count or turn.done())
    with pytest.raises(ModelError) as caught:
        await turn
    tries = len(talk.server.chats)
    assert caught.value.message == (
        f"The model server failed (503): down (tried {tries} times; "
        "the run's time is too short for another try)."
    )
    assert 20 < tries < 50
    assert 10 * 60 - 31 < talk.clock.monotonic() - begun < 10 * 60


# Time limits.


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(None, id="no answer"),
        pytest.param([Pause()], id="no event"),
        pytest.param([b": I am here\n\n", Pause()], id="a sign of life"),
        pytest.param([chunk({"role": "assistant"}), Pause()], id="a role"),
    ],
)
def test_an_answer_has_to_begin_in_time(events: Any) -> None:
    async def story() -> None:
        async with talking(first_answer=30) as talk, asyncio.timeout(100):
            talk.server.will(silent if events is None else stream(*events))
            turn = talk.begin()
            if events is None:
                await soon(lambda: talk.server.chats)
            else:
                await soon(lambda: events[-1].reached)
                await rest()
            talk.clock.advance(29.9)
            await rest()
            assert not turn.done()
            talk.clock.advance(0.2)
            with pytest.raises(ModelError) as caught:
                await turn
            expected = "The model server did not begin to answer within 30 s."
            assert (caught.value.code, caught.value.message) == ("server_error", expected)
            await soon(lambda: talk.server.asked.left)
            assert len(talk.server.chats) == 1, (
                "it is not asked again: it has more than enough to do"
            )

    asyncio.run(story())


@pytest.mark.parametrize("first", [text("a"), chunk({"reasoning_content": "hm"})])
def test_a_pause_in_the_answer_has_the_same_limit(first: Any) -> None:
    """Counted from the last that came, thoughts included."""

    async def story() -> None:
        async with talking(first_answer=30) as talk, asyncio.timeout(100):
            pauses = [Pause(), Pause()]
            talk.server.will(stream(first, pauses[0], first, pauses[1]))
            turn = talk.begin()
            for pause in pauses:
                await soon(lambda pause=pause: pause.reached)
                await rest()
                talk.clock.advance(29)
                await rest()
                assert not turn.done()
                if pause is pauses[0]:
                    pause.go()
            talk.clock.advance(2)
            with pytest.raises(ModelError, match="paused for 30 s in its answer"):
                await turn
            await soon(lambda: talk.server.asked.left)

    asyncio.run(story())


@on_a_server(total=60)
async def test_an_answer_has_to_be_whole_in_time(talk: Talk) -> None:
    """However lively it is."""
    pauses = [Pause() for _ in range(7)]
    talk.server.will(stream(*[each for pause in pauses for each in (text("a"), pause)]))
    turn = talk.begin()
    for pause in pauses[:6]:
        await soon(lambda pause=pause: pause.reached)
        talk.clock.advance(9.9)
        assert not turn.done()
        pause.go()
    await soon(lambda: pauses[6].reached)
    talk.clock.advance(1)
    with pytest.raises(ModelError, match=r"was not whole after 60 s"):
        await turn


@on_a_server(first_answer=30)
async def test_a_reader_that_takes_its_time_is_not_the_servers_fault(talk: Talk) -> None:
    """The limit begins anew when it comes back for more."""
    pause = Pause()
    talk.server.will(stream(text("a"), pause, text("b"), STOP))
    pieces = talk.upstream.answer(request())
    await anext(pieces)
    talk.clock.advance(29)
    following = asyncio.ensure_future(anext(pieces))
    await soon(lambda: pause.reached)
    await rest()
    talk.clock.advance(29)
    pause.go()
    assert (await following).text == "b"
    await pieces.aclose()


# Cancels.


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(silent, id="before the answer"),
        pytest.param(stream(chunk({"reasoning_content": "hm"}), Pause()), id="in its thoughts"),
    ],
)
def test_a_cancel_ends_the_call_at_once(reply: Any) -> None:
    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(reply)
            turn = talk.begin()
            await soon(lambda: talk.server.chats)
            await rest()
            turn.cancel()
            with pytest.raises(asyncio.CancelledError):
                await turn
            # The clock stands still: nothing but the cancel has ended it.
            await soon(lambda: talk.server.asked.left)
            await asyncio.sleep(0)
            assert talk.clock.next_wake() is None, "nothing watches a call that is over"

    asyncio.run(story())


@on_a_server()
async def test_a_generator_that_is_closed_ends_the_call_at_once(talk: Talk) -> None:
    pause = Pause()
    talk.server.will(stream(text("a"), pause))
    pieces = talk.upstream.answer(request())
    await anext(pieces)
    await pieces.aclose()
    await soon(lambda: talk.server.asked.left)


@on_a_server()
async def test_a_cancel_ends_a_pause(talk: Talk) -> None:
    talk.server.will(refuse(503, {}))
    turn = talk.begin()
    await talk.waits()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    assert len(talk.server.chats) == 1


@on_a_server()
async def test_a_cancel_in_the_moment_of_the_answer_closes_it(talk: Talk) -> None:
    """The answer is there, and nobody has looked at it yet."""
    opened: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    closed: list[bool] = []
    asked: list[str] = []

    async def ask(method: str, *args: Any, **options: Any) -> Any:
        asked.append(method)
        return await opened

    response = SimpleNamespace(close=lambda: closed.append(True))
    session = SimpleNamespace(request=ask, close=talk.upstream._connection.close)
    talk.upstream._connection._session = session  # type: ignore[assignment]
    turn = talk.begin()
    await soon(lambda: asked)
    opened.set_result(response)
    await asyncio.sleep(0)
    turn.cancel()
    await asyncio.wait([turn])
    talk.upstream._connection._session = None
    assert (turn.cancelled(), closed) == (True, [True])


def test_a_cancel_that_comes_at_any_moment_leaves_nothing_behind() -> None:
    """No task, and no connection but those that can be used again."""

    async def story() -> None:
        rng = random.Random(5)
        async with talking() as talk, asyncio.timeout(100):
            for _ in range(150):
                talk.server.will(stream(text("a"), text("b"), STOP))
                turn = talk.begin()
                for _ in range(rng.randrange(60)):
                    await asyncio.sleep(0)
                if rng.random() < 0.3:
                    await asyncio.sleep(rng.random() * 0.003)
                turn.cancel()
                await asyncio.wait([turn])
                assert turn.cancelled() or turn.result().text == "ab"
            await soon(lambda: all(exchange.over for exchange in talk.server.chats))
            await soon(lambda: len(_ours()) == 0)

    def _ours() -> list[Any]:
        known = {"story", "_accept", "_answer", "reply", "_gone"}
        return [
            task
            for task in asyncio.all_tasks()
            if task.get_coro().__name__ not in known  # type: ignore[union-attr]
        ]

    asyncio.run(story())


# Slots.


@on_a_server(concurrency=2)
async def test_a_server_gets_no_more_calls_than_it_can_take(talk: Talk) -> None:
    """The others wait in line, and go in the order in which they came."""
    pauses = [Pause() for _ in range(5)]
    talk.server.will(*[stream(text("a"), pause, STOP) for pause in pauses])
    turns = [talk.begin(request(f"turn {n}")) for n in range(5)]
    for n, pause in enumerate(pauses):
        await soon(lambda pause=pause: pause.reached)
        await rest()
        assert len(talk.server.chats) == min(n + 2, 5)
        pause.go()
        await turns[n]
    asked = [exchange.json["messages"][0]["content"] for exchange in talk.server.chats]
    assert sorted(asked) == asked


@on_a_server(concurrency=1)
async def test_who_pauses_between_two_tries_leaves_its_slot(talk: Talk) -> None:
    talk.server.will(refuse(503, {}), stream(text("second"), STOP), stream(text("first"), STOP))
    first = talk.begin()
    await talk.waits()
    assert (await talk.said()).text == "second"
    await talk.skip()
    assert (await first).text == "first"


@on_a_server(concurrency=1, first_answer=30)
async def test_the_time_in_line_is_not_the_servers(talk: Talk) -> None:
    pause = Pause()
    talk.server.will(stream(text("a"), pause, STOP))
    first = talk.begin()
    await soon(lambda: pause.reached)
    second = talk.begin()
    await rest()
    talk.clock.advance(29)
    pause.go()
    await first
    await soon(lambda: len(talk.server.chats) == 2)
    assert (await second).text == "ok"


@on_a_server(concurrency=1)
async def test_a_cancel_in_line_leaves_the_line(talk: Talk) -> None:
    pause = Pause()
    talk.server.will(stream(text("a"), pause, STOP))
    first, second, third = (talk.begin() for _ in range(3))
    await soon(lambda: pause.reached)
    second.cancel()
    pause.go()
    assert (await first).text == "a"
    assert (await third).text == "ok"
    assert len(talk.server.chats) == 2


# Secrets.

KEY = "sk-proj-0123456789abcdefghijklmnopqrstuvwxyz"


@pytest.mark.parametrize(
    "said",
    [
        f"Incorrect API key provided: {KEY}.",
        f"Incorrect API key provided: {KEY[:20]}***.",
        f"ends in {KEY[-12:]}",
        f"headers: {{'authorization': 'Bearer {KEY}'}}",
        KEY * 3,
    ],
)
@pytest.mark.parametrize("status", [400, 401, 429, 500])
def test_no_error_holds_the_key(said: str, status: int, caplog: pytest.LogCaptureFixture) -> None:
    """Nor a longer part of it, nor the log."""
    caplog.set_level(logging.DEBUG)
    replies = [
        refuse(status, {"error": said}),
        stream({"error": {"message": said, "code": status}}),
    ]
    for reply in replies:
        error = failure_of(reply, key=KEY, key_env="THE_KEY")
        shown = f"{error} {error!r} {error.message} {caplog.text}"
        parts = {KEY[start : start + 8] for start in range(len(KEY) - 7)}
        assert not [part for part in parts if part in shown]
        assert "***" in error.message
    if status == 401:
        assert "the key is that of THE_KEY" in caplog.text


def test_what_a_server_says_is_not_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """It may repeat what it was asked."""
    caplog.set_level(logging.DEBUG)
    failure_of(refuse(400, {"error": "the user said XYZZY"}))
    failure_of(refuse(503, {"error": "the user said XYZZY"}))
    assert "HTTP 400" in caplog.text
    assert "HTTP 503" in caplog.text
    assert "XYZZY" not in caplog.text
    assert not any("XYZZY" in str(vars(record)) for record in caplog.records)


def test_a_record_of_a_call_has_fields(caplog: pytest.LogCaptureFixture) -> None:
    """Whose call it was and what came of it: in fields of their own, and not in the sentence."""

    async def story() -> list[dict[str, Any]]:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(refuse(503, {}), refuse(429, {}), stream(text("a"), finish("odd")))
            turn = talk.begin()
            pauses = [round(1000 * await talk.skip()) for _ in range(2)]
            await turn
            talk.server.will(stream(text("a"), Cut()))
            with pytest.raises(ModelError):
                await talk.said()
            ids = {"run_id": "run_1", "thread_id": "thread_1", "project_id": "proj_1"}
            about = {"upstream": talk.name, **ids}
            return [
                {**about, "status": 503, "try": 1, "pause_ms": pauses[0]},
                {**about, "status": 429, "try": 2, "pause_ms": pauses[1]},
                about,
                {**about, "try": 1},
            ]

    expected = asyncio.run(story())
    records = [each for each in caplog.records if each.name == "runbell.models"]
    assert [each.fields for each in records] == expected
    assert not any("run_1" in each.getMessage() for each in records)


@pytest.mark.parametrize(
    ("key", "text_", "hidden"),
    [
        (None, "ollama is here", "ollama is here"),
        ("ollama", "ollama, ollamas; (ollama)", "***, ollamas; (***)"),
        ("12345678", "x12345678x", "x***x"),
        ("123456789", "12345678 and 23456789", "*** and ***"),
        ("123456789", "1234567 23456", "1234567 23456"),
    ],
)
def test_how_a_key_is_hidden(key: str | None, text_: str, hidden: str) -> None:
    assert Secret(key).hidden(text_) == hidden


def test_a_secret_is_in_no_repr() -> None:
    async def story() -> None:
        async with talking(key=KEY) as talk:
            await talk.said()
            things = [talk.upstream, talk.upstream._settings, talk.upstream._connection]
            assert not [thing for thing in things if KEY[:8] in repr(thing)]
            assert KEY not in repr(Secret(KEY))

    asyncio.run(story())


def test_the_limits_of_these_tests_can_be_told_from_pauses() -> None:
    assert FIRST_ANSWER > 2 * 120 * 1.1


@on_a_server(concurrency=2)
async def test_who_pauses_leaves_its_place_to_others(talk: Talk) -> None:
    """That there is room is told when the pause begins, and it is no room when it is over."""
    rooms: list[bool] = []
    talk.upstream.on_room(lambda: rooms.append(talk.upstream.takes(2)))
    assert [talk.upstream.takes(running) for running in (0, 1, 2, 3)] == [True, True, False, False]
    pause = Pause()
    talk.server.will(refuse(503, {}), stream(pause, text("a"), STOP))
    turn = talk.begin()
    await talk.waits()
    assert rooms == [True]
    assert [talk.upstream.takes(running) for running in (2, 3)] == [True, False]
    await talk.skip()
    await soon(lambda: pause.reached)
    assert not talk.upstream.takes(2)
    pause.go()
    await turn


@on_a_server(concurrency=1)
async def test_a_run_that_is_stopped_in_a_pause_is_in_none_any_more(talk: Talk) -> None:
    talk.server.will(refuse(503, {}))
    turn = talk.begin()
    await talk.waits()
    assert talk.upstream.takes(1)
    turn.cancel()
    await asyncio.wait([turn])
    assert not talk.upstream.takes(1)


@on_a_server()
async def test_without_a_limit_there_is_room_for_any_number(talk: Talk) -> None:
    assert talk.upstream.takes(1_000_000)
