"""Assistants: made, read, changed and forgotten."""

from __future__ import annotations

import msgspec

from runbell.errors import Conflict, UnknownCursor
from runbell.service.operations import refusals
from runbell.service.operations.context import Context
from runbell.service.wire.requests import (
    AssistantFields,
    CreateAssistant,
    ModifyAssistant,
    tool_resources_document,
)
from runbell.storage import assistants
from runbell.storage.paging import Page
from runbell.storage.records import Assistant, AssistantConfig
from runbell.storage.store import Transaction

__all__ = ["create", "delete", "list_page", "modify", "retrieve"]


async def create(ctx: Context, project: str, request: CreateAssistant) -> Assistant:
    """Make an assistant, under the id that it brings if it brings one."""
    assistant = Assistant(
        project_id=project,
        id=request.id or ctx.new_id("asst"),
        created_at_ms=ctx.clock.now_ms(),
        config=_changed(AssistantConfig(model=request.model), request),
    )
    try:
        await ctx.store.write(lambda tx: assistants.insert(tx, assistant))
    except Conflict:
        raise refusals.id_taken(assistant.id) from None
    return assistant


async def retrieve(ctx: Context, project: str, assistant_id: str) -> Assistant:
    """One assistant."""
    assistant = await ctx.store.read(lambda tx: assistants.get(tx, project, assistant_id))
    if assistant is None:
        raise refusals.not_found("assistant", assistant_id)
    return assistant


async def modify(
    ctx: Context, project: str, assistant_id: str, request: ModifyAssistant
) -> Assistant:
    """Change what the request names; runs that exist keep what they were created with."""

    async def work(tx: Transaction) -> Assistant:
        assistant = await assistants.get(tx, project, assistant_id, to_change=True)
        if assistant is None:
            raise refusals.not_found("assistant", assistant_id)
        config = _changed(assistant.config, request)
        if request.model is not None:
            config = msgspec.structs.replace(config, model=request.model)
        changed = msgspec.structs.replace(assistant, config=config)
        await assistants.update(tx, changed)
        return changed

    return await ctx.store.write(work)


async def delete(ctx: Context, project: str, assistant_id: str) -> None:
    """Forget an assistant. Its runs stay and go on."""
    if not await ctx.store.write(lambda tx: assistants.remove(tx, project, assistant_id)):
        raise refusals.not_found("assistant", assistant_id)


async def list_page(ctx: Context, project: str, page: Page) -> tuple[list[Assistant], bool]:
    """A page of the project's assistants."""
    try:
        return await ctx.store.scan(lambda tx: assistants.page(tx, project, page))
    except UnknownCursor as error:
        raise refusals.unknown_cursor("assistant", error) from None


_PLAIN = (
    "name",
    "description",
    "instructions",
    "reasoning_effort",
    "tools",
    "metadata",
    "temperature",
    "top_p",
    "response_format",
)


def _changed(config: AssistantConfig, request: AssistantFields) -> AssistantConfig:
    given = {name: value for name in _PLAIN if (value := getattr(request, name)) is not None}
    if request.tool_resources is not None:
        given["tool_resources"] = tool_resources_document(request.tool_resources)
    return msgspec.structs.replace(config, **given)
