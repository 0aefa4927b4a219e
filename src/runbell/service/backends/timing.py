"""How long a model call takes, and how it ends: for the metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, Protocol

from runbell.clock import Clock
from runbell.service.backends.base import Finished, Piece, ToolCallDelta

__all__ = ["BUILT_IN", "Observer", "timed"]

BUILT_IN: Final = "built-in"
"""Who was called, where it is no model server."""


class Observer(Protocol):
    """Is told of model calls; `upstream` is the name of the model server that is called."""

    def model_called(self, upstream: str, outcome: str, seconds: float) -> None:
        """A call, which may be one of several tries, is over: how it ended, in a word."""
        ...

    def model_tried_again(self, upstream: str) -> None:
        """A call that failed begins anew."""
        ...


async def timed(
    pieces: AsyncGenerator[Piece, None], clock: Clock, observer: Observer, upstream: str
) -> AsyncGenerator[Piece, None]:
    """One call's pieces, as they come; the observer is told of it when it is over.

    A call ends as `answered`, `tool_calls` or `incomplete`, by its last piece; as `failed`; or as
    `interrupted`, where nobody wanted to hear more of it.
    """
    began = clock.monotonic()
    outcome, calls = "interrupted", False
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                if isinstance(piece, ToolCallDelta):
                    calls = True
                elif isinstance(piece, Finished):
                    whole = "tool_calls" if calls else "answered"
                    outcome = whole if piece.reason == "stop" else "incomplete"
                yield piece
    except Exception:
        outcome = "failed"
        raise
    finally:
        observer.model_called(upstream, outcome, clock.monotonic() - began)
