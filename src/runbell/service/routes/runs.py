"""Routes: runs of a thread, and their steps."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from runbell.service.operations import runs
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import (
    ListPage,
    RunObject,
    RunStepObject,
    run_object,
    step_object,
)
from runbell.service.wire.pages import PageQuery, include_query, page_of, page_query
from runbell.service.wire.requests import (
    CreateRun,
    CreateThreadAndRun,
    ModifyRun,
    SubmitToolOutputs,
)

__all__ = ["ROUTES"]


async def _create(call: Call[CreateRun, Any]) -> RunObject:
    thread = call.path["thread_id"]
    return run_object(await runs.create(call.ctx, call.project, thread, call.body))


async def _create_with_thread(call: Call[CreateThreadAndRun, None]) -> RunObject:
    return run_object(await runs.create_with_thread(call.ctx, call.project, call.body))


async def _retrieve(call: Call[None, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return run_object(await runs.retrieve(call.ctx, call.project, thread, key))


async def _modify(call: Call[ModifyRun, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return run_object(await runs.modify(call.ctx, call.project, thread, key, call.body))


async def _list(call: Call[None, PageQuery]) -> ListPage[Any]:
    thread = call.path["thread_id"]
    found = await runs.list_page(call.ctx, call.project, thread, call.query.page)
    return page_of(found, run_object, id_of=lambda record: record.run.id)


async def _cancel(call: Call[None, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    return run_object(await runs.cancel(call.ctx, call.project, thread, key))


async def _submit(call: Call[SubmitToolOutputs, None]) -> RunObject:
    thread, key = call.path["thread_id"], call.path["run_id"]
    outputs = call.body.tool_outputs
    return run_object(await runs.submit_tool_outputs(call.ctx, call.project, thread, key, outputs))


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
