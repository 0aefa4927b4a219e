"""A body becomes a request, or the sentence that says what is wrong with it."""

import json
import time
import typing
from typing import Any

import pytest
from openai.types import beta
from openai.types.beta import thread_create_and_run_params, threads
from openai.types.beta.threads import run_create_params, run_submit_tool_outputs_params

from runbell.errors import RequestRefused
from runbell.service.wire import requests
from runbell.service.wire.decode import MAX_DEPTH, decode
from runbell.service.wire.requests import (
    CreateAssistant,
    CreateMessage,
    CreateRun,
    CreateThread,
    CreateThreadAndRun,
    ModifyAssistant,
    ModifyMessage,
    ModifyRun,
    ModifyThread,
    Request,
    SubmitToolOutputs,
    content_parts,
    tool_resources_document,
)
from runbell.storage import records

RUN = {"assistant_id": "asst_1"}
MESSAGE = {"role": "user", "content": "Hello"}
TOO_LONG = "x" * (requests.MAX_TEXT + 1)


def refused(type_, body) -> RequestRefused:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RequestRefused) as caught:
        decode(data, type_)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def accepted(type_, body):
    return decode(json.dumps(body).encode(), type_)


def function(name, **more):
    return {"type": "function", "function": {"name": name, **more}}


PARAMS_OF_SDK: dict[type[Request], Any] = {
    CreateAssistant: beta.AssistantCreateParams,
    ModifyAssistant: beta.AssistantUpdateParams,
    CreateThread: beta.ThreadCreateParams,
    ModifyThread: beta.ThreadUpdateParams,
    CreateThreadAndRun: thread_create_and_run_params.ThreadCreateAndRunParamsBase,
    CreateMessage: threads.MessageCreateParams,
    ModifyMessage: threads.MessageUpdateParams,
    CreateRun: run_create_params.RunCreateParamsBase,
    ModifyRun: threads.RunUpdateParams,
    SubmitToolOutputs: run_submit_tool_outputs_params.RunSubmitToolOutputsParamsBase,
}
OURS: dict[type[Request], set[str]] = {
    CreateAssistant: {"id"},
    CreateRun: {"expires_after", "on_active_run"},
    CreateThreadAndRun: {"expires_after", "on_active_run"},
}
REQUIRED: dict[type[Request], dict[str, Any]] = {
    CreateAssistant: {"model": "echo"},
    CreateMessage: MESSAGE,
    CreateRun: RUN,
    CreateThreadAndRun: RUN,
    SubmitToolOutputs: {"tool_outputs": []},
}
ELSEWHERE = {"thread_id", "include", "stream"}
"""Path and query; `stream` is not in the SDK's base types."""


@pytest.mark.parametrize("type_", PARAMS_OF_SDK, ids=lambda type_: type_.__name__)
def test_a_request_has_the_fields_that_the_sdk_sends_and_ours(type_):
    sdk = set(typing.get_type_hints(PARAMS_OF_SDK[type_])) - ELSEWHERE
    assert set(type_.__struct_fields__) - {"stream"} == sdk | OURS.get(type_, set())


@pytest.mark.parametrize("type_", PARAMS_OF_SDK, ids=lambda type_: type_.__name__)
def test_null_is_absent_for_every_optional_field(type_):
    required = REQUIRED.get(type_, {})
    nulls = {name: None for name in type_.__struct_fields__ if name not in required}
    request = accepted(type_, {**nulls, **required})
    assert all(getattr(request, name) is None for name in nulls)


def test_null_is_absent_inside_of_tools_formats_and_parts_too():
    run = accepted(
        CreateRun,
        {
            **RUN,
            "tools": [
                function("get-weather", description=None, parameters=None, strict=None),
                {"type": "file_search", "file_search": None},
            ],
            "truncation_strategy": {"type": "auto", "last_messages": None},
            "tool_choice": {"type": "file_search", "function": None},
            "additional_messages": [
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "image_url",
                            "image_url": {"url": "https://a.example", "detail": None},
                        }
                    ],
                    "attachments": None,
                    "metadata": None,
                }
            ],
        },
    )
    assert run.tools == (
        records.FunctionTool(records.FunctionDefinition("get-weather")),
        records.FileSearchTool(),
    )
    assert content_parts(run.additional_messages[0].content) == (
        records.ImageUrlPart(records.ImageUrl("https://a.example", "auto")),
    )


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}"])
def test_an_empty_body_is_an_empty_object(body):
    assert decode(body, CreateThread) == CreateThread()
    assert refused(CreateRun, body).message == "Missing required parameter: 'assistant_id'."


