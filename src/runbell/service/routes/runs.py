"""Routes: runs of a thread, and their steps."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from runbell.runs import RunStatus
from runbell.service.live import Follower
from runbell.service.operations import runs
from runbell.service.operations.context import Context
from runbell.service.routes.routing import Answer, Call, EventStream, Route, answer
from runbell.service.routes.streaming import stream_run
from runbell.service.wire.objects import (
    ListPage,
    RunObject,
    RunsById,
    RunStepObject,
    encode,
    run_object,
    step_object,
    thread_object,
)
from runbell.service.wire.pages import (
    PageQuery,
    RunsQuery,
    include_query,
    page_of,
    page_query,
    runs_query,
)
from runbell.service.wire.parameters import (
    CREATED_AFTER,
    CREATED_BEFORE,
    ETAG,
    IDS,
    IF_NONE_MATCH,
    INCLUDE,
    PAGING,
    POLL_AFTER,
    PREFER,
    PREFERENCE_APPLIED,
    STATUS,
)
from runbell.service.wire.preferences import entity_tag, knows, wait_seconds
from runbell.service.wire.requests import (
    CreateRun,
    CreateThreadAndRun,
    ModifyRun,
    SubmitToolOutputs,
)
from runbell.service.wire.streams import RUN_EVENTS, THREAD_EVENTS
from runbell.storage.runs import RunRecord

__all__ = ["ROUTES"]


async def _create(call: Call[CreateRun, Any]) -> Answer | EventStream:
    thread = call.path["thread_id"]
    follower = Follower() if call.body.stream else None
    record = await runs.create(call.ctx, call.project, thread, call.body, follower)
    if follower is None:
        return _unfinished(call.ctx, record)
    return _stream_new(follower, record)


async def _create_with_thread(
    call: Call[CreateThreadAndRun, None],
) -> Answer | EventStream:
    follower = Follower() if call.body.stream else None
    record, thread = await runs.create_with_thread(call.ctx, call.project, call.body, follower)
    if follower is None:
        return _unfinished(call.ctx, record)
    return _stream_new(follower, record, ("thread.created", thread_object(thread)))


def _stream_new(follower: Follower, record: RunRecord, *first: tuple[str, Any]) -> EventStream:
    return stream_run(follower, record.run, [*first, ("thread.run.created", run_object(record))])


def _unfinished(ctx: Context, record: RunRecord) -> Answer:
    """A run that was just changed; it says when to look again, while there is something to see."""
    return answer(run_object(record), _when_to_look(ctx, record))


def _when_to_look(ctx: Context, *records: RunRecord) -> dict[str, str]:
    """When it is worth looking again at the first of these runs; nothing where all have ended."""
    soonest = ctx.hints.soonest_ms(records)
    return {} if soonest is None else {"openai-poll-after-ms": str(soonest)}


async def _retrieve(call: Call[None, None]) -> Answer:
    thread, key = call.path["thread_id"], call.path["run_id"]
    known = call.header(b"if-none-match")

    async def look() -> _Look:
        return _Look(await runs.retrieve(call.ctx, call.project, thread, key))

    def enough(seen: _Look) -> bool:
        return seen.settled if known is None else not knows(known, entity_tag(seen.body()))

    seconds = wait_seconds(call.header(b"prefer"))
    if seconds is None:
        seen = await look()
    else:
        seen = await call.wait_until([key], look, enough, seconds, settled_alone=known is None)
    body = seen.body()
    tag = entity_tag(body)
    headers = {"etag": tag, **_when_to_look(call.ctx, seen.record)}
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds}"
    if knows(known, tag):
        return Answer(304, b"", headers)
    return Answer(200, body, headers)


class _Look:
    """A run, as it is answered at one moment: encoded where that is needed."""

    __slots__ = ("_body", "record", "settled")

    def __init__(self, record: RunRecord) -> None:
        self.record = record
        self.settled = record.run.status.is_settled
        self._body: bytes | None = None

    def body(self) -> bytes:
        """The bytes of the answer."""
        if self._body is None:
            self._body = encode(run_object(self.record))
        return self._body


async def _modify(call: Call[ModifyRun, None]) -> Answer:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return _unfinished(call.ctx, await runs.modify(call.ctx, call.project, thread, key, call.body))


async def _list(call: Call[None, PageQuery]) -> ListPage[Any]:
    thread = call.path["thread_id"]
    found = await runs.list_page(call.ctx, call.project, thread, call.query.page)
    return page_of(found, run_object, id_of=lambda record: record.run.id)


async def _find(call: Call[None, RunsQuery]) -> ListPage[Any] | Answer:
    query = call.query
    if query.ids is not None:
        return await _by_ids(call, query.ids)
    found = await runs.list_project(call.ctx, call.project, query.page, query.wanted)
    return page_of(found, run_object, id_of=lambda record: record.run.id)


async def _by_ids(call: Call[None, RunsQuery], ids: tuple[str, ...]) -> Answer:
    async def look() -> list[RunStatus]:
        return await runs.statuses(call.ctx, call.project, ids)

    def enough(seen: list[RunStatus]) -> bool:
        return not seen or any(status.is_settled for status in seen)

    seconds = wait_seconds(call.header(b"prefer"))
    if seconds is not None:
        await call.wait_until(ids, look, enough, seconds, settled_alone=True)
    seen = await runs.retrieve_many(call.ctx, call.project, ids)
    headers = _when_to_look(call.ctx, *seen)
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds}"
    there = [record.run.id for record in seen]
    return answer(
        RunsById(
            data=[run_object(record) for record in seen],
            missing=[run_id for run_id in ids if run_id not in set(there)],
            first_id=there[0] if there else None,
            last_id=there[-1] if there else None,
        ),
        headers,
    )


async def _cancel(call: Call[None, None]) -> Answer:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return _unfinished(call.ctx, await runs.cancel(call.ctx, call.project, thread, key))


async def _submit(call: Call[SubmitToolOutputs, None]) -> Answer | EventStream:
    thread, key = call.path["thread_id"], call.path["run_id"]
    outputs = call.body.tool_outputs
    follower = Follower() if call.body.stream else None
    record = await runs.submit_tool_outputs(call.ctx, call.project, thread, key, outputs, follower)
    if follower is not None:
        return stream_run(follower, record.run)
    return _unfinished(call.ctx, record)


async def _list_steps(call: Call[None, PageQuery]) -> ListPage[Any]:
    thread, run = call.path["thread_id"], call.path["run_id"]
    found = await runs.list_steps(call.ctx, call.project, thread, run, call.query.page)
    return page_of(found, step_object, id_of=attrgetter("id"))


async def _retrieve_step(call: Call[None, Any]) -> RunStepObject:
    thread, run, key = call.path["thread_id"], call.path["run_id"], call.path["step_id"]
    return step_object(await runs.retrieve_step(call.ctx, call.project, thread, run, key))


_ALL = "/v1/threads/{thread_id}/runs"
_ONE = "/v1/threads/{thread_id}/runs/{run_id}"

# Retrieving comes first: it is what is called most, and routes are tried in order.
ROUTES = (
    Route(
        "GET",
        _ONE,
        _retrieve,
        "Retrieve a run",
        operation="getRun",
        answer=RunObject,
        parameters=(PREFER, IF_NONE_MATCH),
        headers=(ETAG, PREFERENCE_APPLIED, POLL_AFTER),
        about="With `Prefer: wait=N`, answers when the run has ended or requires action, or after "
        "N seconds.",
    ),
    Route(
        "POST",
        _ONE,
        _modify,
        "Modify a run",
        body=ModifyRun,
        operation="modifyRun",
        answer=RunObject,
        headers=(POLL_AFTER,),
    ),
    Route(
        "GET",
        _ALL,
        _list,
        "List a thread's runs",
        query=page_query,
        operation="listRuns",
        answer=ListPage[RunObject],
        parameters=PAGING,
    ),
    Route(
        "POST",
        _ALL,
        _create,
        "Create a run",
        body=CreateRun,
        query=include_query,
        operation="createRun",
        answer=RunObject,
        headers=(POLL_AFTER,),
        parameters=(INCLUDE,),
        stream=RUN_EVENTS,
        about="The run is `queued` in this answer, always. What would not work is a 400: a model "
        "that nobody serves, `file_search` or `code_interpreter`, a thread whose active run has "
        "not ended.",
    ),
    Route(
        "POST",
        "/v1/threads/runs",
        _create_with_thread,
        "Create a thread and a run on it",
        body=CreateThreadAndRun,
        operation="createThreadAndRun",
        answer=RunObject,
        headers=(POLL_AFTER,),
        stream=THREAD_EVENTS,
        refuses=(404,),
        about="A 404 where there is no such assistant.",
    ),
    Route(
        "GET",
        "/v1/runs",
        _find,
        "Find runs across threads",
        query=runs_query,
        operation="findRuns",
        answer=(ListPage[RunObject], RunsById),
        parameters=(*PAGING, STATUS, CREATED_BEFORE, CREATED_AFTER, IDS, PREFER),
        headers=(PREFERENCE_APPLIED, POLL_AFTER),
        about="A page of the project's runs, or, with `ids`, certain ones; then `Prefer: wait=N` "
        "holds the answer until any of them has ended or requires action.",
        ours=True,
    ),
    Route(
        "POST",
        f"{_ONE}/cancel",
        _cancel,
        "Cancel a run",
        operation="cancelRun",
        answer=RunObject,
        headers=(POLL_AFTER,),
        about="A run that no worker holds is `cancelled` at once, another `cancelling` first. "
        "Cancelling twice is the same as once; a run that has ended is a 400.",
    ),
    Route(
        "POST",
        f"{_ONE}/submit_tool_outputs",
        _submit,
        "Submit the outputs of a run's tool calls",
        body=SubmitToolOutputs,
        operation="submitToolOutputsToRun",
        answer=RunObject,
        headers=(POLL_AFTER,),
        stream=RUN_EVENTS,
        about="The outputs of all calls together, in any order, once.",
    ),
    Route(
        "GET",
        f"{_ONE}/steps",
        _list_steps,
        "List a run's steps",
        query=lambda params: page_query(params, also=("include",)),
        operation="listRunSteps",
        answer=ListPage[RunStepObject],
        parameters=(*PAGING, INCLUDE),
    ),
    Route(
        "GET",
        f"{_ONE}/steps/{{step_id}}",
        _retrieve_step,
        "Retrieve a step",
        query=include_query,
        operation="getRunStep",
        answer=RunStepObject,
        parameters=(INCLUDE,),
    ),
)
