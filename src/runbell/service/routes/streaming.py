"""Streams of a run: what happens to it, from now until it settles; and what has happened."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from typing import Any

import msgspec

from runbell.errors import RequestRefused, StorageUnavailable
from runbell.runs import Run, RunStatus
from runbell.service.live import Follower
from runbell.service.operations import runs
from runbell.service.operations.context import Context
from runbell.service.routes.routing import EventStream
from runbell.service.wire.objects import message_object, run_object, step_object
from runbell.service.wire.streams import DONE, broken_off, frame, message_delta, tool_call_delta
from runbell.storage.records import Message, RunStep, TextPart
from runbell.storage.runs import RunRecord

__all__ = ["replay_run", "retold", "stream_run"]

_LAST = frozenset(f"thread.run.{status}" for status in RunStatus if status.is_settled)
"""Events behind which nothing comes, until somebody submits tool outputs."""

UNREADABLE = "The run can't be read now, or is not there any more."


def stream_run(follower: Follower, run: Run, first: Iterable[tuple[str, Any]] = ()) -> EventStream:
    """Stream a run, beginning with `first`; ends when the run has settled.

    The follower has joined before anything could happen that is not in `first`.
    """
    return EventStream(_frames(follower, list(first)), follower.close, run.id, run.thread_id)


async def _frames(follower: Follower, first: list[tuple[str, Any]]) -> AsyncGenerator[bytes, None]:
    try:
        for event, data in first:
            yield frame(event, data)
        async with aclosing(aiter(follower)) as events:
            async for told in events:
                yield frame(told.event, told.data)
                if told.event in _LAST:
                    yield DONE
                    return
        # The client that has left does not read this any more; every other one has to know that
        # this was not the run's end.
        yield _broken_off(follower)
    finally:
        follower.close()


async def replay_run(ctx: Context, project: str, run_id: str) -> EventStream:
    """Stream a run that was streamed before: how it stands; then, as soon as it has settled,
    what it did and its last event.

    Raises:
        RequestRefused: (404) it is not there any more.
    """
    follower = ctx.live.follow(run_id)
    try:
        record = await runs.find(ctx, project, run_id)
    except BaseException:
        follower.close()
        raise
    frames = _replayed(ctx, follower, record)
    return EventStream(frames, follower.close, run_id, record.run.thread_id)


async def _replayed(
    ctx: Context, follower: Follower, record: RunRecord
) -> AsyncGenerator[bytes, None]:
    try:
        if not record.run.status.is_settled:
            yield _stands(record)
            settled = await _settled(ctx, follower, record.run)
            if settled is None:
                yield _broken_off(follower)
                return
            record = settled
        for step, message in await runs.steps_with_messages(ctx, record.run):
            for event, part in retold(step, message):
                yield frame(event, part)
        yield _stands(record)
        yield DONE
    except (RequestRefused, StorageUnavailable):
        yield broken_off(UNREADABLE)
    finally:
        follower.close()


async def _settled(ctx: Context, follower: Follower, run: Run) -> RunRecord | None:
    """The run as soon as it has settled; None where the service stops before.

    What is told may have been true before this stream began: the row decides.
    """
    async with aclosing(aiter(follower)) as events:
        async for told in events:
            if told.event in _LAST:
                record = await runs.find(ctx, run.project_id, run.id)
                if record.run.status.is_settled:
                    return record
    return None


def _broken_off(follower: Follower) -> bytes:
    return broken_off(UNREADABLE) if follower.gone else broken_off()


def _stands(record: RunRecord) -> bytes:
    return frame(f"thread.run.{record.run.status}", run_object(record))


def retold(step: RunStep, message: Message | None) -> Iterator[tuple[str, Any]]:
    """The events of a step, as they would have been if each text had come in one piece."""
    begun = msgspec.structs.replace(
        step,
        status="in_progress",
        tool_calls=(),
        ended_at_ms=None,
        error_code=None,
        error_message=None,
    )
    yield "thread.run.step.created", step_object(begun)
    for index, call in enumerate(step.tool_calls):
        delta = tool_call_delta(step.id, index, call.arguments, call.id, call.name)
        yield "thread.run.step.delta", delta
    if message is not None:
        yield from _retold_message(message)
    if step.status != "in_progress":
        yield f"thread.run.step.{step.status}", step_object(step)


def _retold_message(message: Message) -> Iterator[tuple[str, Any]]:
    begun = msgspec.structs.replace(
        message,
        status="in_progress",
        content=(),
        incomplete_reason=None,
        completed_at_ms=None,
        incomplete_at_ms=None,
    )
    yield "thread.message.created", message_object(begun)
    text = "".join(part.text.value for part in message.content if isinstance(part, TextPart))
    if text:
        yield "thread.message.delta", message_delta(message.id, text)
    yield f"thread.message.{message.status}", message_object(message)
