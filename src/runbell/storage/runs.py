"""Runs: their rows, the guard on every change of status, and lists of them.

Which of them holds its thread is in `holding`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from sqlalchemy import bindparam, select, text

from runbell.errors import Overtaken, StaleWrite
from runbell.runs import LastError, Run, RunStatus, ToolCall, Usage
from runbell.storage import schema
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.paging import Page, PagedList, created, created_span
from runbell.storage.records import Message, RunConfig
from runbell.storage.statements import (
    Statement,
    insert_row,
    limited,
    select_row,
    update_row,
)
from runbell.storage.store import Row, Transaction

__all__ = [
    "ROW",
    "UNREADABLE",
    "RunFilter",
    "RunRecord",
    "Standing",
    "begin",
    "change",
    "find",
    "get",
    "insert",
    "latest",
    "many",
    "page",
    "page_of_project",
    "readable",
    "record_of",
    "set_metadata",
    "standing",
    "statuses",
]

logger = logging.getLogger(__name__)

_r = schema.runs.c
_in_thread = (_r.project_id == bindparam("project"), _r.thread_id == bindparam("thread"))
_live = text(schema.LIVE)

_CHANGING = (
    "status",
    "sequence",
    "attempt",
    "takeovers",
    "waits_turn",
    "updated_at_ms",
    "started_at_ms",
    "cancelling_at_ms",
    "cancelled_at_ms",
    "failed_at_ms",
    "completed_at_ms",
    "incomplete_at_ms",
    "expired_at_ms",
    "tool_calls",
    "error_code",
    "error_message",
    "incomplete_reason",
    "status_reason",
    "prompt_tokens",
    "completion_tokens",
)

INSERT = Statement("runs.insert", "A new run.", insert_row(schema.runs))
ROW = select_row(schema.runs, "pending_messages")
"""All that `record_of` reads, in its order."""

GET = Statement(
    "runs.get",
    "One run of a thread.",
    ROW.where(*_in_thread, _r.id == bindparam("key")),
    locks=True,
)
FIND = Statement(
    "runs.find", "A run by its id alone.", ROW.where(_r.id == bindparam("key")), locks=True
)
CHANGE = Statement(
    "runs.change",
    "Move a run on, if nobody has moved it since it was read.",
    update_row(schema.runs, *_CHANGING).where(
        _r.id == bindparam("key"),
        _r.status == bindparam("was_status"),
        _r.attempt == bindparam("was_attempt"),
        _r.sequence == bindparam("was_sequence"),
    ),
)
SET_METADATA = Statement(
    "runs.set_metadata",
    "Replace a run's metadata.",
    update_row(schema.runs, "metadata").where(*_in_thread, _r.id == bindparam("key")),
)
LATEST = Statement(
    "runs.latest",
    "The runs that were created last, of all projects, latest first.",
    limited(ROW.order_by(_r.position.desc())),
)
PAGES = PagedList("runs.list", schema.runs, *_in_thread)
_SLOTS = 50
MANY = Statement(
    "runs.many",
    "Runs by their ids.",
    # Without the project, which would lead to the index of all its runs.
    ROW.where(
        # A fixed number of slots, so that the text is compiled once; unused slots repeat.
        _r.id.in_([bindparam(f"id{slot}") for slot in range(_SLOTS)]),
    ),
)
STATUSES = Statement(
    "runs.statuses",
    "The owners and statuses of runs, by their ids.",
    select(_r.project_id, _r.status).where(
        _r.id.in_([bindparam(f"id{slot}") for slot in range(_SLOTS)])
    ),
)
STANDING = Statement(
    "runs.standing",
    "The latest changes of runs, by their ids.",
    select(_r.id, _r.project_id, _r.status, _r.attempt, _r.sequence, _r.updated_at_ms).where(
        _r.id.in_([bindparam(f"id{slot}") for slot in range(_SLOTS)])
    ),
)
_matching = (
    _r.status.in_([bindparam(f"status{slot}") for slot in range(len(RunStatus))]),
    *created(schema.runs),
)
PROJECT_PAGES = PagedList(
    "runs.list_project", schema.runs, _r.project_id == bindparam("project"), *_matching
)
LIVE_PROJECT_PAGES = PagedList(
    "runs.list_live",
    schema.runs,
    _r.project_id == bindparam("project"),
    *_matching,
    _live,
    few=True,
)

_calls = JsonColumn(tuple[ToolCall, ...])
_config = JsonColumn(RunConfig)
_metadata = JsonColumn(dict[str, str])


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run and what it was asked to do."""

    run: Run
    config: RunConfig


@dataclass(frozen=True, slots=True)
class Standing:
    """The latest change of a run.

    Attributes:
        sequence: the number of its event.
        updated_at_ms: when, in milliseconds since the epoch.
    """

    id: str
    project_id: str
    status: RunStatus
    attempt: int
    sequence: int
    updated_at_ms: int


