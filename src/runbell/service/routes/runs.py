"""Routes: runs of a thread, and their steps."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from runbell.service.operations import runs
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
from runbell.service.wire.preferences import entity_tag, knows, wait_seconds
from runbell.service.wire.requests import (
    CreateRun,
    CreateThreadAndRun,
    ModifyRun,
    SubmitToolOutputs,
)
from runbell.storage.runs import RunRecord

__all__ = ["ROUTES"]

POLL_AFTER_MS = "500"
"""What the stock SDK's `poll` is told to wait between two looks at a run."""


async def _create(call: Call[CreateRun, Any]) -> RunObject | EventStream:
    thread = call.path["thread_id"]
    record = await runs.create(call.ctx, call.project, thread, call.body)
    run = run_object(record)
    return _stream_new(call, run) if call.body.stream else run


async def _create_with_thread(
    call: Call[CreateThreadAndRun, None],
) -> RunObject | EventStream:
    record, thread = await runs.create_with_thread(call.ctx, call.project, call.body)
    run = run_object(record)
    if not call.body.stream:
        return run
    return _stream_new(call, run, ("thread.created", thread_object(thread)))


def _stream_new(call: Call[Any, Any], run: RunObject, *first: tuple[str, Any]) -> EventStream:
    # Nothing has happened to the run yet: that takes a turn of the event loop, at the least.
    follower = call.ctx.live.follow(run.id)
    created = [("thread.run.created", run), ("thread.run.queued", run)]
    return stream_run(follower, [*first, *created])


async def _retrieve(call: Call[None, None]) -> Answer:
    thread, key = call.path["thread_id"], call.path["run_id"]
    known = call.header(b"if-none-match")

    async def look() -> _Look:
        return _Look(await runs.retrieve(call.ctx, call.project, thread, key))

    def enough(seen: _Look) -> bool:
        return seen.settled if known is None else not knows(known, seen.tag)

    seconds = wait_seconds(call.header(b"prefer"))
    if seconds is None:
        seen = await look()
    else:
        seen = await call.wait_until([key], look, enough, seconds)
    headers = {"etag": seen.tag}
    if seconds is not None:
        headers["preference-applied"] = f"wait={seconds}"
    if not seen.terminal:
        headers["openai-poll-after-ms"] = POLL_AFTER_MS
    if knows(known, seen.tag):
        return Answer(304, b"", headers)
    return Answer(200, seen.body, headers)


class _Look:
    """A run, as it is answered at one moment."""

    def __init__(self, record: RunRecord) -> None:
        self.settled = record.run.status.is_settled
        self.terminal = record.run.status.is_terminal
        self.body = encode(run_object(record))
        self.tag = entity_tag(self.body)


async def _modify(call: Call[ModifyRun, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return run_object(await runs.modify(call.ctx, call.project, thread, key, call.body))


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
    async def look() -> list[RunRecord]:
        return await runs.retrieve_many(call.ctx, call.project, ids)

    def enough(seen: list[RunRecord]) -> bool:
        return not seen or any(record.run.status.is_settled for record in seen)

    seconds = wait_seconds(call.header(b"prefer"))
    if seconds is None:
        seen = await look()
    else:
        seen = await call.wait_until(ids, look, enough, seconds)
    headers = {} if seconds is None else {"preference-applied": f"wait={seconds}"}
    if not all(record.run.status.is_terminal for record in seen):
        headers["openai-poll-after-ms"] = POLL_AFTER_MS
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


async def _cancel(call: Call[None, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return run_object(await runs.cancel(call.ctx, call.project, thread, key))


async def _submit(call: Call[SubmitToolOutputs, None]) -> RunObject | EventStream:
    thread, key = call.path["thread_id"], call.path["run_id"]
    outputs = call.body.tool_outputs
    submit = runs.submit_tool_outputs(call.ctx, call.project, thread, key, outputs)
    if not call.body.stream:
        return run_object(await submit)
    # Followed before the outputs are in: the step that they complete is part of the stream.
    follower = call.ctx.live.follow(key)
    try:
        await submit
    except BaseException:
        follower.close()
        raise
    return stream_run(follower)


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
    Route("GET", _ONE, _retrieve, "Retrieve a run"),
    Route("POST", _ONE, _modify, "Modify a run", body=ModifyRun),
    Route("GET", _ALL, _list, "List a thread's runs", query=page_query),
    Route("POST", _ALL, _create, "Create a run", body=CreateRun, query=include_query),
    Route(
        "POST",
        "/v1/threads/runs",
        _create_with_thread,
        "Create a thread and a run on it",
        body=CreateThreadAndRun,
    ),
    Route("GET", "/v1/runs", _find, "Find runs across threads", query=runs_query),
    Route("POST", f"{_ONE}/cancel", _cancel, "Cancel a run"),
    Route(
        "POST",
        f"{_ONE}/submit_tool_outputs",
        _submit,
        "Submit the outputs of a run's tool calls",
        body=SubmitToolOutputs,
    ),
    Route(
        "GET",
        f"{_ONE}/steps",
        _list_steps,
        "List a run's steps",
        query=lambda params: page_query(params, also=("include",)),
    ),
    Route(
        "GET", f"{_ONE}/steps/{{step_id}}", _retrieve_step, "Retrieve a step", query=include_query
    ),
)
