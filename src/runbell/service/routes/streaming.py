"""Streams of a run: what happens to it, from now until it settles."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

from runbell.runs import RunStatus
from runbell.service.live import Follower
from runbell.service.routes.routing import EventStream
from runbell.service.wire.streams import DONE, frame

__all__ = ["stream_run"]

_LAST = frozenset(f"thread.run.{status}" for status in RunStatus if status.is_settled)
"""Events behind which nothing comes, until somebody submits tool outputs."""


def stream_run(follower: Follower, first: Iterable[tuple[str, Any]] = ()) -> EventStream:
    """Stream a run, beginning with `first`; ends when the run has settled.

    The follower was made before anything could happen that is not in `first`.
    """
    return EventStream(_frames(follower, list(first)), follower.close)


async def _frames(follower: Follower, first: list[tuple[str, Any]]) -> AsyncIterator[bytes]:
    try:
        for event, data in first:
            yield frame(event, data)
        async for told in follower:
            yield frame(told.event, told.data)
            if told.event in _LAST:
                yield DONE
                return
    finally:
        follower.close()
