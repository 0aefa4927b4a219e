"""`runbell wait`, `watch` and `doctor`: what they print, and with which code they end."""

from __future__ import annotations

import json

import pytest
import typer

import runbell as package
from runbell.cli import wait as command
from runbell.cli.watch import _active as active
from runbell.pacing import Backoff, Fixed, SqrtElapsed
from tests.served import Served


def start(served, text, **options):
    beta = served.client().beta
    tools = [{"type": "function", "function": {"name": "f"}}]
    assistant = beta.assistants.create(model="echo", tools=tools)
    thread = beta.threads.create(messages=[{"role": "user", "content": text}])
    return beta.threads.runs.create(thread.id, assistant_id=assistant.id, **options)


@pytest.fixture
def here(served, monkeypatch, runbell):
    monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", served.key)
    return runbell


@pytest.mark.parametrize(
    ("text", "options", "code", "said"),
    [
        ("hello", (), 0, ""),
        ("fail server_error Broken.", (), 1, "is failed (server_error): Broken."),
        ("call f {}", (), 3, "waits for the outputs of f"),
        ("sleep 60", ("--timeout", "0.3"), 124, "the time for waiting was over"),
    ],
)
def test_each_ending_has_its_exit_code(here, served: Served, text, options, code, said):
    run = start(served, text)
    done = here("wait", run.thread_id, run.id, *options)
    assert (done.code, said in done.err) == (code, True), done
    if code < 3:
        assert done.out.splitlines()[-1].split(" after ")[0] in ("completed", "failed")


def test_not_found_and_not_allowed_are_4(here, monkeypatch):
    done = here("wait", "thread_x", "run_x")
    assert done.code == 4
    assert "No thread found with id 'thread_x'." in done.err
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key-of-this-service")
    done = here("wait", "thread_x", "run_x")
    assert done.code == 4
    assert "sk-no***ce" in done.err
    assert "not-a-key" not in done.err


def test_usage_is_2(here):
    assert here("wait", "thread_x").code == 2
    assert here("wait", "t", "r", "--policy", "hourly").code == 2


@pytest.mark.parametrize("variable", ["OPENAI_API_KEY", "OPENAI_BASE_URL"])
def test_nobody_to_ask_is_usage_too(here, monkeypatch, variable):
    monkeypatch.delenv(variable)
    done = here("wait", "thread_x", "run_x")
    assert done.code == 2
    assert f"or {variable}" in " ".join(done.err.split())
    assert here("wait", "t", "r", "--timeout", "-1").code == 2


def test_json_is_one_object(here, served: Served):
    run = start(served, "hello")
    done = here("wait", run.thread_id, run.id, "--json", "--policy", "fixed:interval=0.1")
    summary = json.loads(done.out)
    assert (summary["id"], summary["status"], summary["exit_code"]) == (run.id, "completed", 0)
    assert summary["run"]["usage"]["completion_tokens"] == 1
    assert summary["calls"] >= 1


def test_a_terminal_gets_one_live_line(here, served: Served, monkeypatch):
    # Not over before the first look, on a busy machine neither.
    run = start(served, "sleep 2\nhello")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    done = here("wait", run.thread_id, run.id, "--policy", "fixed:interval=0.5")
    assert done.code == 0
    assert "\r\x1b[K" in done.out
    assert "next poll in" in done.out
    assert done.out.rstrip().rpartition("\x1b[K")[2].startswith("completed · ")


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("backoff", Backoff()),
        ("backoff:start=1,factor=2,cap=8", Backoff(1, 2, 8)),
        ("fixed:interval=2", Fixed(2)),
        ("sqrt:scale=1", SqrtElapsed(1)),
    ],
)
def test_policies_are_named(text, policy):
    assert command.parse_policy(text) == policy


@pytest.mark.parametrize("text", ["backoff:start", "backoff:start=x", "fixed:interval=-1", "f:a=1"])
def test_a_policy_that_is_not_there_is_refused(text):
    with pytest.raises(typer.BadParameter):
        command.parse_policy(text)


def test_watch_lists_what_is_active(here, served: Served):
    run = start(served, "sleep 60")
    done = here("watch", "--once")
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if run.id in line]
    assert run.thread_id in line
    served.client().beta.threads.runs.cancel(run.id, thread_id=run.thread_id)


class Pages:
    """A client of a service that has this many active runs."""

    base_url = "http://service.test/v1"

    def __init__(self, count):
        self.runs = [{"id": f"run_{number}"} for number in range(count)]

    def get(self, path, *, cast_to, options):
        after = options["params"].get("after")
        first = 0 if after is None else self.runs.index({"id": after}) + 1
        data = self.runs[first : first + 100]
        last = data[-1]["id"] if data else None
        return {"data": data, "has_more": data[-1:] != self.runs[-1:], "last_id": last}


def test_watch_knows_of_all_runs_unless_it_shows_a_few():
    rows, more = active(Pages(1234))
    assert (len({row["id"] for row in rows}), more) == (1234, False)
    rows, more = active(Pages(1234), most=1000)
    assert (len(rows), more) == (1000, True)
    assert active(Pages(0)) == ([], False)


def test_the_doctor_finds_nothing_wrong(here):
    done = here("doctor")
    assert done.code == 0, done.out
    assert "from OPENAI_API_KEY" in done.out
    assert "took the key" in done.out
    assert "many runs can be asked about in one request" in done.out


@pytest.mark.parametrize(
    ("variable", "value", "advice"),
    [
        ("OPENAI_API_KEY", "", "export OPENAI_API_KEY"),
        ("OPENAI_API_KEY", "'sk-quoted'", "look for quotes"),
        ("OPENAI_API_KEY", "sk-not-a-key-of-this-service", "still use the old one"),
        ("OPENAI_BASE_URL", "", "export OPENAI_BASE_URL"),
        ("OPENAI_BASE_URL", "https://api.openai.com/v1", "shut down on 2026-08-26"),
        ("OPENAI_BASE_URL", "127.0.0.1", "start with http"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1", "is the service running"),
    ],
)
def test_the_doctor_says_what_to_do(here, monkeypatch, variable, value, advice):
    monkeypatch.setenv(variable, value)
    done = here("doctor")
    assert done.code == 1
    assert advice in done.out
    assert "not-a-key" not in done.out


def test_what_is_imported_is_not_the_runs_time(here, monkeypatch):
    begun = []
    waiter = package.Waiter
    monkeypatch.setattr(
        package,
        "Waiter",
        lambda client, **more: begun.append(vars(client)) or waiter(client, **more),
    )
    assert here("wait", "thread_x", "run_x", "--timeout", "5").code == 4
    assert "beta" in begun[0]  # its modules are loaded


def test_a_timeout_without_an_answer_says_why(here, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    done = here("wait", "thread_x", "run_x", "--timeout", "1.5")
    assert done.code == 124
    assert "the last request failed: APIConnectionError" in done.err
