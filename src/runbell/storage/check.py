"""Is everything as it should be: the rules that the service relies on, held against the rows.

One reading transaction, so that a service that writes meanwhile is seen at one moment; tables are
read in pages, so that memory does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from sqlalchemy import and_, bindparam, func, select, text, tuple_

from runbell.runs import TRANSITIONS, RunStatus
from runbell.storage import check_webhooks, runs, schema
from runbell.storage.report import Named, Report, rows
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Transaction

__all__ = ["check"]

LATE_MS = 60_000
"""How long a running service may leave an expired run unended: far longer than it ever should."""

_e, _r, _s, _m, _t = (
    schema.events.c,
    schema.runs.c,
    schema.run_steps.c,
    schema.messages.c,
    schema.threads.c,
)
_STAMPS = {
    RunStatus.IN_PROGRESS: "started_at_ms",
    RunStatus.CANCELLING: "cancelling_at_ms",
    RunStatus.CANCELLED: "cancelled_at_ms",
    RunStatus.FAILED: "failed_at_ms",
    RunStatus.COMPLETED: "completed_at_ms",
    RunStatus.INCOMPLETE: "incomplete_at_ms",
    RunStatus.EXPIRED: "expired_at_ms",
}

_TERMINAL = frozenset(str(status) for status in RunStatus if status.is_terminal)
_READ = tuple(column.name for column in runs.ROW.selected_columns)

RUNS = Statement(
    "check.runs",
    "Every run, its thread where there is one, and how many events it has.",
    limited(
        select(
            _r.position,
            *(_r[name] for name in _READ),
            _r.tool_calls.is_not(None).label("calls"),
            _r.pending_messages.is_not(None).label("pending"),
            _t.project_id.label("thread_project"),
            select(func.count()).where(_e.run_id == _r.id).scalar_subquery().label("events"),
        )
        .select_from(schema.runs.outerjoin(schema.threads, _t.id == _r.thread_id))
        .where(_r.position > bindparam("position"))
        .order_by(_r.position)
    ),
)
EVENTS = Statement(
    "check.events",
    "Every event, run by run in the order of their numbers, with its run where that is kept.",
    limited(
        select(
            schema.events,
            _r.status.label("run_status"),
            _r.sequence.label("run_sequence"),
            _r.project_id.label("run_project"),
        )
        .select_from(schema.events.outerjoin(schema.runs, _r.id == _e.run_id))
        .where(tuple_(_e.run_id, _e.sequence) > tuple_(bindparam("run_id"), bindparam("sequence")))
        .order_by(_e.run_id, _e.sequence)
    ),
)
LIVE = Statement(
    "check.live",
    "Every run that has not ended, thread by thread.",
    limited(
        select(_r.position, _r.id, _r.thread_id, _r.waits_turn)
        .where(
            text(schema.LIVE),
            tuple_(_r.thread_id, _r.position)
            > tuple_(bindparam("thread_id"), bindparam("position")),
        )
        .order_by(_r.thread_id, _r.position)
    ),
)
STEPS = Statement(
    "check.steps",
    "Every step, with its run and its thread where there are any.",
    limited(
        select(
            _s.position,
            _s.id,
            _s.run_id,
            _s.thread_id,
            _s.project_id,
            _s.status,
            _r.thread_id.label("run_thread"),
            _r.status.label("run_status"),
            _t.project_id.label("thread_project"),
        )
        .select_from(
            schema.run_steps.outerjoin(schema.runs, _r.id == _s.run_id).outerjoin(
                schema.threads, _t.id == _s.thread_id
            )
        )
        .where(_s.position > bindparam("position"))
        .order_by(_s.position)
    ),
)
MESSAGES = Statement(
    "check.messages",
    "Every message, with its thread, and its run's thread, where there are any.",
    limited(
        select(
            _m.position,
            _m.id,
            _m.thread_id,
            _m.project_id,
            _t.project_id.label("thread_project"),
            _r.thread_id.label("run_thread"),
        )
        .select_from(
            schema.messages.outerjoin(schema.threads, _t.id == _m.thread_id).outerjoin(
                schema.runs, and_(_m.run_id.is_not(None), _r.id == _m.run_id)
            )
        )
        .where(_m.position > bindparam("position"))
        .order_by(_m.position)
    ),
)


async def check(tx: Transaction, *, now_ms: int | None = None) -> Report:
    """Hold every row against the rules.

    Args:
        now_ms: the time, in milliseconds since the epoch, where a service runs on this database and
            has to have ended what is over; None where none runs.
    """
    report = Report()
    await _check_runs(tx, report, now_ms)
    await _check_turns(tx, report)
    await _check_events(tx, report)
    await _check_steps(tx, report)
    await _check_messages(tx, report)
    await check_webhooks.check(tx, report)
    return report


async def _check_runs(tx: Transaction, report: Report, now_ms: int | None) -> None:
    async for run in rows(tx, report, "runs", RUNS, position=0):
        run_id, told = run["id"], f"it is {run['status']}"
        if run["thread_project"] != run["project_id"]:
            report.add("a run without a thread", run_id, f"{run['thread_id']} is not there")
        if run["events"] != run["sequence"]:
            there = "1 event is" if run["events"] == 1 else f"{run['events']} events are"
            report.add(
                "a run with more or fewer events than its sequence",
                run_id,
                f"its sequence is {run['sequence']}, but {there} there",
            )
        try:
            status = RunStatus(run["status"])
        except ValueError:
            report.add("a run with a status that does not exist", run_id, told)
            continue
        for rule in _broken(run, status):
            report.add(rule, run_id, told)
        try:
            runs.record_of([run[name] for name in _READ])
        except runs.UNREADABLE as error:
            report.add("a run that cannot be read", run_id, str(error))
        if (
            now_ms is not None
            and not status.is_terminal
            and run["expires_at_ms"] < now_ms - LATE_MS
        ):
            late = (now_ms - run["expires_at_ms"]) / 1000
            report.add(
                "a run that should have expired, while a service runs", run_id, f"{late:.0f} s ago"
            )


def _broken(run: Named, status: RunStatus) -> Iterator[str]:
    """The rules that a run's row breaks by itself."""
    stamp = _STAMPS.get(status)
    if stamp is not None and run[stamp] is None:
        # Without it, the job that ends a cancel could not be derived.
        yield f"a run that is {status} without {stamp}"
    if status.is_terminal != (run["status_reason"] is not None):
        yield "a run that has ended without a reason, or has a reason without having ended"
    if any(
        run[other] is not None
        for ending, other in _STAMPS.items()
        if ending.is_terminal and ending is not status
    ):
        yield "a run with the stamp of an end that is not its own"
    if (status is RunStatus.FAILED) != (run["error_code"] is not None):
        yield "a run that failed without an error, or has an error without having failed"
    if (status is RunStatus.REQUIRES_ACTION) != bool(run["calls"]):
        yield "a run that waits for outputs without calls, or has calls without waiting"
    if run["waits_turn"] and status is not RunStatus.QUEUED:
        yield "a run that waits its turn without being queued"
    if run["pending"] and not run["waits_turn"]:
        yield "a run whose turn has come and whose messages were not added"


