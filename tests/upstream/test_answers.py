"""Answers as servers really send them: what is said is put together whole, or the turn fails."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from runbell.errors import ModelError
from runbell.runs import Usage
from runbell.service.backends import TextDelta
from tests.upstream.model_server import (
    DONE,
    STOP,
    Cut,
    Pause,
    chunk,
    document,
    finish,
    stream,
    text,
    usage,
)
from tests.upstream.talk import Talk, on_a_server, request, rest, soon, talking


def answer_to(*events: Any, asked: Any = None, **options: Any) -> Any:
    """What the backend makes of a stream of these events."""

    async def story() -> Any:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(stream(*events, **options))
            return await talk.said(asked)

    return asyncio.run(story())


def failure_of(*events: Any, asked: Any = None, **options: Any) -> ModelError:
    """The error that the backend makes of it, at the end of the run's time."""

    async def story() -> ModelError:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.otherwise = stream(*events, **options)
            now = talk.clock.now_ms()
            with pytest.raises(ModelError) as caught:
                await talk.said(asked or request(expires_at_ms=now))
            return caught.value

    return asyncio.run(story())


# Text.


@on_a_server()
async def test_text_comes_as_it_is_streamed(talk: Talk) -> None:
    """A piece is there before the next one is sent."""
    pause = Pause()
    talk.server.will(stream(text("Hel"), pause, text("lo"), STOP))
    pieces = talk.upstream.answer(request())
    assert await anext(pieces) == TextDelta("Hel")
    await soon(lambda: pause.reached)
    pause.go()
    assert await anext(pieces) == TextDelta("lo")
    await pieces.aclose()


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([chunk({"role": "assistant"}), text("a"), STOP], "a"),
        ([chunk({"role": "assistant", "content": ""}), text("a"), STOP], "a"),
        ([text(None), text("a"), text(None), STOP], "a"),
        ([text("a"), chunk({"content": "b"}, "stop")], "ab"),
        ([chunk({"content": "a", "reasoning_content": "hm", "x": {"y": [1]}}), STOP], "a"),
        ([chunk({"reasoning_content": "hm"}), chunk({"reasoning": "hm"}), text("a"), STOP], "a"),
        ([chunk({"refusal": "I won't."}), STOP], "I won't."),
        ([text([{"type": "thinking", "thinking": []}, {"type": "text", "text": "a"}]), STOP], "a"),
        ([{"choices": None}, {"choices": []}, {"object": "x"}, text("a"), STOP], "a"),
        ([{"choices": [{"delta": None}]}, text("a"), STOP], "a"),
        ([{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}], "a"),
        ([text("a"), b": still here\n\n", b":\n\n", text("b"), STOP], "ab"),
        ([b"event: ping\n\n", b"id: 7\n\n", b"retry: 10\n\n", text("a"), STOP], "a"),
        ([b"event: message\nid: 1\ndata: " + json.dumps(text("a")).encode() + b"\n\n", STOP], "a"),
        ([b"\xef\xbb\xbfdata:" + json.dumps(text("a")).encode() + b"\r\n\r\n", STOP], "a"),
        ([STOP], ""),
    ],
)
def test_what_is_not_text_does_not_disturb_it(events: list[Any], said: str) -> None:
    """Roles, nulls, thoughts, comments, fields that nobody knows."""
    answer = answer_to(*events)
    assert (answer.text, answer.reason) == (said, "stop")


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n"])
def test_lines_end_in_any_way(end: bytes) -> None:
    """Also without the empty line between events, which some servers forget."""
    assert answer_to(text("a"), text("b"), STOP, end=end).text == "ab"


@pytest.mark.parametrize("size", [1, 2, 7])
def test_bytes_are_cut_anywhere(size: int) -> None:
    """Between the bytes of a character too."""
    data = b"".join(b"data: " + json.dumps(e, ensure_ascii=False).encode() + b"\n\n"
                    for e in (text("Grüße, 世界 🙂"), STOP))  # fmt: skip
    cut = [data[start : start + size] for start in range(0, len(data), size)]
    assert answer_to(*cut).text == "Grüße, 世界 🙂"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (["\ud83d", "\ude42"], "🙂"),
        (["a\ud83d", "\ude42b"], "a🙂b"),
        (["a\ud83d", "b"], "a\ufffdb"),
        (["\ude42a"], "\ufffda"),
        (["a\ud83d"], "a\ufffd"),
        (["\ud83d", "", "\ude42"], "🙂"),
        (["\ud83d", "\ud83d", "\ude42"], "\ufffd🙂"),
    ],
)
def test_halves_of_surrogate_pairs_are_joined_or_replaced(parts: list[str], said: str) -> None:
    """A server that counts in bytes or UTF-16 units cuts an emoji in two."""
    answer = answer_to(*map(text, parts), STOP)
    assert answer.text == said
    assert all(piece.text.encode() for piece in answer.pieces[:-1])


