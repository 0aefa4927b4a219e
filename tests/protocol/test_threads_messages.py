"""Threads and messages: what is answered, what is kept, changes, deletion."""

from __future__ import annotations

from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import ask, fields, messages_of, say, text_of, until
from tests.served import Api, eventually


def text_part(text: str) -> dict[str, Any]:
    """A text as it stands in an answer."""
    return {"type": "text", "text": {"value": text, "annotations": []}}


# Threads.


def test_an_empty_thread_answers_the_defaults(api: Api) -> None:
    made = api.post("/v1/threads", {}).ok()
    assert made["id"].startswith("thread_")
    assert made["metadata"] == {}
    assert made["tool_resources"] == {}
    assert api.get(f"/v1/threads/{made['id']}/messages").ok()["data"] == []


def test_a_thread_needs_no_body(api: Api) -> None:
    assert api.post("/v1/threads").ok()["object"] == "thread"


def test_explicit_nulls_mean_absent_on_a_thread(api: Api) -> None:
    nulls = {"messages": None, "metadata": None, "tool_resources": None}
    made = api.post("/v1/threads", nulls).ok()
    assert (made["metadata"], made["tool_resources"]) == ({}, {})


def test_explicit_nulls_mean_absent_on_the_messages_of_a_thread(api: Api) -> None:
    message = {"role": "user", "content": "hello", "attachments": None, "metadata": None}
    made = api.post("/v1/threads", {"messages": [message]}).ok()
    (kept,) = api.get(f"/v1/threads/{made['id']}/messages").ok()["data"]
    assert (kept["content"], kept["attachments"], kept["metadata"]) == (
        [text_part("hello")],
        [],
        {},
    )


def test_a_thread_keeps_its_resources_and_metadata(api: Api) -> None:
    body = {
        "metadata": {"k": "v"},
        "tool_resources": {
            "code_interpreter": {"file_ids": ["file-1"]},
            "file_search": {"vector_store_ids": ["vs_1"]},
        },
    }
    made = api.post("/v1/threads", body).ok()
    assert {name: made[name] for name in body} == body
    assert api.get(f"/v1/threads/{made['id']}").ok() == made


def test_a_thread_begins_with_its_messages_in_their_order(client: OpenAI) -> None:
    texts = [f"message {number}" for number in range(12)]
    roles = ["user" if number % 2 else "assistant" for number in range(12)]
    messages: Any = [
        {"role": role, "content": text} for role, text in zip(roles, texts, strict=True)
    ]
    thread = client.beta.threads.create(messages=messages)
    kept = list(client.beta.threads.messages.list(thread.id, order="asc"))
    assert [text_of(message) for message in kept] == texts
    assert [message.role for message in kept] == roles


def test_changes_of_a_thread(api: Api) -> None:
    made = api.post("/v1/threads", {"metadata": {"k": "v"}}).ok()
    path = f"/v1/threads/{made['id']}"
    resources = {"code_interpreter": {"file_ids": ["file-1"]}}
    changed = api.post(path, {"tool_resources": resources}).ok()
    assert changed == {**made, "tool_resources": resources}
    changed = api.post(path, {"metadata": {"k": "w"}}).ok()
    assert changed == {**made, "tool_resources": resources, "metadata": {"k": "w"}}
    assert api.post(path, {"metadata": None, "tool_resources": None}).ok() == changed
    assert api.get(path).ok() == changed


