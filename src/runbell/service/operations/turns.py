"""One turn of a run, as its worker sees it: taken up, then settled. Between the two is the model.

Both are guarded by the attempt that the worker was given, so that a worker which was believed lost
and comes back changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import msgspec

from runbell.errors import ModelError
from runbell.runs import Run, RunStatus, ToolCall, Usage, lifecycle, take_over
from runbell.service.backends import ModelRequest
from runbell.service.operations.context import Context
from runbell.service.operations.transitions import move
from runbell.service.wire.objects import message_object, step_object
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

__all__ = [
    "Answer",
    "BrokenOff",
    "Failed",
    "Interrupted",
    "Outcome",
    "Turn",
    "break_off",
    "calls_step",
    "claim",
    "hand_back",
    "message_begun",
    "message_step_begun",
    "prepare",
    "settle",
]

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
    """What the model said, or has said so far.

    The ids are given as the answer begins, since those who stream it hear them before it is stored.

    Attributes:
        began_at_ms: when it began, in milliseconds since the epoch.
        speaks: it has begun a message; that may be empty, where it is all the model had to say.
    """

    text: str
    calls: tuple[ToolCall, ...]
    reason: Literal["stop", "max_completion_tokens", "max_prompt_tokens"]
    usage: Usage
    began_at_ms: int
    message_id: str
    message_step_id: str
    calls_step_id: str
    speaks: bool


@dataclass(frozen=True, slots=True)
class Failed:
    """The model failed; `said` is what it had said by then."""

    error: ModelError
    said: Answer


@dataclass(frozen=True, slots=True)
class Interrupted:
    """The model call was stopped, because the run is being cancelled or has ended."""

    said: Answer


Outcome = Answer | Failed | Interrupted


@dataclass(frozen=True, slots=True)
class BrokenOff:
    """What a worker's model had said in its attempt when the clock ended the run."""

    attempt: int
    said: Answer


async def claim(ctx: Context, run_id: str, turn: int | None = None) -> RunRecord | None:
    """Take up a run: one that is queued, or one whose worker was lost.

    Args:
        turn: which of its turns is meant, by the event that has queued it. Another one is not
            taken up: a job that is left from earlier says nothing about today's worker. None where
            it is known that nobody executes the run; where no turn is known, negative: such a run
            may be begun, and is taken from nobody.

    Returns:
        None where there is nothing to do: the run was deleted, has ended, waits for its turn or
        for tool outputs, or could not begin and has failed.
    """

    async def work(tx: Transaction) -> RunRecord | None:
        record = await runs.find(tx, run_id)
        if record is None or not _is_its_turn(record.run, turn):
            return None
        return await _taken_up(ctx, tx, record)

    return await ctx.store.write(work)


async def prepare(ctx: Context, record: RunRecord) -> Turn:
    """What the model is told in a turn that was taken up.

    Read apart from the claim: a long conversation is in nobody's way, and while the run holds its
    thread nobody adds to it. A short one, as most are, is read by whoever asks.
    """
    run = record.run
    if run.attempt == 1:
        said = await ctx.store.read(
            lambda tx: messages.short_conversation(tx, run.project_id, run.thread_id)
        )
        if said is not None:
            return _turn(record, said[-_most_messages(record) :], [])
    return await ctx.store.scan(lambda tx: _long_turn(tx, record))


def _is_its_turn(run: Run, turn: int | None) -> bool:
    if turn is None or (turn < 0 and run.status is RunStatus.QUEUED):
        return True
    # A run in progress was queued by the event in front of its latest.
    return turn == run.sequence - (run.status is RunStatus.IN_PROGRESS)


async def hand_back(ctx: Context, mine: Run) -> None:
    """Say that a worker gave its run up in good order, so that it does not count as lost."""

    async def work(tx: Transaction) -> None:
        record = await runs.find(tx, mine.id)
        if record is None or record.run.attempt != mine.attempt or not record.run.takeovers:
            return
        if record.run.status is RunStatus.IN_PROGRESS:
            await runs.change(tx, record.run, replace(record.run, takeovers=0))

    await ctx.store.write(work)


