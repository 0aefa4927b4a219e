"""Expiry: every run that has not ended expires when its time is over, whatever it is doing."""

from __future__ import annotations

import pytest
from openai import OpenAI
from openai.types.beta import Assistant
from openai.types.beta.threads import Run

from tests.protocol.scenario import (
    ask,
    create_run,
    fields,
    messages_of,
    occupied,
    outputs_for,
    until,
)
from tests.served import Api

LONG_ENOUGH = 3
"""Seconds to live, for a run that has to get somewhere first, on a busy machine too."""


def expired(client: OpenAI, run: Run) -> Run:
    """Wait for the run to expire, and look at what every expired run has."""
    ended = until(client, run, "expired")
    seen = fields(ended)
    assert ended.expires_at is not None
    assert seen["expired_at"] >= ended.expires_at
    assert seen["expires_at"] == run.expires_at
    assert seen["status_reason"]
    assert ended.required_action is None
    assert ended.last_error is None
    return ended


def test_a_run_in_progress_expires(client: OpenAI, echo: Assistant) -> None:
    run = ask(client, echo, "sleep 600", expires_after=LONG_ENOUGH)
    assert run.expires_at - run.created_at == LONG_ENOUGH  # type: ignore[operator]
    ended = expired(client, run)
    assert ended.started_at is not None
    assert messages_of(client, run.thread_id) == ["sleep 600"]


def test_a_run_that_waits_for_outputs_expires(client: OpenAI, echo: Assistant) -> None:
    run = ask(client, echo, "call get-weather {}", expires_after=LONG_ENOUGH)
    expired(client, run)
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    assert step.status == "expired"
    assert step.expired_at is not None


def test_a_queued_run_expires(client: OpenAI, echo: Assistant) -> None:
    """One that waits its turn behind another; the other does not notice."""
    with occupied(client, echo) as first:
        second = create_run(client, echo, first.thread_id, on_active_run="enqueue", expires_after=1)
        assert expired(client, second).started_at is None
        until(client, first, "in_progress")


def test_outputs_do_not_extend_the_time_of_a_run(api: Api, client: OpenAI, echo: Assistant) -> None:
    run = ask(client, echo, "call get-weather {}\nsleep 600", expires_after=LONG_ENOUGH)
    waiting = until(client, run, "requires_action")
    resumed = client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(waiting, ["rain"])
    )
    assert resumed.expires_at == run.expires_at
    expired(client, run)


def test_an_expired_run_frees_its_thread(client: OpenAI, echo: Assistant) -> None:
    run = ask(client, echo, "sleep 600", expires_after=1)
    expired(client, run)
    client.beta.threads.messages.create(run.thread_id, role="user", content="hello again")
    until(client, create_run(client, echo, run.thread_id), "completed")


@pytest.mark.parametrize("text", ["hello", "fail server_error x", "incomplete"])
def test_an_ended_run_does_not_expire(client: OpenAI, echo: Assistant, text: str) -> None:
    """Its `expires_at` stays, and passes without an effect."""
    run = until(client, ask(client, echo, text, expires_after=LONG_ENOUGH))
    # A run that was created later, with the same time to live, has expired: so would have this one.
    later = ask(client, echo, "sleep 600", expires_after=LONG_ENOUGH)
    expired(client, later)
    assert fields(client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)) == fields(run)


def test_a_run_may_live_for_a_fraction_more_than_whole_seconds(
    client: OpenAI, echo: Assistant
) -> None:
    run = ask(client, echo, "sleep 600", expires_after=1.5)
    assert run.expires_at - run.created_at in (1, 2)  # type: ignore[operator]
    expired(client, run)
