"""Two projects cannot see each other, on any route.

`ROUTES` of the service is the list of what can be called. Each route has an entry below that says
how a stranger tries it; a route without an entry fails a test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from runbell.service.routes import ROUTES
from tests.protocol.conftest import Project
from tests.protocol.scenario import ask, fields, function_tool, outputs_for, until
from tests.served import Answer, Api, eventually

OUTPUTS = {"tool_outputs": [{"tool_call_id": "call_1", "output": "x"}]}
MESSAGE = {"role": "user", "content": "from a stranger"}
METADATA = {"metadata": {"from": "a stranger"}}
SAMPLE = {"event_type": "thread.run.completed"}
ENDPOINT = {
    "name": "n",
    "url": "https://nobody.invalid/hooks",
    "event_types": ["thread.run.requires_action"],
}

MISSING = {
    "assistant_id": "asst_nobody",
    "thread_id": "thread_nobody",
    "message_id": "msg_nobody",
    "run_id": "run_nobody",
    "step_id": "step_nobody",
    "webhook_endpoint_id": "wh_nobody",
    "delivery_id": "evt_nobody",
}
"""Ids that no project has."""

NAMED: dict[tuple[str, str], Any] = {
    ("GET", "/v1/assistants/{assistant_id}"): None,
    ("POST", "/v1/assistants/{assistant_id}"): {"name": "a stranger's"},
    ("DELETE", "/v1/assistants/{assistant_id}"): None,
    ("GET", "/v1/threads/{thread_id}"): None,
    ("POST", "/v1/threads/{thread_id}"): METADATA,
    ("DELETE", "/v1/threads/{thread_id}"): None,
    ("GET", "/v1/threads/{thread_id}/messages"): None,
    ("POST", "/v1/threads/{thread_id}/messages"): MESSAGE,
    ("GET", "/v1/threads/{thread_id}/messages/{message_id}"): None,
    ("POST", "/v1/threads/{thread_id}/messages/{message_id}"): METADATA,
    ("DELETE", "/v1/threads/{thread_id}/messages/{message_id}"): None,
    ("GET", "/v1/threads/{thread_id}/runs"): None,
    ("POST", "/v1/threads/{thread_id}/runs"): {"assistant_id": "{own_assistant_id}"},
    ("GET", "/v1/threads/{thread_id}/runs/{run_id}"): None,
    ("POST", "/v1/threads/{thread_id}/runs/{run_id}"): METADATA,
    ("POST", "/v1/threads/{thread_id}/runs/{run_id}/cancel"): None,
    ("POST", "/v1/threads/{thread_id}/runs/{run_id}/submit_tool_outputs"): OUTPUTS,
    ("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps"): None,
    ("GET", "/v1/threads/{thread_id}/runs/{run_id}/steps/{step_id}"): None,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}"): None,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}"): METADATA,
    ("DELETE", "/v1/webhook_endpoints/{webhook_endpoint_id}"): None,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/rotate_secret"): {},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/recover"): {},
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/test"): SAMPLE,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries"): None,
    ("GET", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}"): None,
    ("POST", "/v1/webhook_endpoints/{webhook_endpoint_id}/deliveries/{delivery_id}/resend"): None,
}
"""Routes that name an object in their path, with a body that its owner could send."""

UNNAMED = {
    ("GET", "/v1/assistants"): "test_lists_show_ones_own_alone",
    ("POST", "/v1/assistants"): "test_an_id_may_be_taken_in_each_project",
    ("POST", "/v1/threads"): "test_a_new_thread_is_ones_own",
    ("POST", "/v1/threads/runs"): "test_no_run_uses_a_strangers_assistant",
    ("GET", "/v1/runs"): "test_runs_are_found_by_their_owner_alone",
    ("GET", "/v1/events"): "test_the_feed_shows_ones_own_alone",
    ("GET", "/v1/webhook_endpoints"): "test_lists_show_ones_own_alone",
    ("POST", "/v1/webhook_endpoints"): "test_a_new_endpoint_hears_of_ones_own_runs_alone",
    ("GET", "/v1/webhook_event_types"): "test_models_are_for_all",
    ("GET", "/v1/models"): "test_models_are_for_all",
    ("GET", "/v1/models/{model:path}"): "test_models_are_for_all",
}
"""Routes that name none, with the test that is about them."""

SCHEMA = {
    *(route for route in NAMED if "webhook" not in route[1]),
    ("GET", "/v1/assistants"),
    ("POST", "/v1/assistants"),
    ("POST", "/v1/threads"),
    ("POST", "/v1/threads/runs"),
}
"""Every method of every path of OpenAI's Assistants API."""