async def begin(tx: Transaction, record: RunRecord) -> None:
    """Add a run on a thread that is made in the same transaction: no other can be there."""
    await tx.later(INSERT, _inserted(record, ()))


async def insert(tx: Transaction, record: RunRecord, pending: tuple[Message, ...] = ()) -> None:
    """Add a run.

    Args:
        pending: messages that it adds to its thread when its turn comes.

    Raises:
        Conflict: the thread has an active run, and this one would be another; where that has begun
            since the unit looked, as `Overtaken`, here or at a later step.
    """
    taken = Overtaken(f"another run has begun on {record.run.thread_id} meanwhile")
    await tx.later(INSERT, _inserted(record, pending), taken)


def _inserted(record: RunRecord, pending: tuple[Message, ...]) -> dict[str, Any]:
    run = record.run
    params = {
        "project_id": run.project_id,
        "thread_id": run.thread_id,
        "id": run.id,
        "assistant_id": run.assistant_id,
        "created_at_ms": run.created_at_ms,
        "expires_at_ms": run.expires_at_ms,
        "metadata": to_json(run.metadata),
        "config": to_json(record.config),
        "pending_messages": to_json(pending) if pending else None,
    }
    return params | _changing(run)


async def get(tx: Transaction, project: str, thread_id: str, run_id: str) -> RunRecord | None:
    """One run of a thread."""
    row = await tx.fetch_one(GET, {"project": project, "thread": thread_id, "key": run_id})
    return record_of(row) if row is not None else None


async def find(tx: Transaction, run_id: str) -> RunRecord | None:
    """A run by its id alone, whosever it is: for a request, the caller looks at its project."""
    row = await tx.fetch_one(FIND, {"key": run_id})
    return record_of(row) if row is not None else None


async def change(tx: Transaction, before: Run, after: Run) -> None:
    """Store what `lifecycle.apply` or `take_over` made of a run.

    Raises:
        StaleWrite: the run is not any more as `before` says; here or at a later step of the unit,
            which has written nothing then.
    """
    guard = {
        "key": before.id,
        "was_status": before.status,
        "was_attempt": before.attempt,
        "was_sequence": before.sequence,
    }
    stale = StaleWrite(f"{before.id} is not {before.status} any more")
    await tx.later(CHANGE, _changing(after) | guard, stale)


async def set_metadata(tx: Transaction, run: Run) -> None:
    """Store the run's metadata; its status is not touched."""
    await tx.execute(
        SET_METADATA,
        {
            "project": run.project_id,
            "thread": run.thread_id,
            "key": run.id,
            "metadata": to_json(run.metadata),
        },
    )


async def page(
    tx: Transaction, project: str, thread_id: str, page: Page
) -> tuple[list[RunRecord], bool]:
    """A page of a thread's runs that can be read, and whether there are more."""
    return await _readable_page(tx, PAGES, page, {"project": project, "thread": thread_id})


async def _readable_page(
    tx: Transaction, pages: PagedList, page: Page, owner: dict[str, Any]
) -> tuple[list[RunRecord], bool]:
    while True:
        rows, more = await pages.fetch(tx, page, owner)
        # A list's rows have their position behind all else.
        found = list(readable(row[:-1] for row in rows))
        if found or not more:
            return found, more
        # An empty page would be taken for the list's end.
        if page.before is not None and page.after is None:
            page = replace(page, before=rows[0][_ID])
        else:
            page = replace(page, after=rows[-1][_ID])


@dataclass(frozen=True, slots=True)
class RunFilter:
    """Which runs of a project are wanted.

    Attributes:
        statuses: those in one of these; empty is all.
        created_from_ms: created at this moment or later, in milliseconds since the epoch.
        created_before_ms: created before this moment.
    """

    statuses: frozenset[RunStatus] = frozenset()
    created_from_ms: int | None = None
    created_before_ms: int | None = None


async def many(tx: Transaction, project: str, ids: Sequence[str]) -> list[RunRecord]:
    """The runs of the project among these ids, in the order of the ids."""
    found: dict[str, RunRecord] = {}
    for params in _slots(ids):
        for row in await tx.fetch_all(MANY, params):
            record = record_of(row)
            if record.run.project_id == project:
                found[record.run.id] = record
    return [found[run_id] for run_id in dict.fromkeys(ids) if run_id in found]


async def latest(tx: Transaction, limit: int) -> list[RunRecord]:
    """The runs that were created last, of all projects, latest first.

    One that can't be read is left out: nobody has asked for that one.
    """
    return list(readable(await tx.fetch_all(LATEST, {"limit": limit})))


def readable(rows: Iterable[Row]) -> Iterator[RunRecord]:
    """What rows of runs say, without those that nobody can read."""
    for row in rows:
        try:
            yield record_of(row)
        except UNREADABLE as error:
            logger.error("the row of run %s cannot be read: %r; see runbell check", row[_ID], error)


