"""Whatever a body holds, it is decoded or refused with a 400, and the reason is a true one."""

import copy
import json
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import inspect

from runbell.errors import RequestRefused
from runbell.service.wire.decode import _problem, decode
from runbell.service.wire.objects import encode
from runbell.service.wire.requests import (
    CreateAssistant,
    CreateMessage,
    CreateRun,
    CreateThread,
    CreateThreadAndRun,
    ModifyRun,
    Request,
    SubmitToolOutputs,
)

MESSAGES: list[dict[str, Any]] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "Hello"},
            {"type": "text", "text": {"value": "Hello"}},
            {"type": "image_url", "image_url": {"url": "https://a.example/1", "detail": "low"}},
        ],
        "attachments": [],
        "metadata": {"k": "v"},
    },
    {"role": "assistant", "content": "Hi"},
]
TOOLS = [
    {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"a": [1.5]}, "strict": True},
    },
    {"type": "code_interpreter"},
    {
        "type": "file_search",
        "file_search": {
            "max_num_results": 3,
            "ranking_options": {"score_threshold": 0.5, "ranker": "auto"},
        },
    },
]
RESOURCES = {
    "code_interpreter": {"file_ids": ["a"]},
    "file_search": {"vector_store_ids": ["b"], "vector_stores": []},
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": False}}
OPTIONS = {
    "assistant_id": "asst_1",
    "model": "echo",
    "instructions": "i",
    "tools": TOOLS,
    "metadata": {"k": "v"},
    "temperature": 1,
    "top_p": 0.5,
    "stream": False,
    "max_prompt_tokens": 256,
    "max_completion_tokens": 1000,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "tool_choice": {"type": "function", "function": {"name": "f"}},
    "parallel_tool_calls": True,
    "response_format": SCHEMA,
    "expires_after": 60,
    "on_active_run": "enqueue",
}
THREAD = {"messages": MESSAGES, "tool_resources": RESOURCES, "metadata": {}}
VALID: dict[type[Request], dict[str, Any]] = {
    CreateAssistant: {
        "id": "asst_1",
        "model": "echo",
        "name": "n",
        "description": "d",
        "instructions": "i",
        "reasoning_effort": "low",
        "tools": TOOLS,
        "tool_resources": RESOURCES,
        "metadata": {"k": "v"},
        "temperature": 0,
        "top_p": 1,
        "response_format": {"type": "text"},
    },
    CreateMessage: MESSAGES[0],
    CreateThread: THREAD,
    CreateRun: {
        **OPTIONS,
        "reasoning_effort": None,
        "additional_instructions": "a",
        "additional_messages": MESSAGES,
    },
    CreateThreadAndRun: {**OPTIONS, "thread": THREAD, "tool_resources": RESOURCES},
    ModifyRun: {"metadata": {"k": "v"}},
    SubmitToolOutputs: {
        "tool_outputs": [{"tool_call_id": "call_1", "output": "4"}],
        "stream": None,
    },
}
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

TYPES = st.sampled_from(list(VALID))

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18, max_value=10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["text", "function", "auto", "user", "last_messages", "x" * 600])
)
NAMES = st.text(max_size=5) | st.sampled_from(["type", "text", "name", "messages", "x", "k" * 70])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def decoded(body: bytes, type_):
    """The request, or None for a refusal; anything else fails the test."""
    refusal: RequestRefused | None = None
    try:
        request = decode(body, type_)
    except RequestRefused as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 400
        assert len(refusal.message) < 1000
        encode([refusal.message, refusal.param])  # it can be sent: no half characters
        return None
    assert isinstance(request, type_)
    encode(request)  # what was accepted can be stored
    return request


@pytest.mark.parametrize("type_", VALID, ids=lambda type_: type_.__name__)
def test_what_the_fuzz_starts_from_is_valid(type_):
    request = decoded(json.dumps(VALID[type_]).encode(), type_)
    assert request is not None
    assert set(VALID[type_]) == set(type_.__struct_fields__)


@FUZZ
@given(st.binary(max_size=200), TYPES)
def test_any_bytes(body, type_):
    decoded(body, type_)


@FUZZ
@given(st.text(alphabet='{}[]":,\\ud83e0019.+-eE truefalsn\n', max_size=60), TYPES)
def test_any_text_that_looks_like_json(text, type_):
    decoded(text.encode(), type_)


@FUZZ
@given(JSON, TYPES)
def test_any_json(value, type_):
    decoded(json.dumps(value).encode(), type_)


@st.composite
def mutated(draw):
    """A valid request of which one place was changed, removed, or added to."""
    type_ = draw(TYPES)
    body = copy.deepcopy(VALID[type_])
    places = list(_places(body))
    holder, key = draw(st.sampled_from(places))
    match draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            holder[key] = draw(JSON)
        case "remove":
            del holder[key]
        case "add" if isinstance(holder, dict):
            holder[draw(NAMES)] = draw(JSON)
        case "add":
            holder.append(draw(JSON))
    return type_, body


def _places(value):
    for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
        yield value, key
        if isinstance(item, dict | list):
            yield from _places(item)


@settings(FUZZ, max_examples=600)
@given(mutated())
def test_the_explanation_agrees_with_the_decoder_on_what_is_wrong(case):
    """What msgspec refuses is explained by our walk; what it takes, the walk takes too."""
    type_, value = case
    body = json.dumps(value).encode()
    decoded(body, type_)
    try:
        msgspec.json.decode(body, type=type_)
    except msgspec.ValidationError:
        valid = False
    else:
        valid = True
    problem = _problem(msgspec.json.decode(body), inspect.type_info(type_), "")
    assert (problem is None) == valid
    if problem is not None:
        with pytest.raises(RequestRefused) as caught:
            decode(body, type_)
        assert caught.value.message == problem.message


@settings(FUZZ, max_examples=300)
@given(mutated(), st.data())
def test_a_valid_request_with_damaged_bytes(case, data):
    type_, value = case
    body = bytearray(json.dumps(value, ensure_ascii=data.draw(st.booleans())).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(body) - 1)))
        body[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=6))
    decoded(bytes(body), type_)
