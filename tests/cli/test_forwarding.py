"""`runbell listen` and `runbell trigger`: events come to a receiver on this machine, signed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import jsonschema
import pytest
from openai import OpenAI

from runbell.runs import EVENT_TYPES
from runbell.testing.receivers import Received, Receiver, closed_port, reset, status
from runbell.webhooks import Secret, verify
from tests.cli.conftest import Command
from tests.protocol.wire import EVENT_SCHEMA
from tests.served import RUNBELL, Served, eventually

LIMIT_S = 60.0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def no_secret_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OPENAI_WEBHOOK_SECRET", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def shown_secret(out: str) -> Secret:
    """The secret that a command printed in its first line."""
    first = out.splitlines()[0]
    return Secret.parse(first.removeprefix("export OPENAI_WEBHOOK_SECRET="))


def verified(request: Received, secret: Secret) -> dict[str, Any]:
    """The event of a request, if it is signed with the secret, just now."""
    found = verify([secret], request.headers, request.body, now_ms=time.time_ns() // 1_000_000)
    event: dict[str, Any] = request.json
    assert found.id == event["id"]
    # By the stock SDK too, as a user's receiver has it.
    OpenAI(api_key="-").webhooks.unwrap(
        request.body.decode(), dict(request.headers), secret=secret.text
    )
    return event


# trigger


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_trigger_sends_a_sample_that_is_valid(
    runbell: Command, receiver: Receiver, kind: str
) -> None:
    done = runbell("trigger", kind, "--to", receiver.url)
    assert done.code == 0, done
    (request,) = receiver.requests
    event = verified(request, shown_secret(done.out))
    jsonschema.validate(event, json.loads(EVENT_SCHEMA.read_text()))
    assert event["type"] == kind
    assert event["data"]["metadata"] == {"runbell_test": "true"}
    assert f"{kind} {event['id']} → 200 in " in done.out


def test_trigger_signs_with_a_secret_that_is_given_and_does_not_show_it(
    runbell: Command, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = Secret.generate()
    words = ["trigger", "thread.run.failed", "--to", receiver.url]
    one = runbell(*words, "--secret", secret.text)
    monkeypatch.setenv("OPENAI_WEBHOOK_SECRET", secret.text)
    two = runbell(*words)
    for done, request in zip((one, two), receiver.requests, strict=True):
        assert verified(request, secret)
        assert secret.text not in done.out + done.err
    assert secret.text not in runbell("trigger", "--help").out


def test_trigger_shows_the_secret_of_the_api_key(
    runbell: Command, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["trigger", "thread.run.failed", "--to", receiver.url]
    assert shown_secret(runbell(*words).out) != shown_secret(runbell(*words).out)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-one")
    one = shown_secret(runbell(*words).out)
    assert one == shown_secret(runbell(*words).out)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-two")
    assert one != shown_secret(runbell(*words).out)


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["thread.run.done", "--to", "http://localhost/"], 2, "thread.run.completed"),
        (["thread.run.failed"], 2, "--to"),
        (["thread.run.failed", "--to", "localhost:3000"], 1, "has to begin with https:// (or http"),
        (
            ["thread.run.failed", "--to", "http://a/", "--secret", "hunter2"],
            1,
            "begins with whsec_",
        ),
    ],
)
def test_trigger_says_what_is_wrong_with_its_arguments(
    runbell: Command, words: list[str], code: int, complaint: str
) -> None:
    done = runbell("trigger", *words)
    assert done.code == code
    assert complaint in done.err
    assert "hunter2" not in done.err


def test_trigger_fails_where_the_receiver_does(runbell: Command, receiver: Receiver) -> None:
    receiver.will(status(500))
    done = runbell("trigger", "thread.run.failed", "--to", receiver.url)
    assert done.code == 1
    assert "→ 500 in " in done.out
    done = runbell(
        "trigger", "thread.run.failed", "--to", f"http://127.0.0.1:{closed_port()}/hooks"
    )
    assert done.code == 1
    assert "→ There was no connection: Connection refused." in done.out


# listen


class Listening:
    """A `runbell listen` in a process of its own, inside `with`."""

    def __init__(self, folder: Path, url: str, *words: str, env: Mapping[str, str] = os.environ):
        self.url = url
        self.words = words
        self.env = dict(env)
        self.out = folder / f"listen-{time.monotonic_ns()}.out"
        self.err = self.out.with_suffix(".err")

    def __enter__(self) -> Self:
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*RUNBELL, "listen", "--forward-to", self.url, *self.words],
                stdout=out,
                stderr=err,
                env=self.env,
            )
        eventually(lambda: "Ctrl-C ends" in self.stdout() or self.ended(), "it listens", LIMIT_S)
        return self

    def __exit__(self, *error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def ended(self) -> bool:
        assert self.process.poll() is None, self.err.read_text()
        return False

    def stdout(self) -> str:
        return self.out.read_text()

    def secret(self) -> Secret:
        return shown_secret(self.stdout())

    def says(self, words: str) -> None:
        """Wait until a line of it holds these words."""
        eventually(
            lambda: words in self.stdout() + self.err.read_text() or self.ended(), words, LIMIT_S
        )

    def interrupt(self) -> int:
        """End it as Ctrl-C does; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(LIMIT_S)