@dataclass(frozen=True)
class Two:
    """Somebody with a run that waits for outputs, and a stranger."""

    owner: Project
    stranger: Project
    ids: dict[str, str]
    own_assistant_id: str

    def state(self) -> list[Any]:
        """Everything that the owner can see."""
        thread = f"/v1/threads/{self.ids['thread_id']}"
        run = f"{thread}/runs/{self.ids['run_id']}"
        endpoint = self.ids["webhook_endpoint_id"]
        lists = [f"{thread}/messages", f"{thread}/runs", f"{run}/steps", "/v1/assistants"]
        lists += ["/v1/webhook_endpoints", f"/v1/webhook_endpoints/{endpoint}/deliveries"]
        paths = [thread, run, *(f"{path}?limit=100" for path in [*lists, "/v1/events"])]
        return [self.owner.api.get(path).ok() for path in paths]


@pytest.fixture(scope="module")
def two(new_project: Callable[[], Project]) -> Two:
    owner, stranger = new_project(), new_project()
    client = owner.client
    assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
    endpoint = owner.api.post("/v1/webhook_endpoints", ENDPOINT).ok()["id"]
    run = until(client, ask(client, assistant, "call f {}"), "requires_action")
    # It stays as it is from now on: nobody sends anything to it.
    owner.api.post(f"/v1/webhook_endpoints/{endpoint}", {"enabled": False}).ok()
    deliveries = f"/v1/webhook_endpoints/{endpoint}/deliveries"
    eventually(
        lambda: all(each["attempt_count"] for each in owner.api.get(deliveries).ok()["data"]),
        "what was under way has ended",
    )
    (delivery,) = owner.api.get(deliveries).ok()["data"]
    (message,) = client.beta.threads.messages.list(run.thread_id)
    (step,) = client.beta.threads.runs.steps.list(run.id, thread_id=run.thread_id)
    ids = {
        "assistant_id": assistant.id,
        "thread_id": run.thread_id,
        "message_id": message.id,
        "run_id": run.id,
        "step_id": step.id,
        "webhook_endpoint_id": endpoint,
        "delivery_id": delivery["id"],
    }
    return Two(owner, stranger, ids, stranger.client.beta.assistants.create(model="echo").id)


def call(api: Api, two: Two, route: tuple[str, str], ids: dict[str, str]) -> Answer:
    method, path = route
    body = NAMED[route]
    if isinstance(body, dict) and "assistant_id" in body:
        body = {"assistant_id": two.own_assistant_id}
    return api.served.request(method, path.format(**ids), json=body, key=api.key)


def test_every_route_of_the_service_is_in_a_table_of_these_tests() -> None:
    known = set(NAMED) | set(UNNAMED)
    assert {(route.method, route.path) for route in ROUTES} == known


def test_every_route_of_the_assistants_api_is_served() -> None:
    served = {(route.method, route.path) for route in ROUTES}
    assert len(SCHEMA) == 23
    assert served >= SCHEMA


@pytest.mark.parametrize("name", sorted(set(UNNAMED.values())))
def test_the_test_that_a_table_names_is_there(name: str) -> None:
    assert callable(globals()[name])


@pytest.mark.parametrize("route", sorted(NAMED), ids=" ".join)
@pytest.mark.parametrize("prefix", ["/v1", "/openai"])
def test_what_is_a_strangers_is_not_there(two: Two, route: tuple[str, str], prefix: str) -> None:
    """The answer is to the letter that for an id which nobody has; and nothing was changed."""
    method, path = route
    before = two.state()
    # `call` formats the path of the route's entry; the prefix is put in front of what is sent.
    api = Prefixed(two.stranger.api.served, two.stranger.key, prefix)
    theirs = call(api, two, route, two.ids)
    nobodys = call(api, two, route, MISSING)
    assert theirs.status == nobodys.status == 404, (method, path)
    expected = nobodys.error
    for name, missing in MISSING.items():
        expected["message"] = expected["message"].replace(missing, two.ids[name])
    assert theirs.error == expected
    assert two.state() == before


class Prefixed(Api):
    """Plain HTTP under another prefix than `/v1`."""

    def __init__(self, served: Any, key: str | None, prefix: str) -> None:
        super().__init__(_PrefixedServed(served, prefix), key)  # type: ignore[arg-type]


class _PrefixedServed:
    def __init__(self, served: Any, prefix: str) -> None:
        self._served = served
        self._prefix = prefix

    def request(self, method: str, path: str, **options: Any) -> Answer:
        answer: Answer = self._served.request(
            method, path.replace("/v1", self._prefix, 1), **options
        )
        return answer


OWN_PARENT = [route for route in sorted(NAMED) if route[1].count("{") > 1]


