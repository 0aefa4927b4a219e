"""What these tests do over and over: ask a model server one turn, in the test's own time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from runbell.clock import VirtualClock
from runbell.runs import Usage
from runbell.service.backends import (
    Finished,
    ModelRequest,
    Piece,
    TextDelta,
    ToolCallDelta,
)
from runbell.service.backends.upstream import Upstream
from runbell.service.upstreams import UpstreamSettings
from runbell.storage.records import (
    ContentPart,
    FunctionDefinition,
    FunctionTool,
    Message,
    RunConfig,
    RunStep,
    TextPart,
    TextValue,
    ToolStepCall,
)
from tests.upstream.model_server import ModelServer

__all__ = [
    "Said",
    "Talk",
    "calls_step",
    "function",
    "message",
    "message_step",
    "on_a_server",
    "request",
    "rest",
    "soon",
    "talking",
]

FIRST_ANSWER = 1_000.0
"""The time limit of these tests: no pause between tries is as long."""


async def soon(look: Callable[[], Any], limit_s: float = 60.0) -> None:
    """Return when `look` is true; what the network does takes real time."""
    async with asyncio.timeout(limit_s):
        while not look():
            await asyncio.sleep(0.001)


async def rest() -> None:
    """Let everybody on this event loop do what there is to do: what was sent over loopback is there
    at once, so that it takes turns of the loop and no time."""
    for _ in range(100):
        await asyncio.sleep(0)


# What is asked.


def message(content: str | tuple[ContentPart, ...], role: str = "user", **more: Any) -> Message:
    """A message of a thread."""
    parts = (TextPart(TextValue(content)),) if isinstance(content, str) else content
    fields = {"id": f"msg_{random.getrandbits(64):x}", "created_at_ms": 1, **more}
    return Message(project_id="p", thread_id="t", role=role, content=parts, **fields)


def function(name: str, **definition: Any) -> FunctionTool:
    return FunctionTool(FunctionDefinition(name, **definition))


def _step(**fields: Any) -> RunStep:
    return RunStep(
        project_id="p",
        thread_id="t",
        run_id="run_1",
        assistant_id="a",
        id="step_1",
        created_at_ms=1,
        status="completed",
        **fields,
    )


def calls_step(*calls: tuple[str, str, str, str]) -> RunStep:
    """A step that called functions: id, name, arguments and output of each."""
    return _step(tool_calls=tuple(ToolStepCall(*call) for call in calls))


def message_step(of: Message) -> RunStep:
    """A step that made a message."""
    return _step(message_id=of.id)


def request(
    *messages: Message | str,
    steps: tuple[RunStep, ...] = (),
    max_prompt_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    expires_at_ms: int | None = None,
    **config: Any,
) -> ModelRequest:
    """One turn of a run."""
    said = tuple(message(each) if isinstance(each, str) else each for each in messages or ("Hi",))
    return ModelRequest(
        config=RunConfig(**{"model": "m", **config}),
        messages=said,
        steps=steps,
        max_prompt_tokens=max_prompt_tokens,
        max_completion_tokens=max_completion_tokens,
        run_id="run_1",
        thread_id="thread_1",
        project_id="proj_1",
        expires_at_ms=expires_at_ms,
    )


# What came of it.


@dataclass(frozen=True)
class Said:
    """An answer, put together as the executor does it."""

    pieces: tuple[Piece, ...]

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces if isinstance(piece, TextDelta))

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of each call."""
        return [(name, arguments) for _, name, arguments in self.identified]

    @property
    def identified(self) -> list[tuple[str | None, str, str]]:
        """Id, name and arguments of each call; the id is the one that came with its first part."""
        found: dict[int, list[ToolCallDelta]] = {}
        for piece in self.pieces:
            if isinstance(piece, ToolCallDelta):
                found.setdefault(piece.index, []).append(piece)
        assert list(found) == list(range(len(found))), "numbered from 0, in order"
        return [
            (parts[0].id, "".join(p.name for p in parts), "".join(p.arguments for p in parts))
            for parts in found.values()
        ]

    @property
    def finished(self) -> Finished:
        """The last piece, which alone ends the turn."""
        *before, last = self.pieces
        assert isinstance(last, Finished)
        assert not any(isinstance(piece, Finished) for piece in before)
        return last

    @property
    def reason(self) -> str:
        return self.finished.reason

    @property
    def usage(self) -> Usage:
        return self.finished.usage


class Talk:
    """A model server, and the backend that speaks with it.

    Attributes:
        clock: moves when the test moves it.
        name: of the server, as it stands in logs and metrics.
        observed: how each call ended, and its seconds.
        tried_again: how many of them were tries behind the first one.
    """

    def __init__(self, server: ModelServer, **settings: Any) -> None:
        self.server = server
        self.clock = VirtualClock()
        self.observed: list[tuple[str, float]] = []
        self.tried_again = 0
        fields = {"url": server.url, "first_answer": FIRST_ANSWER, **settings}
        made = UpstreamSettings(**fields)
        self.name = made.name
        self.upstream = Upstream(made, self.clock, random.Random(0), self)

    # What an observer does.

    def model_called(self, upstream: str, outcome: str, seconds: float) -> None:
        assert upstream == self.name
        self.observed.append((outcome, seconds))

    def model_tried_again(self, upstream: str) -> None:
        assert upstream == self.name
        self.tried_again += 1

    async def said(self, asked: ModelRequest | None = None) -> Said:
        """The whole answer of one turn."""
        async with aclosing(self.upstream.answer(asked or request())) as pieces:
            return Said(tuple([piece async for piece in pieces]))

    def begin(self, asked: ModelRequest | None = None) -> asyncio.Task[Said]:
        """A turn that goes on while the test does something else."""
        return asyncio.create_task(self.said(asked))

    async def waits(self) -> float:
        """Wait until the backend pauses between two tries: for how many seconds."""
        await soon(lambda: (self.clock.next_wake() or FIRST_ANSWER) < FIRST_ANSWER / 2)
        return self.clock.next_wake() or 0.0

    async def skip(self) -> float:
        """Let that pause pass: its seconds."""
        seconds = await self.waits()
        self.clock.advance(seconds)
        return seconds


@asynccontextmanager
async def talking(**settings: Any) -> AsyncIterator[Talk]:
    async with ModelServer() as server:
        talk = Talk(server, **settings)
        try:
            yield talk
        finally:
            await talk.upstream.close()


def on_a_server(**settings: Any) -> Callable[[Callable[[Talk], Awaitable[None]]], Any]:
    """Make a test of an async function that is given a `Talk`."""

    def decorate(test: Callable[[Talk], Awaitable[None]]) -> Callable[[], None]:
        async def story() -> None:
            async with talking(**settings) as talk, asyncio.timeout(100):
                await test(talk)

        def run() -> None:
            asyncio.run(story())

        run.__doc__ = test.__doc__
        run.__name__ = run.__qualname__ = getattr(test, "__name__", "test")
        run.__module__ = test.__module__
        return run

    return decorate
