"""Keys: how they are sent, what is said without a good one, and that no answer shows one."""

from __future__ import annotations

import re
import secrets

import openai
import pytest

from tests.protocol.conftest import Project
from tests.served import Answer, Api, Served

PATHS = ["/v1/assistants", "/v1/threads/thread_X", "/v1/events", "/v1/models", "/openai/assistants"]


def refused(answer: Answer) -> str:
    assert answer.status == 401
    error = answer.error
    assert error["type"] == "invalid_request_error"
    assert error["code"] == "invalid_api_key"
    message: str = error["message"]
    return message


@pytest.mark.parametrize("path", PATHS)
def test_without_a_key_nothing_is_answered(served: Served, path: str) -> None:
    assert refused(served.request("GET", path)).startswith("You didn't provide an API key.")


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_key_is_masked(served: Served, path: str) -> None:
    key = "sk-abcdefghijklmnopqrstuvwxyz"
    answer = served.request("GET", path, key=key)
    assert refused(answer).startswith("Incorrect API key provided: sk-ab***yz.")
    assert key.encode() not in answer.body
    assert not any(key in value for value in answer.headers.values())


@pytest.mark.parametrize("path", PATHS)
def test_a_wrong_azure_key_is_masked(served: Served, path: str) -> None:
    headers = {"api-key": "0123456789abcdef0123456789abcdef"}
    answer = served.request("GET", path, headers=headers)
    assert refused(answer).startswith("Incorrect API key provided: 01234***ef.")


@pytest.mark.parametrize("key", ["x", "sk-ab", "sk-abyz", "sk-abcyz", "sk-short"])
def test_a_short_wrong_key_is_not_shown_whole(served: Served, key: str) -> None:
    """Masking the middle of a short key leaves nothing of it hidden."""
    message = refused(served.request("GET", "/v1/assistants", key=key))
    shown = re.search(r"provided: (.*?)\.", message)
    assert shown
    letters = shown[1].replace("*", "")
    assert len(letters) < len(key)


def test_a_bearer_key_may_be_sent_in_either_header(served: Served) -> None:
    assert served.key is not None
    for headers in ({"Authorization": f"Bearer {served.key}"}, {"api-key": served.key}):
        assert served.request("GET", "/v1/assistants?limit=1", headers=headers).status == 200


def test_the_scheme_of_a_bearer_key_is_written_in_any_case(served: Served) -> None:
    """As HTTP has it."""
    headers = {"Authorization": f"bearer {served.key}"}
    assert served.request("GET", "/v1/assistants?limit=1", headers=headers).status == 200


@pytest.mark.parametrize(
    "value", ["Bearer", "Bearer ", "Basic c2stYWJj", "sk-abcdefghijklmnop", "Bearer a b"]
)
def test_an_authorization_that_holds_no_good_key_is_refused(served: Served, value: str) -> None:
    refused(served.request("GET", "/v1/assistants", headers={"Authorization": value}))


def test_an_almost_right_key_is_refused(served: Served) -> None:
    assert served.key is not None
    for key in (served.key[:-1], served.key + "0", served.key.upper(), "sk-" + "0" * 32):
        refused(served.request("GET", "/v1/assistants", key=key))


def test_a_key_that_no_header_can_hold_is_refused(served: Served) -> None:
    headers = {"Authorization": "Bearer sk-ÿþé"}
    assert served.request("GET", "/v1/assistants", headers=headers).status == 401


def test_the_sdk_raises_its_own_error(served: Served) -> None:
    client = served.client(f"sk-{secrets.token_hex(16)}")
    with pytest.raises(openai.AuthenticationError) as caught:
        client.beta.assistants.list()
    assert caught.value.code == "invalid_api_key"


def test_nobody_learns_of_paths_or_objects_without_a_key(served: Served, api: Api) -> None:
    """The answer is the same whether a thing exists or not."""
    thread = api.post("/v1/threads", {}).ok()["id"]
    there = served.request("GET", f"/v1/threads/{thread}")
    not_there = served.request("GET", "/v1/threads/thread_X")
    assert (there.status, there.body) == (not_there.status, not_there.body)


def test_a_body_is_not_read_before_the_key_is_known(served: Served) -> None:
    """A stranger cannot learn from errors what a request has to look like."""
    refused(served.request("POST", "/v1/threads", body=b"{nonsense"))


def test_health_needs_no_key(served: Served) -> None:
    assert served.request("GET", "/healthz").status == 200
    assert served.request("GET", "/readyz").status == 200


# Keys that are made beside the running service.


def test_a_new_key_opens_its_project_at_once(served: Served, project: Project) -> None:
    made = project.client.beta.assistants.create(model="echo")
    second = served.api(served.create_key(project.name))
    assert second.get(f"/v1/assistants/{made.id}").status == 200


def test_a_revoked_key_is_refused_at_once_and_no_other(served: Served, project: Project) -> None:
    assert project.api.get("/v1/assistants").status == 200
    lines = served.command_line("keys", "list").splitlines()
    (key_id,) = (line.split()[0] for line in lines if f" {project.name} " in line)
    other = served.create_key(project.name)
    served.command_line("keys", "revoke", key_id)
    refused(project.api.get("/v1/assistants"))
    assert served.api(other).get("/v1/assistants").status == 200
    assert served.api().get("/v1/assistants").status == 200


def test_the_list_of_keys_shows_no_key(served: Served, project: Project) -> None:
    listed = served.command_line("keys", "list")
    assert project.name in listed
    assert project.key not in listed
    assert served.key is not None
    assert served.key not in listed


def test_the_database_and_the_log_hold_no_key(served: Served, project: Project) -> None:
    assert project.api.get("/v1/assistants").status == 200
    assert served.key is not None
    kept = [path.read_bytes() for path in served.directory.iterdir() if path.is_file()]
    assert kept
    for key in (project.key, served.key):
        assert not any(key.encode() in content for content in kept)