@pytest.fixture
def run_one(project: str, served: Served) -> Callable[[], str]:
    """Have one run completed in a project of its own; its id. Three events."""
    return lambda: completed(served.client(project))


def completed(client: OpenAI) -> str:
    assistant = client.beta.assistants.create(model="echo")
    run = client.beta.threads.create_and_run_poll(
        assistant_id=assistant.id,
        thread={"messages": [{"role": "user", "content": "Hello"}]},
        poll_interval_ms=20,
    )
    assert run.status == "completed"
    return run.id


THREE = ["thread.run.created", "thread.run.in_progress", "thread.run.completed"]


def test_listen_sends_every_event_on_as_it_is(
    receiver: Receiver, run_one: Callable[[], str], served: Served, project: str, tmp_path: Path
) -> None:
    with Listening(tmp_path, receiver.url) as listening:
        run_id = run_one()
        requests = receiver.wait_for(3)
        events = [verified(request, listening.secret()) for request in requests]
        assert [event["type"] for event in events] == THREE
        assert {event["data"]["id"] for event in events} == {run_id}
        listening.says(f"thread.run.completed {events[-1]['id']} → 200 in ")
        assert listening.interrupt() == 0
        assert listening.err.read_text() == ""
        # The bytes that everybody else gets.
        page = served.api(project).get("/v1/events").body
        assert all(request.body in page for request in requests)
        assert project not in listening.stdout()


def test_listen_goes_on_behind_the_event_that_was_the_last(
    receiver: Receiver, run_one: Callable[[], str], tmp_path: Path
) -> None:

    def says(listening: Listening, count: int) -> None:
        """It has told of so many events, each once however often it was sent."""
        eventually(lambda: len({each.json["id"] for each in receiver.requests}) == count, "all")
        listening.says(receiver.requests[-1].json["id"])

    with Listening(tmp_path, receiver.url) as listening:
        secret = listening.secret()
        run_one()
        says(listening, 3)
    # Killed, it sends the one again that it may not have noted.
    with Listening(tmp_path, receiver.url) as listening:
        assert listening.secret() == secret
        run_one()
        says(listening, 6)
        assert listening.interrupt() == 0
    run_one()
    with Listening(tmp_path, receiver.url) as listening:
        says(listening, 9)
    ids = list(dict.fromkeys(request.json["id"] for request in receiver.requests))
    types = {request.json["id"]: request.json["type"] for request in receiver.requests}
    assert [types[id_] for id_ in ids] == THREE * 3
    assert len(receiver.requests) <= 9 + 1


@pytest.mark.parametrize("earlier", [0, 1])
def test_listen_knows_where_it_began(
    receiver: Receiver, run_one: Callable[[], str], tmp_path: Path, earlier: int
) -> None:
    """Also where nothing has happened until it was killed, or lost the service."""
    for _ in range(earlier):
        run_one()
    with Listening(tmp_path, receiver.url):
        pass
    run_id = run_one()
    with Listening(tmp_path, receiver.url) as listening:
        listening.says("thread.run.completed")
    assert [request.json["type"] for request in receiver.requests] == THREE
    assert {request.json["data"]["id"] for request in receiver.requests} == {run_id}


