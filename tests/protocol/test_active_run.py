"""One active run a thread: the next one is refused, or waits its turn."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import (
    ask,
    create_run,
    fields,
    messages_of,
    occupied,
    outputs_for,
    say,
    until,
)
from tests.served import Api, eventually


def test_a_second_run_is_refused_with_the_name_of_the_first(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    with occupied(client, echo) as run:
        for extra in ({}, {"on_active_run": "reject"}, {"on_active_run": None}):
            answer = api.post(
                f"/v1/threads/{run.thread_id}/runs", {"assistant_id": echo.id, **extra}
            )
            assert answer.status == 400
            assert answer.error["type"] == "invalid_request_error"
            assert answer.error["message"] == (
                f"Thread {run.thread_id} already has an active run {run.id}."
            )
        assert [each.id for each in client.beta.threads.runs.list(run.thread_id)] == [run.id]


def test_a_run_that_waits_for_outputs_is_active_too(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    thread = f"/v1/threads/{run.thread_id}"
    answer = api.post(f"{thread}/runs", {"assistant_id": echo.id})
    assert answer.error["message"] == f"Thread {run.thread_id} already has an active run {run.id}."
    answer = api.post(f"{thread}/messages", {"role": "user", "content": "hello"})
    assert answer.error["message"] == (
        f"Can't add messages to {run.thread_id} while a run {run.id} is active."
    )


def test_no_message_is_added_during_an_active_run(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    with occupied(client, echo) as run:
        path = f"/v1/threads/{run.thread_id}/messages"
        answer = api.post(path, {"role": "user", "content": "hello"})
        assert answer.status == 400
        assert answer.error["message"] == (
            f"Can't add messages to {run.thread_id} while a run {run.id} is active."
        )
        assert messages_of(client, run.thread_id) == ["hold on", "sleep 600"]


def test_a_refused_run_adds_no_messages(api: Api, client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as run:
        more = [{"role": "user", "content": "more"}]
        body = {"assistant_id": echo.id, "additional_messages": more}
        assert api.post(f"/v1/threads/{run.thread_id}/runs", body).status == 400
        assert "more" not in messages_of(client, run.thread_id)


def test_reading_changing_and_deleting_go_on_during_an_active_run(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    """Frameworks update threads, and list and delete messages, in the middle of a session."""
    with occupied(client, echo) as run:
        thread = f"/v1/threads/{run.thread_id}"
        assert api.post(thread, {"metadata": {"k": "v"}}).status == 200
        messages = api.get(f"{thread}/messages?order=asc").ok()["data"]
        assert api.post(f"{thread}/messages/{messages[0]['id']}", {}).status == 200
        assert api.delete(f"{thread}/messages/{messages[0]['id']}").status == 200


def test_of_many_runs_at_a_time_one_is_created(api: Api, client: OpenAI, echo: Assistant) -> None:
    """Nothing but the database can keep this."""
    thread_id = say(client, "sleep 600")
    path = f"/v1/threads/{thread_id}/runs"
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: api.post(path, {"assistant_id": echo.id}), range(12)))
    (created,) = [answer.ok() for answer in answers if answer.status == 200]
    sentence = f"Thread {thread_id} already has an active run {created['id']}."
    assert [a.error["message"] for a in answers if a.status != 200] == [sentence] * 11
    assert [run.id for run in client.beta.threads.runs.list(thread_id)] == [created["id"]]
    api.post(f"{path}/{created['id']}/cancel").ok()


def test_an_ended_run_is_not_in_the_way(client: OpenAI, echo: Assistant) -> None:
    thread_id = say(client, "hello")
    for _ in range(3):
        until(client, create_run(client, echo, thread_id), "completed")
        client.beta.threads.messages.create(thread_id, role="user", content="again")


# Waiting for one's turn.


def test_enqueued_runs_take_their_turns_in_the_order_of_their_creation(
    client: OpenAI, echo: Assistant
) -> None:
    with occupied(client, echo) as first:
        waiting = [
            create_run(
                client,
                echo,
                first.thread_id,
                on_active_run="enqueue",
                additional_messages=[{"role": "user", "content": f"turn {number}"}],
            )
            for number in range(4)
        ]
        assert {run.status for run in waiting} == {"queued"}
        client.beta.threads.runs.cancel(first.id, thread_id=first.thread_id)
        for run in waiting:
            until(client, run, "completed")
    said = messages_of(client, first.thread_id)
    assert said[2:] == [text for number in range(4) for text in [f"turn {number}"] * 2]


def test_a_run_that_waits_its_turn_stays_queued(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as first:
        second = create_run(client, echo, first.thread_id, on_active_run="enqueue")
        # A run elsewhere is created later and ends: the service was not merely busy.
        until(client, ask(client, echo, "hello"), "completed")
        seen = client.beta.threads.runs.retrieve(second.id, thread_id=second.thread_id)
        assert fields(seen) == fields(second)
        assert (seen.status, seen.started_at) == ("queued", None)
        client.beta.threads.runs.cancel(second.id, thread_id=second.thread_id)


def test_the_messages_of_a_waiting_run_appear_when_its_turn_comes(
    client: OpenAI, echo: Assistant
) -> None:
    """The active run must not read what was said to the next one."""
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    second = create_run(
        client,
        echo,
        run.thread_id,
        on_active_run="enqueue",
        additional_messages=[{"role": "user", "content": "and now?"}],
    )
    assert messages_of(client, run.thread_id) == ["call get-weather {}"]
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["rain"])
    )
    until(client, second, "completed")
    until(client, run, "completed")
    said = messages_of(client, run.thread_id)
    assert said == ["call get-weather {}", "rain", "and now?", "and now?"]


def test_a_cancelled_waiting_run_is_skipped(client: OpenAI, echo: Assistant) -> None:
    with occupied(client, echo) as first:
        second, third = (
            create_run(
                client,
                echo,
                first.thread_id,
                on_active_run="enqueue",
                additional_messages=[{"role": "user", "content": text}],
            )
            for text in ("second", "third")
        )
        cancelled = client.beta.threads.runs.cancel(second.id, thread_id=second.thread_id)
        assert cancelled.status == "cancelled"
        until(client, first, "in_progress")
        client.beta.threads.runs.cancel(first.id, thread_id=first.thread_id)
        until(client, third, "completed")
    assert messages_of(client, first.thread_id)[2:] == ["third", "third"]


@pytest.mark.parametrize("text", ["fail server_error x", "incomplete", "sleep 600"])
def test_the_next_run_has_its_turn_however_the_first_ends(
    client: OpenAI, echo: Assistant, text: str
) -> None:
    """Failed, incomplete, or expired."""
    thread_id = say(client, f"sleep 0.3\n{text}")
    first = create_run(client, echo, thread_id, expires_after=1)
    second = create_run(
        client,
        echo,
        thread_id,
        on_active_run="enqueue",
        additional_messages=[{"role": "user", "content": "next"}],
    )
    until(client, first, "failed", "incomplete", "expired")
    until(client, second, "completed")


def test_enqueue_on_an_idle_thread_starts_at_once(client: OpenAI, echo: Assistant) -> None:
    run = create_run(client, echo, say(client, "hello"), on_active_run="enqueue")
    until(client, run, "completed")


def test_enqueue_works_with_a_thread_of_its_own_too(client: OpenAI, echo: Assistant) -> None:
    run = client.beta.threads.create_and_run(
        assistant_id=echo.id, extra_body={"on_active_run": "enqueue", "expires_after": 60}
    )
    assert run.expires_at - run.created_at == 60  # type: ignore[operator]
    until(client, run, "completed")


def test_a_refusal_names_the_run_that_is_active_not_one_that_waits(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    with occupied(client, echo) as first:
        second = create_run(client, echo, first.thread_id, on_active_run="enqueue")
        answer = api.post(f"/v1/threads/{first.thread_id}/runs", {"assistant_id": echo.id})
        assert answer.error["message"] == (
            f"Thread {first.thread_id} already has an active run {first.id}."
        )
        client.beta.threads.runs.cancel(second.id, thread_id=second.thread_id)


def test_deleting_a_thread_ends_those_that_wait_as_well(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    first = until(client, ask(client, echo, "sleep 600"), "in_progress")
    second = create_run(client, echo, first.thread_id, on_active_run="enqueue")
    api.delete(f"/v1/threads/{first.thread_id}").ok()

    def both_cancelled() -> bool:
        after, more = "", True
        last: dict[str, str] = {}
        while more:
            page = api.get(f"/v1/events?limit=100{after}").ok()
            last |= {event["data"]["id"]: event["type"] for event in page["data"]}
            after, more = f"&after={page['last_id']}", page["has_more"]
        return [last[run.id] for run in (first, second)] == ["thread.run.cancelled"] * 2

    eventually(both_cancelled, "both runs are cancelled")
