"""Answers are what the SDK's own types expect, strictly, with every field in place."""

import json

import msgspec
import pytest
from openai.types import Model
from openai.types.beta import Assistant, AssistantDeleted, Thread
from openai.types.beta.threads import Message, Run
from openai.types.beta.threads.runs import RunStep
from pydantic import BaseModel, TypeAdapter

from runbell.errors import RequestRefused
from runbell.service.wire.objects import (
    DeletedObject,
    FunctionCall,
    IncompleteDetails,
    LastErrorObject,
    ModelObject,
    RequiredAction,
    RequiredToolCall,
    RequiredToolCalls,
    RunObject,
    UsageObject,
    assistant_object,
    encode,
    error_body,
    message_object,
    step_object,
    thread_object,
)
from runbell.storage import records

TOOLS = (
    records.FunctionTool(records.FunctionDefinition("get-weather", parameters={"type": "object"})),
    records.FunctionTool(records.FunctionDefinition("now", "The time", None, True)),
    records.CodeInterpreterTool(),
    records.FileSearchTool(),
    records.FileSearchTool(
        records.FileSearchOverrides(5, records.FileSearchRanking(0.5, "auto")),
    ),
)
FORMATS = (
    "auto",
    records.TextFormat(),
    records.JsonObjectFormat(),
    records.JsonSchemaFormat({"name": "answer", "schema": {"type": "object"}, "strict": True}),
)
CHOSEN = {"FunctionDefinition", "FileSearch", "FileSearchTool", "ToolResources", "JSONSchema"}
"""Types whose fields stand in an answer only if the client chose them."""


def as_sdk_sees(answer, model):
    """The answer as the SDK's type, validated strictly; also the JSON itself."""
    body = encode(answer)
    seen = TypeAdapter(model).validate_json(body, strict=True)
    assert_complete(seen)
    return seen, json.loads(body)


def assert_complete(value):
    if isinstance(value, BaseModel):
        if type(value).__name__.removesuffix("Param") not in CHOSEN:
            missing = set(type(value).model_fields) - value.model_fields_set
            assert not missing, f"{type(value).__name__} without {missing}"
        for item in value.__dict__.values():
            assert_complete(item)
    elif isinstance(value, list):
        for item in value:
            assert_complete(item)


@pytest.mark.parametrize("response_format", FORMATS)
def test_assistant(response_format):
    record = records.Assistant(
        "proj_1",
        "asst_1",
        1_700_000_000_999,
        records.AssistantConfig(
            model="echo",
            name="Ada",
            tools=TOOLS,
            tool_resources={"code_interpreter": {"file_ids": ["file-1"]}},
            metadata={"k": "v"},
            temperature=0.0,
            response_format=response_format,
            reasoning_effort="low",
        ),
    )
    seen, document = as_sdk_sees(assistant_object(record), Assistant)
    assert (seen.id, seen.created_at, seen.temperature) == ("asst_1", 1_700_000_000, 0.0)
    assert seen.tool_resources.code_interpreter.file_ids == ["file-1"]
    assert document["reasoning_effort"] == "low"
    assert document["tools"][0] == {
        "type": "function",
        "function": {"name": "get-weather", "parameters": {"type": "object"}},
    }
    assert [tool.type for tool in seen.tools] == [
        "function",
        "function",
        "code_interpreter",
        "file_search",
        "file_search",
    ]


def test_an_assistant_of_which_nothing_was_chosen_has_the_defaults_of_openai():
    record = records.Assistant("proj_1", "asst_1", 1000, records.AssistantConfig(model="echo"))
    _, document = as_sdk_sees(assistant_object(record), Assistant)
    assert document == {
        "id": "asst_1",
        "object": "assistant",
        "created_at": 1,
        "name": None,
        "description": None,
        "model": "echo",
        "instructions": None,
        "tools": [],
        "tool_resources": {},
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
        "response_format": "auto",
        "reasoning_effort": None,
    }


def test_thread():
    record = records.Thread("proj_1", "thread_1", 1999, metadata={"k": "v"})
    _, document = as_sdk_sees(thread_object(record), Thread)
    assert document == {
        "id": "thread_1",
        "object": "thread",
        "created_at": 1,
        "tool_resources": {},
        "metadata": {"k": "v"},
    }


def test_message():
    record = records.Message(
        "proj_1",
        "thread_1",
        "msg_1",
        5000,
        "assistant",
        (
            records.TextPart(records.TextValue("4")),
            records.ImageUrlPart(records.ImageUrl("https://a.example")),
            records.ImageFilePart(records.ImageFile("file-1")),
            records.RefusalPart("No."),
        ),
        completed_at_ms=6500,
        assistant_id="asst_1",
        run_id="run_1",
    )
    seen, document = as_sdk_sees(message_object(record), Message)
    assert seen.content[0].text.value == "4"
    assert document["content"][0] == {"type": "text", "text": {"value": "4", "annotations": []}}
    assert (seen.completed_at, seen.incomplete_at, seen.incomplete_details) == (6, None, None)
    assert document["attachments"] == []


