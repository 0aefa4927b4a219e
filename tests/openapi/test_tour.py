"""A tour through the API: every operation is called, with its example, and answers as described."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from typing import Any

import pytest

from runbell.service.openapi.document import document
from runbell.service.openapi.examples import REFUSALS, examples
from tests.openapi.conformance import conforms, frames, operation_of
from tests.served import Answer, Api, Served, eventually

TERMINAL = {"completed", "failed", "cancelled", "expired", "incomplete"}


class Tour:
    """Calls operations by their names, and holds every answer against the document."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self.called: set[str] = set()
        self._places = {
            operation["operationId"]: (method.upper(), path)
            for path, item in document()["paths"].items()
            for method, operation in item.items()
            if method != "parameters"
        }

    def call(self, name: str, query: str = "", body: Any = None, **ids: str) -> Answer:
        method, path = self._places[name]
        return self.ask(method, path.format(**ids) + query, body)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        answer = self._api.served.request(
            method, path, json=body, key=self._api.key, headers=headers
        )
        conforms(answer)
        operation = operation_of(method, path)
        if answer.status == 200 and operation is not None:
            self.called.add(operation["operationId"])
        return answer

    def example(self, name: str, **ids: str) -> Any:
        """The body of an operation's example, with ids of this tour."""
        return {**examples()[name].body, **ids}

    def until(self, statuses: set[str], **ids: str) -> Any:
        """The run, as soon as it has one of these statuses."""
        return eventually(
            lambda: run if (run := self.call("getRun", **ids).ok())["status"] in statuses else None,
            f"the run is {statuses}",
        )


@pytest.fixture(scope="module")
def tour(house: Served) -> Tour:
    return Tour(house.api(house.create_key("tour")))


