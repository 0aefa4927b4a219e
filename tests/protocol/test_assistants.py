"""Assistants: what is answered, what is kept, own ids, changes and limits."""

from __future__ import annotations

import secrets
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.protocol.scenario import ask, fields, function_tool, until
from tests.served import Answer, Api, Served

EVERYTHING: dict[str, Any] = {
    "model": "gpt-4o",
    "name": "Ada",
    "description": "Answers.",
    "instructions": "Be brief.",
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "get-weather",
                "description": "Weather of a city.",
                "parameters": {
                    "type": "object",
                    "properties": {"city": {"type": "string"}},
                    "required": ["city"],
                },
                "strict": True,
            },
        },
        {"type": "code_interpreter"},
        {"type": "file_search", "file_search": {"max_num_results": 5}},
    ],
    "tool_resources": {
        "code_interpreter": {"file_ids": ["file-1", "file-2"]},
        "file_search": {"vector_store_ids": ["vs_1"]},
    },
    "metadata": {"team": "blue"},
    "temperature": 0.5,
    "top_p": 0.25,
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "description": "An answer.",
            "schema": {"type": "object", "properties": {}},
            "strict": True,
        },
    },
    "reasoning_effort": "low",
}
"""An assistant with every field that its maker can choose."""

DEFAULTS: dict[str, Any] = {
    "name": None,
    "description": None,
    "instructions": None,
    "tools": [],
    "tool_resources": {},
    "metadata": {},
    "temperature": 1.0,
    "top_p": 1.0,
    "response_format": "auto",
    "reasoning_effort": None,
}


def new_id() -> str:
    return f"asst_{secrets.token_hex(12)}"


def chosen(assistant: dict[str, Any]) -> dict[str, Any]:
    """An assistant's fields without those that the service sets."""
    return {k: v for k, v in assistant.items() if k not in ("id", "object", "created_at")}


def test_creation_answers_the_defaults(api: Api) -> None:
    made = api.post("/v1/assistants", {"model": "gpt-4o"}).ok()
    assert chosen(made) == {"model": "gpt-4o", **DEFAULTS}
    assert made["id"].startswith("asst_")


def test_every_field_is_kept(api: Api) -> None:
    made = api.post("/v1/assistants", EVERYTHING).ok()
    assert chosen(made) == EVERYTHING
    assert api.get(f"/v1/assistants/{made['id']}").ok() == made


def test_explicit_nulls_mean_absent_on_creation(api: Api) -> None:
    made = api.post("/v1/assistants", {"model": "gpt-4o", **dict.fromkeys(DEFAULTS)}).ok()
    assert chosen(made) == {"model": "gpt-4o", **DEFAULTS}


def test_a_model_that_nobody_serves_may_stand_on_an_assistant(client: OpenAI) -> None:
    assert client.beta.assistants.create(model="not-served-here").model == "not-served-here"


def test_a_model_is_needed(api: Api) -> None:
    answer = api.post("/v1/assistants", {"name": "Ada"})
    assert (answer.status, answer.error["param"]) == (400, "model")


# Own ids.


def test_an_own_id_is_kept(client: OpenAI) -> None:
    wanted = new_id()
    made = client.beta.assistants.create(model="echo", extra_body={"id": wanted})
    assert made.id == wanted
    assert client.beta.assistants.retrieve(wanted).id == wanted
    assert until(client, ask(client, made, "hello")).assistant_id == wanted


def test_a_taken_id_is_a_conflict_that_the_sdk_does_not_try_again(served: Served) -> None:
    """The stock SDK retries every 409 unless it is told not to."""
    seen: list[Answer] = []
    client = served.client(max_retries=openai.DEFAULT_MAX_RETRIES, watch=seen.append)
    wanted = new_id()
    first = client.beta.assistants.create(model="echo", name="first", extra_body={"id": wanted})
    seen.clear()
    with pytest.raises(openai.ConflictError) as caught:
        client.beta.assistants.create(model="echo", name="second", extra_body={"id": wanted})
    assert len(seen) == 1
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert wanted in caught.value.message
    assert fields(client.beta.assistants.retrieve(wanted)) == fields(first)


def test_the_id_of_a_deleted_assistant_is_free_again(client: OpenAI) -> None:
    wanted = new_id()
    client.beta.assistants.create(model="echo", extra_body={"id": wanted})
    client.beta.assistants.delete(wanted)
    again = client.beta.assistants.create(model="echo", name="again", extra_body={"id": wanted})
    assert (again.id, again.name) == (wanted, "again")


@pytest.mark.parametrize("wrong", ["", "asst_", "asst_a/b", "asst_a b", "thread_1", 7, "asst_é"])
def test_an_own_id_has_to_fit_into_a_path(api: Api, wrong: Any) -> None:
    answer = api.post("/v1/assistants", {"model": "echo", "id": wrong})
    assert (answer.status, answer.error["param"]) == (400, "id")


# Changes.


@pytest.mark.parametrize("name", sorted(EVERYTHING))
def test_a_change_touches_one_field_and_no_other(api: Api, name: str) -> None:
    before = api.post("/v1/assistants", {"model": "echo"}).ok()
    after = api.post(f"/v1/assistants/{before['id']}", {name: EVERYTHING[name]}).ok()
    assert after == {**before, name: EVERYTHING[name]}
    assert api.get(f"/v1/assistants/{before['id']}").ok() == after


