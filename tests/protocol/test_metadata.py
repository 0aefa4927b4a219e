"""Metadata: sixteen pairs of short strings, on every object that has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import say, until
from tests.served import Answer, Api

FITTING: list[dict[str, str]] = [
    {},
    {f"key-{number}": "v" for number in range(16)},
    {"k" * 64: "v" * 512},
    {"ключ 🌍": "Grüße, 世界 🌍", "empty": "", "": "no name"},
    {"🌍" * 64: "🌍" * 512},
]

TOO_MUCH: list[Any] = [
    {f"key-{number}": "v" for number in range(17)},
    {"k" * 65: "v"},
    {"k": "v" * 513},
    {"k": 7},
    {"k": None},
    {"k": ["v"]},
    {"k": {"n": "v"}},
    ["k", "v"],
    "k=v",
]


Keep = Callable[[Any], Answer]


@pytest.fixture(
    params=[
        "create assistant",
        "modify assistant",
        "create thread",
        "modify thread",
        "create message",
        "modify message",
        "create run",
        "modify run",
        "create thread and run",
    ]
)
def keep(request: pytest.FixtureRequest, api: Api, client: OpenAI, echo: Assistant) -> Keep:
    """A function that gives one kind of object its metadata, in one of the ways to do so."""
    what: str = request.param
    thread = f"/v1/threads/{say(client, 'hello')}"
    path, body = {
        "create assistant": ("/v1/assistants", {"model": "echo"}),
        "create thread": ("/v1/threads", {}),
        "modify thread": (thread, {}),
        "create message": (f"{thread}/messages", {"role": "user", "content": "hello"}),
        "create run": (f"{thread}/runs", {"assistant_id": echo.id}),
        "create thread and run": ("/v1/threads/runs", {"assistant_id": echo.id}),
    }.get(what, ("", {}))
    if what == "modify assistant":
        path = f"/v1/assistants/{client.beta.assistants.create(model='echo').id}"
    elif what == "modify message":
        (message,) = api.get(f"{thread}/messages").ok()["data"]
        path = f"{thread}/messages/{message['id']}"
    elif what == "modify run":
        run = client.beta.threads.create_and_run(assistant_id=echo.id)
        until(client, run)
        path = f"/v1/threads/{run.thread_id}/runs/{run.id}"
    return lambda metadata: api.post(path, {**body, "metadata": metadata})


@pytest.mark.parametrize("metadata", FITTING, ids=lambda value: ascii(value)[:40])
def test_what_just_fits_is_kept(keep: Keep, metadata: dict[str, str]) -> None:
    assert keep(metadata).ok()["metadata"] == metadata


@pytest.mark.parametrize("metadata", TOO_MUCH, ids=lambda value: str(value)[:40])
def test_what_does_not_fit_is_refused(keep: Keep, metadata: Any) -> None:
    answer = keep(metadata)
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert str(answer.error["param"]).startswith("metadata")


def test_new_metadata_replaces_the_old_as_a_whole(api: Api) -> None:
    made = api.post("/v1/threads", {"metadata": {"a": "1", "b": "2"}}).ok()
    path = f"/v1/threads/{made['id']}"
    assert api.post(path, {"metadata": {"b": "3"}}).ok()["metadata"] == {"b": "3"}
    assert api.get(path).ok()["metadata"] == {"b": "3"}
