"""Routes: messages of a thread."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from runbell.service.operations import threads
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import (
    DeletedObject,
    ListPage,
    MessageObject,
    message_object,
)
from runbell.service.wire.pages import PageQuery, page_of, page_query
from runbell.service.wire.parameters import OF_RUN, PAGING
from runbell.service.wire.requests import CreateMessage, ModifyMessage

__all__ = ["ROUTES"]


async def _create(call: Call[CreateMessage, None]) -> MessageObject:
    thread = call.path["thread_id"]
    return message_object(await threads.add_message(call.ctx, call.project, thread, call.body))


async def _retrieve(call: Call[None, None]) -> MessageObject:
    thread, key = call.path["thread_id"], call.path["message_id"]
    return message_object(await threads.retrieve_message(call.ctx, call.project, thread, key))


async def _modify(call: Call[ModifyMessage, None]) -> MessageObject:
    thread, key = call.path["thread_id"], call.path["message_id"]
    return message_object(
        await threads.modify_message(call.ctx, call.project, thread, key, call.body)
    )


async def _delete(call: Call[None, None]) -> DeletedObject:
    thread, key = call.path["thread_id"], call.path["message_id"]
    await threads.delete_message(call.ctx, call.project, thread, key)
    return DeletedObject(id=key, object="thread.message.deleted")


async def _list(call: Call[None, PageQuery]) -> ListPage[Any]:
    found = await threads.list_messages(
        call.ctx,
        call.project,
        call.path["thread_id"],
        call.query.page,
        run_id=call.query.run_id,
    )
    return page_of(found, message_object, id_of=attrgetter("id"))


_ALL = "/v1/threads/{thread_id}/messages"
_ONE = "/v1/threads/{thread_id}/messages/{message_id}"

ROUTES = (
    Route(
        "GET",
        _ALL,
        _list,
        "List a thread's messages",
        query=lambda params: page_query(params, also=("run_id",)),
        operation="listMessages",
        answer=ListPage[MessageObject],
        parameters=(*PAGING, OF_RUN),
    ),
    Route(
        "POST",
        _ALL,
        _create,
        "Add a message to a thread",
        body=CreateMessage,
        operation="createMessage",
        answer=MessageObject,
        about="A 400 while the thread has an active run.",
    ),
    Route(
        "GET", _ONE, _retrieve, "Retrieve a message", operation="getMessage", answer=MessageObject
    ),
    Route(
        "POST",
        _ONE,
        _modify,
        "Modify a message",
        body=ModifyMessage,
        operation="modifyMessage",
        answer=MessageObject,
    ),
    Route(
        "DELETE", _ONE, _delete, "Delete a message", operation="deleteMessage", answer=DeletedObject
    ),
)
