"""What an answer has to look like: the SDK's own types, read strictly, and nothing left out.

`inspect` takes any answer of the service, `inspect_streamed` any event of a stream. An object must
be of its SDK type without any conversion; every field that the type knows must stand in the JSON,
null where there is nothing; and there must be no field that neither the type nor Runbell's own
additions know.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]
from openai.types import ErrorObject, Model
from openai.types.beta import (
    Assistant,
    AssistantDeleted,
    AssistantStreamEvent,
    AssistantToolChoice,
    FileSearchTool,
    Thread,
    ThreadDeleted,
)
from openai.types.beta.assistant import ToolResources as AssistantResources
from openai.types.beta.assistant import ToolResourcesCodeInterpreter as AssistantCodeResources
from openai.types.beta.assistant import ToolResourcesFileSearch as AssistantSearchResources
from openai.types.beta.assistant_stream_event import ThreadCreated
from openai.types.beta.file_search_tool import FileSearch
from openai.types.beta.thread import ToolResources as ThreadResources
from openai.types.beta.thread import ToolResourcesCodeInterpreter as ThreadCodeResources
from openai.types.beta.thread import ToolResourcesFileSearch as ThreadSearchResources
from openai.types.beta.threads import Message, MessageDeleted, Run
from openai.types.beta.threads.runs import FunctionToolCallDelta, RunStep
from openai.types.beta.threads.runs.function_tool_call_delta import Function as FunctionDelta
from openai.types.shared import FunctionDefinition
from openai.types.shared.response_format_json_schema import JSONSchema
from openai.types.webhooks import (
    DeletedWebhookEndpoint,
    WebhookEndpoint,
    WebhookEndpointTestResult,
    WebhookEndpointWithSecret,
)
from pydantic import BaseModel, TypeAdapter

from tests.served import Answer

__all__ = ["EVENT_DATA", "EVENT_SCHEMA", "STAMPS", "inspect", "inspect_streamed"]

OBJECTS: dict[str, type[BaseModel]] = {
    "assistant": Assistant,
    "assistant.deleted": AssistantDeleted,
    "model": Model,
    "thread": Thread,
    "thread.deleted": ThreadDeleted,
    "thread.message": Message,
    "thread.message.deleted": MessageDeleted,
    "thread.run": Run,
    "thread.run.step": RunStep,
    "webhook_endpoint": WebhookEndpoint,
    "webhook_endpoint.deleted": DeletedWebhookEndpoint,
    "webhook_endpoint.test": WebhookEndpointTestResult,
}
"""The SDK's type for each value of `object`."""

OUR_OBJECTS = frozenset({"webhook_endpoint.delivery", "webhook_endpoint.recovery"})
"""No SDK has types for these."""

_OF_ENDPOINTS = frozenset(
    {
        *("enabled", "disabled_reason", "failing_since", "rate_limit"),
        *("filters", "headers", "metadata"),
    }
)

OURS: dict[type[BaseModel], frozenset[str]] = {
    WebhookEndpoint: _OF_ENDPOINTS,
    WebhookEndpointWithSecret: _OF_ENDPOINTS,
    Assistant: frozenset({"reasoning_effort"}),
    Run: frozenset(
        {"reasoning_effort", "status_reason", "cancelling_at", "incomplete_at", "expired_at"}
    ),
}
"""Fields that Runbell adds; they stand in every answer too."""

OPTIONAL: dict[type[BaseModel], frozenset[str]] = {
    # What the maker of an object may leave out stays left out.
    AssistantCodeResources: frozenset({"file_ids"}),
    AssistantResources: frozenset({"code_interpreter", "file_search"}),
    AssistantSearchResources: frozenset({"vector_store_ids"}),
    AssistantToolChoice: frozenset({"function"}),
    FileSearch: frozenset({"max_num_results", "ranking_options"}),
    FileSearchTool: frozenset({"file_search"}),
    FunctionDefinition: frozenset({"description", "parameters", "strict"}),
    JSONSchema: frozenset({"description", "schema", "strict"}),
    ThreadCodeResources: frozenset({"file_ids"}),
    ThreadResources: frozenset({"code_interpreter", "file_search"}),
    ThreadSearchResources: frozenset({"vector_store_ids"}),
    # Of newer SDKs, for announced shutdowns; OpenAI leaves it out elsewhere.
    Model: frozenset({"shutdown_date"}),
    # A call's id and name come with the first of its deltas.
    FunctionDelta: frozenset({"name", "output"}),
    FunctionToolCallDelta: frozenset({"id"}),
    # Of another API.
    ThreadCreated: frozenset({"enabled"}),
    # Of newer SDKs, for another API.
    ErrorObject: frozenset({"misalignment"}),
}
"""Fields that an object may lack. Everything else is in every answer."""

