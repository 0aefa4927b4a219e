"""Webhooks by the stock SDK, and over plain HTTP: a real service, a real receiver on loopback."""

from __future__ import annotations

import json
import sqlite3
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from runbell.runs import EVENT_TYPES
from runbell.service.openapi.examples import REFUSALS
from runbell.testing.receivers import Receiver, closed_port, silent, status
from tests.protocol.scenario import ask, until
from tests.served import Api, Served, eventually

RETRIES = ("--webhook-retries", "0.05 0.05 0.05", "--webhook-timeout", "30")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Webhooks may go to loopback, and are tried again soon."""
    directory = tmp_path_factory.mktemp("webhooks")
    with Served(directory, args=("--allow-private-webhooks", *RETRIES)) as served:
        yield served


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service as it is by default."""
    with Served(tmp_path_factory.mktemp("guarded")) as served:
        yield served


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


_projects = iter(range(1_000))


@pytest.fixture
def api(served: Served) -> Api:
    """A project of its own: nobody else's runs are heard."""
    return served.api(served.create_key(f"p{next(_projects)}"))


@pytest.fixture
def client(served: Served, api: Api) -> OpenAI:
    return served.client(api.key)


def hook(url: str, **fields: Any) -> dict[str, Any]:
    return {"name": "n", "url": url, "event_types": ["thread.run.completed"], **fields}


def complete(client: OpenAI) -> str:
    assistant = client.beta.assistants.create(model="echo")
    return until(client, ask(client, assistant, "hello"), "completed").id


# The stock SDK.


def test_the_sdk_registers_and_verifies(client: OpenAI, receiver: Receiver) -> None:
    """Every event of a run arrives, and `client.webhooks.unwrap` takes each."""
    types: Any = ["thread.run.*"]
    endpoint = client.webhooks.create(name="prod", url=receiver.url, event_types=types)
    run_id = complete(client)
    received = receiver.wait_for(3)
    events = [
        client.webhooks.unwrap(each.body, dict(each.headers), secret=endpoint.signing_secret)
        for each in received
    ]
    # Each has a connection of its own: which of them is read first is nobody's promise.
    events.sort(key=lambda event: event.data.sequence)
    assert [event.type.rpartition(".")[2] for event in events] == [
        "created",
        "in_progress",
        "completed",
    ]
    assert {each.json["data"]["id"] for each in received} == {run_id}
    with pytest.raises(openai.InvalidWebhookSignatureError):
        client.webhooks.unwrap(
            received[0].body + b" ", dict(received[0].headers), secret=endpoint.signing_secret
        )


