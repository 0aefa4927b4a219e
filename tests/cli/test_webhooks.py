"""`runbell endpoints` and `runbell deliveries`: through the API, in words and exit codes."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from runbell.testing.embedded import embedded
from runbell.testing.receivers import Receiver, status
from tests.cli.conftest import Command
from tests.delivery.house import register
from tests.protocol.scenario import ask, until
from tests.served import Served, eventually


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A service that may send webhooks to loopback, and gives up after two attempts."""
    args = ("--allow-private-webhooks", "--webhook-retries", "0.05")
    with Served(tmp_path, args=args) as served:
        monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", served.key or "")
        yield served


def created(runbell: Command, *arguments: str) -> tuple[str, str]:
    """A new endpoint's id and secret, as the command prints them."""
    done = runbell("endpoints", "create", *arguments)
    assert done.code == 0, done
    return done.err.split()[1], done.out.strip()


def test_an_endpoint_from_its_creation_to_its_end(
    local: Served, receiver: Receiver, runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The fixture `runbell` takes these away.
    monkeypatch.setenv("OPENAI_BASE_URL", local.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", local.key or "")
    types = ("--types", "thread.run.failed, thread.run.expired", "--types", "thread.run.completed")
    options = (*types, "--rate-limit", "50")
    more = ("--header", "X-Team=ops=1", "--metadata", "tier=1", "--name", "mine")
    endpoint, secret = created(runbell, receiver.url, *options, *more)
    assert secret.startswith("whsec_")
    made = local.api().get(f"/v1/webhook_endpoints/{endpoint}").ok()
    wanted = ["failed", "expired", "completed"]
    assert made["event_types"] == [f"thread.run.{each}" for each in wanted]
    assert (made["rate_limit"], made["name"]) == (50, "mine")
    assert made["headers"] == {"X-Team": "ops=1"}
    assert made["filters"] == {"assistant_ids": [], "metadata": {"tier": "1"}}
    heading, row = runbell("endpoints", "list").out.splitlines()
    assert heading.split() == ["ID", "NAME", "STATE", "RATE", "EVENTS", "URL"]
    assert row.split() == [endpoint, "mine", "enabled", "50/s", ",".join(wanted), receiver.url]
    assert runbell("endpoints", "test", endpoint).out == "thread.run.completed → 200\n"
    receiver.will(status(503))
    assert runbell("endpoints", "test", endpoint).code == 1
    rotated = runbell("endpoints", "rotate", endpoint, "--keep-old").out.strip()
    assert rotated.startswith("whsec_")
    assert rotated != secret
    assert "disabled" in runbell("endpoints", "disable", endpoint).out
    assert f"{endpoint} is disabled" in runbell("endpoints", "list").err
    assert "enabled" in runbell("endpoints", "enable", endpoint).out
    assert runbell("endpoints", "delete", endpoint).out == f"deleted {endpoint}\n"
    gone = runbell("endpoints", "delete", endpoint)
    assert gone.code == 1
    assert "No webhook endpoint found" in gone.err


def test_what_became_of_an_event_and_sending_it_again(
    local: Served, receiver: Receiver, runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", local.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", local.key or "")
    endpoint, _ = created(runbell, receiver.url, "--types", "thread.run.completed")
    receiver.will(status(500, b"\x1b[31mred"), status(500))
    client = local.client()
    assistant = client.beta.assistants.create(model="echo")
    run = until(client, ask(client, assistant, "hello"), "completed")
    path = f"/v1/webhook_endpoints/{endpoint}/deliveries?status=failed"
    (failed,) = eventually(lambda: local.api().get(path).ok()["data"] or None, "it has failed")

    listed = runbell("deliveries", "list", endpoint, "--status", "failed", "--run", run.id).out
    assert listed.splitlines()[1].split()[:6] == [
        *(failed["id"], "completed", run.id, "failed", "2", "500"),
    ]
    assert len(runbell("deliveries", "list", endpoint, "--status", "pending").out.split()) == 8
    shown = runbell("deliveries", "show", endpoint, failed["id"]).out
    assert "attempt 2" in shown
    assert "It answered 500." in shown
    # What an endpoint answers does not reach the terminal as it is.
    assert "\x1b" not in shown
    assert "red" in shown
    assert runbell("deliveries", "recover", endpoint).out == "1 delivery is sent again\n"
    receiver.wait_for(3)
    assert runbell("deliveries", "resend", endpoint, failed["id"]).code == 0
    assert {each.header("webhook-id") for each in receiver.wait_for(4)} == {failed["id"]}


@pytest.mark.parametrize("option", ["--header", "--metadata"])
def test_what_is_no_pair_is_not_repeated(
    local: Served, runbell: Command, monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", local.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", local.key or "")
    done = runbell("endpoints", "create", "http://127.0.0.1/", option, "secret-value")
    assert done.code == 1
    assert f"{option} takes NAME=VALUE" in done.err
    assert "secret-value" not in done.err


def test_the_key_of_secrets_is_replaced(
    tmp_path: Path, runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With both keys; with the new one alone nothing is changed, nor is one made up."""

    async def story() -> None:
        async with embedded(tmp_path / "runbell.db") as service:
            await register(service)

    asyncio.run(story())
    database = f"sqlite:///{tmp_path}/runbell.db"
    old, new = (base64.b64encode(bytes([number]) * 32).decode() for number in (0, 1))
    assert "there is no key" in runbell("reencrypt", "--database", database).err
    for keys, code in ((new, 1), (f"{new} {old}", 0), (new, 0), (old, 1)):
        monkeypatch.setenv("RUNBELL_ENCRYPTION_KEY", keys)
        done = runbell("reencrypt", "--database", database)
        assert done.code == code, done
        assert old not in done.err
    assert "was encrypted with the key" in done.err