async def settle(ctx: Context, turn: Turn, outcome: Outcome) -> None:
    """Store what came of a turn; nothing, where the run is not this worker's any more."""

    async def work(tx: Transaction) -> None:
        record = await runs.find(tx, turn.run.id)
        if record is None or record.run.attempt != turn.run.attempt:
            return
        match record.run.status, outcome:
            case RunStatus.CANCELLING, _:
                said = outcome if isinstance(outcome, Answer) else outcome.said
                await _keep(ctx, tx, record.run, said, _CANCELLED)
                change = lifecycle.cancelled("Cancelled on request.", said.usage)
                await move(ctx, tx, record, change)
            case RunStatus.IN_PROGRESS, Failed(error=error, said=said):
                await _keep(ctx, tx, record.run, said, _FAILED, error)
                change = lifecycle.failed(error.code, error.message, said.usage)
                await move(ctx, tx, record, change)
            case RunStatus.IN_PROGRESS, Answer():
                await _accept(ctx, tx, record, outcome)

    await ctx.store.write(work)


async def break_off(
    ctx: Context, tx: Transaction, run: Run, by: Literal["cancel", "expiry"], broken: BrokenOff
) -> None:
    """Keep what was said in the turn that the clock is about to end."""
    if run.attempt == broken.attempt and run.status in (
        RunStatus.IN_PROGRESS,
        RunStatus.CANCELLING,
    ):
        await _keep(ctx, tx, run, broken.said, _CANCELLED if by == "cancel" else _EXPIRED)


async def _taken_up(ctx: Context, tx: Transaction, record: RunRecord) -> RunRecord | None:
    run, model = record.run, record.config.model
    begins = run.status is RunStatus.QUEUED and not run.waits_turn
    if (begins or run.status is RunStatus.IN_PROGRESS) and run.expires_at_ms <= ctx.clock.now_ms():
        # As after a long downtime: no model is asked for an answer that nobody waits for.
        await move(ctx, tx, record, lifecycle.expired(run))
        return None
    if ctx.backends.find(model) is None and ctx.backends.undecided:
        # It waits in the line for its server, and holds nothing.
        return None
    if begins:
        if ctx.backends.find(model) is None:
            message = f"The model '{model}' is not served any more."
            await move(ctx, tx, record, lifecycle.failed("server_error", message))
            return None
        return await move(ctx, tx, record, lifecycle.started())
    if run.status is not RunStatus.IN_PROGRESS:
        return None
    if run.takeovers >= MAX_TAKEOVERS:
        message = f"Gave up: {MAX_TAKEOVERS + 1} workers in a row were lost while executing it."
        await move(ctx, tx, record, lifecycle.failed("server_error", message))
        return None
    taken = take_over(run)
    await runs.change(tx, run, taken)
    # Should the one before be alive after all, its model call is of no use any more.
    ctx.changes.announce(tx, taken)
    return RunRecord(taken, record.config)


async def _long_turn(tx: Transaction, record: RunRecord) -> Turn:
    run = record.run
    done = await steps.of_run(tx, run.id) if run.attempt > 1 else []
    # What the run itself has said does not count: it would push out what it was asked.
    limit = _most_messages(record) + sum(step.message_id is not None for step in done)
    said = await messages.conversation(tx, run.project_id, run.thread_id, limit)
    return _turn(record, said, done)


def _most_messages(record: RunRecord) -> int:
    return record.config.truncation_strategy.last_messages or MAX_MESSAGES


def _turn(record: RunRecord, said: Sequence[Message], done: Sequence[RunStep]) -> Turn:
    run, config = record.run, record.config
    request = ModelRequest(
        config=config,
        messages=tuple(said),
        steps=tuple(done),
        max_prompt_tokens=_left(config.max_prompt_tokens, run.usage.prompt_tokens),
        max_completion_tokens=_left(config.max_completion_tokens, run.usage.completion_tokens),
        run_id=run.id,
        thread_id=run.thread_id,
        project_id=run.project_id,
        expires_at_ms=run.expires_at_ms,
    )
    return Turn(run, request)


def _left(limit: int | None, used: int) -> int | None:
    return None if limit is None else max(0, limit - used)


async def _accept(ctx: Context, tx: Transaction, record: RunRecord, answer: Answer) -> None:
    run = record.run
    now_ms = max(ctx.clock.now_ms(), run.updated_at_ms)
    if answer.speaks:
        ending = _WHOLE if answer.reason == "stop" else _CUT
        await _say(ctx, tx, run, answer, ending, now_ms)
    if answer.reason != "stop":
        await _abandon_calls(ctx, tx, run, answer, _CUT_CALLS, now_ms)
        await move(ctx, tx, record, lifecycle.incomplete(answer.reason, answer.usage))
    elif answer.calls:
        await steps.insert(tx, calls_step(run, answer))
        await move(ctx, tx, record, lifecycle.requires_action(answer.calls, answer.usage))
    else:
        await move(ctx, tx, record, lifecycle.completed(answer.usage))