def test_every_call_of_the_sdk_is_answered(client: OpenAI, receiver: Receiver) -> None:
    hooks = client.webhooks
    types: Any = ["thread.run.completed", "thread.run.failed"]
    made = [
        hooks.create(name=f"{number}", url=receiver.url, event_types=types) for number in range(3)
    ]
    assert made[0].signing_secret.startswith("whsec_")
    assert made[0].signing_secret_hint == made[0].signing_secret[-4:]
    assert [each.id for each in hooks.list(limit=2)] == [each.id for each in reversed(made)]
    first = hooks.retrieve(made[0].id)
    assert first.event_types == types
    assert not hasattr(first, "signing_secret")
    assert hooks.update(first.id).updated_at == first.updated_at
    assert hooks.update(first.id, name="renamed").name == "renamed"
    rotated = hooks.rotate_secret(first.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made[0].signing_secret
    kind: Any = "thread.run.failed"
    tested = hooks.test(first.id, event_type=kind)
    assert (tested.status_code, tested.success, tested.event_type) == (200, True, kind)
    signatures = receiver.wait_for(1)[0].header("webhook-signature")
    assert signatures is not None
    assert len(signatures.split()) == 2
    for secret in (made[0].signing_secret, rotated.signing_secret):
        hooks.unwrap(receiver.requests[0].body, dict(receiver.requests[0].headers), secret=secret)
    receiver.will(status(500))
    assert hooks.test(first.id, event_type=kind).status_code == 500
    assert hooks.event_types.list().data == [*EVENT_TYPES, "thread.run.*"]
    assert hooks.delete(first.id).deleted
    with pytest.raises(openai.NotFoundError):
        hooks.retrieve(first.id)


def test_a_test_of_an_endpoint_that_is_not_there_is_an_error(
    served: Served, client: OpenAI, api: Api
) -> None:
    """And the stock SDK, which tries 5xx again, does not send it again."""
    types: Any = ["thread.run.failed"]
    url = f"http://127.0.0.1:{closed_port()}/"
    endpoint = client.webhooks.create(name="n", url=url, event_types=types)
    kind: Any = "thread.run.failed"
    with pytest.raises(openai.APIStatusError) as caught:
        served.client(api.key, max_retries=2).webhooks.test(endpoint.id, event_type=kind)
    assert caught.value.status_code == 424
    # The sentence is the document's example.
    assert REFUSALS[424].message in str(caught.value)


# What is refused.


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/",
        "https://localhost/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest/meta-data",
        "https://100.64.0.1/",
        "https://0.0.0.0/",
        "https://[::1]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[64:ff9b::7f00:1]/",
        "https://[2002:7f00:1::1]/",
        "https://2130706433/",
        "https://0x7f.1/",
        "https://user:pass@example.com/",
        "https://example.com./",
        "http://example.com/",
        "ftp://example.com/",
        "https://exa mple.com/",
        "https://example.com/\r\nX: y",
    ],
)
def test_where_webhooks_must_not_go_is_a_400(guarded: Served, url: str) -> None:
    """At registration, and when an endpoint is moved; the message says what to change."""
    api = guarded.api()
    answer = api.post("/v1/webhook_endpoints", hook(url))
    assert (answer.status, answer.error["param"]) == (400, "url"), answer
    good = api.post("/v1/webhook_endpoints", hook("https://example.com/")).ok()
    path = f"/v1/webhook_endpoints/{good['id']}"
    assert api.post(path, {"url": url}).status == 400
    assert api.get(path).ok()["url"] == "https://example.com/"
    assert api.delete(path).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"headers": {"webhook-id": "x"}}, "headers.webhook-id"),
        ({"headers": {"Webhook-Signature": "x"}}, "headers.Webhook-Signature"),
        ({"headers": {"Content-Length": "1"}}, "headers.Content-Length"),
        ({"headers": {"Host": "other"}}, "headers.Host"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers.Transfer-Encoding"),
        *(
            ({"headers": {name: "x"}}, f"headers.{name}")
            for name in ("Content-MD5", "content-language", "Date", "HTTP2-Settings", "Forwarded")
        ),
        ({"headers": {"X-A": "b\r\nX-C: d"}}, "headers.X-A"),
        ({"headers": {"X-A\r\nX-B": "c"}}, "headers.X-A\r\nX-B"),
        ({"headers": {"X-A": "ä"}}, "headers.X-A"),
        ({"headers": {"X-A": "1", "x-a": "2"}}, "headers.x-a"),
        ({"event_types": []}, "event_types"),
        ({"event_types": ["response.completed"]}, "event_types[0]"),
        ({"rate_limit": -1}, "rate_limit"),
        ({"filters": {"status": "x"}}, "filters.status"),
        ({"name": ""}, "name"),
    ],
    ids=str,
)
def test_what_an_endpoint_cannot_have_is_a_400(
    guarded: Served, fields: dict[str, Any], param: str
) -> None:
    api = guarded.api()
    answer = api.post("/v1/webhook_endpoints", hook("https://example.com/", **fields))
    assert (answer.status, answer.error["param"]) == (400, param), answer
    assert api.get("/v1/webhook_endpoints").ok()["data"] == []


# Deliveries, as an operator sees them.