STAMPS = (
    "created_at",
    "expires_at",
    "started_at",
    "cancelling_at",
    "cancelled_at",
    "failed_at",
    "completed_at",
    "incomplete_at",
    "expired_at",
    "updated_at",
)

EVENT_DATA = frozenset(
    {
        "id",
        "object",
        "thread_id",
        "assistant_id",
        "status",
        "sequence",
        "required_action",
        "last_error",
        "incomplete_details",
        "status_reason",
        "usage",
        "metadata",
        *STAMPS,
        *(f"{stamp}_ms" for stamp in STAMPS),
    }
)
"""What the `data` of an event holds, unless it was too large."""

LARGE_PARTS = frozenset({"required_action", "metadata"})

EVENT_SCHEMA = Path(__file__).parents[2] / "docs" / "event.schema.json"

TERMINAL = {"completed": "completed_at", "failed": "failed_at", "cancelled": "cancelled_at"} | {
    "expired": "expired_at",
    "incomplete": "incomplete_at",
}
"""The stamp that belongs to each terminal status."""

NO_JSON = ("/", "/docs", "/healthz", "/readyz")


def inspect(answer: Answer) -> None:
    """Assert that an answer is one that the protocol knows."""
    assert answer.headers.get("x-request-id"), answer
    # Milliseconds; OpenAI's are whole.
    assert re.fullmatch(r"\d+", answer.headers.get("openai-processing-ms", "")), answer.headers
    if answer.path.partition("?")[0] in NO_JSON and answer.status < 400:
        return
    if answer.status == 304:
        assert answer.headers["etag"], answer.headers
        assert not answer.body
        assert not {"content-type", "content-length", "transfer-encoding"} & set(answer.headers)
        return
    assert answer.headers["content-type"].partition(";")[0] == "application/json", answer.headers
    body = answer.json()
    if answer.status >= 400:
        _inspect_error(body)
    else:
        assert answer.status == 200, answer
        _inspect_object(body)


def inspect_streamed(event: str, data: Any) -> None:
    """Assert that an event of a stream is one that the protocol knows."""
    models = {get_args(m.model_fields["event"].annotation)[0]: m for m in _STREAMED}
    _matches(models[event], {"event": event, "data": data})
    rule = _RULES.get(data["object"])
    if rule is not None:
        rule(data)


_STREAMED: tuple[type[BaseModel], ...] = get_args(get_args(AssistantStreamEvent)[0])


def _inspect_error(body: Any) -> None:
    assert set(body) == {"error"}, body
    error = body["error"]
    _matches(ErrorObject, error)
    assert error["message"], body
    assert "Traceback" not in error["message"], body


def _inspect_object(body: Any) -> None:
    kind = body["object"]
    if kind == "list":
        _inspect_list(body)
    elif kind == "event":
        _inspect_event(body)
    elif "signing_secret" in body:
        _matches(WebhookEndpointWithSecret, body)
    elif kind not in OUR_OBJECTS:
        _matches(OBJECTS[kind], body)
        rule = _RULES.get(kind)
        if rule is not None:
            rule(body)


def _inspect_list(body: Any) -> None:
    assert isinstance(body["data"], list)
    known = {"object", "data", "first_id", "last_id", "has_more", "missing"}
    assert {"object", "data"} <= set(body) <= known
    data = body["data"]
    if data and isinstance(data[0], str):
        # OpenAI's list of event types, which is no page either.
        assert set(body) == {"object", "data"}
        return
    ids = [item["id"] for item in data]
    assert len(set(ids)) == len(ids), "an object stands twice in a page"
    # OpenAI's list of models is no page; every other list is.
    if not data or data[0]["object"] != "model":
        assert isinstance(body["has_more"], bool), body
        assert body["first_id"] == (ids[0] if ids else None), body
        assert body["last_id"] == (ids[-1] if ids else None), body
    for item in data:
        _inspect_object(item)


@cache
def _adapter(model: type[BaseModel]) -> TypeAdapter[Any]:
    return TypeAdapter(model)


def _matches(model: type[BaseModel], raw: Any) -> None:
    parsed = _adapter(model).validate_json(json.dumps(raw), strict=True)
    _complete(parsed, raw, model.__name__)


