"""Function calls: what a run asks for, and which outputs it takes."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant
from openai.types.beta.threads import Run

from tests.protocol.scenario import (
    answer_of,
    ask,
    calls_of,
    fields,
    function_tool,
    occupied,
    outputs_for,
    until,
)
from tests.served import Answer, Api

TWO_CALLS = 'call get-weather {"city": "Oslo"}\ncall look_up {"q": ["a", 1]}'


def submit(api: Api, run: Run, outputs: Any) -> Answer:
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}/submit_tool_outputs"
    return api.post(path, {"tool_outputs": outputs})


def waiting(client: OpenAI, assistant: Assistant, text: str = TWO_CALLS, **body: Any) -> Run:
    return until(client, ask(client, assistant, text, **body), "requires_action")


def refused(answer: Answer, sentence: str) -> None:
    assert answer.status == 400
    assert answer.error["message"] == sentence
    assert answer.error["type"] == "invalid_request_error"


# What a run asks for.


def test_parallel_calls_are_asked_for_together(client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo)
    assert run.required_action is not None
    assert run.required_action.type == "submit_tool_outputs"
    (first, second) = calls_of(run)
    assert first[1] == "get-weather"
    assert json.loads(first[2]) == {"city": "Oslo"}
    assert second[1] == "look_up"
    assert json.loads(second[2]) == {"q": ["a", 1]}
    assert first[0] != second[0]
    assert first[0].startswith("call_")
    assert run.usage is None


def test_a_run_can_be_asked_for_one_call_at_a_time(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = waiting(client, echo, parallel_tool_calls=False)
    names = []
    for output in ("rain", "found"):
        ((call_id, name, _),) = calls_of(run)
        names.append(name)
        assert submit(api, run, [{"tool_call_id": call_id, "output": output}]).status == 200
        run = until(client, run)
    assert names == ["get-weather", "look_up"]
    assert run.status == "completed"
    assert answer_of(client, run) == "rain\nfound"


def test_a_run_calls_its_own_functions_alone(client: OpenAI, echo: Assistant) -> None:
    """What it overrides is what counts; a function that it does not have is never called."""
    text = "call get-weather {}"
    run = until(client, ask(client, echo, text, tools=[]))
    assert (run.status, answer_of(client, run)) == ("completed", text)
    run = until(client, ask(client, echo, text, tools=[function_tool("another")]))
    assert run.status == "completed"
    run = until(client, ask(client, echo, "call another {}", tools=[function_tool("another")]))
    assert [call[1] for call in calls_of(run)] == ["another"]


def test_no_function_is_called_where_the_choice_is_none(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "call get-weather {}", tool_choice="none"))
    assert (run.status, answer_of(client, run)) == ("completed", "call get-weather {}")


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "get-weather"}}], ids=str
)
def test_a_function_is_called_where_the_choice_says_so(
    client: OpenAI, echo: Assistant, choice: Any
) -> None:
    run = until(client, ask(client, echo, "just talk", tool_choice=choice))
    assert [call[1] for call in calls_of(run)] == ["get-weather"]


# What it takes.


def test_outputs_come_in_any_order(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo)
    outputs = outputs_for(run, ["rain", "found"])
    resumed = submit(api, run, outputs[::-1]).ok()
    assert (resumed["status"], resumed["required_action"]) == ("queued", None)
    run = until(client, run)
    assert run.status == "completed"
    assert answer_of(client, run) == "rain\nfound"


def test_the_steps_of_a_run_that_called(api: Api, client: OpenAI, echo: Assistant) -> None:
    """The calls are a step of their own: open without outputs, completed with them."""
    run = waiting(client, echo)
    steps = f"/v1/threads/{run.thread_id}/runs/{run.id}/steps"
    (step,) = api.get(steps).ok()["data"]
    assert (step["type"], step["status"], step["usage"]) == ("tool_calls", "in_progress", None)
    called = step["step_details"]["tool_calls"]
    assert [call["function"]["output"] for call in called] == [None, None]
    assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in called] == (
        calls_of(run)
    )
    submit(api, run, outputs_for(run, ["rain", ""])).ok()
    run = until(client, run)
    message, calls = api.get(steps).ok()["data"]
    assert (calls["id"], calls["status"], calls["type"]) == (step["id"], "completed", "tool_calls")
    outputs = [call["function"]["output"] for call in calls["step_details"]["tool_calls"]]
    assert outputs == ["rain", ""]
    assert (message["type"], message["status"]) == ("message_creation", "completed")
    assert run.usage is not None
    assert run.usage.total_tokens == sum(s["usage"]["total_tokens"] for s in (calls, message))


def test_a_run_keeps_its_first_start_over_its_turns(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = waiting(client, echo)
    submit(api, run, outputs_for(run, ["rain", "found"])).ok()
    assert until(client, run).started_at == run.started_at


# What it refuses.


def test_all_outputs_have_to_come_together(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo)
    outputs = outputs_for(run, ["rain", "found"])
    a, b = (call[0] for call in calls_of(run))
    expected = f"Expected tool outputs for call_ids ['{a}', '{b}'], got"
    unknown = {"tool_call_id": "call_unknown", "output": "x"}
    refused(submit(api, run, outputs[:1]), f"{expected} ['{a}']")
    refused(submit(api, run, outputs[1:]), f"{expected} ['{b}']")
    refused(submit(api, run, []), f"{expected} []")
    refused(submit(api, run, [unknown]), f"{expected} ['call_unknown']")
    refused(submit(api, run, [*outputs, unknown]), f"{expected} ['{a}', '{b}', 'call_unknown']")
    refused(submit(api, run, [outputs[0], outputs[0]]), f"{expected} ['{a}', '{a}']")
    refused(submit(api, run, [*outputs, outputs[0]]), f"{expected} ['{a}', '{b}', '{a}']")
    # None of it changed the run: the same outputs are accepted now.
    assert fields(until(client, run, "requires_action")) == fields(run)
    assert submit(api, run, outputs).status == 200
    assert answer_of(client, until(client, run, "completed")) == "rain\nfound"


def test_the_call_of_an_earlier_turn_is_unknown(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo, parallel_tool_calls=False)
    first = outputs_for(run, ["rain"])
    submit(api, run, first).ok()
    run = until(client, run, "requires_action", "in_progress", "queued")
    run = until(client, run, "requires_action")
    ((second, _, _),) = calls_of(run)
    sentence = (
        f"Expected tool outputs for call_ids ['{second}'], got ['{first[0]['tool_call_id']}']"
    )
    refused(submit(api, run, first), sentence)


def test_a_completed_run_takes_no_outputs(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo)
    outputs = outputs_for(run, ["rain", "found"])
    submit(api, run, outputs).ok()
    until(client, run, "completed")
    refused(submit(api, run, outputs), 'Runs in status "completed" do not accept tool outputs.')


@pytest.mark.parametrize(
    ("text", "status"), [("fail server_error x", "failed"), ("incomplete", "incomplete")]
)
def test_an_ended_run_takes_no_outputs(
    api: Api, client: OpenAI, echo: Assistant, text: str, status: str
) -> None:
    run = until(client, ask(client, echo, text), status)
    output = {"tool_call_id": "call_1", "output": "x"}
    refused(submit(api, run, [output]), f'Runs in status "{status}" do not accept tool outputs.')


def test_an_expired_run_takes_no_outputs(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = waiting(client, echo, expires_after=3)
    until(client, run, "expired")
    outputs = outputs_for(run, ["rain", "found"])
    refused(submit(api, run, outputs), 'Runs in status "expired" do not accept tool outputs.')


def test_a_run_in_progress_takes_no_outputs(api: Api, client: OpenAI, echo: Assistant) -> None:
    output = {"tool_call_id": "call_1", "output": "x"}
    with occupied(client, echo) as run:
        sentence = 'Runs in status "in_progress" do not accept tool outputs.'
        refused(submit(api, run, [output]), sentence)


def test_a_queued_run_takes_no_outputs(api: Api, client: OpenAI, echo: Assistant) -> None:
    output = {"tool_call_id": "call_1", "output": "x"}
    with occupied(client, echo) as first:
        body = {"assistant_id": echo.id, "on_active_run": "enqueue"}
        second = api.post(f"/v1/threads/{first.thread_id}/runs", body).ok()
        path = f"/v1/threads/{first.thread_id}/runs/{second['id']}"
        answer = api.post(f"{path}/submit_tool_outputs", {"tool_outputs": [output]})
        refused(answer, 'Runs in status "queued" do not accept tool outputs.')
        api.post(f"{path}/cancel").ok()


def test_outputs_are_taken_once_however_many_send_them(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = waiting(client, echo)
    outputs = outputs_for(run, ["rain", "found"])
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: submit(api, run, outputs), range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7
    for answer in answers:
        if answer.status == 400:
            message = answer.error["message"]
            assert message.startswith('Runs in status "')
            assert message.endswith('" do not accept tool outputs.')
    assert answer_of(client, until(client, run, "completed")) == "rain\nfound"
    steps = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id).data
    assert len(steps) == 2


WRONG: list[tuple[Any, str]] = [
    ({}, "tool_outputs"),
    ({"tool_outputs": None}, "tool_outputs"),
    ({"tool_outputs": "x"}, "tool_outputs"),
    ({"tool_outputs": ["x"]}, "tool_outputs[0]"),
    ({"tool_outputs": [{"output": "x"}]}, "tool_outputs[0].tool_call_id"),
    ({"tool_outputs": [{"tool_call_id": "call_1", "output": 7}]}, "tool_outputs[0].output"),
    ({"tool_outputs": [], "stream": "yes"}, "stream"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=str)
def test_a_submission_that_is_none_is_refused(
    api: Api, client: OpenAI, echo: Assistant, body: Any, param: str
) -> None:
    run = waiting(client, echo)
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}"
    answer = api.post(f"{path}/submit_tool_outputs", body)
    assert (answer.status, answer.error["param"]) == (400, param)
    assert api.get(path).ok()["status"] == "requires_action"


def test_a_function_may_have_failed(api: Api, client: OpenAI, echo: Assistant) -> None:
    """Lines behind the calls act after the outputs came: the run can fail in its second turn."""
    text = "call get-weather {}\nfail server_error after the call"
    run = waiting(client, echo, text)
    submit(api, run, outputs_for(run, ["rain"])).ok()
    ended = until(client, run, "failed")
    assert ended.last_error is not None
    assert ended.last_error.message == "after the call"
