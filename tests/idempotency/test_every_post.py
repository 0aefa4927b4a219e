"""Every route that takes a POST, in every way that it answers: once is enough.

`ROUTES` of the service is the list of what can be called; a route without an entry fails a test.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest

from runbell.service.routes import ROUTES
from tests.protocol.scenario import function_tool
from tests.served import Api, Served, eventually
from tests.upstream.model_server import ModelServer, in_a_thread, refuse

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
Prepared = tuple[str, Any]
"""A path and a body, ready to be sent; a second one with another key would have another effect."""

_names = count(1)


def new_name() -> str:
    return f"key {next(_names)}"


def assistant(api: Api, **fields: Any) -> str:
    return str(api.post("/v1/assistants", {"model": "echo", **fields}).ok()["id"])


def thread(api: Api, text: str = "hello") -> str:
    body = {"messages": [{"role": "user", "content": text}]}
    return str(api.post("/v1/threads", body).ok()["id"])


def run(api: Api, text: str, until: str) -> tuple[str, Any]:
    """A run that has come to a status: its path, and what it is."""
    runs = f"/v1/threads/{thread(api, text)}/runs"
    body = {"assistant_id": assistant(api, tools=[function_tool("f")])}
    path = f"{runs}/{api.post(runs, body).ok()['id']}"
    seen = eventually(lambda: (r := api.get(path).ok())["status"] == until and r, until)
    return path, seen


def outputs(api: Api, **more: Any) -> Prepared:
    path, seen = run(api, "call f {}", "requires_action")
    (call,) = seen["required_action"]["submit_tool_outputs"]["tool_calls"]
    given = [{"tool_call_id": call["id"], "output": "x"}]
    return f"{path}/submit_tool_outputs", {"tool_outputs": given, **more}


def message(api: Api) -> Prepared:
    path = f"/v1/threads/{thread(api)}/messages"
    made = api.post(path, {"role": "user", "content": "x"}).ok()
    return f"{path}/{made['id']}", {"metadata": {"k": "v"}}


METADATA = {"metadata": {"k": "v"}}

ENDPOINT = {"name": "n", "url": "https://example.com/hooks", "event_types": ["thread.run.failed"]}


def endpoint(api: Api, **fields: Any) -> str:
    made = api.post("/v1/webhook_endpoints", {**ENDPOINT, **fields}).ok()
    return f"/v1/webhook_endpoints/{made['id']}"


def delivery(api: Api) -> Prepared:
    """A delivery that waits: its endpoint is disabled as soon as it is owed one."""
    path = endpoint(api, url="https://nobody.invalid/", event_types=["thread.run.created"])
    run(api, "hello", "completed")
    api.post(path, {"enabled": False}).ok()
    (owed,) = api.get(f"{path}/deliveries").ok()["data"]
    return f"{path}/deliveries/{owed['id']}/resend", None


POSTS: dict[str, Callable[[Api], Prepared]] = {
    "/v1/assistants": lambda api: ("/v1/assistants", {"model": "echo"}),
    "/v1/assistants/{assistant_id}": lambda api: (f"/v1/assistants/{assistant(api)}", METADATA),
    "/v1/threads": lambda api: ("/v1/threads", HELLO),
    "/v1/threads/{thread_id}": lambda api: (f"/v1/threads/{thread(api)}", METADATA),
    "/v1/threads/{thread_id}/messages": lambda api: (
        f"/v1/threads/{thread(api)}/messages",
        {"role": "user", "content": "x"},
    ),
    "/v1/threads/{thread_id}/messages/{message_id}": message,
    "/v1/threads/runs": lambda api: (
        "/v1/threads/runs",
        {"assistant_id": assistant(api), "thread": HELLO},
    ),
    "/v1/threads/{thread_id}/runs": lambda api: (
        f"/v1/threads/{thread(api)}/runs",
        {"assistant_id": assistant(api), "additional_messages": HELLO["messages"]},
    ),
    "/v1/threads/{thread_id}/runs/{run_id}": lambda api: (
        run(api, "hello", "completed")[0],
        METADATA,
    ),
    "/v1/threads/{thread_id}/runs/{run_id}/cancel": lambda api: (
        f"{run(api, 'sleep 600', 'in_progress')[0]}/cancel",
        None,
    ),
    "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs": outputs,
    "/v1/webhook_endpoints": lambda api: ("/v1/webhook_endpoints", ENDPOINT),
    "/v1/webhook_endpoints/{webhook_endpoint_id}": lambda api: (endpoint(api), METADATA),
    "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret": lambda api: (
        f"{endpoint(api)}/rotate_secret",
        {},
    ),
    "/v1/webhook_endpoints/{webhook_endpoint_id}/recover": lambda api: (
        f"{endpoint(api)}/recover",
        {},
    ),
    "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/resend": delivery,
}
"""For each route: make what it needs, and say what to send."""

REPEATING = {"/v1/webhook_endpoints/{webhook_endpoint_id}/test"}
"""These do something outside of the database each time, and say so."""

STREAMS: dict[str, Callable[[Api], Prepared]] = {
    path: lambda api, path=path: (  # type: ignore[misc]
        POSTS[path](api)[0],
        {**POSTS[path](api)[1], "stream": True},
    )
    for path in ("/v1/threads/runs", "/v1/threads/{thread_id}/runs")
} | {
    "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs": lambda api: outputs(
        api, stream=True
    )
}


def test_every_route_that_takes_a_post_has_a_case() -> None:
    assert set(POSTS) | REPEATING == {route.path for route in ROUTES if route.method == "POST"}
    assert {route.path for route in ROUTES if route.repeats} == REPEATING
    streaming = {
        route.path
        for route in ROUTES
        if route.body is not None and "stream" in route.body.__struct_fields__
    }
    assert set(STREAMS) == streaming


@pytest.mark.parametrize("path", POSTS)
def test_the_second_time_is_the_first_answer(served: Served, path: str) -> None:
    api = served.api()
    where, body = POSTS[path](api)
    headers = {"Idempotency-Key": new_name()}
    before = len(api.get("/v1/events?limit=100").ok()["data"])
    first = api.post(where, body, headers=headers)
    first.ok()
    assert "idempotent-replayed" not in first.headers
    eventually(lambda: not live(api, where, first.json()), "what it set off has ended")
    events = api.get("/v1/events?limit=100").ok()["data"]
    again = [api.post(where, body, headers=headers) for _ in range(2)]
    for answer in again:
        assert (answer.status, answer.body) == (200, first.body)
        assert answer.headers["idempotent-replayed"] == "true"
    assert api.get("/v1/events?limit=100").ok()["data"] == events
    assert len(events) >= before


def live(api: Api, where: str, made: Any) -> bool:
    """The request was about a run, and that has not ended."""
    if made.get("object") != "thread.run":
        return False
    status = api.get(f"/v1/threads/{made['thread_id']}/runs/{made['id']}").ok()["status"]
    return status not in ("completed", "cancelled", "requires_action")


@pytest.mark.parametrize("path", STREAMS)
def test_a_stream_ends_the_same_way_the_second_time(served: Served, path: str) -> None:
    api = served.api()
    where, body = STREAMS[path](api)
    headers = {"Idempotency-Key": new_name()}
    first, again = (api.post(where, body, headers=headers) for _ in range(2))
    assert again.headers["idempotent-replayed"] == "true"
    ends = [answer.body.split(b"event: ")[-2:] for answer in (first, again)]
    assert ends[0] == ends[1]
    assert ends[0][0].startswith(b"thread.run.completed\n")
    assert ends[0][1] == b"done\ndata: [DONE]\n\n"


@pytest.mark.parametrize("path", POSTS)
def test_without_an_effect_the_key_is_free(served: Served, path: str) -> None:
    """Each route is refused (nothing is there that could be changed), and can be tried again."""
    names = (
        *("assistant_id", "thread_id", "message_id", "run_id"),
        *("webhook_endpoint_id", "delivery_id"),
    )
    missing = path.format(**{name: f"{name}_nobody" for name in names})
    bodies: dict[str, Any] = {
        "/v1/assistants": {"model": ""},
        "/v1/threads": {"messages": 1},
        "/v1/threads/{thread_id}/messages": {"role": "user", "content": "x"},
        "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs": {"tool_outputs": []},
    }
    body = bodies.get(path, {"assistant_id": "asst_nobody"} if path.endswith("runs") else {})
    api = served.api()
    headers = {"Idempotency-Key": new_name()}
    for _ in range(2):
        answer = api.post(missing, body, headers=headers)
        assert answer.status in (400, 404), answer
        assert "idempotent-replayed" not in answer.headers
    # Nor does it stand in the way of another request.
    assert api.post("/v1/threads", {}, headers=headers).status == 200


def test_what_cannot_be_taken_back_is_not_done_once(served: Served) -> None:
    """A test of an endpoint is sent each time: a key that promises otherwise is refused."""
    api = served.api()
    answer = api.post(
        f"{endpoint(api)}/test",
        {"event_type": "thread.run.failed"},
        headers={"Idempotency-Key": new_name()},
    )
    assert (answer.status, answer.error["code"]) == (400, "invalid_idempotency_key")


@pytest.mark.parametrize("path", ["/v1/webhook_endpoints", "rotate_secret"])
def test_an_answer_with_a_secret_is_kept_encrypted(served: Served, path: str) -> None:
    """The first answer comes again with its secret, and no file of the database holds that."""
    api = served.api()
    where = path if path.startswith("/") else f"{endpoint(api)}/{path}"
    body = ENDPOINT if path.startswith("/") else {}
    headers = {"Idempotency-Key": new_name()}
    first, again = (api.post(where, body, headers=headers) for _ in range(2))
    secret = first.ok()["signing_secret"]
    assert again.ok()["signing_secret"] == secret
    assert again.headers["idempotent-replayed"] == "true"
    raw = b64decode(secret.removeprefix("whsec_"))
    for file in served.directory.glob("runbell.db*"):
        kept = file.read_bytes()
        assert secret.encode() not in kept, file
        assert raw not in kept, file


def test_other_methods_need_no_key_and_mind_none(served: Served) -> None:
    api = served.api()
    headers = {"Idempotency-Key": new_name()}
    first = thread(api)
    assert api.get(f"/v1/threads/{first}", headers=headers).status == 200
    assert api.delete(f"/v1/threads/{first}", headers=headers).status == 200
    assert api.delete(f"/v1/threads/{first}", headers=headers).status == 404
    assert api.post("/v1/threads", {}, headers=headers).status == 200


def test_a_key_that_cannot_be_used_is_a_400(served: Served) -> None:
    answer = served.api().post("/v1/threads", {}, headers={"Idempotency-Key": "x" * 256})
    assert (answer.status, answer.error["code"]) == (400, "invalid_idempotency_key")
    assert answer.error["param"] == "Idempotency-Key"


# Where a model server is asked: never from inside the transaction.


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    with in_a_thread() as server:
        yield server


@pytest.fixture(scope="module")
def with_models(models: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    args = ["--upstream", models.url]
    with Served(tmp_path_factory.mktemp("models"), args=args) as served:
        yield served


RUNS = ("/v1/threads/runs", "/v1/threads/{thread_id}/runs")
ASKING = [(path, stream) for path in RUNS for stream in (False, True)]


def begun(api: Api, path: str, model: str, stream: bool) -> Prepared:
    """A run of this model, not asked for yet."""
    where, body = POSTS[path](api)
    return where, {**body, "model": model, "stream": stream}


@pytest.mark.parametrize(("path", "stream"), ASKING)
def test_a_model_that_nobody_serves_is_refused_with_a_key_too(
    with_models: Served, path: str, stream: bool
) -> None:
    api = with_models.api()
    headers = {"Idempotency-Key": new_name()}
    where, body = begun(api, path, "nobody's", stream)
    for given in ({}, headers, headers):
        answer = api.post(where, body, headers=given)
        assert (answer.status, answer.error["code"]) == (400, "model_not_found")
    ended = api.post(where, {**body, "model": "echo", "stream": False}, headers=headers)
    assert ended.status == 200, "the key is free"


@pytest.mark.parametrize(("path", "stream"), ASKING)
def test_a_model_that_came_since_a_moment_is_found_with_a_key_too(
    with_models: Served, models: ModelServer, path: str, stream: bool
) -> None:
    api = with_models.api()
    headers = {"Idempotency-Key": new_name()}
    where, body = begun(api, path, new_name(), stream)
    models.models = ("m", body["model"])
    # Servers are asked every few seconds at the most.
    first = eventually(
        lambda: (r := api.post(where, body, headers=headers)).status == 200 and r, "it is found"
    )
    again = api.post(where, body, headers=headers)
    assert (again.status, again.headers["idempotent-replayed"]) == (200, "true")
    if not stream:
        assert again.body == first.body


@pytest.mark.parametrize(("path", "stream"), ASKING)
def test_a_server_that_says_nothing_yet_is_no_error_with_a_key(
    path: str, stream: bool, undecided: Served
) -> None:
    api = undecided.api()
    where, body = begun(api, path, "m", stream)
    answer = api.post(where, body, headers={"Idempotency-Key": new_name()})
    assert (answer.status, answer.error["code"]) == (400, "model_not_found")
    assert "has not said yet which models it has" in answer.error["message"]


@pytest.fixture(scope="module")
def undecided(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose model server is there, and does not say what it has."""
    with in_a_thread() as server:
        server.models = refuse(503, {})
        directory = tmp_path_factory.mktemp("undecided")
        with Served(directory, args=["--upstream", server.url]) as served:
            yield served