async def _check_turns(tx: Transaction, report: Report) -> None:
    """Each thread with live runs has one that holds it: else no job would start the others."""
    thread = ""
    active: list[str] = []
    waiting: list[str] = []

    def finish() -> None:
        if len(active) > 1:
            report.add("a thread with several active runs", thread, ", ".join(active))
        if waiting and not active:
            report.add("a run that waits its turn behind none", waiting[0], f"in {thread}")

    async for run in rows(tx, report, "runs under way", LIVE, thread_id="", position=0):
        if run["thread_id"] != thread:
            finish()
            thread, active, waiting = run["thread_id"], [], []
        (waiting if run["waits_turn"] else active).append(run["id"])
    finish()


class _Told(msgspec.Struct):
    """What an event's body says of its run."""

    id: str
    status: str
    sequence: int


class _Body(msgspec.Struct):
    """An event's body, as far as it has to agree with its row."""

    id: str
    type: str
    data: _Told


_decode = msgspec.json.Decoder(_Body).decode


async def _check_events(tx: Transaction, report: Report) -> None:
    before: Named | None = None
    async for event in rows(tx, report, "events", EVENTS, run_id="", sequence=0):
        if before is not None and before["run_id"] != event["run_id"]:
            _check_last(report, before)
            before = None
        _check_body(report, event)
        _check_step(report, before, event)
        before = event
    if before is not None:
        _check_last(report, before)