def test_bytes_that_are_no_utf8_are_replaced() -> None:
    assert (
        answer_to(b'data: {"choices":[{"delta":{"content":"a\xff"}}]}\n\n', STOP).text == "a\ufffd"
    )


def test_a_whole_answer_in_the_place_of_a_stream() -> None:
    """A server that takes no notice of `stream`."""

    async def story() -> None:
        async with talking() as talk:
            call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            message = {"role": "assistant", "content": "a", "tool_calls": [call]}
            choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
            counted = {"prompt_tokens": 3, "completion_tokens": 4}
            talk.server.will(document({"choices": [choice], "usage": counted}))
            answer = await talk.said()
            assert answer.text == "a"
            assert answer.identified == [("c1", "f", "{}")]
            assert answer.usage == Usage(3, 4)

    asyncio.run(story())


# The end.


@pytest.mark.parametrize(
    "events",
    [
        [text("a"), STOP],
        [text("a"), STOP, usage(1, 2)],
        [text("a")],
        [text("a"), chunk({}, "")],
        [text("a"), finish("eos")],
        [text("a"), finish("never heard of it")],
        [text("a"), finish("tool_calls")],
    ],
)
def test_an_answer_that_ends_with_done(events: list[Any]) -> None:
    """With or without a reason for its end."""
    answer = answer_to(*events)
    assert (answer.text, answer.reason) == ("a", "stop")


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("last", [b"", b"data: [DONE]", b"data: [DONE]\n"])
def test_an_answer_that_has_a_reason_needs_no_done(chunked: bool, last: bytes) -> None:
    events = [text("a"), STOP, *([last] if last else [])]
    assert answer_to(*events, done=False, chunked=chunked).text == "a"


def test_the_last_event_needs_no_empty_line() -> None:
    assert (
        answer_to(b"data: " + json.dumps(chunk({"content": "a"}, "stop")).encode(), done=False).text
        == "a"
    )


def test_a_connection_that_breaks_behind_the_end_does_no_harm() -> None:
    assert answer_to(text("a"), STOP, Cut(), done=False).text == "a"


@on_a_server()
async def test_a_connection_that_stays_open_behind_the_end_is_not_waited_for(talk: Talk) -> None:
    """The count of tokens gets five seconds."""
    talk.server.will(stream(text("a"), STOP, done=False, hold=True))
    turn = talk.begin()
    await soon(lambda: talk.clock.next_wake() == 5)
    talk.clock.advance(5)
    assert (await turn).text == "a"


@pytest.mark.parametrize(
    ("reason", "meant"),
    [("length", "max_completion_tokens"), ("max_tokens", "max_completion_tokens")],
)
def test_a_limit_makes_the_answer_incomplete(reason: str, meant: str) -> None:
    answer = answer_to(text("a"), finish(reason))
    assert (answer.text, answer.reason) == ("a", meant)


@pytest.mark.parametrize(
    ("events", "code", "message"),
    [
        ([text("a"), finish("content_filter")], "invalid_prompt", "content filter"),
        ([text("a"), finish("error")], "server_error", "gave up in the middle"),
        ([finish("tool_calls")], "server_error", "announced function calls and sent none"),
        ([text("a"), b"data: {oops\n\n"], "server_error", "no chat completion"),
        ([b"data: [1]\n\n"], "server_error", "no chat completion"),
        ([b'data: {"choices": 7}\n\n'], "server_error", "no chat completion"),
        ([b'data: {"choices": [{"delta": "x"}]}\n\n'], "server_error", "no chat completion"),
        ([b'data: {"usage": ' + b"[" * 99_999 + b"\n\n"], "server_error", "no chat completion"),
        ([b"<html>hello</html>"], "server_error", "broke off"),
        ([], "server_error", "broke off"),
        ([text("a"), Cut()], "server_error", "broke in the middle"),
        ([Cut()], "server_error", "broke in the middle"),
    ],
)
def test_no_answer_fails_with_a_reason(events: list[Any], code: str, message: str) -> None:
    error = failure_of(*events)
    assert (error.code, message in error.message) == (code, True), error.message