@pytest.mark.parametrize("route", OWN_PARENT, ids=" ".join)
def test_what_is_a_strangers_is_not_in_a_thread_of_ones_own(
    two: Two, route: tuple[str, str]
) -> None:
    """The right parent does not open somebody else's child."""
    client = two.stranger.client
    assistant = client.beta.assistants.retrieve(two.own_assistant_id)
    before = two.state()
    run = until(client, ask(client, assistant, "hello"))
    ids = {**two.ids, "thread_id": run.thread_id}
    assert call(two.stranger.api, two, route, ids).status == 404
    if "{step_id}" in route[1]:
        assert call(two.stranger.api, two, route, {**ids, "run_id": run.id}).status == 404
    assert two.state() == before


def test_the_owner_is_answered_on_every_named_route(new_project: Callable[[], Project]) -> None:
    """The other tests would pass as well if nobody were."""
    owner = new_project()
    client = owner.client
    assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
    made = owner.api.post("/v1/webhook_endpoints", ENDPOINT).ok()["id"]
    until(client, ask(client, assistant, "call f {}"), "requires_action")
    (owed,) = owner.api.get(f"/v1/webhook_endpoints/{made}/deliveries").ok()["data"]
    endpoint = {"webhook_endpoint_id": made, "delivery_id": owed["id"]}
    for route in sorted(NAMED):
        run = until(client, ask(client, assistant, "call f {}"), "requires_action")
        thread = f"/v1/threads/{run.thread_id}"
        (message,) = owner.api.get(f"{thread}/messages").ok()["data"]
        (step,) = owner.api.get(f"{thread}/runs/{run.id}/steps").ok()["data"]
        own = client.beta.assistants.create(model="echo").id
        method, path = route
        body = NAMED[route]
        if path.endswith("submit_tool_outputs"):
            body = {"tool_outputs": outputs_for(run, ["x"])}
        elif method == "POST" and path in (
            "/v1/threads/{thread_id}/runs",
            "/v1/threads/{thread_id}/messages",
        ):
            body = {"assistant_id": own} if path.endswith("runs") else MESSAGE
            # Its thread must have no active run.
            client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        ids = {
            "assistant_id": own,
            "thread_id": run.thread_id,
            "run_id": run.id,
            "message_id": message["id"],
            "step_id": step["id"],
            **endpoint,
        }
        if path.endswith("/test"):
            # Nobody is there: the answer says so, and to its owner alone.
            answer = owner.api.post(path.format(**ids), body)
            assert answer.status == 424, answer
            continue
        if method == "DELETE" and "webhook" in path:
            ids["webhook_endpoint_id"] = owner.api.post("/v1/webhook_endpoints", ENDPOINT).ok()[
                "id"
            ]
        answer = owner.api.served.request(method, path.format(**ids), json=body, key=owner.key)
        assert answer.status == 200, answer


# Routes that name no object.


def test_lists_show_ones_own_alone(two: Two) -> None:
    stranger = two.stranger.api.get("/v1/assistants?limit=100").ok()["data"]
    assert [assistant["id"] for assistant in stranger] == [two.own_assistant_id]
    owner = two.owner.api.get("/v1/assistants?limit=100").ok()["data"]
    assert [assistant["id"] for assistant in owner] == [two.ids["assistant_id"]]


def test_a_new_endpoint_hears_of_ones_own_runs_alone(two: Two) -> None:
    """It wants what the owner's runs do, and is owed nothing of it."""
    stranger = two.stranger.api
    made = stranger.post("/v1/webhook_endpoints", {**ENDPOINT, "event_types": ["thread.run.*"]})
    path = f"/v1/webhook_endpoints/{made.ok()['id']}"
    client = two.owner.client
    assistant = client.beta.assistants.retrieve(two.ids["assistant_id"])
    until(client, ask(client, assistant, "hello"), "completed")
    assert stranger.get(f"{path}/deliveries").ok()["data"] == []
    assert two.owner.api.get(path).status == 404
    assert made.ok()["id"] not in two.owner.api.get("/v1/webhook_endpoints").body.decode()
    assert stranger.delete(path).status == 200


def test_an_id_may_be_taken_in_each_project(two: Two) -> None:
    """A conflict would tell that somebody else has it; and each is its owner's own."""
    wanted = "asst_wanted_by_both"
    names = []
    for project, name in ((two.owner, "the owner's"), (two.stranger, "the stranger's")):
        made = project.api.post("/v1/assistants", {"model": "echo", "id": wanted, "name": name})
        assert made.ok()["id"] == wanted
    for project in (two.owner, two.stranger):
        names.append(project.api.get(f"/v1/assistants/{wanted}").ok()["name"])
        assert project.api.delete(f"/v1/assistants/{wanted}").status == 200
    assert names == ["the owner's", "the stranger's"]


