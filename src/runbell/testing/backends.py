"""A model whose turns the test ends by hand, so that anything can happen while one is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Literal

from runbell.errors import ErrorCode, ModelError
from runbell.runs import Usage
from runbell.service.backends import Finished, ModelRequest, Piece, TextDelta, ToolCallDelta

__all__ = ["ScriptedBackend", "ScriptedTurn"]

Reason = Literal["stop", "max_completion_tokens", "max_prompt_tokens"]

DEFAULT_USAGE = Usage(3, 2)


class ScriptedTurn:
    """One call of the model. It goes on until the test ends it, or the service stops it.

    Attributes:
        request: what the model was asked.
        stubborn: it does not let itself be stopped, as code does that blocks or swallows a cancel.
        stopped: the service has tried to stop it.
        over: the call has returned to the service, one way or the other.
    """

    def __init__(self, request: ModelRequest) -> None:
        self.request = request
        self.stubborn = False
        self.stopped = False
        self.over = False
        self._given: deque[Piece | Exception] = deque()
        self._news = asyncio.Event()
        self._decided = False

    @property
    def label(self) -> str:
        """The run's instructions: a request does not say whose it is, so tests name runs there."""
        return self.request.config.instructions

    def say(self, text: str, *, reason: Reason = "stop", usage: Usage = DEFAULT_USAGE) -> None:
        """Answer with a text; with a limit as the `reason`, one that is cut off."""
        self.play(TextDelta(text), Finished(reason, usage))

    def call(self, *calls: tuple[str, str], usage: Usage = DEFAULT_USAGE) -> None:
        """Ask for functions to be called: their names and arguments."""
        deltas = (ToolCallDelta(index, *call) for index, call in enumerate(calls))
        self.play(*deltas, Finished("stop", usage))

    def fail(self, code: ErrorCode = "rate_limit_exceeded", message: str = "Not now.") -> None:
        """Fail in the way that backends are meant to."""
        self._end(ModelError(code, message))

    def crash(self, error: Exception) -> None:
        """Fail in a way that the backend did not foresee."""
        self._end(error)

    def play(self, *pieces: Piece) -> None:
        """Answer with exactly these pieces, behind those that were given."""
        self._end(*pieces)

    def give(self, *pieces: Piece) -> None:
        """Answer with these pieces so far; the turn goes on."""
        if not self._decided:
            self._given.extend(pieces)
            self._news.set()

    def _end(self, *last: Piece | Exception) -> None:
        if not self._decided:
            self._given.extend(last)
            self._decided = True
            self._news.set()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """What the test has decided, as it does so."""
        while True:
            while self._given:
                piece = self._given.popleft()
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            if self._decided:
                return
            self._news.clear()
            await self._wait()

    async def _wait(self) -> None:
        while not self._news.is_set():
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                self.stopped = True
                if not self.stubborn:
                    raise


class ScriptedBackend:
    """Serves models whose every turn waits for the test.

    Attributes:
        turns: every call so far, the oldest first.
    """

    def __init__(self, *models: str) -> None:
        self._models = models or ("scripted",)
        self.turns: list[ScriptedTurn] = []

    def models(self) -> tuple[str, ...]:
        return self._models

    @property
    def open(self) -> list[ScriptedTurn]:
        """The calls that are under way."""
        return [turn for turn in self.turns if not turn.over]

    @property
    def turn(self) -> ScriptedTurn:
        """The one call that is under way."""
        (turn,) = self.open
        return turn

    async def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        turn = ScriptedTurn(request)
        self.turns.append(turn)
        try:
            async with aclosing(turn.pieces()) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            turn.over = True