def _complete(parsed: Any, raw: Any, place: str) -> None:
    """Compare a parsed value with its JSON: every known field is there, and no unknown one."""
    if isinstance(parsed, list):
        for index, (item, raw_item) in enumerate(zip(parsed, raw, strict=True)):
            _complete(item, raw_item, f"{place}[{index}]")
    if not isinstance(parsed, BaseModel):
        return
    model = type(parsed)
    ours = OURS.get(model, frozenset())
    for name, field in model.model_fields.items():
        wire_name = field.alias or name
        assert wire_name in raw or wire_name in OPTIONAL.get(model, ()), f"{place}.{wire_name}"
        if wire_name in raw:
            _complete(getattr(parsed, name), raw[wire_name], f"{place}.{wire_name}")
    missing = ours - set(raw)
    assert not missing, f"{place} lacks {missing}"
    unknown = set(parsed.model_extra or ()) - ours
    assert not unknown, f"{place} has {unknown}"


# What the types do not say.


def _assistant_rule(body: Any) -> None:
    assert isinstance(body["tool_resources"], dict), body
    assert isinstance(body["metadata"], dict), body
    assert isinstance(body["temperature"], float | int), body
    assert isinstance(body["top_p"], float | int), body
    assert body["response_format"] is not None, body


def _thread_rule(body: Any) -> None:
    assert isinstance(body["tool_resources"], dict), body
    assert isinstance(body["metadata"], dict), body


def _message_rule(body: Any) -> None:
    assert isinstance(body["metadata"], dict), body
    assert isinstance(body["attachments"], list), body
    assert (body["status"] == "incomplete") == (body["incomplete_details"] is not None), body
    assert (body["status"] == "incomplete") == (body["incomplete_at"] is not None), body


def _run_rule(body: Any) -> None:
    assert isinstance(body["metadata"], dict), body
    assert body["expires_at"] is not None, body
    for name in ("tool_choice", "truncation_strategy", "response_format", "temperature", "top_p"):
        assert body[name] is not None, f"a run's {name} is null"
    _status_rule(body)


def _status_rule(body: Any) -> None:
    """What a run's status says about its other fields; an event's data follow it as well."""
    status = body["status"]
    terminal = status in TERMINAL
    assert (body["status_reason"] is not None) == terminal, body
    assert (body["usage"] is not None) == terminal, body
    assert (body["last_error"] is not None) == (status == "failed"), body
    assert (body["incomplete_details"] is not None) == (status == "incomplete"), body
    if "required_action" in body:
        assert (body["required_action"] is not None) == (status == "requires_action"), body
    for name, stamp in TERMINAL.items():
        assert (body[stamp] is not None) == (status == name), f"{stamp} of a run that is {status}"
    if status in ("in_progress", "requires_action", "completed", "incomplete", "cancelling"):
        assert body["started_at"] is not None, body
    if status == "cancelling":
        assert body["cancelling_at"] is not None, body
    usage = body["usage"]
    if usage is not None:
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"], body
    stamps = [body[name] for name in STAMPS if body.get(name) is not None]
    assert all(stamp >= body["created_at"] for stamp in stamps), body


def _step_rule(body: Any) -> None:
    status = body["status"]
    assert body["type"] == body["step_details"]["type"], body
    for name in ("completed", "failed", "cancelled", "expired"):
        assert (body[f"{name}_at"] is not None) == (status == name), body
    assert (body["last_error"] is not None) == (status == "failed"), body
    assert body["usage"] is None or status != "in_progress", body


_RULES: dict[str, Callable[[Any], None]] = {
    "assistant": _assistant_rule,
    "thread": _thread_rule,
    "thread.message": _message_rule,
    "thread.run": _run_rule,
    "thread.run.step": _step_rule,
}


def _inspect_event(body: Any) -> None:
    assert list(body)[:2] == ["object", "id"], body
    assert set(body) == {"object", "id", "type", "created_at", "data"}, body
    assert body["id"].startswith("evt_"), body
    data = body["data"]
    left_out = EVENT_DATA - set(data)
    if data.get("truncated") is True:
        assert left_out, body
        assert left_out <= LARGE_PARTS, body
        assert set(data) - EVENT_DATA == {"truncated"}, body
    else:
        assert not left_out, body
        assert set(data) == EVENT_DATA, body
    assert data["object"] == "thread.run", body
    expected = "created" if data["sequence"] == 1 else data["status"]
    assert body["type"] == f"thread.run.{expected}", body
    assert body["created_at"] == data["updated_at"], body
    for stamp in STAMPS:
        in_ms = data[f"{stamp}_ms"]
        assert data[stamp] == (None if in_ms is None else in_ms // 1000), body
    _status_rule(data)
    if EVENT_SCHEMA.exists():
        _event_validator().validate(body)


@cache
def _event_validator() -> Any:
    schema = json.loads(EVENT_SCHEMA.read_text())
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    return validator(schema)