def test_a_deleted_thread_takes_everything_with_it(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    run = until(client, ask(client, echo, "hello"))
    thread = f"/v1/threads/{run.thread_id}"
    (step,) = api.get(f"{thread}/runs/{run.id}/steps").ok()["data"]
    message = step["step_details"]["message_creation"]["message_id"]
    deleted = api.delete(thread).ok()
    assert deleted == {"id": run.thread_id, "object": "thread.deleted", "deleted": True}
    gone = [
        thread,
        f"{thread}/messages",
        f"{thread}/messages/{message}",
        f"{thread}/runs",
        f"{thread}/runs/{run.id}",
        f"{thread}/runs/{run.id}/steps",
        f"{thread}/runs/{run.id}/steps/{step['id']}",
    ]
    for path in gone:
        assert api.get(path).status == 404, path
    assert api.delete(thread).status == 404
    assert api.get(thread).error["message"] == f"No thread found with id '{run.thread_id}'."


def test_deleting_a_thread_cancels_its_active_run_first(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    """Whoever waits for the run hears that it ended; the run itself is gone with the thread."""
    start = api.get("/v1/events?limit=1").ok()["last_id"] or ""
    run = ask(client, echo, "sleep 600")
    until(client, run, "in_progress")
    api.delete(f"/v1/threads/{run.thread_id}").ok()

    def last_status() -> bool:
        after, more, statuses = start, True, []
        while more:
            cursor = f"&after={after}" if after else ""
            page = api.get(f"/v1/events?limit=100{cursor}").ok()
            statuses += [e["type"] for e in page["data"] if e["data"]["id"] == run.id]
            after, more = page["last_id"], page["has_more"]
        return bool(statuses) and statuses[-1] == "thread.run.cancelled"

    eventually(last_status, "the run's last event says that it was cancelled")


# Messages.


def test_a_message_of_the_user(api: Api, client: OpenAI) -> None:
    thread = client.beta.threads.create()
    made = api.post(
        f"/v1/threads/{thread.id}/messages",
        {"role": "user", "content": "hello", "metadata": {"k": "v"}},
    ).ok()
    assert made["id"].startswith("msg_")
    assert {name: made[name] for name in made if name not in ("id", "created_at")} == {
        "object": "thread.message",
        "thread_id": thread.id,
        "status": "completed",
        "incomplete_details": None,
        "completed_at": made["completed_at"],
        "incomplete_at": None,
        "role": "user",
        "content": [text_part("hello")],
        "assistant_id": None,
        "run_id": None,
        "attachments": [],
        "metadata": {"k": "v"},
    }
    assert api.get(f"/v1/threads/{thread.id}/messages/{made['id']}").ok() == made


def test_an_answer_says_which_run_made_it(client: OpenAI, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "hello"))
    (answer,) = client.beta.threads.messages.list(run.thread_id, run_id=run.id)
    assert (answer.role, answer.status) == ("assistant", "completed")
    assert (answer.run_id, answer.assistant_id) == (run.id, echo.id)
    assert answer.completed_at is not None


def test_content_in_parts(api: Api, client: OpenAI) -> None:
    thread = client.beta.threads.create()
    content = [
        {"type": "text", "text": "look at"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        {"type": "image_url", "image_url": {"url": "https://example.com/b.png", "detail": "low"}},
        {"type": "text", "text": "these"},
    ]
    made = api.post(f"/v1/threads/{thread.id}/messages", {"role": "user", "content": content}).ok()
    assert made["content"] == [
        text_part("look at"),
        {
            "type": "image_url",
            "image_url": {"url": "https://example.com/a.png", "detail": "auto"},
        },
        {"type": "image_url", "image_url": {"url": "https://example.com/b.png", "detail": "low"}},
        text_part("these"),
    ]


def test_an_answer_in_parts_is_read_by_the_model(client: OpenAI, echo: Assistant) -> None:
    content: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    thread = client.beta.threads.create(messages=[{"role": "user", "content": content}])
    run = client.beta.threads.runs.create(thread.id, assistant_id=echo.id)
    assert until(client, run).status == "completed"
    assert messages_of_last(client, thread.id) == "one\ntwo"


def messages_of_last(client: OpenAI, thread_id: str) -> str:
    return text_of(next(iter(client.beta.threads.messages.list(thread_id, limit=1))))


@pytest.mark.parametrize(
    "text",
    [
        "",
        " leading and trailing ",
        "tab\tand\r\nlines\n",
        "Grüße, 世界 🌍 é",
        '"quoted" \\ {}',
        "\x7f",
    ],
    ids=ascii,
)
def test_text_comes_back_as_it_was(client: OpenAI, text: str) -> None:
    thread = client.beta.threads.create()
    made = client.beta.threads.messages.create(thread.id, role="user", content=f"x{text}")
    again = client.beta.threads.messages.retrieve(made.id, thread_id=thread.id)
    assert text_of(made) == text_of(again) == f"x{text}"


def test_an_answer_keeps_the_text_to_the_letter(client: OpenAI, echo: Assistant) -> None:
    """What is cut into pieces on the way is put together again without a loss."""
    text = "  Grüße,\t世界 🌍\n\n" + "lots of  words " * 200 + "\n"
    run = until(client, ask(client, echo, text))
    assert messages_of_last(client, run.thread_id) == text


def test_the_metadata_of_a_message_can_be_changed(api: Api) -> None:
    thread = api.post("/v1/threads", {"messages": [{"role": "user", "content": "hello"}]}).ok()
    (message,) = api.get(f"/v1/threads/{thread['id']}/messages").ok()["data"]
    path = f"/v1/threads/{thread['id']}/messages/{message['id']}"
    changed = api.post(path, {"metadata": {"k": "v"}}).ok()
    assert changed == {**message, "metadata": {"k": "v"}}
    assert api.post(path, {"metadata": None}).ok() == changed
    assert api.get(path).ok() == changed


def test_a_deleted_message_is_gone_and_no_model_reads_it(
    api: Api, client: OpenAI, echo: Assistant
) -> None:
    thread_id = say(client, "first")
    second = client.beta.threads.messages.create(thread_id, role="user", content="second")
    path = f"/v1/threads/{thread_id}/messages/{second.id}"
    assert api.delete(path).ok() == {
        "id": second.id,
        "object": "thread.message.deleted",
        "deleted": True,
    }
    sentence = f"No message found with id '{second.id}'."
    for answer in (api.get(path), api.post(path, {}), api.delete(path)):
        assert (answer.status, answer.error["message"]) == (404, sentence)
    until(client, client.beta.threads.runs.create(thread_id, assistant_id=echo.id))
    assert messages_of(client, thread_id) == ["first", "first"]


def test_messages_of_one_run(client: OpenAI, echo: Assistant) -> None:
    """`run_id` filters the list; a run that made none has an empty one."""
    thread_id = say(client, "one")
    first = until(client, client.beta.threads.runs.create(thread_id, assistant_id=echo.id))
    second = until(client, client.beta.threads.runs.create(thread_id, assistant_id=echo.id))
    for run in (first, second):
        (message,) = client.beta.threads.messages.list(thread_id, run_id=run.id)
        assert message.run_id == run.id
    failed = ask(client, echo, "fail server_error no answer")
    until(client, failed, "failed")
    assert list(client.beta.threads.messages.list(failed.thread_id, run_id=failed.id)) == []


def test_a_message_belongs_to_one_thread(api: Api, client: OpenAI) -> None:
    thread_id, other_id = say(client, "here"), say(client, "there")
    (message,) = client.beta.threads.messages.list(thread_id)
    path = f"/v1/threads/{other_id}/messages/{message.id}"
    for answer in (api.get(path), api.post(path, {"metadata": {"k": "v"}}), api.delete(path)):
        assert answer.status == 404
        assert answer.error["message"] == f"No message found with id '{message.id}'."
    kept = client.beta.threads.messages.retrieve(message.id, thread_id=thread_id)
    assert fields(kept) == fields(message)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"content": "no role"}, "role"),
    ({"role": "user"}, "content"),
    ({"role": "user", "content": None}, "content"),
    ({"role": "system", "content": "hello"}, "role"),
    ({"role": "user", "content": []}, "content"),
    ({"role": "user", "content": 7}, "content"),
    ({"role": "user", "content": [{"type": "text"}]}, "content[0].text"),
    ({"role": "user", "content": [{"type": "video"}]}, "content[0].type"),
    ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "content[0].image_url"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_a_message_that_is_none_is_refused(
    api: Api, client: OpenAI, body: dict[str, Any], param: str
) -> None:
    thread = client.beta.threads.create()
    answer = api.post(f"/v1/threads/{thread.id}/messages", body)
    assert answer.status == 400
    assert str(answer.error["param"]).startswith(param)
    assert messages_of(client, thread.id) == []
    nested = api.post("/v1/threads", {"messages": [body]})
    assert nested.status == 400
    assert str(nested.error["param"]).startswith(f"messages[0].{param}")