def test_a_null_in_a_change_changes_nothing(api: Api) -> None:
    before = api.post("/v1/assistants", EVERYTHING).ok()
    assert api.post(f"/v1/assistants/{before['id']}", dict.fromkeys(EVERYTHING)).ok() == before
    assert api.post(f"/v1/assistants/{before['id']}", {}).ok() == before


def test_a_change_can_empty_what_is_a_collection(api: Api) -> None:
    made = api.post("/v1/assistants", EVERYTHING).ok()
    empty: dict[str, Any] = {"tools": [], "metadata": {}}
    assert api.post(f"/v1/assistants/{made['id']}", empty).ok() == {**made, **empty}


def test_an_id_cannot_be_changed(api: Api) -> None:
    made = api.post("/v1/assistants", {"model": "echo"}).ok()
    answer = api.post(f"/v1/assistants/{made['id']}", {"id": new_id()})
    assert (answer.status, answer.error["code"]) == (400, "unknown_parameter")


def test_a_deleted_assistant_is_gone(api: Api) -> None:
    made = api.post("/v1/assistants", {"model": "echo"}).ok()
    path = f"/v1/assistants/{made['id']}"
    assert api.delete(path).ok() == {
        "id": made["id"],
        "object": "assistant.deleted",
        "deleted": True,
    }
    sentence = f"No assistant found with id '{made['id']}'."
    for answer in (api.get(path), api.post(path, {}), api.delete(path)):
        assert (answer.status, answer.error["message"]) == (404, sentence)


def test_runs_outlive_their_assistant(client: OpenAI) -> None:
    assistant = client.beta.assistants.create(model="echo")
    run = until(client, ask(client, assistant, "hello"))
    client.beta.assistants.delete(assistant.id)
    again = client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
    assert again.assistant_id == assistant.id
    with pytest.raises(openai.NotFoundError, match=rf"No assistant found with id '{assistant.id}'"):
        ask(client, assistant, "hello again")


# Limits.

FITTING: list[dict[str, Any]] = [
    {"name": "n" * 256},
    {"description": "d" * 512},
    {"instructions": "i" * 256_000},
    {"tools": [function_tool(f"f{number}") for number in range(128)]},
    {"tools": [function_tool("f" * 64)]},
    {"temperature": 0},
    {"temperature": 2},
    {"top_p": 0},
    {"top_p": 1},
    {"response_format": {"type": "text"}},
    {"response_format": {"type": "json_object"}},
    {"tool_resources": {"code_interpreter": {"file_ids": [f"file-{n}" for n in range(20)]}}},
]

TOO_MUCH: list[dict[str, Any]] = [
    {"name": "n" * 257},
    {"description": "d" * 513},
    {"instructions": "i" * 256_001},
    {"tools": [function_tool(f"f{number}") for number in range(129)]},
    {"tools": [function_tool("f" * 65)]},
    {"tools": [function_tool("no spaces")]},
    {"tools": [function_tool("")]},
    {"tools": [{"type": "function"}]},
    {"tools": [{"type": "function", "function": {"description": "no name"}}]},
    {"tools": [{"type": "web_search"}]},
    {"tools": {"type": "code_interpreter"}},
    {"temperature": -0.1},
    {"temperature": 2.1},
    {"temperature": "warm"},
    {"top_p": -0.1},
    {"top_p": 1.1},
    {"response_format": "json"},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {}}},
    {"reasoning_effort": "enormous"},
    {"model": 7},
    {"model": ""},
    {"name": ["n"]},
    {"tool_resources": {"code_interpreter": {"file_ids": [f"file-{n}" for n in range(21)]}}},
    {"tool_resources": {"file_search": {"vector_store_ids": ["vs_1", "vs_2"]}}},
]


def short(body: dict[str, Any]) -> str:
    return str(body)[:60]


@pytest.mark.parametrize("body", FITTING, ids=short)
def test_what_just_fits_is_kept(api: Api, body: dict[str, Any]) -> None:
    made = api.post("/v1/assistants", {"model": "echo", **body}).ok()
    assert {name: made[name] for name in body} == {
        # A function's `strict` is the one field that the service may fill in.
        **body,
        **({"tools": made["tools"]} if "tools" in body else {}),
    }
    assert len(made["tools"]) == len(body.get("tools", []))


@pytest.mark.parametrize("body", TOO_MUCH, ids=short)
def test_what_does_not_fit_is_refused_with_its_field(api: Api, body: dict[str, Any]) -> None:
    (name,) = body
    created = api.post("/v1/assistants", {"model": "echo", **body})
    assert created.status == 400
    assert created.error["type"] == "invalid_request_error"
    assert str(created.error["param"]).startswith(name)
    made = api.post("/v1/assistants", {"model": "echo"}).ok()
    changed = api.post(f"/v1/assistants/{made['id']}", body)
    assert changed.status == 400
    assert api.get(f"/v1/assistants/{made['id']}").ok() == made
