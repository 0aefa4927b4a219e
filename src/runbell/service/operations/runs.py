"""Runs, as clients see them: created, read, given tool outputs, cancelled; and ended by the clock.

What a worker does to a run is in `turns`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import msgspec

from runbell.errors import TransitionNotAllowed, UnknownCursor
from runbell.runs import Run, RunStatus, lifecycle
from runbell.service.live import Follower
from runbell.service.operations import refusals, turns
from runbell.service.operations.context import Context
from runbell.service.operations.threads import new_message, new_thread
from runbell.service.operations.transitions import create as store_run
from runbell.service.operations.transitions import move, update_step
from runbell.service.wire.requests import (
    CreateMessage,
    CreateRun,
    CreateThread,
    CreateThreadAndRun,
    ModifyRun,
    RunOptions,
    ToolOutput,
    tool_resources_document,
)
from runbell.storage import assistants, holding, messages, opening, runs, steps, threads
from runbell.storage.paging import Page
from runbell.storage.records import (
    Assistant,
    FunctionTool,
    Message,
    NamedToolChoice,
    RunConfig,
    RunStep,
    Thread,
    ToolChoice,
    TruncationStrategy,
)
from runbell.storage.runs import RunFilter, RunRecord
from runbell.storage.store import Transaction

__all__ = [
    "cancel",
    "create",
    "create_with_thread",
    "expire",
    "find",
    "finish_cancel",
    "list_page",
    "list_project",
    "list_steps",
    "modify",
    "retrieve",
    "retrieve_many",
    "retrieve_step",
    "statuses",
    "steps_with_messages",
    "submit_tool_outputs",
]


READ_AT_ONCE = 20
"""Runs that are read by their ids in one go."""

MAX_WAITING = 100
"""Runs that may wait for one thread: they all end in one transaction when it is deleted."""


async def create(
    ctx: Context,
    project: str,
    thread_id: str,
    request: CreateRun,
    follower: Follower | None = None,
) -> RunRecord:
    """Queue a run on a thread; where the thread is busy, in line behind its runs if asked to.

    Args:
        follower: is told what happens to the run, from `queued` on.
    """

    async def work(tx: Transaction) -> RunRecord:
        found = await opening.look(tx, project, thread_id, request.assistant_id)
        if not found.has_thread:
            raise refusals.not_found("thread", thread_id)
        if found.assistant is None:
            raise refusals.not_found("assistant", request.assistant_id)
        config = _config(ctx, found.assistant, request)
        run = _new_run(ctx, project, thread_id, request)
        _join(ctx, tx, run, follower)
        active = found.active
        if active is not None and request.on_active_run != "enqueue":
            raise refusals.thread_busy(thread_id, active)
        if active is not None and await holding.waiting(tx, thread_id) >= MAX_WAITING:
            raise refusals.too_many_waiting(thread_id, MAX_WAITING)
        record = RunRecord(replace(run, waits_turn=active is not None), config)
        # Where another run has begun just now, or has ended and let one start, the store lets all
        # of this look again.
        await _store(ctx, tx, record, request.additional_messages or ())
        return record

    return await ctx.store.write(work)


async def create_with_thread(
    ctx: Context, project: str, request: CreateThreadAndRun, follower: Follower | None = None
) -> tuple[RunRecord, Thread]:
    """Begin a thread and queue a run on it.

    Args:
        follower: is told what happens to the run, from `queued` on.
    """
    thread, first = new_thread(ctx, project, request.thread or CreateThread())
    if request.tool_resources is not None:
        resources = tool_resources_document(request.tool_resources)
        thread = msgspec.structs.replace(thread, tool_resources=resources)

    async def work(tx: Transaction) -> RunRecord:
        assistant = await _assistant(tx, project, request.assistant_id)
        config = _config(ctx, assistant, request)
        await threads.begin(tx, thread)
        for message in first:
            await messages.insert(tx, message)
        run = _new_run(ctx, project, thread.id, request)
        record = RunRecord(run, config)
        _join(ctx, tx, run, follower)
        await store_run(ctx, tx, record, (), fresh=True)
        return record

    return await ctx.store.write(work), thread


async def retrieve(ctx: Context, project: str, thread_id: str, run_id: str) -> RunRecord:
    """One run."""
    return await ctx.store.read(lambda tx: _run(tx, project, thread_id, run_id))


async def find(ctx: Context, project: str, run_id: str) -> RunRecord:
    """One run, whatever its thread is."""
    record = await ctx.store.read(lambda tx: runs.find(tx, run_id))
    if record is None or record.run.project_id != project:
        raise refusals.not_found("run", run_id)
    return record


async def modify(
    ctx: Context, project: str, thread_id: str, run_id: str, request: ModifyRun
) -> RunRecord:
    """Change a run's metadata."""

    async def work(tx: Transaction) -> RunRecord:
        record = await _run(tx, project, thread_id, run_id)
        if request.metadata is None:
            return record
        run = replace(record.run, metadata=request.metadata)
        await runs.set_metadata(tx, run)
        ctx.changes.announce(tx, run)
        return RunRecord(run, record.config)

    return await ctx.store.write(work)


