"""Runs: what is answered at creation, what every status carries, what a run may override."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant
from sqlalchemy import bindparam, update

from runbell.storage import schema
from runbell.storage.statements import Statement
from runbell.testing.embedded import embedded
from tests.protocol.scenario import (
    answer_of,
    ask,
    create_run,
    fields,
    function_tool,
    messages_of,
    occupied,
    say,
    until,
)
from tests.served import Api, Served
from tests.web import Web

DEFAULTS: dict[str, Any] = {
    "instructions": "",
    "tools": [],
    "metadata": {},
    "temperature": 1.0,
    "top_p": 1.0,
    "max_prompt_tokens": None,
    "max_completion_tokens": None,
    "truncation_strategy": {"type": "auto", "last_messages": None},
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": "auto",
    "reasoning_effort": None,
}

CHOSEN: dict[str, Any] = {
    "instructions": "Be brief.",
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "look-up",
                "description": "Looks something up.",
                "parameters": {"type": "object", "properties": {}},
                "strict": False,
            },
        }
    ],
    "metadata": {"k": "v"},
    "temperature": 0.5,
    "top_p": 0.25,
    "max_prompt_tokens": 256,
    "max_completion_tokens": 512,
    "truncation_strategy": {"type": "last_messages", "last_messages": 3},
    "tool_choice": {"type": "function", "function": {"name": "look-up"}},
    "parallel_tool_calls": False,
    "response_format": {"type": "json_object"},
    "reasoning_effort": "high",
}
"""A run with every field that whoever creates it can choose, but the model."""

UNTIL_THEN_NULL = (
    "required_action",
    "last_error",
    "started_at",
    "cancelling_at",
    "cancelled_at",
    "failed_at",
    "completed_at",
    "incomplete_at",
    "expired_at",
    "incomplete_details",
    "status_reason",
    "usage",
)


def bare(client: OpenAI) -> Assistant:
    return client.beta.assistants.create(model="echo")


# Creation.


def test_a_new_run_is_queued_in_the_answer_to_its_creation(client: OpenAI, echo: Assistant) -> None:
    """Always: however fast it is executed, its creator sees the first status of its life."""
    for _ in range(20):
        assert ask(client, echo, "hello").status == "queued"


def test_creation_answers_the_defaults(api: Api, client: OpenAI) -> None:
    assistant, thread_id = bare(client), say(client, "hello")
    made = api.post(f"/v1/threads/{thread_id}/runs", {"assistant_id": assistant.id}).ok()
    assert made["id"].startswith("run_")
    assert (made["thread_id"], made["assistant_id"]) == (thread_id, assistant.id)
    assert made["model"] == "echo"
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS
    assert {name: made[name] for name in UNTIL_THEN_NULL} == dict.fromkeys(UNTIL_THEN_NULL)
    assert made["expires_at"] - made["created_at"] == 600


def test_every_choice_is_kept(api: Api, client: OpenAI) -> None:
    body = {"assistant_id": bare(client).id, "model": "echo", **CHOSEN}
    made = api.post(f"/v1/threads/{say(client, 'hello')}/runs", body).ok()
    assert {name: made[name] for name in CHOSEN} == CHOSEN
    nested = {name: value for name, value in body.items() if name != "reasoning_effort"}
    made = api.post("/v1/threads/runs", nested).ok()
    assert {name: made[name] for name in CHOSEN} == {**CHOSEN, "reasoning_effort": None}


def test_what_a_run_does_not_choose_it_has_from_its_assistant(client: OpenAI) -> None:
    names = ("instructions", "tools", "temperature", "top_p", "response_format", "reasoning_effort")
    theirs: dict[str, Any] = {name: CHOSEN[name] for name in names}
    assistant = client.beta.assistants.create(model="echo", metadata={"of": "it"}, **theirs)
    made = fields(ask(client, assistant, "hello"))
    assert {name: made[name] for name in names} == theirs
    assert made["metadata"] == {}


def test_explicit_nulls_mean_absent(api: Api, client: OpenAI) -> None:
    """As the null of every optional field is sent by real clients."""
    assistant = bare(client)
    names = [*DEFAULTS, "model", "additional_instructions", "additional_messages", "stream"]
    ours = ["expires_after", "on_active_run"]
    body = {"assistant_id": assistant.id, **dict.fromkeys([*names, *ours])}
    made = api.post(f"/v1/threads/{say(client, 'hello')}/runs", body).ok()
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS
    assert (made["model"], made["expires_at"]) == ("echo", made["created_at"] + 600)
    for name in ("additional_instructions", "additional_messages", "reasoning_effort"):
        del body[name]
    body |= {"thread": None, "tool_resources": None}
    made = api.post("/v1/threads/runs", body).ok()
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("name", [*DEFAULTS, "model", "additional_instructions", "stream"])
def test_one_explicit_null_means_absent(api: Api, client: OpenAI, name: str) -> None:
    body = {"assistant_id": bare(client).id, name: None}
    made = api.post(f"/v1/threads/{say(client, 'hello')}/runs", body).ok()
    assert {name: made[name] for name in DEFAULTS} == DEFAULTS


def test_additional_instructions_come_behind_the_others(client: OpenAI) -> None:
    assistant = client.beta.assistants.create(model="echo", instructions="First.")
    run = ask(client, assistant, "hello", additional_instructions="Then.")
    assert run.instructions.startswith("First.")
    assert run.instructions.endswith("Then.")
    run = ask(client, assistant, "hello", instructions="Other.", additional_instructions="Then.")
    assert "First." not in run.instructions
    assert run.instructions.startswith("Other.")
    assert run.instructions.endswith("Then.")
    assert (
        ask(client, bare(client), "hello", additional_instructions="Then.").instructions == "Then."
    )


def test_additional_messages_come_before_the_run(client: OpenAI, echo: Assistant) -> None:
    more: Any = [
        {"role": "assistant", "content": "two", "metadata": {"n": "2"}},
        {"role": "user", "content": "three", "attachments": None, "metadata": None},
    ]
    run = ask(client, echo, "one", additional_messages=more)
    until(client, run, "completed")
    assert messages_of(client, run.thread_id) == ["one", "two", "three", "three"]


def test_a_run_of_its_own_thread(client: OpenAI, echo: Assistant) -> None:
    """`POST /threads/runs` without a thread makes an empty one; the model answers all the same."""
    run = until(client, client.beta.threads.create_and_run(assistant_id=echo.id))
    assert run.status == "completed"


def test_a_thread_that_comes_with_its_run_keeps_what_it_was_given(
    api: Api, echo: Assistant
) -> None:
    body = {
        "assistant_id": echo.id,
        "thread": {"metadata": {"k": "v"}, "messages": [{"role": "user", "content": "hello"}]},
        "tool_resources": {"code_interpreter": {"file_ids": ["file-1"]}},
    }
    run = api.post("/v1/threads/runs", body).ok()
    thread = api.get(f"/v1/threads/{run['thread_id']}").ok()
    assert thread["metadata"] == {"k": "v"}
    assert thread["tool_resources"] == {"code_interpreter": {"file_ids": ["file-1"]}}


def test_nothing_is_left_of_a_thread_whose_run_was_refused(project_api: Api) -> None:
    """The thread, its messages and the run are one change; without the run there is no event."""
    assistant = project_api.post("/v1/assistants", {"model": "nobody-serves-this"}).ok()
    refused = project_api.post("/v1/threads/runs", {"assistant_id": assistant["id"], "thread": {}})
    assert refused.status == 400
    assert project_api.get("/v1/events").ok()["data"] == []


@pytest.fixture
def project_api(project: Any) -> Api:
    api: Api = project.api
    return api


# Ends.


def test_a_completed_run(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "What is 2+2?", instructions="Be very brief."))
    assert run.status == "completed"
    assert answer_of(client, run) == "What is 2+2?"
    assert run.usage is not None
    # Echo's tokens are words.
    assert (run.usage.completion_tokens, run.usage.prompt_tokens) == (3, 6)
    assert run.usage.total_tokens == 9
    assert run.created_at <= run.started_at <= run.completed_at <= run.expires_at  # type: ignore[operator]
    assert fields(run)["status_reason"]


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("fail server_error it broke", "server_error", "it broke"),
        ("fail rate_limit_exceeded slow down", "rate_limit_exceeded", "slow down"),
        ("fail invalid_prompt not that", "invalid_prompt", "not that"),
        ("fail whatever it broke", "server_error", "it broke"),
    ],
)
def test_a_failed_run(client: OpenAI, echo: Assistant, line: str, code: str, message: str) -> None:
    run = until(client, ask(client, echo, line), "failed")
    assert run.last_error is not None
    assert (run.last_error.code, run.last_error.message) == (code, message)
    assert message in fields(run)["status_reason"]
    assert messages_of(client, run.thread_id) == [line]


def test_an_incomplete_run(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "half of it\nincomplete\nthe rest"), "incomplete")
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_completion_tokens"
    (message,) = client.beta.threads.messages.list(run.thread_id, run_id=run.id)
    assert (message.status, message.incomplete_details.reason) == ("incomplete", "max_tokens")  # type: ignore[union-attr]


def test_an_answer_that_is_longer_than_its_limit_is_incomplete(
    client: OpenAI, echo: Assistant
) -> None:
    words = [f"w{number}" for number in range(300)]
    run = until(client, ask(client, echo, " ".join(words), max_completion_tokens=256))
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_completion_tokens")  # type: ignore[union-attr]
    assert run.usage is not None
    assert run.usage.completion_tokens == 256
    assert answer_of(client, run).split() == words[:256]


def test_a_prompt_that_is_longer_than_its_limit_is_incomplete(
    client: OpenAI, echo: Assistant
) -> None:
    run = until(client, ask(client, echo, "word " * 300, max_prompt_tokens=256))
    assert (run.status, run.incomplete_details.reason) == ("incomplete", "max_prompt_tokens")  # type: ignore[union-attr]


def test_only_the_last_messages_are_read_where_a_run_says_so(
    client: OpenAI, echo: Assistant
) -> None:
    thread_id = say(client, "word " * 300)
    client.beta.threads.messages.create(thread_id, role="user", content="only this")
    run = create_run(
        client,
        echo,
        thread_id,
        truncation_strategy={"type": "last_messages", "last_messages": 1},
    )
    ended = until(client, run, "completed")
    assert ended.usage is not None
    assert ended.usage.prompt_tokens == 2


def test_a_run_in_progress_shows_no_usage_yet(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as run:
        assert (run.status, run.usage, run.started_at is not None) == ("in_progress", None, True)
        assert fields(run)["status_reason"] is None


# Steps.


def test_the_step_of_a_completed_run(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "What is 2+2?"))
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.id.startswith("step_")
    assert (step.type, step.status) == ("message_creation", "completed")
    assert (step.run_id, step.thread_id, step.assistant_id) == (run.id, run.thread_id, echo.id)
    assert step.usage is not None
    assert run.usage is not None
    assert step.usage.total_tokens == run.usage.total_tokens
    assert step.step_details.type == "message_creation"
    (message,) = client.beta.threads.messages.list(run.thread_id, run_id=run.id)
    assert step.step_details.message_creation.message_id == message.id


@pytest.mark.parametrize("prefix", ["/v1", "/openai", "/openai/v1"])
@pytest.mark.parametrize("name", ["include", "include[]", "include%5B%5D"])
def test_include_may_be_repeated_or_bracketed(
    api: Api, client: OpenAI, echo: Assistant, name: str, prefix: str
) -> None:
    value = "step_details.tool_calls[*].file_search.results[*].content"
    asked = f"{name}={value}&{name}={value}"
    thread = f"{prefix}/threads/{say(client, 'hello')}"
    run = api.post(f"{thread}/runs?{asked}", {"assistant_id": echo.id}).ok()
    steps = f"{thread}/runs/{run['id']}/steps"
    until(client, client.beta.threads.runs.retrieve(run["id"], thread_id=run["thread_id"]))
    (step,) = api.get(f"{steps}?{asked}").ok()["data"]
    assert api.get(f"{steps}/{step['id']}?{asked}").ok() == step
    for path in (f"{steps}?{name}=all", f"{steps}/{step['id']}?{name}=all"):
        refused = api.get(path)
        assert refused.status == 400
        assert "all" in refused.error["message"]
    assert api.post(f"{thread}/runs?{name}=all", {"assistant_id": echo.id}).status == 400


# Changes.


def test_the_metadata_of_a_run_can_be_changed_at_any_time(api: Api, client: OpenAI) -> None:
    assistant = bare(client)
    with occupied(client, assistant) as run:
        path = f"/v1/threads/{run.thread_id}/runs/{run.id}"
        assert api.post(path, {"metadata": {"k": "v"}}).ok()["metadata"] == {"k": "v"}
        assert api.post(path, {"metadata": None}).ok()["metadata"] == {"k": "v"}
        assert api.get(path).ok()["status"] == "in_progress"
    until(client, run, "cancelled")
    assert api.post(path, {"metadata": {}}).ok()["metadata"] == {}


def test_a_run_belongs_to_one_thread(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "hello"))
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    elsewhere = f"/v1/threads/{say(client, 'other')}/runs/{run.id}"
    outputs = {"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}]}
    answers = [
        api.get(elsewhere),
        api.post(elsewhere, {}),
        api.post(f"{elsewhere}/cancel"),
        api.post(f"{elsewhere}/submit_tool_outputs", outputs),
        api.get(f"{elsewhere}/steps"),
        api.get(f"{elsewhere}/steps/{step.id}"),
    ]
    for answer in answers:
        assert answer.status == 404
        assert answer.error["message"] == f"No run found with id '{run.id}'."


# Limits.

TOO_MUCH: list[dict[str, Any]] = [
    {"temperature": 2.1},
    {"top_p": -0.1},
    {"max_prompt_tokens": 255},
    {"max_completion_tokens": 255},
    {"max_completion_tokens": 300.5},
    {"truncation_strategy": {"type": "last_messages"}},
    {"truncation_strategy": {"type": "last_messages", "last_messages": 0}},
    {"truncation_strategy": {"type": "middle"}},
    {"tool_choice": "sometimes"},
    {"tool_choice": {"type": "function"}},
    {"response_format": {"type": "xml"}},
    {"instructions": "i" * 256_001},
    {"tools": [function_tool("no spaces")]},
    {"expires_after": 0},
    {"expires_after": -1},
    {"expires_after": "soon"},
    {"on_active_run": "whatever"},
    {"metadata": {"k": 7}},
    {"parallel_tool_calls": "yes"},
]


@pytest.mark.parametrize("body", TOO_MUCH, ids=lambda body: str(body)[:60])
def test_what_does_not_fit_is_refused_with_its_field(
    api: Api, client: OpenAI, echo: Assistant, body: dict[str, Any]
) -> None:
    (name,) = body
    thread_id = say(client, "hello")
    for path in (f"/v1/threads/{thread_id}/runs", "/v1/threads/runs"):
        answer = api.post(path, {"assistant_id": echo.id, **body})
        assert answer.status == 400
        assert str(answer.error["param"]).startswith(name)
    assert client.beta.threads.runs.list(thread_id).data == []


def test_an_assistant_is_needed(api: Api, client: OpenAI) -> None:
    for path in (f"/v1/threads/{say(client, 'hello')}/runs", "/v1/threads/runs"):
        for body in ({}, {"assistant_id": None}):
            answer = api.post(path, body)
            assert (answer.status, answer.error["param"]) == (400, "assistant_id")


def test_a_tool_choice_has_to_name_a_tool_of_the_run(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    """A run that is made to call what it does not have could only go wrong later."""
    choice = {"type": "function", "function": {"name": "nobody-has-this"}}
    body = {"assistant_id": echo.id, "tool_choice": choice}
    answer = api.post(f"/v1/threads/{say(client, 'hello')}/runs", body)
    assert answer.status == 400
    assert str(answer.error["param"]).startswith("tool_choice")


# The service's own expiry is a setting.


def test_the_expiry_of_a_service_is_a_setting(tmp_path: Any) -> None:
    with Served(tmp_path, args=["--run-expiry", "1234"]) as other:
        client = other.client()
        run = ask(client, bare(client), "hello")
        assert run.expires_at - run.created_at == 1234  # type: ignore[operator]
        run = ask(client, bare(client), "hello", expires_after=60)
        assert run.expires_at - run.created_at == 60  # type: ignore[operator]


DAMAGE = Statement(
    "test.damage",
    "What nobody can read.",
    update(schema.runs)
    .values(config=bindparam("text"))
    .where(schema.runs.c.id == bindparam("key")),
)


def test_a_list_has_the_runs_that_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose row was damaged keeps no other from being found, however the list is paged; the log
    names it, and who asks for it is told that something is wrong."""

    async def story() -> None:
        async with embedded(tmp_path / "runbell.db") as service:
            web, thread = Web(service), await service.thread("hello")
            first, *damaged, last = [
                await service.run(thread, on_active_run="enqueue") for _ in range(4)
            ]
            for run in damaged:
                damage = {"key": run, "text": "x"}
                await service.store.write(lambda tx: tx.execute(DAMAGE, damage))  # noqa: B023
            path = f"/v1/threads/{thread}/runs"

            async def listed(query: str) -> tuple[list[str], bool]:
                page = (await web.get(query).answered()).json()
                return [run["id"] for run in page["data"]], page["has_more"]

            assert await listed(f"{path}?limit=3&order=asc") == ([first], True)
            assert await listed(f"{path}?limit=1&order=asc&after={first}") == ([last], False)
            assert await listed(f"{path}?limit=1&order=asc&before={last}") == ([first], False)
            assert await listed("/v1/runs") == ([last, first], False)
            assert f"the row of run {damaged[0]} cannot be read" in caplog.text
            assert (await web.get(f"{path}/{damaged[0]}").answered()).status == 500

    asyncio.run(story())
