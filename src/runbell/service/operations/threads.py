"""Threads and the messages in them."""

from __future__ import annotations

import msgspec

from runbell.errors import UnknownCursor
from runbell.runs import RunStatus, lifecycle
from runbell.service.operations import refusals
from runbell.service.operations.context import Context
from runbell.service.operations.transitions import move
from runbell.service.wire.requests import (
    CreateMessage,
    CreateThread,
    ModifyMessage,
    ModifyThread,
    content_parts,
    tool_resources_document,
)
from runbell.storage import holding, messages, threads
from runbell.storage.paging import Page
from runbell.storage.records import Message, Thread
from runbell.storage.store import Transaction

__all__ = [
    "add_message",
    "create",
    "delete",
    "delete_message",
    "list_messages",
    "modify",
    "modify_message",
    "new_message",
    "new_thread",
    "retrieve",
    "retrieve_message",
]


def new_thread(
    ctx: Context, project: str, request: CreateThread
) -> tuple[Thread, tuple[Message, ...]]:
    """A thread and its first messages, not stored yet."""
    thread = Thread(
        project_id=project,
        id=ctx.new_id("thread"),
        created_at_ms=ctx.clock.now_ms(),
        tool_resources=tool_resources_document(request.tool_resources),
        metadata=request.metadata or {},
    )
    first = tuple(
        new_message(ctx, project, thread.id, message) for message in request.messages or ()
    )
    return thread, first


def new_message(ctx: Context, project: str, thread_id: str, request: CreateMessage) -> Message:
    """A message from outside, not stored yet."""
    now_ms = ctx.clock.now_ms()
    return Message(
        project_id=project,
        thread_id=thread_id,
        id=ctx.new_id("msg"),
        created_at_ms=now_ms,
        role=request.role,
        content=content_parts(request.content),
        completed_at_ms=now_ms,
        metadata=request.metadata or {},
    )


async def create(ctx: Context, project: str, request: CreateThread) -> Thread:
    """Begin a thread."""
    thread, first = new_thread(ctx, project, request)

    async def work(tx: Transaction) -> None:
        await threads.insert(tx, thread)
        for message in first:
            await messages.insert(tx, message)

    await ctx.store.write(work)
    return thread


async def retrieve(ctx: Context, project: str, thread_id: str) -> Thread:
    """One thread."""
    return await ctx.store.read(lambda tx: _thread(tx, project, thread_id))


async def modify(ctx: Context, project: str, thread_id: str, request: ModifyThread) -> Thread:
    """Change a thread's metadata or tool resources."""

    async def work(tx: Transaction) -> Thread:
        thread = await _thread(tx, project, thread_id)
        if request.metadata is not None:
            thread = msgspec.structs.replace(thread, metadata=request.metadata)
        if request.tool_resources is not None:
            resources = tool_resources_document(request.tool_resources)
            thread = msgspec.structs.replace(thread, tool_resources=resources)
        await threads.update(tx, thread)
        return thread

    return await ctx.store.write(work)


async def delete(ctx: Context, project: str, thread_id: str) -> None:
    """Forget a thread and what is in it.

    Runs that have not ended are cancelled first, so that whoever waits for one hears its end from
    the feed: events outlive their thread.
    """

    async def work(tx: Transaction) -> None:
        await _thread(tx, project, thread_id)
        for record in await holding.live(tx, thread_id):
            if record.run.status is not RunStatus.CANCELLING:
                record = await move(ctx, tx, record, lifecycle.cancel(record.run))
            if record.run.status is RunStatus.CANCELLING:
                await move(ctx, tx, record, lifecycle.cancelled("Its thread was deleted."))
        await threads.remove(tx, project, thread_id)

    await ctx.store.write(work)


async def add_message(
    ctx: Context, project: str, thread_id: str, request: CreateMessage
) -> Message:
    """Add a message at the end of a thread that no run holds."""
    message = new_message(ctx, project, thread_id, request)

    async def work(tx: Transaction) -> None:
        await _thread(tx, project, thread_id)
        active = await holding.active(tx, thread_id)
        if active is not None:
            raise refusals.no_message_now(thread_id, active)
        await messages.insert(tx, message)

    await ctx.store.write(work)
    return message


async def retrieve_message(ctx: Context, project: str, thread_id: str, message_id: str) -> Message:
    """One message."""
    return await ctx.store.read(lambda tx: _message(tx, project, thread_id, message_id))


async def modify_message(
    ctx: Context, project: str, thread_id: str, message_id: str, request: ModifyMessage
) -> Message:
    """Change a message's metadata."""

    async def work(tx: Transaction) -> Message:
        message = await _message(tx, project, thread_id, message_id)
        if request.metadata is not None:
            message = msgspec.structs.replace(message, metadata=request.metadata)
            await messages.update(tx, message)
        return message

    return await ctx.store.write(work)


async def delete_message(ctx: Context, project: str, thread_id: str, message_id: str) -> None:
    """Forget a message."""

    async def work(tx: Transaction) -> None:
        await _thread(tx, project, thread_id)
        if not await messages.remove(tx, project, thread_id, message_id):
            raise refusals.not_found("message", message_id)

    await ctx.store.write(work)


async def list_messages(
    ctx: Context, project: str, thread_id: str, page: Page, *, run_id: str | None
) -> tuple[list[Message], bool]:
    """A page of a thread's messages; of those that one run made, with `run_id`."""

    async def work(tx: Transaction) -> tuple[list[Message], bool]:
        await _thread(tx, project, thread_id)
        return await messages.page(tx, project, thread_id, page, run_id=run_id)

    try:
        return await ctx.store.scan(work)
    except UnknownCursor as error:
        raise refusals.unknown_cursor("message", error) from None


async def _thread(tx: Transaction, project: str, thread_id: str) -> Thread:
    thread = await threads.get(tx, project, thread_id)
    if thread is None:
        raise refusals.not_found("thread", thread_id)
    return thread


async def _message(tx: Transaction, project: str, thread_id: str, message_id: str) -> Message:
    await _thread(tx, project, thread_id)
    message = await messages.get(tx, project, thread_id, message_id)
    if message is None:
        raise refusals.not_found("message", message_id)
    return message