def _status(event: Named) -> RunStatus | None:
    """The status that an event's type tells of; None where there is no such type."""
    name = str(event["type"]).removeprefix("thread.run.")
    if event["type"] == "thread.run.created":
        return RunStatus.QUEUED
    try:
        return RunStatus(name)
    except ValueError:
        return None


def _check_step(report: Report, before: Named | None, event: Named) -> None:
    """Hold an event against the one before it of the same run."""
    run_id, told = event["run_id"], f"{event['id']} is {event['sequence']} {event['type']}"
    kept = event["run_status"] is not None
    if kept and event["run_project"] != event["project_id"]:
        report.add("an event in another project than its run", run_id, told)
    if (event["type"] == "thread.run.created") != (event["sequence"] == 1):
        report.add("a history that does not begin with a creation", run_id, told)
    if before is None:
        # Retention takes the first events first where a long history goes in several steps.
        if kept and event["sequence"] != 1:
            report.add("an event that is missing", run_id, f"{told}, and the first")
        return
    if event["sequence"] != before["sequence"] + 1:
        report.add("an event that is missing", run_id, f"{told}, and follows {before['sequence']}")
    if event["position"] <= before["position"]:
        report.add("an event that stands in front of an earlier one", run_id, told)
    source, target = _status(before), _status(event)
    if source is None or target is None or target not in TRANSITIONS[source]:
        report.add("an event without a transition", run_id, f"{told}, and follows {before['type']}")


def _check_last(report: Report, event: Named) -> None:
    """Hold a run's last event against the run."""
    told = f"its last event is {event['sequence']} {event['type']}"
    status = _status(event)
    if event["run_status"] is None:
        if status is None or not status.is_terminal:
            report.add("a run that is gone and did not end", event["run_id"], told)
    elif status != event["run_status"] or event["sequence"] != event["run_sequence"]:
        report.add(
            "a transition without an event",
            event["run_id"],
            f"{told}, but the run is {event['run_sequence']} {event['run_status']}",
        )


def _check_body(report: Report, event: Named) -> None:
    try:
        body = _decode(event["body"])
    except (msgspec.DecodeError, TypeError):
        report.add("an event that cannot be read", event["run_id"], event["id"])
        return
    says = (body.id, body.type, body.data.id, body.data.sequence, body.data.status)
    row = (event["id"], event["type"], event["run_id"], event["sequence"], _status(event))
    if says != row:
        told = ", ".join(map(str, says))
        report.add("an event that says something else than its row", event["run_id"], told)


async def _check_steps(tx: Transaction, report: Report) -> None:
    async for step in rows(tx, report, "steps", STEPS, position=0):
        run_id, told = step["run_id"], step["id"]
        if step["thread_project"] != step["project_id"]:
            report.add("a step without a thread", run_id, f"{told} in {step['thread_id']}")
        if step["run_thread"] != step["thread_id"]:
            report.add("a step without a run", run_id, told)
        elif step["status"] == "in_progress" and step["run_status"] in _TERMINAL:
            report.add("a step that goes on although its run has ended", run_id, told)


async def _check_messages(tx: Transaction, report: Report) -> None:
    async for message in rows(tx, report, "messages", MESSAGES, position=0):
        thread_id, told = message["thread_id"], message["id"]
        if message["thread_project"] != message["project_id"]:
            report.add("a message without a thread", thread_id, told)
        # The run itself may be gone by its age.
        if message["run_thread"] not in (None, message["thread_id"]):
            report.add("a message of another thread's run", thread_id, told)
