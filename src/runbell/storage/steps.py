"""Run steps: what a run did, in order, with the tool outputs that it was given."""

from __future__ import annotations

from sqlalchemy import bindparam, literal_column

from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.paging import Page, PagedList
from runbell.storage.records import RunStep, StepUsage, ToolStepCall
from runbell.storage.statements import Statement, insert_row, select_row, update_row
from runbell.storage.store import Row, Transaction

__all__ = ["get", "insert", "of_run", "open_of_run", "page", "update"]

_s = schema.run_steps.c
_in_run = (
    # A run's thread is checked where the run is; here it would lead to the thread's index.
    _s.project_id == bindparam("project"),
    _s.run_id == bindparam("run"),
)

INSERT = Statement("run_steps.insert", "A new step.", insert_row(schema.run_steps))
GET = Statement(
    "run_steps.get",
    "One step of a run.",
    select_row(schema.run_steps).where(*_in_run, _s.id == bindparam("key")),
)
OF_RUN = Statement(
    "run_steps.of_run",
    "The steps of a run, in order.",
    select_row(schema.run_steps).where(_s.run_id == bindparam("run")).order_by(_s.position),
)
OPEN = Statement(
    "run_steps.open",
    "The steps of a run that have not ended.",
    select_row(schema.run_steps)
    .where(_s.run_id == bindparam("run"), _s.status == literal_column("'in_progress'"))
    .order_by(_s.position),
)
UPDATE = Statement(
    "run_steps.update",
    "Move a step on.",
    update_row(
        schema.run_steps,
        "status",
        "tool_calls",
        "error_code",
        "error_message",
        "ended_at_ms",
        "usage",
    ).where(_s.id == bindparam("key")),
)
PAGES = PagedList("run_steps.list", schema.run_steps, *_in_run)

_calls = JsonColumn(tuple[ToolStepCall, ...])
_usage = JsonColumn(StepUsage)
_metadata = JsonColumn(dict[str, str])


async def insert(tx: Transaction, step: RunStep) -> None:
    """Add a step at the end of its run."""
    await tx.later(
        INSERT,
        {
            "project_id": step.project_id,
            "thread_id": step.thread_id,
            "run_id": step.run_id,
            "assistant_id": step.assistant_id,
            "id": step.id,
            "created_at_ms": step.created_at_ms,
            "status": step.status,
            "message_id": step.message_id,
            "tool_calls": to_json(step.tool_calls) if step.tool_calls else None,
            "error_code": step.error_code,
            "error_message": step.error_message,
            "ended_at_ms": step.ended_at_ms,
            "usage": to_json(step.usage) if step.usage is not None else None,
            "metadata": to_json(step.metadata),
        },
    )


async def update(tx: Transaction, step: RunStep) -> None:
    """Store the step's status, outputs, error and usage."""
    await tx.later(
        UPDATE,
        {
            "key": step.id,
            "status": step.status,
            "tool_calls": to_json(step.tool_calls) if step.tool_calls else None,
            "error_code": step.error_code,
            "error_message": step.error_message,
            "ended_at_ms": step.ended_at_ms,
            "usage": to_json(step.usage) if step.usage is not None else None,
        },
    )


async def get(tx: Transaction, project: str, run_id: str, step_id: str) -> RunStep | None:
    """One step of a run."""
    params = {"project": project, "run": run_id, "key": step_id}
    row = await tx.fetch_one(GET, params)
    return _step(row) if row is not None else None


async def of_run(tx: Transaction, run_id: str) -> list[RunStep]:
    """The steps of a run, in order."""
    return [_step(row) for row in await tx.fetch_all(OF_RUN, {"run": run_id})]


async def open_of_run(tx: Transaction, run_id: str) -> list[RunStep]:
    """The steps of a run that are in progress."""
    return [_step(row) for row in await tx.fetch_all(OPEN, {"run": run_id})]


async def page(
    tx: Transaction, project: str, run_id: str, page: Page
) -> tuple[list[RunStep], bool]:
    """A page of a run's steps, and whether there are more."""
    owner = {"project": project, "run": run_id}
    rows, more = await PAGES.fetch(tx, page, owner)
    return [_step(row) for row in rows], more


def _step(row: Row) -> RunStep:
    (
        project_id,
        thread_id,
        run_id,
        assistant_id,
        step_id,
        created_at_ms,
        status,
        message_id,
        tool_calls,
        error_code,
        error_message,
        ended_at_ms,
        usage,
        metadata,
    ) = row
    return RunStep(
        project_id=project_id,
        thread_id=thread_id,
        run_id=run_id,
        assistant_id=assistant_id,
        id=step_id,
        created_at_ms=created_at_ms,
        status=status,
        message_id=message_id,
        tool_calls=_calls.decode(tool_calls) if tool_calls is not None else (),
        error_code=error_code,
        error_message=error_message,
        ended_at_ms=ended_at_ms,
        usage=_usage.decode(usage) if usage is not None else None,
        metadata=_metadata.decode(metadata),
    )