@dataclass(frozen=True, slots=True)
class _Ending:
    """How a message and its step end."""

    step: Literal["completed", "cancelled", "failed", "expired"]
    incomplete_reason: str | None


_WHOLE = _Ending("completed", None)
_CUT = _Ending("completed", "max_tokens")
_CUT_CALLS = _Ending("cancelled", None)
_CANCELLED = _Ending("cancelled", "run_cancelled")
_FAILED = _Ending("failed", "run_failed")
_EXPIRED = _Ending("expired", "run_expired")


async def _keep(
    ctx: Context,
    tx: Transaction,
    run: Run,
    said: Answer,
    ending: _Ending,
    error: ModelError | None = None,
) -> None:
    """Keep what was said before the run ended: whoever streams it has read it."""
    now_ms = max(ctx.clock.now_ms(), run.updated_at_ms)
    if said.speaks:
        await _say(ctx, tx, run, said, ending, now_ms, error)
    await _abandon_calls(ctx, tx, run, said, ending, now_ms, error)


async def _abandon_calls(
    ctx: Context,
    tx: Transaction,
    run: Run,
    said: Answer,
    ending: _Ending,
    now_ms: int,
    error: ModelError | None = None,
) -> None:
    """Keep calls that nobody will answer, as far as they were said."""
    if said.calls:
        await _insert_ended(ctx, tx, calls_step(run, said), ending, now_ms, error)


async def _say(
    ctx: Context,
    tx: Transaction,
    run: Run,
    answer: Answer,
    ending: _Ending,
    now_ms: int,
    error: ModelError | None = None,
) -> None:
    """Add the model's message to the thread, and the step that says so to the run."""
    whole = ending.incomplete_reason is None
    message = msgspec.structs.replace(
        message_begun(run, answer),
        content=(TextPart(TextValue(answer.text)),),
        status="completed" if whole else "incomplete",
        incomplete_reason=ending.incomplete_reason,
        completed_at_ms=now_ms if whole else None,
        incomplete_at_ms=None if whole else now_ms,
    )
    await messages.insert(tx, message)
    tx.after_commit(
        lambda: ctx.live.tell(
            run.id, f"thread.message.{message.status}", lambda: message_object(message)
        )
    )
    # The tokens of a turn stand on one step: on the calls, where there are any.
    usage = None if answer.calls else _usage(answer)
    step = msgspec.structs.replace(message_step_begun(run, answer), usage=usage)
    await _insert_ended(ctx, tx, step, ending, now_ms, error)


async def _insert_ended(
    ctx: Context,
    tx: Transaction,
    begun: RunStep,
    ending: _Ending,
    now_ms: int,
    error: ModelError | None,
) -> None:
    """Store a step that nobody goes on with."""
    run_id = begun.run_id
    step = msgspec.structs.replace(
        begun,
        status=ending.step,
        ended_at_ms=now_ms,
        error_code=error.code if error is not None else None,
        error_message=error.message if error is not None else None,
    )
    await steps.insert(tx, step)
    tx.after_commit(
        lambda: ctx.live.tell(run_id, f"thread.run.step.{step.status}", lambda: step_object(step))
    )


def message_begun(run: Run, answer: Answer) -> Message:
    """The message that an answer makes, as it is when the answer begins."""
    return Message(
        project_id=run.project_id,
        thread_id=run.thread_id,
        id=answer.message_id,
        created_at_ms=answer.began_at_ms,
        role="assistant",
        content=(),
        status="in_progress",
        assistant_id=run.assistant_id,
        run_id=run.id,
    )


def message_step_begun(run: Run, answer: Answer) -> RunStep:
    """The step that makes the message, as it is when the answer begins."""
    return RunStep(
        project_id=run.project_id,
        thread_id=run.thread_id,
        run_id=run.id,
        assistant_id=run.assistant_id,
        id=answer.message_step_id,
        created_at_ms=answer.began_at_ms,
        status="in_progress",
        message_id=answer.message_id,
    )


def calls_step(run: Run, answer: Answer) -> RunStep:
    """The step of the calls that an answer asks for; it ends when their outputs are there."""
    return RunStep(
        project_id=run.project_id,
        thread_id=run.thread_id,
        run_id=run.id,
        assistant_id=run.assistant_id,
        id=answer.calls_step_id,
        created_at_ms=answer.began_at_ms,
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