def test_listen_sends_again_what_was_refused(
    receiver: Receiver, run_one: Callable[[], str], tmp_path: Path
) -> None:
    receiver.will(status(500), reset(), status(503))
    with Listening(tmp_path, receiver.url, "--types", "thread.run.completed") as listening:
        run_one()
        requests = receiver.wait_for(4)
        listening.says("after 3 attempts")
        events = [verified(request, listening.secret()) for request in requests]
        assert {event["type"] for event in events} == {"thread.run.completed"}
        assert len({request.body for request in requests}) == 1
        assert listening.stdout().count("thread.run.completed") == 1, "one line an event"


def test_listen_gives_up_in_the_end_and_goes_on(
    receiver: Receiver, run_one: Callable[[], str], tmp_path: Path
) -> None:
    receiver.will(*[status(500)] * 5)
    with Listening(tmp_path, receiver.url, "--types", "thread.run.completed") as listening:
        run_one()
        run_one()
        requests = receiver.wait_for(6)
        listening.says("given up after 5 attempts")
        assert len({request.json["id"] for request in requests[:5]}) == 1
        assert requests[5].json["id"] != requests[4].json["id"]


def test_listen_waits_for_a_receiver_that_is_not_there(
    run_one: Callable[[], str], tmp_path: Path
) -> None:
    port = closed_port()
    url = f"http://127.0.0.1:{port}/hooks"
    with Listening(tmp_path, url) as listening:
        run_one()
        listening.says("runbell: no receiver (There was no connection: Connection refused.)")
        with Receiver(port=port) as receiver:
            assert [request.json["type"] for request in receiver.wait_for(3)] == THREE


def test_listen_waits_for_the_service_and_misses_nothing(
    receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Served(tmp_path) as served:
        monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", served.key or "")
        with Listening(tmp_path, receiver.url) as listening:
            completed(served.client())
            receiver.wait_for(3)
            listening.says("thread.run.completed")
            served.kill()
            listening.says("runbell: the service is away")
            served.start(port=served.port)
            completed(served.client())
            requests = receiver.wait_for(6)
            assert [request.json["type"] for request in requests] == THREE * 2
            assert len({request.json["id"] for request in requests}) == 6
            listening.says("runbell: the service is there again")


def test_listen_begins_anew_where_its_event_is_gone(
    receiver: Receiver, run_one: Callable[[], str], tmp_path: Path
) -> None:
    state = tmp_path / "state.txt"
    state.write_text("evt_000000000000000000000000\n")
    with Listening(tmp_path, receiver.url, "--state", str(state)) as listening:
        listening.says("the service has no event evt_000000000000000000000000 any more")
        run_one()
        requests = receiver.wait_for(3)
        eventually(lambda: state.read_text().strip() == requests[-1].json["id"], "it is noted")


def test_listen_says_what_is_wrong(
    runbell: Command, served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["listen", "--forward-to", "http://127.0.0.1:9/"]
    assert "no base URL" in runbell(*words).err
    monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key-of-this-service")
    done = runbell(*words)
    assert done.code == 1
    assert "refused the key from OPENAI_API_KEY: Incorrect API key provided" in done.err
    monkeypatch.setenv("OPENAI_API_KEY", served.key or "")
    done = runbell(*words, "--types", "thread.run.done")
    assert (done.code, "thread.run.done" in done.err) == (1, True)
    done = runbell(*words, "--state", str(tmp_path))
    assert "name another --state" in done.err
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    done = runbell(*words)
    assert "no answer from http://127.0.0.1:9/v1" in done.err
    assert "is the service running" in done.err
    monkeypatch.setenv("OPENAI_BASE_URL", served.root)
    assert "a base URL mostly ends in /v1" in runbell(*words).err


def test_what_was_the_last_is_written_whole(tmp_path: Path) -> None:
    from runbell.cli.listen import Progress

    progress = Progress(tmp_path / "a" / "b")
    assert progress.load() is None
    progress.save("evt_1")
    assert progress.load() == "evt_1"
    progress.save(None)
    assert progress.load() is None
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b"]
