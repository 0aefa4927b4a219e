"""Routes: assistants."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from runbell.service.operations import assistants
from runbell.service.routes.routing import Call, Route
from runbell.service.wire.objects import (
    AssistantObject,
    DeletedObject,
    ListPage,
    assistant_object,
)
from runbell.service.wire.pages import PageQuery, page_of, page_query
from runbell.service.wire.parameters import PAGING
from runbell.service.wire.requests import CreateAssistant, ModifyAssistant

__all__ = ["ROUTES"]


async def _create(call: Call[CreateAssistant, None]) -> AssistantObject:
    return assistant_object(await assistants.create(call.ctx, call.project, call.body))


async def _retrieve(call: Call[None, None]) -> AssistantObject:
    key = call.path["assistant_id"]
    return assistant_object(await assistants.retrieve(call.ctx, call.project, key))


async def _modify(call: Call[ModifyAssistant, None]) -> AssistantObject:
    key = call.path["assistant_id"]
    return assistant_object(await assistants.modify(call.ctx, call.project, key, call.body))


async def _delete(call: Call[None, None]) -> DeletedObject:
    key = call.path["assistant_id"]
    await assistants.delete(call.ctx, call.project, key)
    return DeletedObject(id=key, object="assistant.deleted")


async def _list(call: Call[None, PageQuery]) -> ListPage[Any]:
    found = await assistants.list_page(call.ctx, call.project, call.query.page)
    return page_of(found, assistant_object, id_of=attrgetter("id"))


_ALL = "/v1/assistants"
_ONE = "/v1/assistants/{assistant_id}"

ROUTES = (
    Route(
        "GET",
        _ALL,
        _list,
        "List assistants",
        query=page_query,
        operation="listAssistants",
        answer=ListPage[AssistantObject],
        parameters=PAGING,
    ),
    Route(
        "POST",
        _ALL,
        _create,
        "Create an assistant",
        body=CreateAssistant,
        operation="createAssistant",
        answer=AssistantObject,
        about="An assistant may name any model and any tool; a run that can't use them is a 400.",
    ),
    Route(
        "GET",
        _ONE,
        _retrieve,
        "Retrieve an assistant",
        operation="getAssistant",
        answer=AssistantObject,
    ),
    Route(
        "POST",
        _ONE,
        _modify,
        "Modify an assistant",
        body=ModifyAssistant,
        operation="modifyAssistant",
        answer=AssistantObject,
        about="What is absent or null stays as it is.",
    ),
    Route(
        "DELETE",
        _ONE,
        _delete,
        "Delete an assistant",
        operation="deleteAssistant",
        answer=DeletedObject,
    ),
)