SENTENCES = [
    # (type, body, message, param, code)
    (
        CreateThreadAndRun,
        {**RUN, "thread": {"messages": [{**MESSAGE, "x": 1}]}},
        "Unknown parameter: 'thread.messages[0].x'.",
        "thread.messages[0].x",
        "unknown_parameter",
    ),
    (
        CreateRun,
        {"assistant_id": None},
        "Missing required parameter: 'assistant_id'.",
        "assistant_id",
        "missing_required_parameter",
    ),
    (
        CreateRun,
        {**RUN, "temperature": "hot"},
        "Invalid type for 'temperature': expected a decimal, but got a string instead.",
        "temperature",
        "invalid_type",
    ),
    (
        CreateRun,
        {**RUN, "parallel_tool_calls": 1},
        "Invalid type for 'parallel_tool_calls': expected a boolean, but got an integer instead.",
        "parallel_tool_calls",
        "invalid_type",
    ),
    (
        CreateMessage,
        {**MESSAGE, "content": {}},
        (
            "Invalid type for 'content': expected one of a string or an array, "
            "but got an object instead."
        ),
        "content",
        "invalid_type",
    ),
    (
        CreateRun,
        [],
        "Invalid type for the request body: expected an object, but got an array instead.",
        None,
        "invalid_type",
    ),
    (
        CreateRun,
        {**RUN, "temperature": 2.5},
        (
            "Invalid 'temperature': decimal above maximum value. "
            "Expected a value <= 2, but got 2.5 instead."
        ),
        "temperature",
        "decimal_above_max_value",
    ),
    (
        CreateRun,
        {**RUN, "top_p": -1},
        "Invalid 'top_p': decimal below minimum value. Expected a value >= 0, but got -1 instead.",
        "top_p",
        "decimal_below_min_value",
    ),
    (
        CreateRun,
        {**RUN, "max_prompt_tokens": 255},
        (
            "Invalid 'max_prompt_tokens': integer below minimum value. "
            "Expected a value >= 256, but got 255 instead."
        ),
        "max_prompt_tokens",
        "integer_below_min_value",
    ),
    (
        CreateRun,
        {**RUN, "tools": [{"type": "file_search", "file_search": {"max_num_results": 51}}]},
        (
            "Invalid 'tools[0].file_search.max_num_results': integer above maximum value. "
            "Expected a value <= 50, but got 51 instead."
        ),
        "tools[0].file_search.max_num_results",
        "integer_above_max_value",
    ),
    (
        CreateAssistant,
        {"model": "echo", "name": "n" * 257},
        (
            "Invalid 'name': string too long. Expected a string with maximum length 256, "
            "but got a string with length 257 instead."
        ),
        "name",
        "string_above_max_length",
    ),
    (
        CreateAssistant,
        {"model": ""},
        (
            "Invalid 'model': string too short. Expected a string with minimum length 1, "
            "but got an empty string instead."
        ),
        "model",
        "string_below_min_length",
    ),
    (
        CreateAssistant,
        {"model": "echo", "tools": [{"type": "code_interpreter"}] * 129},
        (
            "Invalid 'tools': array too long. Expected an array with maximum length 128, "
            "but got an array with length 129 instead."
        ),
        "tools",
        "array_above_max_length",
    ),
    (
        CreateMessage,
        {**MESSAGE, "content": []},
        (
            "Invalid 'content': array too short. Expected an array with minimum length 1, "
            "but got an empty array instead."
        ),
        "content",
        "array_below_min_length",
    ),
    (
        CreateMessage,
        {**MESSAGE, "role": "system"},
        "Invalid value: 'system'. Supported values are: 'assistant' and 'user'.",
        "role",
        "invalid_value",
    ),
    (
        CreateMessage,
        {**MESSAGE, "content": [{"type": "audio"}]},
        "Invalid value: 'audio'. Supported values are: 'text', 'image_url', and 'image_file'.",
        "content[0].type",
        "invalid_value",
    ),
    (
        CreateRun,
        {**RUN, "tools": [{"function": {"name": "f"}}]},
        "Missing required parameter: 'tools[0].type'.",
        "tools[0].type",
        "missing_required_parameter",
    ),
    (
        ModifyRun,
        {"metadata": {str(n): "" for n in range(17)}},
        (
            "Invalid 'metadata': too many properties. Expected an object with at most "
            "16 properties, but got an object with 17 properties instead."
        ),
        "metadata",
        "object_above_max_properties",
    ),
    (
        ModifyRun,
        {"metadata": {"k": "v" * 513}},
        (
            "Invalid 'metadata.k': string too long. Expected a string with maximum length 512, "
            "but got a string with length 513 instead."
        ),
        "metadata.k",
        "string_above_max_length",
    ),
    (
        ModifyRun,
        {"metadata": {"k" * 65: "v"}},
        (
            "Invalid 'metadata': key too long. Expected a key with maximum length 64, "
            "but got a key with length 65 instead."
        ),
        "metadata",
        "string_above_max_length",
    ),
    (
        CreateAssistant,
        {"model": "echo", "id": "asst_1\n"},
        (
            "Invalid 'id': string does not match pattern. "
            "Expected a string that matches the pattern '^asst_[A-Za-z0-9_-]{1,64}$'."
        ),
        "id",
        "invalid_value",
    ),
    (
        CreateRun,
        {**RUN, "tools": [function("a"), function("get weather")]},
        (
            "Invalid 'tools[1].function.name': string does not match pattern. "
            "Expected a string that matches the pattern '^[a-zA-Z0-9_-]{1,64}$'."
        ),
        "tools[1].function.name",
        "invalid_value",
    ),
    (
        ModifyAssistant,
        {"tools": [function("a"), function("b"), function("a")]},
        (
            "Invalid 'tools[2].function.name': function names must be unique, "
            "but 'a' stands for two functions."
        ),
        "tools[2].function.name",
        "invalid_value",
    ),
    (
        CreateRun,
        {**RUN, "response_format": {"type": "json_schema", "json_schema": {}}},
        "Missing required parameter: 'response_format.json_schema.name'.",
        "response_format.json_schema.name",
        "missing_required_parameter",
    ),
    (
        CreateAssistant,
        {
            "model": "echo",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": 3}},
        },
        (
            "Invalid type for 'response_format.json_schema.schema': expected an object, "
            "but got an integer instead."
        ),
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    (
        CreateRun,
        {**RUN, "truncation_strategy": {"type": "last_messages"}},
        "Missing required parameter: 'truncation_strategy.last_messages'.",
        "truncation_strategy.last_messages",
        "missing_required_parameter",
    ),
    (
        CreateRun,
        {**RUN, "truncation_strategy": {"last_messages": 3}},
        "Missing required parameter: 'truncation_strategy.type'.",
        "truncation_strategy.type",
        "missing_required_parameter",
    ),
    (
        CreateThreadAndRun,
        {**RUN, "tool_choice": {"type": "function"}},
        "Missing required parameter: 'tool_choice.function'.",
        "tool_choice.function",
        "missing_required_parameter",
    ),
    (
        CreateRun,
        {**RUN, "expires_after": 0},
        (
            "Invalid 'expires_after': decimal below minimum value. "
            "Expected a value >= 0.001, but got 0 instead."
        ),
        "expires_after",
        "decimal_below_min_value",
    ),
    (
        CreateRun,
        {**RUN, "on_active_run": "wait"},
        "Invalid value: 'wait'. Supported values are: 'enqueue' and 'reject'.",
        "on_active_run",
        "invalid_value",
    ),
    (
        SubmitToolOutputs,
        {"tool_outputs": [{"output": "4"}]},
        "Missing required parameter: 'tool_outputs[0].tool_call_id'.",
        "tool_outputs[0].tool_call_id",
        "missing_required_parameter",
    ),
]


@pytest.mark.parametrize(("type_", "body", "message", "param", "code"), SENTENCES)
def test_the_sentence_says_what_is_wrong_and_where(type_, body, message, param, code):
    error = refused(type_, body)
    assert (error.message, error.param, error.code) == (message, param, code)


@pytest.mark.parametrize(
    ("type_", "body", "param"),
    [
        (
            CreateThread,
            {"messages": [MESSAGE, {**MESSAGE, "attachments": [{"file_id": "file-1"}]}]},
            "messages[1].attachments",
        ),
        (
            CreateRun,
            {
                **RUN,
                "additional_messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_file", "image_file": {"file_id": "file-1"}}],
                    }
                ],
            },
            "additional_messages[0].content[0].image_file",
        ),
        (
            CreateThreadAndRun,
            {**RUN, "thread": {"tool_resources": {"file_search": {"vector_stores": [{}]}}}},
            "thread.tool_resources.file_search.vector_stores",
        ),
        (
            ModifyAssistant,
            {"tool_resources": {"file_search": {"vector_stores": [{}]}}},
            "tool_resources.file_search.vector_stores",
        ),
    ],
)
def test_what_runbell_does_not_have_is_refused_by_name(type_, body, param):
    error = refused(type_, body)
    assert error.message.startswith(f"Unsupported parameter: '{param}'. ")
    assert (error.param, error.code) == (param, "unsupported_parameter")