async def list_page(
    ctx: Context, project: str, thread_id: str, page: Page
) -> tuple[list[RunRecord], bool]:
    """A page of a thread's runs."""

    async def work(tx: Transaction) -> tuple[list[RunRecord], bool]:
        if await threads.get(tx, project, thread_id) is None:
            raise refusals.not_found("thread", thread_id)
        return await runs.page(tx, project, thread_id, page)

    try:
        return await ctx.store.scan(work)
    except UnknownCursor as error:
        raise refusals.unknown_cursor("run", error) from None


async def list_project(
    ctx: Context, project: str, page: Page, wanted: RunFilter
) -> tuple[list[RunRecord], bool]:
    """A page of the project's runs, across its threads."""
    try:
        return await ctx.store.scan(lambda tx: runs.page_of_project(tx, project, page, wanted))
    except UnknownCursor as error:
        raise refusals.unknown_cursor("run", error) from None


async def retrieve_many(ctx: Context, project: str, ids: Sequence[str]) -> list[RunRecord]:
    """The project's runs among these ids; those that it does not have are left out."""
    found: list[RunRecord] = []
    for start in range(0, len(ids), READ_AT_ONCE):
        some = ids[start : start + READ_AT_ONCE]
        found += await ctx.store.read(lambda tx: runs.many(tx, project, some))  # noqa: B023
        # Others have their turn: a run is large, and two hundred take tens of milliseconds.
        await asyncio.sleep(0)
    return found


async def statuses(ctx: Context, project: str, ids: Sequence[str]) -> list[RunStatus]:
    """The statuses of the project's runs among these ids."""
    return await ctx.store.read(lambda tx: runs.statuses(tx, project, ids))


async def cancel(ctx: Context, project: str, thread_id: str, run_id: str) -> RunRecord:
    """End a run as soon as possible. Cancelling twice is the same as once."""

    async def work(tx: Transaction) -> RunRecord:
        record = await _run(tx, project, thread_id, run_id)
        if record.run.status is RunStatus.CANCELLING:
            return record
        try:
            change = lifecycle.cancel(record.run)
        except TransitionNotAllowed:
            raise refusals.cannot_cancel(record.run.status) from None
        return await move(ctx, tx, record, change)

    return await ctx.store.write(work)


