"""The process behind the protocol: health, models, and what a restart leaves as it was."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
from openai import OpenAI

from runbell.storage.store import Transaction
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.protocol.scenario import (
    answer_of,
    ask,
    fields,
    function_tool,
    messages_of,
    outputs_for,
    until,
)
from tests.protocol.wire import inspect
from tests.served import Api, Served, eventually
from tests.web import Web


def test_models_are_those_that_are_served(client: OpenAI) -> None:
    (model,) = client.models.list()
    assert (model.id, model.object) == ("echo", "model")
    assert fields(client.models.retrieve("echo")) == fields(model)


def test_the_service_is_alive_and_ready(served: Served) -> None:
    for path in ("/healthz", "/readyz"):
        assert served.request("GET", path).status == 200
        assert served.request("HEAD", path).status == 200


@on_a_service()
async def test_a_process_whose_writes_take_too_long_is_not_ready(service: EmbeddedService) -> None:
    """Whatever it is that holds them up; a balancer finds another one. Then it is ready again."""
    go_on = threading.Event()

    async def hold(tx: Transaction) -> None:
        go_on.wait(60)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runbell.service.app.PROBE_SECONDS", 0.05)
        holding = asyncio.create_task(service.ctx.store.write(hold))
        answer = await Web(service).get("/readyz").answered()
        go_on.set()
        await holding
    assert answer.status == 503
    assert answer.json()["reason"] == "a write to the database takes longer than 0.05 s"
    await service.advance(1)
    assert (await Web(service).get("/readyz").answered()).status == 200


def test_a_browser_is_led_to_the_docs(served: Served) -> None:
    """Without a key: it has none."""
    answer = served.request("GET", "/")
    assert (answer.status, answer.headers["location"]) == (302, "/docs")
    assert served.request("GET", "/docs").status == 200
    assert served.request("POST", "/").status == 405


def test_a_route_is_logged_as_the_document_has_it(served: Served, api: Api) -> None:
    api.get("/v1/models/echo").ok()
    eventually(lambda: "route=/v1/models/{model} status=200" in served.stderr(), "it is logged")


def test_what_is_elsewhere_in_openais_api_is_told_from_a_wrong_base_url(api: Api) -> None:
    told = api.post("/v1/chat/completions", {}).error["message"]
    assert told.endswith("Runbell serves assistants, threads and runs: /docs shows all of it.")
    assert "does your base_url end in /v1?" in api.get("/assistants").error["message"]


def test_the_line_that_says_that_it_listens_is_printed_once(served: Served) -> None:
    assert served.stdout().count("runbell: listening on ") == 1
    assert f"runbell: listening on {served.base_url}\n" in served.stdout()


def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    """Objects, events and keys; a run that waits still waits, one that works goes on."""
    with Served(tmp_path, watch=inspect) as service:
        client = service.client()
        key = service.create_key("other")
        service.api(key).post("/v1/threads", {}).ok()
        assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
        completed = until(client, ask(client, assistant, "hello"), "completed")
        waiting = until(client, ask(client, assistant, "call f {}"), "requires_action")
        working = until(client, ask(client, assistant, "sleep 1"), "in_progress")
        events = service.api().get("/v1/events?limit=100").ok()["data"]

        service.restart()

        client = service.client()
        assert fields(client.beta.assistants.retrieve(assistant.id)) == fields(assistant)
        again = client.beta.threads.runs.retrieve(completed.id, thread_id=completed.thread_id)
        assert fields(again) == fields(completed)
        assert service.api(key).get("/v1/events").ok()["data"] == []
        later = service.api().get("/v1/events?limit=100").ok()["data"]
        assert later[: len(events)] == events
        client.beta.threads.runs.submit_tool_outputs(
            waiting.id, thread_id=waiting.thread_id, tool_outputs=outputs_for(waiting, ["x"])
        )
        assert answer_of(client, until(client, waiting, "completed")) == "x"
        until(client, working, "completed")
        assert messages_of(client, working.thread_id) == ["sleep 1", "sleep 1"]


def test_a_restart_on_the_same_port_serves_clients_that_stayed(tmp_path: Path) -> None:
    with Served(tmp_path, watch=inspect) as service:
        client = service.client()
        made = client.beta.assistants.create(model="echo")
        service.restart(same_port=True)
        found = eventually(lambda: client.beta.assistants.list().data, "the list answers")
        assert [assistant.id for assistant in found] == [made.id]


@pytest.mark.parametrize("prefix", ["/openai", "/openai/v1"])
def test_the_same_routes_answer_under_another_prefix(api: Api, prefix: str) -> None:
    made = api.post(f"{prefix}/assistants?api-version=2024-05-01-preview", {"model": "echo"}).ok()
    assert api.get(f"/v1/assistants/{made['id']}").ok() == made
    assert api.get(f"{prefix}/assistants/{made['id']}").ok() == made
    assert api.get(f"{prefix}/events?limit=1").status == 200
    assert api.get(f"{prefix}/models").ok() == api.get("/v1/models").ok()
    answer = api.get(f"{prefix}/threads/thread_X")
    assert answer.error["message"] == "No thread found with id 'thread_X'."
