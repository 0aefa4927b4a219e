"""What Runbell does not have is refused by its name, never silently accepted."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import create_run, messages_of, say, until
from tests.served import Answer, Api

HOSTED = ["file_search", "code_interpreter"]


def refused(answer: Answer, *words: str, param: str | None = None) -> None:
    assert answer.status == 400, answer
    assert answer.error["type"] == "invalid_request_error"
    for word in words:
        assert word in answer.error["message"]
    if param is not None:
        assert str(answer.error["param"]).startswith(param)


@pytest.mark.parametrize("tool", HOSTED)
def test_hosted_tools_stand_on_an_assistant_but_not_on_a_run(
    api: Api, client: OpenAI, tool: str
) -> None:
    """So that exports can be imported; a run that would use them says what to do instead."""
    made = api.post("/v1/assistants", {"model": "echo", "tools": [{"type": tool}]}).ok()
    assert made["tools"] == [{"type": tool}]
    thread_id = say(client, "hello")
    body = {"assistant_id": made["id"]}
    for path in (f"/v1/threads/{thread_id}/runs", "/v1/threads/runs"):
        refused(api.post(path, body), tool, "tools")
    assert client.beta.threads.runs.list(thread_id).data == []
    # A run that brings its own tools does not use the assistant's.
    assert api.post(f"/v1/threads/{thread_id}/runs", {**body, "tools": []}).status == 200


@pytest.mark.parametrize("tool", HOSTED)
def test_hosted_tools_of_a_run_are_refused(
    api: Api, client: OpenAI, echo: Assistant, tool: str
) -> None:
    function = {"type": "function", "function": {"name": "f"}}
    body = {"assistant_id": echo.id, "tools": [function, {"type": tool}]}
    for path in (f"/v1/threads/{say(client, 'hello')}/runs", "/v1/threads/runs"):
        refused(api.post(path, body), tool, param="tools")


def test_a_model_that_nobody_serves_is_refused_with_those_that_are(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    thread_id = say(client, "hello")
    elsewhere = client.beta.assistants.create(model="gpt-nobody-serves")
    for path in (f"/v1/threads/{thread_id}/runs", "/v1/threads/runs"):
        answer = api.post(path, {"assistant_id": elsewhere.id})
        refused(answer, "gpt-nobody-serves", "echo", param="model")
        answer = api.post(path, {"assistant_id": echo.id, "model": "another-one"})
        refused(answer, "another-one", "echo", param="model")
    assert client.beta.threads.runs.list(thread_id).data == []
    # The run's own model is what counts.
    until(client, create_run(client, elsewhere, thread_id, model="echo"), "completed")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        (
            {"attachments": [{"file_id": "file-1", "tools": [{"type": "file_search"}]}]},
            "attachments",
        ),
        ({"attachments": [{"file_id": "file-1", "tools": []}]}, "attachments"),
        ({"content": [{"type": "image_file", "image_file": {"file_id": "file-1"}}]}, "content"),
    ],
    ids=["attachment", "attachment without tools", "image file"],
)
def test_files_of_messages_are_refused(
    api: Api, client: OpenAI, echo: Assistant, part: dict[str, Any], param: str
) -> None:
    """In all four places where a message can stand."""
    message = {"role": "user", "content": "hello", **part}
    thread_id = say(client, "hello")
    thread = f"/v1/threads/{thread_id}"
    refused(api.post(f"{thread}/messages", message), param=param)
    refused(api.post("/v1/threads", {"messages": [message]}), param=f"messages[0].{param}")
    body: dict[str, Any] = {"assistant_id": echo.id}
    refused(
        api.post(f"{thread}/runs", {**body, "additional_messages": [message]}),
        param=f"additional_messages[0].{param}",
    )
    refused(
        api.post("/v1/threads/runs", {**body, "thread": {"messages": [message]}}),
        param=f"thread.messages[0].{param}",
    )
    assert messages_of(client, thread_id) == ["hello"]


def test_no_attachments_are_as_good_as_none(api: Api) -> None:
    message = {"role": "user", "content": "hello", "attachments": []}
    assert api.post("/v1/threads", {"messages": [message]}).status == 200


def test_vector_stores_are_not_made(api: Api, client: OpenAI) -> None:
    """Their ids are kept where they are given; making one would need what Runbell does not have."""
    resources = {"file_search": {"vector_stores": [{"file_ids": ["file-1"]}]}}
    param = "tool_resources"
    body = {"tool_resources": resources}
    refused(api.post("/v1/assistants", {"model": "echo", **body}), "vector", param=param)
    refused(api.post("/v1/threads", body), "vector", param=param)
    thread = client.beta.threads.create()
    refused(api.post(f"/v1/threads/{thread.id}", body), param=param)
    kept = {"file_search": {"vector_store_ids": ["vs_1"]}}
    assert api.post("/v1/threads", {"tool_resources": kept}).ok()["tool_resources"] == kept