async def statuses(tx: Transaction, project: str, ids: Sequence[str]) -> list[RunStatus]:
    """The statuses of the project's runs among these ids, in no order."""
    return [
        RunStatus(status)
        for params in _slots(ids)
        for owner, status in await tx.fetch_all(STATUSES, params)
        if owner == project
    ]


async def standing(tx: Transaction, ids: Sequence[str]) -> list[Standing]:
    """How the runs among these ids stand, of all projects and in no order."""
    return [
        Standing(run_id, project, RunStatus(status), *numbers)
        for params in _slots(ids)
        for run_id, project, status, *numbers in await tx.fetch_all(STANDING, params)
    ]


def _slots(ids: Sequence[str]) -> Iterator[dict[str, str]]:
    for start in range(0, len(ids), _SLOTS):
        chunk = ids[start : start + _SLOTS]
        yield {f"id{slot}": chunk[min(slot, len(chunk) - 1)] for slot in range(_SLOTS)}


async def page_of_project(
    tx: Transaction, project: str, page: Page, wanted: RunFilter
) -> tuple[list[RunRecord], bool]:
    """A page of a project's runs that can be read, on all threads, and whether there are more."""
    statuses = sorted(wanted.statuses or frozenset(RunStatus))
    owner: dict[str, Any] = {
        f"status{slot}": statuses[min(slot, len(statuses) - 1)] for slot in range(len(RunStatus))
    }
    owner["project"] = project
    owner |= created_span(wanted.created_from_ms, wanted.created_before_ms)
    live_alone = not any(status.is_terminal for status in statuses)
    pages = LIVE_PROJECT_PAGES if live_alone else PROJECT_PAGES
    return await _readable_page(tx, pages, page, owner)


def _changing(run: Run) -> dict[str, Any]:
    error = run.last_error
    return {
        "status": run.status,
        "sequence": run.sequence,
        "attempt": run.attempt,
        "takeovers": run.takeovers,
        "waits_turn": run.waits_turn,
        "updated_at_ms": run.updated_at_ms,
        "started_at_ms": run.started_at_ms,
        "cancelling_at_ms": run.cancelling_at_ms,
        "cancelled_at_ms": run.cancelled_at_ms,
        "failed_at_ms": run.failed_at_ms,
        "completed_at_ms": run.completed_at_ms,
        "incomplete_at_ms": run.incomplete_at_ms,
        "expired_at_ms": run.expired_at_ms,
        "tool_calls": to_json(run.tool_calls) if run.tool_calls else None,
        "error_code": error.code if error is not None else None,
        "error_message": error.message if error is not None else None,
        "incomplete_reason": run.incomplete_reason,
        "status_reason": run.status_reason,
        "prompt_tokens": run.usage.prompt_tokens,
        "completion_tokens": run.usage.completion_tokens,
    }


UNREADABLE = (msgspec.MsgspecError, LookupError, TypeError, ValueError)
"""What `record_of` raises for a row that somebody, or something, has damaged."""

_ID = 2
"""Where a row has the run's id."""


def record_of(row: Row) -> RunRecord:
    """What a row of a run says."""
    (
        project_id,
        thread_id,
        run_id,
        assistant_id,
        status,
        sequence,
        attempt,
        takeovers,
        waits_turn,
        created_at_ms,
        expires_at_ms,
        updated_at_ms,
        started_at_ms,
        cancelling_at_ms,
        cancelled_at_ms,
        failed_at_ms,
        completed_at_ms,
        incomplete_at_ms,
        expired_at_ms,
        tool_calls,
        error_code,
        error_message,
        incomplete_reason,
        status_reason,
        prompt_tokens,
        completion_tokens,
        metadata,
        config,
    ) = row
    run = Run(
        id=run_id,
        project_id=project_id,
        thread_id=thread_id,
        assistant_id=assistant_id,
        status=_STATUSES[status],
        created_at_ms=created_at_ms,
        expires_at_ms=expires_at_ms,
        updated_at_ms=updated_at_ms,
        sequence=sequence,
        attempt=attempt,
        takeovers=takeovers,
        waits_turn=bool(waits_turn),
        started_at_ms=started_at_ms,
        cancelling_at_ms=cancelling_at_ms,
        cancelled_at_ms=cancelled_at_ms,
        failed_at_ms=failed_at_ms,
        completed_at_ms=completed_at_ms,
        incomplete_at_ms=incomplete_at_ms,
        expired_at_ms=expired_at_ms,
        tool_calls=_calls.decode(tool_calls) if tool_calls is not None else (),
        last_error=LastError(error_code, error_message) if error_code is not None else None,
        incomplete_reason=incomplete_reason,
        status_reason=status_reason,
        usage=Usage(prompt_tokens, completion_tokens),
        metadata=_metadata.decode(metadata),
    )
    return RunRecord(run, _config.decode(config))


_STATUSES = {str(status): status for status in RunStatus}
