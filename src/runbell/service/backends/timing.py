"""How long a model call takes, and how it ends: for the metrics."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from runbell.clock import Clock
from runbell.service.backends.base import Finished, Piece, ToolCallDelta

__all__ = ["Observe", "timed"]

Observe = Callable[[str, float], None]
"""Is told of each call that is over: how it ended, in a word, and its seconds."""


async def timed(
    pieces: AsyncGenerator[Piece, None], clock: Clock, observe: Observe
) -> AsyncGenerator[Piece, None]:
    """One call's pieces, as they come; `observe` is told of it when it is over.

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
        observe(outcome, clock.monotonic() - began)