def test_a_part_takes_text_in_the_shape_of_a_request_and_of_an_answer():
    message = accepted(
        CreateMessage,
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "one"},
                {"type": "text", "text": {"value": "two", "annotations": []}},
            ],
        },
    )
    assert content_parts(message.content) == (
        records.TextPart(records.TextValue("one")),
        records.TextPart(records.TextValue("two")),
    )
    assert content_parts("three") == (records.TextPart(records.TextValue("three")),)


@pytest.mark.parametrize(
    "url", ["", "a picture", "/a.png", "https:", "https: //a.example", "a:\x1f", "a:\x85", "a:\xa0"]
)
def test_an_image_needs_a_url(url):
    content = [{"type": "image_url", "image_url": {"url": url}}]
    assert refused(CreateMessage, {**MESSAGE, "content": content}).param == (
        "content[0].image_url.url"
    )


def test_objects_that_the_api_leaves_open_take_more_than_is_known():
    run = accepted(CreateRun, {**RUN, "tools": [{**function("f"), "cache_control": {"a": 1}}]})
    assert run.tools == (records.FunctionTool(records.FunctionDefinition("f")),)


def test_a_response_schema_keeps_its_whole_document():
    document = {"name": "n", "strict": None, "schema": {"type": "object"}, "x-ours": [1, None]}
    run = accepted(
        CreateRun, {**RUN, "response_format": {"type": "json_schema", "json_schema": document}}
    )
    assert run.response_format == records.JsonSchemaFormat(document)


