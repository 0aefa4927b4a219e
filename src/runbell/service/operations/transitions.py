"""How a change of a run's status is stored: run, event, deliveries, jobs, in one transaction.

Every operation that moves a run goes through `move`; nothing else writes a status or an event.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from runbell.runs import Change, Event, Run, RunStatus, apply, event_of
from runbell.runs.lifecycle import expired
from runbell.service import logs
from runbell.service.jobs import Job, JobKind
from runbell.service.operations.context import Context
from runbell.service.operations.subscriptions import wants
from runbell.service.wire.objects import run_object, step_object
from runbell.storage import closing, endpoints, events, holding, messages, owed, runs, steps
from runbell.storage.endpoints import Listening
from runbell.storage.records import Message, RunStep
from runbell.storage.runs import RunRecord
from runbell.storage.store import Transaction

__all__ = ["create", "move", "update_step"]


async def create(
    ctx: Context,
    tx: Transaction,
    record: RunRecord,
    additional: tuple[Message, ...],
    *,
    fresh: bool = False,
) -> None:
    """Store a new run with its first event and its jobs.

    Args:
        additional: messages that the run adds to its thread: now, or when its turn comes.
        fresh: its thread is made in the same transaction.

    Raises:
        Conflict: the run does not wait its turn, and its thread has an active run; here or at a
            later step.
    """
    run = record.run
    if fresh:
        await runs.begin(tx, record)
    else:
        await runs.insert(tx, record, pending=additional if run.waits_turn else ())
    if not run.waits_turn:
        for message in additional:
            await messages.insert(tx, message)
    await ctx.jobs.enqueue(tx, Job(JobKind.EXPIRE, run.id, due_ms=run.expires_at_ms))
    if not run.waits_turn:
        await ctx.jobs.enqueue(tx, _turn(record))
    await _tell(ctx, tx, record)


async def move(ctx: Context, tx: Transaction, record: RunRecord, change: Change) -> RunRecord:
    """Apply a change to a run, as it was just read.

    Returns:
        The run in its new status, and what it was asked to do.

    Raises:
        TransitionNotAllowed: the table has no such way.
        StaleWrite: somebody else has moved the run meanwhile.
    """
    run = record.run
    moved = apply(run, change, now_ms=ctx.clock.now_ms())
    after = RunRecord(moved, record.config)
    await runs.change(tx, run, moved)
    if moved.status is RunStatus.QUEUED:
        await ctx.jobs.enqueue(tx, _turn(after))
    elif moved.status is RunStatus.CANCELLING:
        due_ms = moved.updated_at_ms + round(ctx.settings.cancel_grace * 1000)
        job = Job(JobKind.FINISH_CANCEL, moved.id, due_ms=due_ms, turn=moved.sequence)
        await ctx.jobs.enqueue(tx, job)
    elif moved.status.is_terminal:
        await ctx.jobs.forget(tx, Job(JobKind.EXPIRE, run.id))
        if run.status is RunStatus.QUEUED and not run.waits_turn:
            await ctx.jobs.forget(tx, _turn(record))
        await _end_steps(ctx, tx, moved)
    if moved.status.is_terminal and not run.waits_turn:
        event = await _append(ctx, tx, moved)
        next_ = await closing.look(tx, moved.project_id, moved.thread_id, ctx.clock.now_ms())
        await _announce(ctx, tx, after, event, next_.listening)
        if next_.waiting is not None:
            await _pass_turn(ctx, tx, next_.waiting)
    else:
        await _tell(ctx, tx, after)
    return after


async def _tell(ctx: Context, tx: Transaction, record: RunRecord) -> None:
    """Tell of a run that leaves its thread as it is."""
    event = await _append(ctx, tx, record.run)
    listening = await endpoints.listening(tx, record.run.project_id, ctx.clock.now_ms())
    await _announce(ctx, tx, record, event, listening)


async def _append(ctx: Context, tx: Transaction, run: Run) -> Event:
    event = event_of(run, ctx.new_id("evt"))
    await events.append(tx, event)
    return event


async def _announce(
    ctx: Context, tx: Transaction, record: RunRecord, event: Event, listening: list[Listening]
) -> None:
    """Tell those who are listening, here and elsewhere.

    Args:
        listening: endpoints, as the tables say now: a cache would have to know of an endpoint
            before the transaction that registers it has been committed.
    """
    run = record.run
    await _owe(ctx, tx, run, event, listening)
    ctx.changes.announce(tx, run)
    tx.after_commit(lambda: _record(ctx, record))
    tx.after_commit(lambda: ctx.live.move(run, lambda: run_object(record)))


async def _owe(
    ctx: Context, tx: Transaction, run: Run, event: Event, listening: list[Listening]
) -> None:
    """Owe an event to each of these endpoints that wants it."""
    for endpoint in listening:
        if not wants(endpoint.subscription, run, event.type):
            continue
        await owed.owe(tx, endpoint.id, event)
        if endpoint.enabled:
            await ctx.jobs.enqueue(tx, Job(JobKind.DELIVER, endpoint.id))
            ctx.changes.announce_wake(tx, endpoint.id)


def _record(ctx: Context, record: RunRecord) -> None:
    ctx.hints.moved(record)
    ctx.metrics.moved(record.run)
    logs.moved(record.run)


async def update_step(ctx: Context, tx: Transaction, step: RunStep) -> None:
    """Store a step that has ended, and tell those who stream its run."""
    await steps.update(tx, step)
    tx.after_commit(
        lambda: ctx.live.tell(
            step.run_id, f"thread.run.step.{step.status}", lambda: step_object(step)
        )
    )


async def _end_steps(ctx: Context, tx: Transaction, run: Run) -> None:
    """What the run was in the middle of ends as the run did."""
    status = _STEP_ENDS.get(run.status)
    if status is None:
        return
    for step in await steps.open_of_run(tx, run.id):
        error = run.last_error
        ended = msgspec.structs.replace(
            step,
            status=status,
            ended_at_ms=run.updated_at_ms,
            error_code=error.code if error is not None else None,
            error_message=error.message if error is not None else None,
        )
        await update_step(ctx, tx, ended)


_STEP_ENDS: dict[RunStatus, Literal["cancelled", "expired", "failed"]] = {
    RunStatus.CANCELLED: "cancelled",
    RunStatus.EXPIRED: "expired",
    RunStatus.FAILED: "failed",
}


async def _pass_turn(ctx: Context, tx: Transaction, longest: RunRecord) -> None:
    """The thread is free: the run that waits longest may start, if its time is not over."""
    now_ms = ctx.clock.now_ms()
    waiting: RunRecord | None = longest
    while waiting is not None and waiting.run.expires_at_ms <= now_ms:
        await move(ctx, tx, waiting, expired(waiting.run))
        waiting = await holding.next_waiting(tx, waiting.run.thread_id)
    if waiting is None:
        return
    for message in await holding.pending_messages(tx, waiting.run.id):
        await messages.insert(
            tx, msgspec.structs.replace(message, created_at_ms=now_ms, completed_at_ms=now_ms)
        )
    await holding.take_turn(tx, waiting.run.id)
    await ctx.jobs.enqueue(tx, _turn(waiting))


def _turn(record: RunRecord) -> Job:
    """A worker is to take the run up. Its number is that of the event that has queued it."""
    run = record.run
    return Job(JobKind.RUN, run.id, model=record.config.model, turn=run.sequence)