async def submit_tool_outputs(
    ctx: Context,
    project: str,
    thread_id: str,
    run_id: str,
    outputs: Sequence[ToolOutput],
    follower: Follower | None = None,
) -> RunRecord:
    """Give a run the outputs of all the calls that it asked for; they are accepted once.

    Args:
        follower: is told what happens to the run, from the end of the step with the calls on.
    """

    async def work(tx: Transaction) -> RunRecord:
        record = await _run(tx, project, thread_id, run_id)
        run = record.run
        if run.status is not RunStatus.REQUIRES_ACTION:
            raise refusals.no_outputs_wanted(run.status)
        expected = [call.id for call in run.tool_calls]
        got = [output.tool_call_id for output in outputs]
        if sorted(got) != sorted(expected):
            raise refusals.wrong_outputs(expected, got)
        _join(ctx, tx, run, follower)
        await _answer_calls(ctx, tx, run, outputs)
        return await move(ctx, tx, record, lifecycle.resumed())

    return await ctx.store.write(work)


async def retrieve_step(
    ctx: Context, project: str, thread_id: str, run_id: str, step_id: str
) -> RunStep:
    """One step of a run."""

    async def work(tx: Transaction) -> RunStep:
        await _run(tx, project, thread_id, run_id)
        step = await steps.get(tx, project, run_id, step_id)
        if step is None:
            raise refusals.not_found("run step", step_id)
        return step

    return await ctx.store.read(work)


async def list_steps(
    ctx: Context, project: str, thread_id: str, run_id: str, page: Page
) -> tuple[list[RunStep], bool]:
    """A page of a run's steps."""

    async def work(tx: Transaction) -> tuple[list[RunStep], bool]:
        await _run(tx, project, thread_id, run_id)
        return await steps.page(tx, project, run_id, page)

    try:
        return await ctx.store.scan(work)
    except UnknownCursor as error:
        raise refusals.unknown_cursor("run step", error) from None


async def steps_with_messages(ctx: Context, run: Run) -> list[tuple[RunStep, Message | None]]:
    """What a run has done so far, in order: its steps, each with the message that it made."""

    async def work(tx: Transaction) -> list[tuple[RunStep, Message | None]]:
        return [(step, await _message_of(tx, step)) for step in await steps.of_run(tx, run.id)]

    return await ctx.store.scan(work)


# What the clock does.


async def expire(ctx: Context, run_id: str, broken: turns.BrokenOff | None = None) -> None:
    """End a run whose time is over.

    Args:
        broken: what its worker's model has said by then.
    """

    async def work(tx: Transaction) -> None:
        record = await runs.find(tx, run_id)
        if record is None or record.run.status.is_terminal:
            return
        if record.run.expires_at_ms <= ctx.clock.now_ms():
            if broken is not None:
                await turns.break_off(ctx, tx, record.run, "expiry", broken)
            await move(ctx, tx, record, lifecycle.expired(record.run))

    await ctx.store.write(work)


async def finish_cancel(ctx: Context, run_id: str, broken: turns.BrokenOff | None = None) -> None:
    """End a run that is being cancelled and whose worker did not let go in time.

    Args:
        broken: what its worker's model has said by then.
    """

    async def work(tx: Transaction) -> None:
        record = await runs.find(tx, run_id)
        if record is None or record.run.status is not RunStatus.CANCELLING:
            return
        if broken is not None:
            await turns.break_off(ctx, tx, record.run, "cancel", broken)
        reason = "Cancelled on request; its worker did not answer in time."
        await move(ctx, tx, record, lifecycle.cancelled(reason))

    await ctx.store.write(work)


# Parts of the above.


async def _assistant(tx: Transaction, project: str, assistant_id: str) -> Assistant:
    assistant = await assistants.get(tx, project, assistant_id)
    if assistant is None:
        raise refusals.not_found("assistant", assistant_id)
    return assistant


async def _run(tx: Transaction, project: str, thread_id: str, run_id: str) -> RunRecord:
    record = await runs.get(tx, project, thread_id, run_id)
    if record is not None:
        return record
    if await threads.get(tx, project, thread_id) is None:
        raise refusals.not_found("thread", thread_id)
    raise refusals.not_found("run", run_id)