@pytest.fixture(scope="module")
def story(tour: Tour) -> dict[str, str]:
    """The story of the examples, told to the service: the ids of what is there afterwards."""
    assistant = tour.call("createAssistant", body=tour.example("createAssistant")).ok()
    thread = tour.call("createThread", body=tour.example("createThread")).ok()
    ids = {"assistant_id": assistant["id"], "thread_id": thread["id"]}
    own = {"assistant_id": assistant["id"]}
    run = tour.call("createRun", body=tour.example("createRun", **own), **ids).ok()
    assert run["status"] == "queued"
    ids["run_id"] = run["id"]
    waiting = tour.until({"requires_action"}, **ids)
    (call,) = waiting["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert call["function"]["name"] == "get-weather"
    output = {"tool_call_id": call["id"], "output": "Sunny, 21 °C"}
    tour.call("submitToolOutputsToRun", body={"tool_outputs": [output]}, **ids).ok()
    assert tour.until(TERMINAL, **ids)["status"] == "completed"
    answer, question = tour.call("listMessages", **ids).ok()["data"]
    assert answer["content"][0]["text"]["value"] == "Sunny, 21 °C"
    step = tour.call("listRunSteps", **ids).ok()["data"][0]
    return {**ids, "message_id": question["id"], "step_id": step["id"], "model": "echo"}


def test_every_operation_is_called_and_answers_as_described(tour: Tour, story: dict[str, str]):
    own = {"assistant_id": story["assistant_id"]}
    for name in ("getAssistant", "getThread", "getMessage", "getRun", "getRunStep", "listRuns"):
        tour.call(name, **story).ok()
    for name in ("modifyAssistant", "modifyThread", "modifyMessage", "modifyRun", "createMessage"):
        tour.call(name, body=tour.example(name), **story).ok()
    for name in ("listAssistants", "listModels", "listEvents"):
        tour.call(name).ok()
    tour.call("retrieveModel", model="echo").ok()
    tour.call("findRuns", "?status=completed&limit=1").ok()
    assert tour.call("findRuns", f"?ids={story['run_id']},run_gone").ok()["missing"] == ["run_gone"]
    webhooks = endpoint(tour)
    # A run that waits for outputs, and is cancelled.
    second = tour.call("createThreadAndRun", body=tour.example("createThreadAndRun", **own)).ok()
    place = {"thread_id": second["thread_id"], "run_id": second["id"]}
    tour.until({"requires_action"}, **place)
    assert tour.call("cancelRun", **place).ok()["status"] == "cancelled"
    deliveries(tour, webhooks)
    # Things of their own, to be deleted.
    made = tour.call("createAssistant", body={"model": "echo"}).ok()
    thread = tour.call("createThread", body={}).ok()["id"]
    said = tour.call("createMessage", body=tour.example("createMessage"), thread_id=thread).ok()
    tour.call("deleteMessage", thread_id=thread, message_id=said["id"]).ok()
    tour.call("deleteThread", thread_id=thread).ok()
    tour.call("deleteAssistant", assistant_id=made["id"]).ok()
    # The one call that needs somebody else, who is not there: it is a 424.
    assert tour.called == set(examples()) - {"testWebhookEndpoint"}


def endpoint(tour: Tour) -> dict[str, str]:
    """A webhook endpoint where nobody is; what can be done with it alone."""
    body = tour.example("createWebhookEndpoint", url="https://nobody.invalid/", filters={})
    made = tour.call("createWebhookEndpoint", body={**body, "event_types": ["thread.run.*"]}).ok()
    place = {"webhook_endpoint_id": made["id"]}
    tour.call("listWebhookEndpoints").ok()
    tour.call("listWebhookEventTypes").ok()
    tour.call("getWebhookEndpoint", **place).ok()
    for name in ("updateWebhookEndpoint", "rotateWebhookEndpointSecret"):
        tour.call(name, body=tour.example(name), **place).ok()
    unreachable = tour.call(
        "testWebhookEndpoint", body=tour.example("testWebhookEndpoint"), **place
    )
    assert unreachable.status == 424
    assert unreachable.error["code"] == REFUSALS[424].code
    return place


def deliveries(tour: Tour, place: dict[str, str]) -> None:
    """What is owed to the endpoint, which is deleted then."""
    (owed, *_) = tour.call("listDeliveries", "?status=pending", **place).ok()["data"]
    place = {**place, "delivery_id": owed["id"]}
    tour.call("getDelivery", **place).ok()
    tour.call("resendDelivery", **place).ok()
    tour.call("recoverDeliveries", body=tour.example("recoverDeliveries"), **place).ok()
    tour.call("deleteWebhookEndpoint", **place).ok()


ENDINGS = {
    "hello": "completed",
    "fail server_error it broke": "failed",
    "incomplete": "incomplete",
    'call get-weather {"city": "Oslo"}': "requires_action",
}


@pytest.mark.parametrize("text", ENDINGS)
def test_streams_are_described(tour: Tour, story: dict[str, str], text: str):
    body = {
        "assistant_id": story["assistant_id"],
        "thread": {"messages": [{"role": "user", "content": text}]},
        "stream": True,
    }
    names = [name for name, _ in frames(tour.call("createThreadAndRun", body=body).body.decode())]
    assert names[0] == "thread.created"
    assert names[-2:] == [f"thread.run.{ENDINGS[text]}", "done"]


def test_waiting_is_described(tour: Tour, story: dict[str, str]):
    path = f"/v1/threads/{story['thread_id']}/runs/{story['run_id']}"
    held = tour.ask("GET", path, headers={"Prefer": "wait=5"})
    assert held.headers["preference-applied"] == "wait=5"
    same = tour.ask("GET", path, headers={"If-None-Match": held.headers["etag"]})
    assert (same.status, same.body) == (304, b"")


def test_under_the_other_servers_address_everything_is_the_same(tour: Tour, story: dict[str, str]):
    (other,) = [each["url"] for each in document()["servers"] if each["url"] != "/"]
    assert tour.ask("GET", f"{other}/v1/threads/{story['thread_id']}").status == 200


# Errors: each with the very sentence that the document has as its example.


def sentence_of(answer: Answer, status: int) -> None:
    conforms(answer)
    assert answer.status == status
    expected = REFUSALS[status]
    assert answer.error == {
        "message": expected.message,
        "type": expected.type,
        "param": expected.param,
        "code": expected.code,
    }


def test_no_key(house: Served):
    sentence_of(house.request("GET", "/v1/assistants"), 401)


def test_an_unknown_field(tour: Tour):
    sentence_of(tour.ask("POST", "/v1/assistants", {"model": "echo", "temprature": 1}), 400)


def test_an_unknown_run(tour: Tour, story: dict[str, str]):
    unknown = str(REFUSALS[404].message).split("'")[1]
    path = f"/v1/threads/{story['thread_id']}/runs/{unknown}"
    sentence_of(tour.ask("GET", path), 404)


def test_a_wrong_method(tour: Tour):
    sentence_of(tour.ask("PUT", "/v1/assistants"), 405)


def test_a_taken_id(tour: Tour, story: dict[str, str]):
    assert story["assistant_id"] in str(REFUSALS[409].message)
    sentence_of(tour.ask("POST", "/v1/assistants", tour.example("createAssistant")), 409)


def test_a_compressed_body(tour: Tour):
    sentence_of(tour.ask("POST", "/v1/threads", {}, headers={"Content-Encoding": "gzip"}), 415)


def announced(served: Served, length: int) -> Answer:
    """What a request is answered whose body is announced and does not come."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    try:
        connection.putrequest("POST", "/v1/threads")
        connection.putheader("Authorization", f"Bearer {served.key}")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer("POST", "/v1/threads", response.status, headers, response.read())
    finally:
        connection.close()


def test_a_body_that_is_too_large(house: Served):
    sentence_of(announced(house, 8_388_609), 413)


def test_a_body_that_does_not_come(tmp_path: Path):
    with Served(tmp_path, env={"RUNBELL_BODY_TIMEOUT": "0.05"}) as served:
        sentence_of(announced(served, 100), 408)


def test_every_error_that_can_be_made_here_was_compared():
    """The others are compared where they can be made: in tests of limits, storage, webhooks."""
    compared = {400, 401, 404, 405, 408, 409, 413, 415}
    assert set(REFUSALS) - compared == {424, 429, 500, 503}
    assert json.loads(json.dumps(document()))["components"]["responses"].keys() == {
        str(status) for status in REFUSALS
    }
