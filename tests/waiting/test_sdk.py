"""Waiting with the stock SDK: by a header, over real HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import ask, until
from tests.served import Answer, Api, Served

WAIT = {"Prefer": "wait=50"}
PROMPT_SECONDS = 40.0
"""Below the time that is asked for, far above what it takes on a busy machine."""


def test_one_call_instead_of_polling(client: OpenAI, echo: Assistant) -> None:
    """`retrieve` with the header returns the run when it has ended."""
    runs = client.beta.threads.runs
    run = ask(client, echo, "sleep 0.3\nhello")
    began = time.monotonic()
    seen = runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id, extra_headers=WAIT)
    assert time.monotonic() - began < PROMPT_SECONDS
    assert seen.headers["preference-applied"] == "wait=50"
    assert "openai-poll-after-ms" not in seen.headers
    assert seen.parse().status == "completed"


def test_a_run_that_wants_outputs_has_settled(client: OpenAI, echo: Assistant) -> None:
    runs = client.beta.threads.runs
    run = ask(client, echo, "sleep 0.2\ncall get-weather {}")
    seen = runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=WAIT)
    assert seen.status == "requires_action"


def test_waiting_in_short_steps(client: OpenAI, echo: Assistant) -> None:
    """A step that ends without an end is answered with the run as it is."""
    runs = client.beta.threads.runs
    run = until(client, ask(client, echo, "sleep 600"), "in_progress")
    step = {"Prefer": "wait=1"}
    seen = runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=step)
    assert seen.status == "in_progress"
    runs.cancel(run.id, thread_id=run.thread_id)
    while seen.status != "cancelled":
        seen = runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=step)
        assert seen.status in ("cancelling", "cancelled")


def test_poll_reads_the_hint(
    served: Served, client: OpenAI, echo: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's own `poll` asks as often as the header said the first time, not every second."""
    answers: list[Answer] = []
    runs = served.client(watch=answers.append).beta.threads.runs
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)

    monkeypatch.setattr(runs, "_sleep", sleep)
    run = ask(client, echo, "sleep 600")
    assert runs.poll(run.id, thread_id=run.thread_id).status == "cancelled"
    hint = int(answers[0].headers["openai-poll-after-ms"]) / 1000
    assert len(slept) >= 2
    assert slept == [hint] * len(slept)


def test_304_is_the_sdks_status_error(client: OpenAI, echo: Assistant) -> None:
    """It has no body, and the client's retries leave it alone."""
    runs = client.with_options(max_retries=2).beta.threads.runs
    run = until(client, ask(client, echo, "hello"), "completed")
    first = runs.with_raw_response.retrieve(run.id, thread_id=run.thread_id)
    known = {"If-None-Match": first.headers["etag"]}
    for more in ({}, {"Prefer": "wait=1"}):
        with pytest.raises(openai.APIStatusError) as seen:
            runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=known | more)
        assert seen.value.status_code == 304
        assert seen.value.response.headers["etag"] == first.headers["etag"]
    runs.update(run.id, thread_id=run.thread_id, metadata={"k": "v"})
    changed = runs.with_raw_response.retrieve(
        run.id, thread_id=run.thread_id, extra_headers=known | WAIT
    )
    assert changed.parse().metadata == {"k": "v"}
    assert changed.headers["etag"] != first.headers["etag"]


def test_a_hundred_at_a_time(served: Served, client: OpenAI, echo: Assistant) -> None:
    """With the asynchronous client, on one event loop."""

    async def one(sdk: Any, number: int) -> str:
        run = await sdk.beta.threads.create_and_run(
            assistant_id=echo.id,
            thread={"messages": [{"role": "user", "content": f"sleep 0.{number % 5}\n{number}"}]},
        )
        runs = sdk.beta.threads.runs
        seen = await runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=WAIT)
        return str(seen.status)

    async def story() -> list[str]:
        async with served.async_client() as sdk:
            return await asyncio.gather(*(one(sdk, number) for number in range(100)))

    assert asyncio.run(story()) == ["completed"] * 100


def test_a_timeout_of_the_client_ends_the_wait_alone(client: OpenAI, echo: Assistant) -> None:
    """It leaves; the run goes on."""
    runs = client.beta.threads.runs
    run = until(client, ask(client, echo, "sleep 600"), "in_progress")
    with pytest.raises(openai.APITimeoutError):
        runs.retrieve(run.id, thread_id=run.thread_id, extra_headers=WAIT, timeout=0.2)
    assert runs.retrieve(run.id, thread_id=run.thread_id).status == "in_progress"
    runs.cancel(run.id, thread_id=run.thread_id)


def test_many_in_one_call(client: OpenAI, api: Api, echo: Assistant) -> None:
    """`client.get` reaches what the SDK has no method for."""
    slow = [until(client, ask(client, echo, "sleep 600"), "in_progress") for _ in range(2)]
    made = [slow[0], ask(client, echo, "sleep 0.3\nhello"), slow[1]]
    path = f"/v1/runs?ids={','.join(run.id for run in made)}"
    answer = api.get(path, headers=WAIT).ok()
    assert [run["status"] for run in answer["data"]] == ["in_progress", "completed", "in_progress"]
    for run in (made[0], made[2]):
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