def test_deliveries_are_listed_with_their_attempts(api: Api, receiver: Receiver) -> None:
    """By status, run and time; what the endpoint answered, up to a limit."""
    client = api.served.client(api.key)
    made = api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
    path = f"/v1/webhook_endpoints/{made['id']}/deliveries"
    receiver.will(status(500, b"x" * 5_000), status(302, b"elsewhere"))
    run_id = complete(client)

    def settled() -> Any:
        (delivery,) = api.get(path).ok()["data"] or [{"status": "pending"}]
        return delivery if delivery["status"] != "pending" else None

    delivery = eventually(settled, "it is delivered")
    assert delivery["status"] == "succeeded"
    assert delivery["id"] == receiver.requests[0].header("webhook-id")
    first, second, third = delivery["attempts"]
    assert [each["status_code"] for each in delivery["attempts"]] == [500, 302, 200]
    assert first["response"] == "x" * 1_024
    assert "redirection" in second["error"]
    assert third["error"] is None
    assert len({each.body for each in receiver.requests}) == 1
    at = delivery["created_at"]
    for query, count in (
        ("status=succeeded", 1),
        ("status=failed", 0),
        ("status=pending", 0),
        (f"run_id={run_id}", 1),
        (f"run_id={run_id}&status=failed", 0),
        ("run_id=run_x", 0),
        (f"created_after={at - 5}&created_before={at + 5}", 1),
        (f"created_after={at + 5}", 0),
        ("order=asc&limit=1", 1),
    ):
        assert len(api.get(f"{path}?{query}").ok()["data"]) == count, query
    assert api.get(f"{path}/{delivery['id']}").ok() == delivery
    assert api.get(f"{path}?status=lost").status == 400
    resent = api.post(f"{path}/{delivery['id']}/resend").ok()
    assert resent["status"] == "pending"
    assert receiver.wait_for(4)[3].header("webhook-id") == delivery["id"]


def test_what_failed_is_recovered_over_http(api: Api, receiver: Receiver) -> None:
    client = api.served.client(api.key)
    made = api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
    path = f"/v1/webhook_endpoints/{made['id']}"
    receiver.will(*[status(500)] * 4)
    complete(client)
    failed = eventually(
        lambda: api.get(f"{path}/deliveries?status=failed").ok()["data"] or None, "it has failed"
    )
    assert [each["number"] for each in failed[0]["attempts"]] == [1, 2, 3, 4]
    assert api.post(f"{path}/recover", {"since": 9_999_999_999}).ok()["recovered"] == 0
    assert api.post(f"{path}/recover", {}).ok()["recovered"] == 1
    eventually(
        lambda: api.get(f"{path}/deliveries?status=succeeded").ok()["data"] or None,
        "it is delivered",
    )


def test_410_disables_over_http(api: Api, receiver: Receiver) -> None:
    client = api.served.client(api.key)
    made = api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
    path = f"/v1/webhook_endpoints/{made['id']}"
    receiver.will(status(410))
    complete(client)
    disabled = eventually(
        lambda: seen if not (seen := api.get(path).ok())["enabled"] else None, "it is disabled"
    )
    assert "410" in disabled["disabled_reason"]
    assert disabled["updated_at"] == made["updated_at"]
    enabled = api.post(path, {"enabled": True}).ok()
    assert (enabled["enabled"], enabled["disabled_reason"]) == (True, None)
    eventually(
        lambda: api.get(f"{path}/deliveries?status=succeeded").ok()["data"] or None,
        "it is delivered",
    )


def test_an_endpoint_that_hangs_holds_up_nobody(api: Api, receiver: Receiver) -> None:
    """Neither another endpoint nor the run."""
    client = api.served.client(api.key)
    with Receiver() as dead:
        dead.will(*[silent()] * 50)
        api.post("/v1/webhook_endpoints", hook(dead.url)).ok()
        api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
        for count in range(1, 4):
            complete(client)
            receiver.wait_for(count)


def test_a_name_that_leads_home_is_blocked_when_it_is_dialled(tmp_path: Path) -> None:
    """An endpoint that was registered where private addresses were allowed: the service without
    that sends nothing there, and shows no answer."""
    with Receiver() as receiver, Served(tmp_path, args=("--allow-private-webhooks",)) as served:
        made = served.api().post("/v1/webhook_endpoints", hook(receiver.url)).ok()
        served.args = ()
        served.restart()
        complete(served.client())
        path = f"/v1/webhook_endpoints/{made['id']}/deliveries"

        def tried() -> Any:
            found = served.api().get(path).ok()["data"]
            return found[0]["attempts"][0] if found and found[0]["attempts"] else None

        attempt = eventually(tried, "it is tried")
        assert (attempt["status_code"], attempt["response"]) == (None, None)
        assert attempt["error"].startswith("Nothing was sent")
        assert receiver.requests == []