def test_tool_resources_keep_what_was_given_and_are_always_an_object():
    given = {"code_interpreter": {"file_ids": ["f"]}, "file_search": {"vector_store_ids": []}}
    thread = accepted(CreateThread, {"tool_resources": given})
    assert tool_resources_document(thread.tool_resources) == given
    assert tool_resources_document(None) == {}


def test_limits_are_the_last_value_that_is_taken():
    run = accepted(
        CreateRun,
        {
            **RUN,
            "temperature": 2,
            "top_p": 1.0,
            "max_completion_tokens": 256,
            "expires_after": 30 * 86_400,
            "instructions": "é" * requests.MAX_TEXT,
            "tools": [function(f"{n}_".ljust(64, "x")) for n in range(128)],
            "metadata": {f"{n}".ljust(64, "k"): "v" * 512 for n in range(16)},
        },
    )
    assert run.expires_after == 30 * 86_400
    assert len(run.tools) == 128


@pytest.mark.parametrize(
    ("type_", "body", "param"),
    [
        (CreateMessage, {"role": "user", "content": TOO_LONG}, "content"),
        (
            CreateMessage,
            {"role": "user", "content": [{"type": "text", "text": TOO_LONG}]},
            "content[0].text",
        ),
        (CreateRun, {**RUN, "additional_instructions": TOO_LONG}, "additional_instructions"),
        (ModifyAssistant, {"instructions": TOO_LONG}, "instructions"),
    ],
)
def test_texts_have_a_limit_wherever_they_stand(type_, body, param):
    error = refused(type_, body)
    assert (error.param, error.code) == (param, "string_above_max_length")


# Bodies that are not JSON.


