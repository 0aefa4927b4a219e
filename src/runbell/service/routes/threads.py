"""Routes: threads."""

from __future__ import annotations

from runbell.service.operations import threads
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import DeletedObject, ThreadObject, thread_object
from runbell.service.wire.requests import CreateThread, ModifyThread

__all__ = ["ROUTES"]


async def _create(call: Call[CreateThread, None]) -> ThreadObject:
    return thread_object(await threads.create(call.ctx, call.project, call.body))


async def _retrieve(call: Call[None, None]) -> ThreadObject:
    key = call.path["thread_id"]
    return thread_object(await threads.retrieve(call.ctx, call.project, key))


async def _modify(call: Call[ModifyThread, None]) -> ThreadObject:
    key = call.path["thread_id"]
    return thread_object(await threads.modify(call.ctx, call.project, key, call.body))


async def _delete(call: Call[None, None]) -> DeletedObject:
    key = call.path["thread_id"]
    await threads.delete(call.ctx, call.project, key)
    return DeletedObject(id=key, object="thread.deleted")


_ONE = "/v1/threads/{thread_id}"

ROUTES = (
    Route(
        "POST",
        "/v1/threads",
        _create,
        "Create a thread",
        body=CreateThread,
        operation="createThread",
        answer=ThreadObject,
    ),
    Route("GET", _ONE, _retrieve, "Retrieve a thread", operation="getThread", answer=ThreadObject),
    Route(
        "POST",
        _ONE,
        _modify,
        "Modify a thread",
        body=ModifyThread,
        operation="modifyThread",
        answer=ThreadObject,
    ),
    Route(
        "DELETE",
        _ONE,
        _delete,
        "Delete a thread",
        operation="deleteThread",
        answer=DeletedObject,
        about="Its active run is cancelled first; messages, runs and steps go, events stay.",
    ),
)