def test_secrets_and_bodies_stay_out_of_logs_and_files(tmp_path: Path) -> None:
    """With the most talkative log: no secret, header, answer or URL; encrypted in the database,
    with a key that is a file of its own, for its owner alone."""
    with Receiver() as receiver:
        receiver.will(status(500, b"the endpoint's canary"))
        args = ("--allow-private-webhooks", "--log-level", "debug", *RETRIES)
        with Served(tmp_path, args=args) as served:
            url = f"{receiver.url}/path-canary?token=canary"
            headers = {"Authorization": "Bearer header-canary"}
            made = served.api().post("/v1/webhook_endpoints", hook(url, headers=headers)).ok()
            complete(served.client())
            assert receiver.wait_for(2)[1].header("authorization") == "Bearer header-canary"
            told = served.stderr() + served.stdout()
            assert "canary" not in told
            assert made["signing_secret"] not in told
            assert "runbell.deliveries: attempted outcome=refused" in told
        key = tmp_path / "runbell.key"
        assert key.stat().st_mode & 0o777 == 0o600
        raw = b64decode(made["signing_secret"].removeprefix("whsec_"))
        for file in tmp_path.glob("runbell.db*"):
            kept = file.read_bytes()
            for secret in (raw, made["signing_secret"].encode(), b"header-canary"):
                assert secret not in kept, file


def test_a_service_with_another_key_does_not_start(tmp_path: Path) -> None:
    """Rather than fail at the first webhook; with the right one it goes on."""
    with Served(tmp_path) as served:
        served.api().post("/v1/webhook_endpoints", hook("https://example.com/")).ok()
        served.stop()
        (tmp_path / "runbell.key").rename(tmp_path / "away")
        with pytest.raises(AssertionError, match="there is no key at"):
            served.start()
        (tmp_path / "runbell.key").write_text("MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n")
        (tmp_path / "runbell.key").chmod(0o600)
        with pytest.raises(AssertionError, match="was encrypted with the key"):
            served.start()
        (tmp_path / "away").rename(tmp_path / "runbell.key")
        served.start()
        assert len(served.api().get("/v1/webhook_endpoints").ok()["data"]) == 1


def test_a_deleted_endpoints_deliveries_are_cleared_away(tmp_path: Path) -> None:
    """At the next start at the latest; the events stay."""
    with Receiver() as receiver, Served(tmp_path, args=("--allow-private-webhooks",)) as served:
        api = served.api()
        made = api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
        complete(served.client())
        receiver.wait_for(1)
        assert api.delete(f"/v1/webhook_endpoints/{made['id']}").status == 200
        served.restart()

        def left() -> int:
            connection = sqlite3.connect(served.database_path)
            counts = "SELECT (SELECT count(*) FROM deliveries) + (SELECT count(*) FROM attempts)"
            try:
                return int(connection.execute(counts).fetchone()[0])
            finally:
                connection.close()

        eventually(lambda: left() == 0, "nothing is left")
        assert len(api.get("/v1/events").ok()["data"]) == 3


def test_the_numbers_tell_of_deliveries(tmp_path: Path) -> None:
    with Receiver() as receiver:
        receiver.will(status(500))
        with Served(tmp_path, args=("--allow-private-webhooks", *RETRIES)) as served:
            served.api().post("/v1/webhook_endpoints", hook(receiver.url)).ok()
            complete(served.client())
            receiver.wait_for(2)

            def page() -> str | None:
                text = served.request("GET", "/metrics").body.decode()
                # What is due is read in front of the counters: a moment may lie between the two.
                done = (
                    'runbell_webhook_attempts_total{outcome="succeeded"} 1.0' in text
                    and 'runbell_jobs_due{kind="deliver"} 0.0' in text
                    and "runbell_webhook_oldest_undelivered_seconds 0.0" in text
                )
                return text if done else None

            text = eventually(page, "both attempts are counted")
            assert 'runbell_webhook_attempts_total{outcome="refused"} 1.0' in text
            assert "runbell_webhook_first_attempt_delay_seconds_count 1.0" in text
            assert "runbell_webhook_delivery_delay_seconds_count 1.0" in text


def test_the_body_is_the_feeds_item(api: Api, receiver: Receiver) -> None:
    api.post("/v1/webhook_endpoints", hook(receiver.url)).ok()
    complete(api.served.client(api.key))
    (received,) = receiver.wait_for(1)
    page = api.get("/v1/events?types=thread.run.completed").body
    assert received.body in page
    assert json.loads(received.body)["id"] == received.header("webhook-id")