def bracketed(depth: int) -> bytes:
    """A message whose deepest array is on level `depth` of the body, under an ignored field."""
    inner = b"[" * (depth - 3) + b"]" * (depth - 3)
    part = b'{"type":"text","text":"","x":' + inner + b"}"
    return b'{"role":"user","content":[' + part + b"]}"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"metadata": {', "it ends too early (byte 14)"),
        (b"{} {}", "trailing characters (byte 4)"),
        (b'{"metadata": NaN}', "invalid character (byte 13)"),
        (b'{"x": 1, }', "trailing comma in object (byte 9)"),
        (b'{"metadata": {"k": "\xff"}}', "it is not UTF-8 (byte 20)"),
        (b'{"metadata": {"k": "\xed\xa0\x80"}}', "it is not UTF-8 (byte 20)"),
        (rb'{"metadata": {"k": "\ud83d"}}', "a string holds half of a surrogate pair"),
        (rb'{"metadata": {"k": "\ude00"}}', "a string holds half of a surrogate pair"),
        (rb'{"metadata": {"\ud83d\ude00": "\\ud83d', "it ends too early (byte 38)"),
        (b'{"x": 1e999}', "a number is out of range"),
        (b'{"x": ' + b"9" * 5000 + b"}", "a number is out of range"),
        (bracketed(MAX_DEPTH + 1), "it is nested more than 100 levels deep"),
        (b"[" * 200_000, "it is nested more than 100 levels deep"),
        (b'{"x":' * 200_000, "it is nested more than 100 levels deep"),
        (b'"' + b"[" * 200_000, "it ends too early (byte 200001)"),
    ],
)
def test_a_body_that_cannot_be_read_is_a_400_that_says_why_and_repeats_nothing(body, reason):
    error = refused(ModifyRun, body)
    assert error.message == f"We could not parse the JSON body of your request: {reason}."


def test_whole_emojis_are_taken_also_in_escapes():
    assert decode(rb'{"metadata": {"k": "\ud83d\ude00 \\ud83d"}}', ModifyRun).metadata == {
        "k": "😀 \\ud83d"
    }


def test_as_many_levels_as_allowed_are_read_and_brackets_in_strings_are_none():
    assert decode(bracketed(MAX_DEPTH), CreateMessage).role == "user"
    text = '[{"\\' * 10_000
    assert accepted(CreateMessage, {**MESSAGE, "content": text}).content == text


@pytest.mark.parametrize(
    "body",
    [
        b'{"x":' + b"[" * 2_000_000,
        b'"' * 2_000_000,
        b'["[",' * 400_000,
        rb'{"x":"' + rb"[\"" * 700_000,
    ],
)
def test_a_hostile_body_costs_time_in_proportion_to_its_size(body):
    start = time.process_time()
    refused(CreateRun, body)
    assert time.process_time() - start < 2  # a quadratic scan would take minutes


def test_a_number_out_of_range_is_named_where_its_place_is_known():
    error = refused(CreateRun, b'{"assistant_id": "a", "temperature": 1e999}')
    assert error.message == "Invalid 'temperature': number out of range."
    assert error.param == "temperature"


def test_of_a_field_that_stands_twice_the_wrong_one_is_refused():
    error = refused(CreateMessage, b'{"role": 1, "role": "user", "content": "x"}')
    assert error.param == "role"


def test_names_that_look_like_the_decoder_s_own_words_change_nothing():
    name = "x out of range - at `$" + "y" * 10_000
    assert refused(ModifyRun, {name: 1}).code == "unknown_parameter"


def test_an_answer_repeats_only_the_beginning_of_a_long_name_or_value():
    for body in ({"x" * 10_000: 1}, {"metadata": {"y" * 60: {}}, "z" * 10_000: 1}):
        assert len(refused(ModifyRun, body).message) < 300
    assert len(refused(CreateMessage, {**MESSAGE, "role": "r" * 10_000}).message) < 300
    assert len(refused(CreateRun, {**RUN, "max_prompt_tokens": 10**4000}).message) < 300


@pytest.mark.parametrize("written", ["256", "256.0", "2.56e2"])
def test_an_integer_may_be_written_as_a_decimal(written):
    """JSON has one kind of number; a fraction is what makes it no integer."""
    body = f'{{"assistant_id": "asst_1", "max_prompt_tokens": {written}}}'.encode()
    request = decode(body, CreateRun)
    assert request.max_prompt_tokens == 256
    assert type(request.max_prompt_tokens) is int


@pytest.mark.parametrize("written", ["256.5", "1e400", "2e2", '"256.0"', "[256.0]"])
def test_what_is_no_integer_of_the_range_is_refused(written):
    body = f'{{"assistant_id": "asst_1", "max_prompt_tokens": {written}}}'.encode()
    assert refused(CreateRun, body).param in ("max_prompt_tokens", None)
