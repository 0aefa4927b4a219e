"""Cancelling: at once where nobody works on the run, else as soon as its worker has let go."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import (
    TERMINAL,
    ask,
    create_run,
    fields,
    messages_of,
    occupied,
    text_of,
    until,
)
from tests.served import Api, eventually


def test_a_run_in_progress_is_cancelled(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as run:
        answered = client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        assert answered.status in ("cancelling", "cancelled")
        ended = until(client, run, "cancelled")
        seen = fields(ended)
        assert seen["cancelled_at"] >= seen["cancelling_at"] >= seen["started_at"]
        assert seen["status_reason"]
        assert messages_of(client, run.thread_id) == ["hold on", "sleep 600"]


def test_a_run_that_waits_for_outputs_is_cancelled_at_once(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    ended = client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert (ended.status, ended.required_action) == ("cancelled", None)
    assert fields(ended)["cancelling_at"] is None
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.status == "cancelled"
    assert step.cancelled_at is not None


def test_a_queued_run_is_cancelled_at_once(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as first:
        second = create_run(client, echo, first.thread_id, on_active_run="enqueue")
        ended = client.beta.threads.runs.cancel(second.id, thread_id=second.thread_id)
        assert (ended.status, ended.started_at) == ("cancelled", None)
        assert fields(ended)["status_reason"]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("hello", "completed"),
        ("fail server_error x", "failed"),
        ("incomplete", "incomplete"),
    ],
)
def test_an_ended_run_cannot_be_cancelled(
    api: Api, client: OpenAI, echo: Assistant, text: str, status: str
) -> None:
    run = until(client, ask(client, echo, text), status)
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}"
    answer = api.post(f"{path}/cancel")
    assert answer.status == 400
    assert answer.error["message"] == f"Cannot cancel run with status '{status}'."
    assert api.get(path).ok() == fields(run)


def test_a_cancelled_or_expired_run_cannot_be_cancelled(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}/cancel"
    api.post(path).ok()
    assert api.post(path).error["message"] == "Cannot cancel run with status 'cancelled'."
    run = until(client, ask(client, echo, "call get-weather {}", expires_after=1), "expired")
    answer = api.post(f"/v1/threads/{run.thread_id}/runs/{run.id}/cancel")
    assert answer.status == 400
    assert answer.error["message"] == "Cannot cancel run with status 'expired'."


def test_a_cancelled_run_frees_its_thread(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as run:
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        until(client, run, "cancelled")
        client.beta.threads.messages.create(run.thread_id, role="user", content="go on")
        until(client, create_run(client, echo, run.thread_id), "completed")


def test_a_run_is_cancelled_once_however_many_ask(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}/cancel"
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: api.post(path), range(8)))
    assert sorted(answer.status for answer in answers) == [200] + [400] * 7


def test_a_cancel_that_comes_at_any_moment_leads_to_one_end(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    """Right after creation it may find the run queued, in progress or finished."""
    for _ in range(20):
        run = ask(client, echo, "hello")
        answer = api.post(f"/v1/threads/{run.thread_id}/runs/{run.id}/cancel")
        if answer.status != 200:
            assert answer.error["message"] == "Cannot cancel run with status 'completed'."
        ended = until(client, run, *TERMINAL)
        assert ended.status in ("cancelled", "completed")
        said = client.beta.threads.messages.list(run.thread_id)
        whole = [text_of(message) for message in said if message.status == "completed"]
        assert whole == ["hello"] * (2 if ended.status == "completed" else 1)


def test_a_cancel_in_the_moment_of_the_start_reaches_the_worker(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    """Between "taken up" and "the model is called" nobody must miss it: the run would go on."""

    def start_and_cancel(_: int) -> str:
        body = {
            "assistant_id": echo.id,
            "thread": {"messages": [{"role": "user", "content": "sleep 600"}]},
        }
        run = api.post("/v1/threads/runs", body).ok()
        path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
        api.post(f"{path}/cancel").ok()
        return path

    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(start_and_cancel, range(64)))
    eventually(
        lambda: all(api.get(path).ok()["status"] == "cancelled" for path in paths),
        "every run is cancelled",
    )