def test_an_end_without_any_sign_of_it_is_a_broken_answer() -> None:
    """Neither a reason nor `[DONE]`: nobody can tell a whole answer from one that was cut."""
    assert "broke off" in failure_of(text("a"), done=False, chunked=False).message
    assert "broke off" in failure_of(text("a"), done=False).message


def test_a_web_page_is_no_answer() -> None:
    error = failure_of(b"<html></html>", content_type="text/html; charset=utf-8")
    assert error.message == "The model server answered with a web page."


def test_an_event_without_end_is_not_collected_for_ever() -> None:
    lump = b"data: " + b"x" * 1_000_000
    assert "more than 16777216 bytes" in failure_of(*[lump] * 20).message


def test_a_json_document_without_end_is_not_read_for_ever() -> None:
    error = failure_of(*[b" " * 1_000_000] * 20, content_type="application/json")
    assert "more than 16777216 bytes" in error.message


# Tokens.


@pytest.mark.parametrize(
    ("counts", "counted"),
    [
        ([usage(10, 5)], Usage(10, 5)),
        ([usage(1, 1), usage(10, 5)], Usage(10, 5)),
        ([usage(10, 5), usage(None, None)], Usage(10, 5)),
        ([{"choices": [], "usage": None}, usage(10.0, 5.0)], Usage(10, 5)),
        ([usage(10, None)], Usage(10, 0)),
        ([usage(10, -5)], Usage(10, 0)),
    ],
)
def test_tokens_are_those_that_the_server_counted(counts: list[Any], counted: Usage) -> None:
    """The last count, for servers that send one with every chunk."""
    assert answer_to(text("a"), STOP, *counts).usage == counted


@pytest.mark.parametrize("junk", ["many", [], {}, {"prompt_tokens": "1"}, {"prompt_tokens": True}])
def test_without_a_count_the_tokens_are_estimated(junk: Any) -> None:
    """Four bytes each, with a little for what a message has around it."""
    asked = request("x" * 400)
    answer = answer_to(text("y" * 80), STOP, {"choices": [], "usage": junk}, asked=asked)
    assert answer.usage == Usage(104, 20)


def test_thoughts_are_completion_tokens_too() -> None:
    answer = answer_to(chunk({"reasoning_content": "t" * 400}), text("y" * 80), STOP)
    assert answer.usage.completion_tokens == 120


@pytest.mark.parametrize(("used", "reason"), [(300, "stop"), (301, "max_completion_tokens")])
def test_an_answer_that_is_longer_than_the_run_allows_is_incomplete(used: int, reason: str) -> None:
    """Some servers take no notice of the limit, and some report the end by it as a stop."""
    asked = request(max_completion_tokens=300)
    assert answer_to(text("a"), STOP, usage(5, used), asked=asked).reason == reason


@pytest.mark.parametrize(("used", "reason"), [(300, "stop"), (301, "max_prompt_tokens")])
def test_a_prompt_that_was_longer_than_the_run_allows_is_incomplete(used: int, reason: str) -> None:
    asked = request(max_prompt_tokens=300)
    assert answer_to(text("a"), STOP, usage(used, 5), asked=asked).reason == reason


def test_what_is_estimated_ends_no_run() -> None:
    """A limit is kept by what was counted, or by what was sent."""
    asked = request(max_completion_tokens=1, max_prompt_tokens=100)
    assert answer_to(text("y" * 80), STOP, asked=asked).reason == "stop"


# Connections.


@on_a_server()
async def test_turns_share_a_connection(talk: Talk) -> None:
    """Also where the end of the body comes a moment behind the end of the answer."""
    for _ in range(3):
        pause = Pause()
        talk.server.will(stream(text("a"), STOP, DONE, pause, done=False))
        assert (await talk.said()).text == "a"
        await soon(lambda pause=pause: pause.reached)
        pause.go()
        await soon(lambda: talk.server.asked.over)
        await rest()
    assert {exchange.connection for exchange in talk.server.chats} == {1}