async def _message_of(tx: Transaction, step: RunStep) -> Message | None:
    if step.message_id is None:
        return None
    return await messages.get(tx, step.project_id, step.thread_id, step.message_id)


def _join(ctx: Context, tx: Transaction, run: Run, follower: Follower | None) -> None:
    if follower is not None:
        ctx.live.join(tx, run.id, follower, run.sequence)


async def _store(
    ctx: Context, tx: Transaction, record: RunRecord, additional: Sequence[CreateMessage]
) -> None:
    run = record.run
    added = tuple(
        new_message(ctx, run.project_id, run.thread_id, message) for message in additional
    )
    await store_run(ctx, tx, record, added)


def _new_run(ctx: Context, project: str, thread_id: str, request: RunOptions) -> Run:
    now_ms = ctx.clock.now_ms()
    seconds = request.expires_after or ctx.settings.run_expiry
    return Run(
        id=ctx.new_id("run"),
        project_id=project,
        thread_id=thread_id,
        assistant_id=request.assistant_id,
        status=RunStatus.QUEUED,
        created_at_ms=now_ms,
        expires_at_ms=now_ms + round(seconds * 1000),
        updated_at_ms=now_ms,
        metadata=request.metadata or {},
    )


def _config(ctx: Context, assistant: Assistant, request: RunOptions) -> RunConfig:
    """What the run is asked to do: what the request says, else what the assistant says."""
    base = assistant.config
    tools = base.tools if request.tools is None else request.tools
    model = request.model or base.model
    instructions = base.instructions if request.instructions is None else request.instructions
    effort = base.reasoning_effort
    if isinstance(request, CreateRun):
        effort = request.reasoning_effort or effort
        said = (instructions, request.additional_instructions)
        instructions = "\n\n".join(part for part in said if part)
    if ctx.backends.find(model) is None:
        raise refusals.model_not_served(model, ctx.backends.models(), ctx.backends.undecided)
    for tool in tools:
        if not isinstance(tool, FunctionTool):
            raise refusals.tool_unsupported(_kind(tool))
    choice: ToolChoice = request.tool_choice or "auto"
    _check_choice(choice, {t.function.name for t in tools if isinstance(t, FunctionTool)})
    return RunConfig(
        model=model,
        instructions=instructions or "",
        tools=tools,
        temperature=base.temperature if request.temperature is None else request.temperature,
        top_p=base.top_p if request.top_p is None else request.top_p,
        max_prompt_tokens=request.max_prompt_tokens,
        max_completion_tokens=request.max_completion_tokens,
        truncation_strategy=request.truncation_strategy or TruncationStrategy(type="auto"),
        tool_choice=choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=request.response_format or base.response_format,
        reasoning_effort=effort,
    )


def _check_choice(choice: ToolChoice, functions: set[str]) -> None:
    if choice == "required" and not functions:
        raise refusals.choice_without_tools()
    if not isinstance(choice, NamedToolChoice):
        return
    if choice.type != "function":
        raise refusals.tool_unsupported(choice.type)
    if choice.function and choice.function.name not in functions:
        raise refusals.tool_unknown(choice.function.name)


def _kind(tool: msgspec.Struct) -> str:
    return str(tool.__struct_config__.tag)


async def _answer_calls(
    ctx: Context, tx: Transaction, run: Run, outputs: Sequence[ToolOutput]
) -> None:
    by_call = {output.tool_call_id: output.output or "" for output in outputs}
    for step in await steps.open_of_run(tx, run.id):
        answered = tuple(
            msgspec.structs.replace(call, output=by_call.get(call.id, call.output))
            for call in step.tool_calls
        )
        await update_step(
            ctx,
            tx,
            msgspec.structs.replace(
                step,
                tool_calls=answered,
                status="completed",
                ended_at_ms=max(ctx.clock.now_ms(), run.updated_at_ms),
            ),
        )
