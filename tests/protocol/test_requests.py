"""Requests that are refused, and how: unknown fields and parameters, bodies that cannot be read."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import ask, messages_of, say, until
from tests.protocol.wire import inspect
from tests.served import Answer, Api, Served


@pytest.fixture(scope="module")
def paths(api: Api, client: OpenAI, echo: Assistant) -> dict[str, str]:
    """Objects that are there, by the parameter that stands for them in a path."""
    run = until(client, ask(client, echo, "call get-weather {}"), "requires_action")
    (message,) = client.beta.threads.messages.list(run.thread_id)
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    return {
        "assistant_id": client.beta.assistants.create(model="echo").id,
        "thread_id": run.thread_id,
        "run_id": run.id,
        "message_id": message.id,
        "step_id": step.id,
    }


# Unknown fields: one for each object that the API closes.

EVENT_MAY_BE_GONE = "It may have been removed by its age: begin without 'after'."

CLOSED: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/assistants", {"model": "echo", "x": 1}, "x"),
    ("/v1/assistants/{assistant_id}", {"x": 1}, "x"),
    ("/v1/threads", {"x": 1}, "x"),
    ("/v1/threads", {"messages": [{"role": "user", "content": "a", "x": 1}]}, "messages[0].x"),
    ("/v1/threads/{thread_id}", {"x": 1}, "x"),
    ("/v1/threads/{thread_id}/messages", {"role": "user", "content": "a", "x": 1}, "x"),
    (
        "/v1/threads/{thread_id}/messages",
        {"role": "user", "content": "a", "file_ids": []},
        "file_ids",
    ),
    ("/v1/threads/{thread_id}/messages/{message_id}", {"content": "a"}, "content"),
    ("/v1/threads/{thread_id}/runs", {"assistant_id": "asst_1", "x": 1}, "x"),
    (
        "/v1/threads/{thread_id}/runs",
        {
            "assistant_id": "asst_1",
            "additional_messages": [
                {"role": "user", "content": "a"},
                {"role": "user", "content": "a", "x": 1},
            ],
        },
        "additional_messages[1].x",
    ),
    ("/v1/threads/{thread_id}/runs/{run_id}", {"status": "completed"}, "status"),
    (
        "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs",
        {"tool_outputs": [], "x": 1},
        "x",
    ),
    ("/v1/threads/runs", {"assistant_id": "asst_1", "x": 1}, "x"),
    ("/v1/threads/runs", {"assistant_id": "asst_1", "thread": {"x": 1}}, "thread.x"),
    (
        "/v1/threads/runs",
        {
            "assistant_id": "asst_1",
            "thread": {"messages": [{"role": "user", "content": "a", "x": 1}]},
        },
        "thread.messages[0].x",
    ),
    # Known elsewhere, unknown here.
    ("/v1/assistants/{assistant_id}", {"id": "asst_new"}, "id"),
    (
        "/v1/threads/runs",
        {"assistant_id": "asst_1", "additional_messages": []},
        "additional_messages",
    ),
    ("/v1/assistants", {"model": "echo", "expires_after": 60}, "expires_after"),
]


@pytest.mark.parametrize(("path", "body", "param"), CLOSED, ids=lambda v: str(v)[:70])
def test_an_unknown_field_is_refused_by_its_name(
    api: Api, paths: dict[str, str], path: str, body: dict[str, Any], param: str
) -> None:
    answer = api.post(path.format(**paths), body)
    assert answer.status == 400
    assert answer.error == {
        "message": f"Unknown parameter: '{param}'.",
        "type": "invalid_request_error",
        "param": param,
        "code": "unknown_parameter",
    }


def test_a_null_does_not_make_an_unknown_field_known(api: Api) -> None:
    assert api.post("/v1/threads", {"x": None}).error["code"] == "unknown_parameter"


def test_objects_that_the_api_leaves_open_take_more(api: Api) -> None:
    """Nested ones: what other versions of clients put there does not break them here."""
    tool = {"type": "function", "function": {"name": "f", "x": 1}, "y": 2}
    assert api.post("/v1/assistants", {"model": "echo", "tools": [tool]}).status == 200
    body = {"tool_resources": {"code_interpreter": {"file_ids": [], "x": 1}, "other": {}}}
    assert api.post("/v1/threads", body).status == 200


# Query parameters.

GETS = [
    "/v1/assistants",
    "/v1/assistants/{assistant_id}",
    "/v1/threads/{thread_id}",
    "/v1/threads/{thread_id}/messages",
    "/v1/threads/{thread_id}/messages/{message_id}",
    "/v1/threads/{thread_id}/runs",
    "/v1/threads/{thread_id}/runs/{run_id}",
    "/v1/threads/{thread_id}/runs/{run_id}/steps",
    "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}",
    "/v1/models",
    "/v1/models/echo",
    "/v1/events",
]


@pytest.mark.parametrize("path", GETS)
def test_an_unknown_query_parameter_is_refused_by_its_name(
    api: Api, paths: dict[str, str], path: str
) -> None:
    answer = api.get(f"{path.format(**paths)}?x=1")
    assert answer.status == 400
    assert answer.error == {
        "message": "Unknown query parameter: 'x'.",
        "type": "invalid_request_error",
        "param": "x",
        "code": "unknown_parameter",
    }


@pytest.mark.parametrize("path", GETS)
def test_the_api_version_of_azure_is_no_unknown_parameter(
    api: Api, paths: dict[str, str], path: str
) -> None:
    assert api.get(f"{path.format(**paths)}?api-version=2024-05-01-preview").status == 200


def test_a_parameter_of_another_list_is_unknown(api: Api, paths: dict[str, str]) -> None:
    """`run_id` filters messages and nothing else; `include` belongs to steps."""
    thread = f"/v1/threads/{paths['thread_id']}"
    for path in (f"{thread}/runs?run_id=run_1", "/v1/assistants?include=x", "/v1/events?order=asc"):
        assert api.get(path).error["code"] == "unknown_parameter", path


# Bodies that cannot be read.

UNREADABLE: list[bytes] = [
    b"{",
    b'{"metadata": {"k": "v"}',
    b"{'metadata': {}}",
    b'{"metadata": {},}',
    b'{"metadata": NaN}',
    b"nonsense",
    b'{"metadata": {"k": "\xff\xfe"}}',
    b'{"metadata": {"k": "\\ud800"}}',
    b'{"metadata": {"k": "a\nb"}}',
    b"{} {}",
    b'\xef\xbb\xbf{"x"',
    b"[]",
    b'"text"',
    b"7",
    b"null",
]


@pytest.mark.parametrize("body", UNREADABLE, ids=repr)
def test_a_body_that_is_no_json_object_is_a_400(api: Api, body: bytes) -> None:
    answer = api.post("/v1/threads", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body",
    [
        b'{"metadata": {"k": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
        b'{"metadata": ' + b'{"k": ' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 1_000_000,
        b'{"x":' * 200_000,
    ],
    ids=["arrays", "objects", "never closed", "objects never closed"],
)
def test_a_body_that_is_nested_too_deep_is_a_400(api: Api, body: bytes) -> None:
    answer = api.post("/v1/threads", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400
    assert answer.error["type"] == "invalid_request_error"
    assert api.get("/healthz").status == 200


def test_a_schema_may_be_nested_as_deep_as_real_ones_are(api: Api) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(20):
        schema = {"type": "object", "properties": {"p": schema}}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    made = api.post("/v1/assistants", {"model": "echo", "tools": [tool]}).ok()
    assert made["tools"][0]["function"]["parameters"] == schema


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400, "1" + "0" * 30])
def test_a_number_that_is_out_of_range_is_a_400(api: Api, number: str) -> None:
    body = f'{{"model": "echo", "temperature": {number}}}'.encode()
    answer = api.post("/v1/assistants", body=body, headers={"Content-Type": "application/json"})
    assert answer.status == 400


# Bodies that are too large.


def raw_answer(served: Served, head: str, chunks: int = 0) -> Answer:
    """What a socket gets for a POST to /v1/threads; sends chunks until an answer comes."""
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(
            f"POST /v1/threads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
            f"Content-Type: application/json\r\n{head}\r\n\r\n".encode()
        )
        connection.settimeout(0.001)
        received = b""
        for _ in range(chunks):
            try:
                received += connection.recv(65_536)
                break
            except TimeoutError:
                pass
            connection.settimeout(30)
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                break
            connection.settimeout(0.001)
        connection.settimeout(30)
        while b"\r\n\r\n" not in received or not _whole(received):
            more = connection.recv(65_536)
            if not more:
                break
            received += more
    return _parsed(received)


def _whole(received: bytes) -> bool:
    answer = _parsed(received)
    return len(answer.body) >= int(answer.headers.get("content-length", 0))


def _parsed(received: bytes) -> Answer:
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(": ")
        headers[name.lower()] = value
    return Answer("POST", "/v1/threads", int(status.split()[1]), headers, body)


def test_a_body_that_says_it_is_too_large_is_refused_before_it_is_sent(served: Served) -> None:
    answer = raw_answer(served, "Content-Length: 1000000000")
    inspect(answer)
    assert answer.status == 413
    assert answer.error["type"] == "invalid_request_error"


def test_a_body_that_grows_too_large_is_refused_on_the_way(served: Served) -> None:
    """Chunked: nobody knows its size before. A gigabyte would be sent if it were not refused."""
    answer = raw_answer(served, "Transfer-Encoding: chunked", chunks=16_384)
    inspect(answer)
    assert answer.status == 413


def test_a_chunked_body_that_fits_is_read(served: Served) -> None:
    body = json.dumps({"metadata": {"k": "v"}}).encode()
    chunk = f"{len(body):x}\r\n{body.decode()}\r\n0\r\n"
    with socket.create_connection(("127.0.0.1", served.port), timeout=30) as connection:
        connection.sendall(
            f"POST /v1/threads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.key}\r\n"
            f"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}\r\n".encode()
        )
        received = b""
        while more := connection.recv(65_536):
            received += more
    answer = _parsed(received)
    assert answer.ok()["metadata"] == {"k": "v"}


def test_a_large_message_that_fits_is_kept(client: OpenAI) -> None:
    text = "Grüße 🌍 " * 10_000
    assert messages_of(client, say(client, text)) == [text]


# Paths and methods that are not there.


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1", "/v1/threads/", "/v2/assistants", "/openai/nothing"]
)
def test_an_unknown_path_is_a_404(api: Api, path: str) -> None:
    for answer in (api.get(path), api.delete(path)):
        assert answer.status == 404, answer
        assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/v1/assistants", {"GET", "POST"}),
        ("DELETE", "/v1/assistants", {"GET", "POST"}),
        ("PATCH", "/v1/threads/thread_1", {"GET", "POST", "DELETE"}),
        ("GET", "/v1/threads", {"POST"}),
        ("DELETE", "/v1/threads/thread_1/runs/run_1", {"GET", "POST"}),
        ("GET", "/v1/threads/thread_1/runs/run_1/cancel", {"POST"}),
        ("POST", "/v1/models", {"GET"}),
        ("POST", "/v1/events", {"GET"}),
        ("PUT", "/openai/assistants", {"GET", "POST"}),
    ],
)
def test_another_method_is_a_405_that_says_which_are_allowed(
    served: Served, method: str, path: str, allowed: set[str]
) -> None:
    answer = served.request(method, path, key=served.key)
    assert answer.status == 405
    assert answer.error["type"] == "invalid_request_error"
    assert allowed <= {name.strip() for name in answer.headers["allow"].split(",")}


# Objects that are not there.

MISSING: list[tuple[str, str, Any, str]] = [
    ("GET", "/v1/assistants/asst_X", None, "No assistant found with id 'asst_X'."),
    ("POST", "/v1/assistants/asst_X", {}, "No assistant found with id 'asst_X'."),
    ("DELETE", "/v1/assistants/asst_X", None, "No assistant found with id 'asst_X'."),
    ("GET", "/v1/threads/thread_X", None, "No thread found with id 'thread_X'."),
    ("POST", "/v1/threads/thread_X", {}, "No thread found with id 'thread_X'."),
    ("DELETE", "/v1/threads/thread_X", None, "No thread found with id 'thread_X'."),
    ("GET", "/v1/threads/thread_X/messages", None, "No thread found with id 'thread_X'."),
    (
        "POST",
        "/v1/threads/thread_X/messages",
        {"role": "user", "content": "a"},
        "No thread found with id 'thread_X'.",
    ),
    ("GET", "/v1/threads/thread_X/runs", None, "No thread found with id 'thread_X'."),
    (
        "POST",
        "/v1/threads/{thread_id}/runs",
        {"assistant_id": "asst_X"},
        "No assistant found with id 'asst_X'.",
    ),
    (
        "POST",
        "/v1/threads/runs",
        {"assistant_id": "asst_X"},
        "No assistant found with id 'asst_X'.",
    ),
    (
        "GET",
        "/v1/threads/{thread_id}/messages/msg_X",
        None,
        "No message found with id 'msg_X'.",
    ),
    ("GET", "/v1/threads/{thread_id}/runs/run_X", None, "No run found with id 'run_X'."),
    ("POST", "/v1/threads/{thread_id}/runs/run_X", {}, "No run found with id 'run_X'."),
    ("POST", "/v1/threads/{thread_id}/runs/run_X/cancel", None, "No run found with id 'run_X'."),
    (
        "POST",
        "/v1/threads/{thread_id}/runs/run_X/submit_tool_outputs",
        {"tool_outputs": []},
        "No run found with id 'run_X'.",
    ),
    ("GET", "/v1/threads/{thread_id}/runs/run_X/steps", None, "No run found with id 'run_X'."),
    (
        "GET",
        "/v1/threads/{thread_id}/runs/{run_id}/steps/step_X",
        None,
        "No run step found with id 'step_X'.",
    ),
    (
        "GET",
        "/v1/events?after=evt_X",
        None,
        "No event found with id 'evt_X'. " + EVENT_MAY_BE_GONE,
    ),
]


@pytest.mark.parametrize(("method", "path", "body", "sentence"), MISSING, ids=lambda v: str(v)[:60])
def test_a_missing_object_is_a_404_that_names_it(
    served: Served, paths: dict[str, str], method: str, path: str, body: Any, sentence: str
) -> None:
    answer = served.request(method, path.format(**paths), json=body, key=served.key)
    assert answer.status == 404
    assert answer.error["message"] == sentence
    assert answer.error["type"] == "invalid_request_error"


def test_a_missing_run_of_a_missing_thread_is_a_404(api: Api) -> None:
    answer = api.get("/v1/threads/thread_X/runs/run_X")
    assert answer.status == 404
    assert "_X" in answer.error["message"]


@pytest.mark.parametrize("model", ["not-served", "org/not-served", "ft:not-served:a::b"])
def test_a_missing_model_is_a_404(api: Api, model: str) -> None:
    """Names of models may hold slashes and colons."""
    answer = api.get(f"/v1/models/{model}")
    assert answer.status == 404
    assert model in answer.error["message"]


@pytest.mark.parametrize("wild", ["%00", "%ff", "a" * 5_000, "%2e%2e%2f", "'; drop table runs"])
def test_a_wild_id_is_not_found(api: Api, wild: str) -> None:
    answer = api.get(f"/v1/assistants/{wild.replace(' ', '%20')}")
    assert answer.status in (400, 404)
    assert len(answer.body) < 20_000


# What stands on every answer. `inspect` sees to it that it is there at all.


def test_every_answer_has_an_id_of_its_own(served: Served, api: Api) -> None:
    answers = [
        *(api.get("/v1/assistants") for _ in range(5)),
        api.get("/v1/nothing"),
        api.post("/v1/threads", body=b"{"),
        served.request("GET", "/v1/assistants"),
        served.request("GET", "/healthz"),
    ]
    assert len({answer.headers["x-request-id"] for answer in answers}) == len(answers)
