"""One turn of a run, as its worker sees it: taken up, then settled. Between the two is the model.

Both are guarded by the attempt that the worker was given, so that a worker which was believed lost
and comes back changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from runbell.errors import ModelError
from runbell.runs import Run, RunStatus, ToolCall, Usage, lifecycle, take_over
from runbell.service.backends import ModelRequest
from runbell.service.operations.context import Context
from runbell.service.operations.transitions import move
from runbell.storage import messages, runs, steps
from runbell.storage.records import (
    Message,
    RunStep,
    StepUsage,
    TextPart,
    TextValue,
    ToolStepCall,
)
from runbell.storage.runs import RunRecord
from runbell.storage.store import Transaction

__all__ = ["Answer", "Interrupted", "Outcome", "Turn", "claim", "settle"]

MAX_TAKEOVERS = 5
"""After so many lost workers in a row a run is what kills them: it fails instead."""

MAX_MESSAGES = 1_000
"""The latest messages of a thread that a model is told."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A turn that a worker has taken up."""

    run: Run
    request: ModelRequest


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said, as a whole."""

    text: str
    calls: tuple[ToolCall, ...]
    reason: Literal["stop", "max_completion_tokens", "max_prompt_tokens"]
    usage: Usage


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The model call was stopped, because the run is being cancelled or has ended."""


Outcome = Answer | ModelError | Interrupted


async def claim(ctx: Context, run_id: str) -> Turn | None:
    """Take up a run: one that is queued, or one whose worker was lost.

    Returns:
        None where there is nothing to do: the run was deleted, has ended, waits for its turn or
        for tool outputs, or could not begin and has failed.
    """

    async def work(tx: Transaction) -> Turn | None:
        record = await runs.find(tx, run_id)
        if record is None:
            return None
        run = await _taken_up(ctx, tx, record)
        return await _turn(tx, RunRecord(run, record.config)) if run is not None else None

    return await ctx.store.write(work)


async def settle(ctx: Context, turn: Turn, outcome: Outcome) -> None:
    """Store what came of a turn; nothing, where the run is not this worker's any more."""

    async def work(tx: Transaction) -> None:
        record = await runs.find(tx, turn.run.id)
        if record is None or record.run.attempt != turn.run.attempt:
            return
        run = record.run
        if run.status is RunStatus.CANCELLING:
            usage = outcome.usage if isinstance(outcome, Answer) else None
            await move(ctx, tx, run, lifecycle.cancelled("Cancelled on request.", usage))
        elif run.status is RunStatus.IN_PROGRESS and isinstance(outcome, ModelError):
            await move(ctx, tx, run, lifecycle.failed(outcome.code, outcome.message))
        elif run.status is RunStatus.IN_PROGRESS and isinstance(outcome, Answer):
            await _accept(ctx, tx, run, outcome)

    await ctx.store.write(work)


async def _taken_up(ctx: Context, tx: Transaction, record: RunRecord) -> Run | None:
    run, model = record.run, record.config.model
    if run.status is RunStatus.QUEUED and not run.waits_turn:
        if ctx.backends.find(model) is None and not ctx.backends.undecided:
            message = f"The model '{model}' is not served any more."
            await move(ctx, tx, run, lifecycle.failed("server_error", message))
            return None
        return await move(ctx, tx, run, lifecycle.started())
    if run.status is not RunStatus.IN_PROGRESS:
        return None
    if run.takeovers >= MAX_TAKEOVERS:
        message = f"Gave up: {MAX_TAKEOVERS + 1} workers in a row were lost while executing it."
        await move(ctx, tx, run, lifecycle.failed("server_error", message))
        return None
    taken = take_over(run)
    await runs.change(tx, run, taken)
    return taken


async def _turn(tx: Transaction, record: RunRecord) -> Turn:
    run, config = record.run, record.config
    limit = config.truncation_strategy.last_messages or MAX_MESSAGES
    done = await steps.of_run(tx, run.id) if run.attempt > 1 else []
    # What the run itself has said does not count: it would push out what it was asked.
    limit += sum(step.message_id is not None for step in done)
    said = await messages.conversation(tx, run.project_id, run.thread_id, limit)
    request = ModelRequest(
        config=config,
        messages=tuple(said),
        steps=tuple(done),
        max_prompt_tokens=_left(config.max_prompt_tokens, run.usage.prompt_tokens),
        max_completion_tokens=_left(config.max_completion_tokens, run.usage.completion_tokens),
        run_id=run.id,
        expires_at_ms=run.expires_at_ms,
    )
    return Turn(run, request)


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


async def _accept(ctx: Context, tx: Transaction, run: Run, answer: Answer) -> None:
    if answer.text or not (answer.calls or answer.reason != "stop"):
        await _say(ctx, tx, run, answer)
    if answer.reason != "stop":
        await move(ctx, tx, run, lifecycle.incomplete(answer.reason, answer.usage))
    elif answer.calls:
        await steps.insert(tx, _calls_step(ctx, run, answer))
        await move(ctx, tx, run, lifecycle.requires_action(answer.calls, answer.usage))
    else:
        await move(ctx, tx, run, lifecycle.completed(answer.usage))


async def _say(ctx: Context, tx: Transaction, run: Run, answer: Answer) -> None:
    """Add the model's message to the thread, and the step that says so to the run."""
    now_ms = max(ctx.clock.now_ms(), run.updated_at_ms)
    whole = answer.reason == "stop"
    message = Message(
        project_id=run.project_id,
        thread_id=run.thread_id,
        id=ctx.new_id("msg"),
        created_at_ms=now_ms,
        role="assistant",
        content=(TextPart(TextValue(answer.text)),),
        status="completed" if whole else "incomplete",
        incomplete_reason=None if whole else "max_tokens",
        completed_at_ms=now_ms if whole else None,
        incomplete_at_ms=None if whole else now_ms,
        assistant_id=run.assistant_id,
        run_id=run.id,
    )
    await messages.insert(tx, message)
    step = RunStep(
        project_id=run.project_id,
        thread_id=run.thread_id,
        run_id=run.id,
        assistant_id=run.assistant_id,
        id=ctx.new_id("step"),
        created_at_ms=now_ms,
        status="completed",
        message_id=message.id,
        ended_at_ms=now_ms,
        # The tokens of a turn stand on one step: on the calls, where there are any.
        usage=None if answer.calls else _usage(answer),
    )
    await steps.insert(tx, step)


def _calls_step(ctx: Context, run: Run, answer: Answer) -> RunStep:
    return RunStep(
        project_id=run.project_id,
        thread_id=run.thread_id,
        run_id=run.id,
        assistant_id=run.assistant_id,
        id=ctx.new_id("step"),
        created_at_ms=max(ctx.clock.now_ms(), run.updated_at_ms),
        status="in_progress",
        tool_calls=tuple(ToolStepCall(call.id, call.name, call.arguments) for call in answer.calls),
        usage=_usage(answer),
    )


def _usage(answer: Answer) -> StepUsage:
    usage = answer.usage
    return StepUsage(
        completion_tokens=usage.completion_tokens,
        prompt_tokens=usage.prompt_tokens,
        total_tokens=usage.total_tokens,
    )