def test_a_message_that_was_cut_off_says_why():
    record = records.Message(
        "proj_1",
        "thread_1",
        "msg_1",
        5000,
        "assistant",
        (),
        status="incomplete",
        incomplete_reason="run_cancelled",
        incomplete_at_ms=7000,
    )
    seen, _ = as_sdk_sees(message_object(record), Message)
    assert seen.incomplete_details.reason == "run_cancelled"
    assert seen.incomplete_at == 7


def step(**values) -> records.RunStep:
    base = {
        "project_id": "proj_1",
        "thread_id": "thread_1",
        "run_id": "run_1",
        "assistant_id": "asst_1",
        "id": "step_1",
        "created_at_ms": 5000,
        "status": "completed",
        "ended_at_ms": 8000,
        "usage": records.StepUsage(completion_tokens=1, prompt_tokens=2, total_tokens=3),
    }
    return records.RunStep(**{**base, **values})


def test_a_step_that_made_a_message():
    seen, _ = as_sdk_sees(step_object(step(message_id="msg_1")), RunStep)
    assert seen.step_details.message_creation.message_id == "msg_1"
    assert (seen.type, seen.usage.total_tokens) == ("message_creation", 3)


def test_a_step_that_calls_tools_has_null_for_outputs_that_are_not_there_yet():
    calls = (
        records.ToolStepCall("call_1", "f", "{}"),
        records.ToolStepCall("call_2", "g", "{}", output=""),
    )
    record = step(tool_calls=calls, status="in_progress", ended_at_ms=None)
    seen, document = as_sdk_sees(step_object(record), RunStep)
    assert seen.type == "tool_calls"
    outputs = [call["function"]["output"] for call in document["step_details"]["tool_calls"]]
    assert outputs == [None, ""]
    assert seen.usage is None


@pytest.mark.parametrize("status", ["completed", "cancelled", "failed", "expired"])
def test_a_step_ended_in_one_way_only(status):
    seen, _ = as_sdk_sees(step_object(step(message_id="msg_1", status=status)), RunStep)
    stamps = {
        "completed": seen.completed_at,
        "cancelled": seen.cancelled_at,
        "failed": seen.failed_at,
        "expired": seen.expired_at,
    }
    assert stamps == {each: 8 if each == status else None for each in stamps}


@pytest.mark.parametrize(
    ("code", "answered"),
    [
        ("server_error", "server_error"),
        ("rate_limit_exceeded", "rate_limit_exceeded"),
        ("invalid_prompt", "server_error"),
    ],
)
def test_a_step_failed_with_a_code_that_steps_know(code, answered):
    record = step(message_id="msg_1", status="failed", error_code=code, error_message="No.")
    seen, _ = as_sdk_sees(step_object(record), RunStep)
    assert (seen.last_error.code, seen.last_error.message) == (answered, "No.")


def test_run():
    run = RunObject(
        id="run_1",
        created_at=1,
        thread_id="thread_1",
        assistant_id="asst_1",
        status="requires_action",
        required_action=RequiredAction(
            submit_tool_outputs=RequiredToolCalls(
                (RequiredToolCall(id="call_1", function=FunctionCall(name="f", arguments="{}")),)
            )
        ),
        last_error=LastErrorObject(code="invalid_prompt", message="No."),
        expires_at=600,
        started_at=None,
        cancelled_at=None,
        failed_at=None,
        completed_at=None,
        incomplete_details=IncompleteDetails("max_prompt_tokens"),
        model="echo",
        instructions="",
        tools=TOOLS,
        metadata={},
        usage=UsageObject(prompt_tokens=1, completion_tokens=2, total_tokens=3),
        temperature=1.0,
        top_p=1.0,
        max_prompt_tokens=None,
        max_completion_tokens=256,
        truncation_strategy=records.TruncationStrategy(type="auto"),
        tool_choice=records.NamedToolChoice("function", records.NamedFunction("f")),
        parallel_tool_calls=True,
        response_format="auto",
        reasoning_effort=None,
        status_reason="It waits for tool outputs.",
        cancelling_at=None,
        incomplete_at=None,
        expired_at=None,
    )
    seen, document = as_sdk_sees(run, Run)
    assert seen.required_action.submit_tool_outputs.tool_calls[0].function.name == "f"
    assert seen.tool_choice.function.name == "f"
    assert document["truncation_strategy"] == {"type": "auto", "last_messages": None}
    assert document["status_reason"] == "It waits for tool outputs."


def test_deleted_objects_and_models():
    as_sdk_sees(DeletedObject(id="asst_1", object="assistant.deleted"), AssistantDeleted)
    as_sdk_sees(ModelObject(id="echo", created=1, owned_by="runbell"), Model)


def test_an_error_has_all_four_fields():
    assert msgspec.to_builtins(error_body(RequestRefused(404, "No.", code="c"))) == {
        "error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": "c"}
    }
