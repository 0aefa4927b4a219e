"""What is measured: each call of a server for itself, and nothing that lies between calls."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from runbell.clock import VirtualClock
from runbell.errors import ModelError
from runbell.service.backends import Backends
from runbell.testing.backends import ScriptedBackend
from tests.upstream.model_server import (
    STOP,
    Cut,
    Pause,
    finish,
    refuse,
    silent,
    stream,
    text,
    tool,
)
from tests.upstream.talk import Talk, on_a_server, request, soon, talking


@on_a_server()
async def test_each_try_is_a_call_and_the_pauses_are_none(talk: Talk) -> None:
    talk.server.will(refuse(503, {}), refuse(429, {}, retry_after="60"), stream(text("a"), STOP))
    turn = talk.begin()
    await talk.skip()
    await talk.skip()
    await turn
    assert talk.observed == [("failed", 0), ("failed", 0), ("answered", 0)]
    assert talk.tried_again == 2


@on_a_server(concurrency=1)
async def test_waiting_for_a_place_is_no_call(talk: Talk) -> None:
    pauses = [Pause(), Pause()]
    talk.server.will(*[stream(text("a"), pause, STOP) for pause in pauses])
    turns = [talk.begin(), talk.begin()]
    for seconds, pause in zip((7, 2), pauses, strict=True):
        await soon(lambda pause=pause: pause.reached)
        talk.clock.advance(seconds)
        pause.go()
        await asyncio.wait(turns, return_when=asyncio.FIRST_COMPLETED)
        await soon(lambda seconds=seconds: talk.observed[-1:] == [("answered", seconds)])
    assert talk.observed == [("answered", 7), ("answered", 2)]


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (stream(text("a"), STOP), "answered"),
        (stream(tool({"id": "a", "name": "f"}), finish("tool_calls")), "tool_calls"),
        (stream(text("a"), finish("length")), "incomplete"),
        (stream(text("a"), Cut()), "failed"),
        (refuse(400, {}), "failed"),
    ],
)
def test_how_a_call_ended(reply: Any, outcome: str) -> None:
    async def story() -> None:
        async with talking() as talk, asyncio.timeout(100):
            talk.server.will(reply)
            await asyncio.wait([talk.begin()])
            assert talk.observed == [(outcome, 0)]

    asyncio.run(story())


@on_a_server()
async def test_a_call_that_is_stopped_was_interrupted(talk: Talk) -> None:
    talk.server.will(silent)
    turn = talk.begin()
    await soon(lambda: talk.server.chats)
    talk.clock.advance(3)
    turn.cancel()
    await asyncio.wait([turn])
    assert talk.observed == [("interrupted", 3)]


@on_a_server()
async def test_what_never_became_a_call_is_none(talk: Talk) -> None:
    """A prompt that is too long is not sent."""
    await talk.said(request("x" * 9_000, max_prompt_tokens=256))
    assert talk.observed == []


def test_a_backend_that_does_not_count_is_counted() -> None:
    """What is built in has no tries: each turn is a call."""

    class Observer:
        def model_called(self, upstream: str, outcome: str, seconds: float) -> None:
            observed.append((upstream, outcome))

        def model_tried_again(self, upstream: str) -> None:
            raise AssertionError

    observed: list[tuple[str, str]] = []

    async def story() -> None:
        scripted = ScriptedBackend()
        backends = Backends([scripted], VirtualClock(), Observer())

        async def answer() -> None:
            async with aclosing(await backends.answer(request(model="scripted"))) as pieces:
                async for _ in pieces:
                    pass

        for end in ("say", "fail"):
            turn = asyncio.create_task(answer())
            while not scripted.open:
                await asyncio.sleep(0)
            if end == "say":
                scripted.turn.say("Hi")
                await turn
            else:
                scripted.turn.fail()
                with pytest.raises(ModelError):
                    await turn

    asyncio.run(story())
    assert observed == [("built-in", "answered"), ("built-in", "failed")]