def test_a_new_thread_is_ones_own(two: Two) -> None:
    made = two.stranger.api.post("/v1/threads", {}).ok()
    assert two.stranger.api.get(f"/v1/threads/{made['id']}").status == 200
    assert two.owner.api.get(f"/v1/threads/{made['id']}").status == 404


def test_no_run_uses_a_strangers_assistant(two: Two) -> None:
    theirs = two.ids["assistant_id"]
    thread_id = two.stranger.client.beta.threads.create().id
    before = two.stranger.api.get("/v1/events").ok()
    for path in ("/v1/threads/runs", f"/v1/threads/{thread_id}/runs"):
        answer = two.stranger.api.post(path, {"assistant_id": theirs})
        assert answer.status == 404
        assert answer.error["message"] == f"No assistant found with id '{theirs}'."
    assert two.stranger.api.get("/v1/events").ok() == before


def test_the_feed_shows_ones_own_alone(new_project: Callable[[], Project]) -> None:
    owner, stranger = new_project(), new_project()
    assistant = owner.client.beta.assistants.create(model="echo")
    until(owner.client, ask(owner.client, assistant, "hello"))
    events = owner.api.get("/v1/events").ok()["data"]
    assert len(events) == 3
    assert stranger.api.get("/v1/events").ok()["data"] == []
    # A stranger's cursor is no cursor.
    answer = stranger.api.get(f"/v1/events?after={events[0]['id']}")
    assert answer.status == 404
    assert answer.error["message"].startswith(f"No event found with id '{events[0]['id']}'.")


def test_the_live_feed_shows_ones_own_alone(new_project: Callable[[], Project]) -> None:
    """As the pages do; a stranger's cursor does not open it either."""
    owner, stranger = new_project(), new_project()
    assistant = owner.client.beta.assistants.create(model="echo")
    until(owner.client, ask(owner.client, assistant, "hello"))
    theirs = owner.api.get("/v1/events").ok()["first_id"]
    live = {"Accept": "text/event-stream"}
    for headers in ({**live, "Last-Event-ID": theirs}, live):
        path = "/v1/events" if "Last-Event-ID" in headers else f"/v1/events?after={theirs}"
        answer = stranger.api.get(path, headers=headers)
        assert answer.status == 404
        assert answer.error["message"].startswith(f"No event found with id '{theirs}'.")


def test_runs_are_found_by_their_owner_alone(two: Two) -> None:
    """By id, in pages and as cursors; a run of a stranger is missing like one that is not there."""
    theirs = two.ids["run_id"]
    assert two.owner.api.get(f"/v1/runs?ids={theirs}").ok()["missing"] == []
    found = two.stranger.api.get(f"/v1/runs?ids={theirs},run_nobody").ok()
    assert (found["data"], found["missing"]) == ([], [theirs, "run_nobody"])
    for query in ("limit=100", "status=requires_action"):
        listed = [run["id"] for run in two.stranger.api.get(f"/v1/runs?{query}").ok()["data"]]
        assert theirs not in listed
    waiting = two.owner.api.get("/v1/runs?status=requires_action").ok()["data"]
    assert [run["id"] for run in waiting] == [theirs]
    for cursor in ("after", "before"):
        answer = two.stranger.api.get(f"/v1/runs?{cursor}={theirs}")
        assert answer.status == 404
        assert answer.error["message"] == f"No run found with id '{theirs}'."


def test_cursors_of_a_stranger_are_no_cursors(two: Two) -> None:
    theirs = two.ids["assistant_id"]
    for cursor in ("after", "before"):
        answer = two.stranger.api.get(f"/v1/assistants?{cursor}={theirs}")
        assert answer.status == 404
        assert answer.error["message"] == f"No assistant found with id '{theirs}'."


def test_models_are_for_all(two: Two) -> None:
    models = [project.api.get("/v1/models").ok() for project in (two.owner, two.stranger)]
    assert models[0] == models[1]
    assert two.stranger.api.get("/v1/models/echo").status == 200


def test_a_filter_by_a_strangers_run_finds_nothing(two: Two) -> None:
    thread_id = two.stranger.client.beta.threads.create().id
    path = f"/v1/threads/{thread_id}/messages?run_id={two.ids['run_id']}"
    assert two.stranger.api.get(path).ok()["data"] == []


def test_two_keys_of_a_project_see_the_same(two: Two) -> None:
    second = two.owner.api.served.create_key(two.owner.name)
    seen = two.owner.api.served.client(second).beta.assistants.retrieve(two.ids["assistant_id"])
    assert fields(seen)["id"] == two.ids["assistant_id"]
