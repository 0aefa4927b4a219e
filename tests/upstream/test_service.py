"""Real models through the whole service: the stock SDK on one side, a model server on the other."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import BadRequestError, OpenAI
from openai.types.beta import Assistant
from openai.types.beta.threads import Run

from tests.protocol.scenario import (
    TERMINAL,
    answer_of,
    ask,
    calls_of,
    fields,
    function_tool,
    messages_of,
    outputs_for,
    text_of,
    until,
)
from tests.protocol.wire import inspect
from tests.served import Served, eventually
from tests.upstream.model_server import (
    STOP,
    Cut,
    ModelServer,
    Pause,
    chunk,
    finish,
    in_a_thread,
    refuse,
    silent,
    stream,
    text,
    tool,
    usage,
)

KEY = "sk-of-the-model-server-0123456789"


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    with in_a_thread() as server:
        yield server


@pytest.fixture(scope="module")
def house(models: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with a model server; every answer is held against the types of the wire."""
    args = ["--upstream", models.url, "--upstream-key-env", "THE_KEY", "--log-level", "debug"]
    env = {"THE_KEY": KEY, "RUNBELL_CANCEL_GRACE": "3600"}
    directory = tmp_path_factory.mktemp("house")
    with Served(directory, args=args, env=env, watch=inspect) as served:
        yield served


@pytest.fixture(scope="module")
def client(house: Served) -> OpenAI:
    return house.client()


@pytest.fixture(scope="module")
def assistant(client: OpenAI) -> Assistant:
    tools = [function_tool("f"), function_tool("g")]
    return client.beta.assistants.create(model="m", instructions="Be brief.", tools=tools)


def ended(client: OpenAI, run: Run) -> Run:
    return until(client, run, *TERMINAL)


def reason_of(run: Run) -> Any:
    return fields(run)["status_reason"]


# Answers.


def test_an_answer_with_its_tokens(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    models.will(stream(text("Hel"), text("lo 🙂"), STOP, usage(11, 3)))
    run = ended(client, ask(client, assistant, "Hi", temperature=0.5, max_completion_tokens=500))
    assert (run.status, answer_of(client, run)) == ("completed", "Hello 🙂")
    assert run.usage is not None
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (11, 3)
    asked = models.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert [each["content"] for each in asked.json["messages"]] == ["Be brief.", "Hi"]
    assert (asked.json["temperature"], asked.json["max_tokens"]) == (0.5, 500)


def test_a_conversation_goes_on(models: ModelServer, client: OpenAI, assistant: Assistant) -> None:
    models.will(stream(text("one"), STOP), stream(text("two"), STOP))
    run = ended(client, ask(client, assistant, "first"))
    client.beta.threads.messages.create(run.thread_id, role="user", content="second")
    again = client.beta.threads.runs.create(run.thread_id, assistant_id=assistant.id)
    ended(client, again)
    assert messages_of(client, run.thread_id) == ["first", "one", "second", "two"]
    said = [(each["role"], each["content"]) for each in models.asked.json["messages"]]
    assert said[1:] == [("user", "first"), ("assistant", "one"), ("user", "second")]


def test_tools_in_parallel_and_their_outputs(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    """Two turns of one run: what was said and called in the first is told in the second."""
    both = tool(
        {"index": 0, "id": "c1", "name": "f", "arguments": '{"x":1}'}, {"index": 1, "name": "g"}
    )
    models.will(
        stream(text("Let me see."), both, finish("tool_calls"), usage(10, 5)),
        stream(text("done"), STOP, usage(20, 2)),
    )
    run = until(client, ask(client, assistant, "Go", tool_choice="required"), "requires_action")
    (one, *first), (two, *second) = calls_of(run)
    assert (one, first, second) == ("c1", ["f", '{"x":1}'], ["g", "{}"])
    assert two.startswith("call_")
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["out 1", "out 2"])
    )
    run = ended(client, run)
    assert (run.status, messages_of(client, run.thread_id)[1:]) == (
        "completed",
        ["Let me see.", "done"],
    )
    assert run.usage is not None
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (30, 7)
    asked = models.asked.json
    called = asked["messages"][2]
    assert (called["role"], called["content"]) == ("assistant", "Let me see.")
    assert [call["id"] for call in called["tool_calls"]] == ["c1", two]
    outputs = [(m["tool_call_id"], m["content"]) for m in asked["messages"][3:]]
    assert outputs == [("c1", "out 1"), (two, "out 2")]
    assert "tool_choice" not in asked
    assert models.chats[-2].json["tool_choice"] == "required"


def test_the_last_messages_are_those_before_the_run(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    """What the run says beside its calls does not push out the question."""
    models.will(
        stream(text("Let me see."), tool({"id": "c", "name": "f"}), finish("tool_calls")),
        stream(text("done"), STOP),
    )
    strategy: Any = {"type": "last_messages", "last_messages": 1}
    run = until(
        client, ask(client, assistant, "Go", truncation_strategy=strategy), "requires_action"
    )
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["out"])
    )
    assert ended(client, run).status == "completed"
    roles = [each["role"] for each in models.asked.json["messages"]]
    assert roles == ["system", "user", "assistant", "tool"]


def test_what_is_no_unicode_can_be_stored(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    models.will(
        stream(
            text("a\ud83d"),
            text("\ude42 \ud83d"),
            tool({"index": 0, "id": "c\ud83d", "name": "f", "arguments": '{"x":"\ude42\x00"}'}),
            finish("tool_calls"),
        )
    )
    run = until(client, ask(client, assistant, "Go"), "requires_action")
    assert messages_of(client, run.thread_id)[1] == "a🙂 \ufffd"
    ((key, name, arguments),) = calls_of(run)
    assert key.startswith("call_")
    assert (name, arguments) == ("f", '{"x":"\ufffd\x00"}')
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)


def test_an_answer_that_a_limit_has_cut(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    models.will(stream(text("half"), finish("length"), usage(1, 300)))
    run = ended(client, ask(client, assistant, "Go", max_completion_tokens=300))
    assert (run.status, answer_of(client, run)) == ("incomplete", "half")
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_completion_tokens"


def test_a_prompt_that_is_too_long(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    before = len(models.chats)
    run = ended(client, ask(client, assistant, "x" * 9_000, max_prompt_tokens=256))
    assert run.status == "incomplete"
    assert run.incomplete_details is not None
    assert run.incomplete_details.reason == "max_prompt_tokens"
    assert len(models.chats) == before


# Failures.


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        (
            refuse(400, {"error": {"message": "no"}}),
            "invalid_prompt",
            "refused the request (400): no",
        ),
        (
            refuse(429, {"error": {"message": "no", "code": "insufficient_quota"}}),
            "rate_limit_exceeded",
            "over its limit (429): no",
        ),
        (refuse(401, {"error": f"wrong key {KEY}"}), "server_error", "wrong key ***"),
        (stream(text("a"), Cut()), "server_error", "broke in the middle"),
        (stream(text("a"), finish("content_filter")), "invalid_prompt", "content filter"),
    ],
)
def test_a_failure_has_a_code_and_a_reason(
    models: ModelServer,
    client: OpenAI,
    assistant: Assistant,
    reply: Any,
    code: str,
    message: str,
) -> None:
    models.will(reply)
    run = ended(client, ask(client, assistant, "Go"))
    assert run.status == "failed"
    assert run.last_error is not None
    assert (run.last_error.code, message in run.last_error.message) == (code, True)
    assert run.last_error.message in reason_of(run)


def test_what_may_pass_passes(models: ModelServer, client: OpenAI, assistant: Assistant) -> None:
    models.will(
        refuse(429, {}, retry_after_ms="20"),
        refuse(503, {}, retry_after="0.02"),
        stream(chunk({"reasoning_content": "hm"}), Cut()),
        stream(text("at last"), STOP),
    )
    run = ended(client, ask(client, assistant, "Go"))
    assert (run.status, answer_of(client, run)) == ("completed", "at last")


def test_a_wait_that_the_run_has_no_time_for(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    """It fails at once with the reason, and does not expire without one."""
    models.will(refuse(429, {"error": "slow down"}, retry_after="90"))
    run = ended(client, ask(client, assistant, "Go", expires_after=60))
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "rate_limit_exceeded"


def test_a_cancel_ends_the_call(models: ModelServer, client: OpenAI, assistant: Assistant) -> None:
    pause = Pause()
    models.will(stream(text("a"), pause))
    run = ask(client, assistant, "Go")
    eventually(lambda: pause.reached, "the model speaks")
    exchange = models.asked
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    # By the cancel itself: nothing ends it by force within an hour.
    eventually(lambda: exchange.left, "the call has ended")
    assert ended(client, run).status == "cancelled"
    asked, cut = client.beta.threads.messages.list(run.thread_id, order="asc").data
    assert (text_of(asked), asked.status) == ("Go", "completed")
    assert (text_of(cut), cut.status) == ("a", "incomplete"), "what was said until then is kept"


def test_the_end_of_a_run_ends_the_call(
    models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    models.will(silent)
    run = ask(client, assistant, "Go", expires_after=3)
    eventually(lambda: models.asked.json["messages"][-1]["content"] == "Go", "it is asked")
    exchange = models.asked
    assert ended(client, run).status == "expired"
    eventually(lambda: exchange.left, "the call has ended")


# Models.


def test_the_models_that_are_served(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["echo", "m"]
    assert client.models.retrieve("m").id == "m"


def test_a_model_that_nobody_serves_says_how_to_add_one(client: OpenAI) -> None:
    assistant = client.beta.assistants.create(model="gpt-4o")
    with pytest.raises(BadRequestError) as caught:
        ask(client, assistant, "Go")
    assert caught.value.code == "model_not_found"
    message = caught.value.message
    assert "The model 'gpt-4o' is not served here. Served: echo, m." in message
    assert "runbell serve --upstream URL --model-map 'gpt-4o=MODEL'" in message


def test_a_model_that_a_server_has_since_a_moment_is_found(
    models: ModelServer, client: OpenAI
) -> None:
    """Without a restart, by asking for it."""
    assistant = client.beta.assistants.create(model="new")
    models.models = ("m", "new")
    try:

        def run() -> Run | None:
            try:
                return ask(client, assistant, "Go")
            except BadRequestError:
                return None

        assert ended(client, eventually(run, "the new model is served")).status == "completed"
        assert [model.id for model in client.models.list()] == ["echo", "m", "new"]
    finally:
        models.models = ("m",)


def test_the_key_is_nowhere(
    house: Served, models: ModelServer, client: OpenAI, assistant: Assistant
) -> None:
    """Not in what the process wrote, nor in the database, also where a model server repeats it."""
    ended(client, ask(client, assistant, "Go"))
    models.will(refuse(401, {"error": f"wrong key {KEY}"}))
    assert ended(client, ask(client, assistant, "Go")).status == "failed"
    written = [path.read_bytes() for path in house.directory.iterdir() if path.is_file()]
    assert len(written) >= 3
    assert not [data for data in written if KEY.encode() in data or KEY[:16].encode() in data]
    assert "HTTP 401, the key is that of THE_KEY" in house.stderr()
    assert "Traceback" not in house.output()


# Starting and stopping.


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_a_server_that_is_away_at_the_start(tmp_path: Path) -> None:
    """The service starts. A mapped model takes runs, which wait; a listed one takes none yet."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/v1"
    # The same server under two names: one URL can be named once.
    other = f"http://localhost:{port}/v1"
    args = ["--upstream", other, "--upstream", url, "--model-map", "gpt-4o=m"]
    with Served(tmp_path, args=args, watch=inspect) as served:
        client = served.client()
        assert [model.id for model in client.models.list()] == ["echo", "gpt-4o"]
        listed = client.beta.assistants.create(model="m")
        with pytest.raises(BadRequestError, match="has not said yet which models it has"):
            ask(client, listed, "Go")
        mapped = client.beta.assistants.create(model="gpt-4o")
        run = ask(client, mapped, "Go")
        eventually(lambda: "refused the connection" in served.stderr(), "it is tried")
        with in_a_thread(port) as models:
            assert ended(client, run).status == "completed"
            assert models.asked.json["model"] == "m"


def test_a_run_survives_that_both_are_killed(tmp_path: Path) -> None:
    """The service comes back before its model server does, which alone knows what it serves."""
    port = free_port()
    with (
        in_a_thread(port) as models,
        Served(tmp_path, args=["--upstream", models.url], watch=inspect) as served,
    ):
        assistant = served.client().beta.assistants.create(model="m")
        models.will(silent)
        run = ask(served.client(), assistant, "Go")
        eventually(lambda: models.chats != [], "the model is asked")
        served.kill()
    with Served(
        tmp_path, args=["--upstream", f"http://127.0.0.1:{port}/v1"], key=served.key
    ) as again:
        eventually(lambda: "waits for a server" in again.stderr(), "the run waits")
        assert (
            again.client().beta.threads.runs.retrieve(run.id, thread_id=run.thread_id).status
            == "in_progress"
        )
        with in_a_thread(port):
            assert ended(again.client(), run).status == "completed"
            assert messages_of(again.client(), run.thread_id) == ["Go", "ok"]


def test_a_stop_does_not_wait_for_models(models: ModelServer, tmp_path: Path) -> None:
    """Their calls are ended; the runs go on at the next start."""
    args = ["--upstream", models.url, "--shutdown-grace", "0.2"]
    with Served(tmp_path, args=args, watch=inspect) as served:
        assistant = served.client().beta.assistants.create(model="m")
        before = len(models.chats)
        models.will(silent, stream(text("a"), Pause()), refuse(503, {}, retry_after="60"))
        runs = [ask(served.client(), assistant, "Go") for _ in range(3)]
        eventually(lambda: len(models.chats) == before + 3, "all are asked")
        served.stop()
        served.start()
        for run in runs:
            assert ended(served.client(), run).status == "completed"


def test_slots_are_kept_by_the_service(models: ModelServer, tmp_path: Path) -> None:
    args = ["--upstream", models.url, "--upstream-concurrency", "2"]
    with Served(tmp_path, args=args) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="m")
        before = len(models.chats)
        pauses = [Pause() for _ in range(5)]
        models.will(*[stream(pause, text("a"), STOP) for pause in pauses])
        runs = [ask(client, assistant, "Go") for _ in range(5)]
        for n, pause in enumerate(pauses):
            eventually(lambda pause=pause: pause.reached, "the next is asked")
            asked = min(n + 2, 5)
            eventually(lambda asked=asked: len(models.chats) - before >= asked, "two are asked")
            time.sleep(0.05)
            assert len(models.chats) - before == asked
            pause.go()
        assert {ended(client, run).status for run in runs} == {"completed"}


def status_of(client: OpenAI, run: Run) -> str:
    return client.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id).status


def test_runs_that_wait_for_a_place_stay_queued(models: ModelServer, tmp_path: Path) -> None:
    """In the order of their creation, while other models are answered, and across a restart."""
    args = ["--upstream", models.url, "--upstream-concurrency", "1"]
    with Served(tmp_path, args=args, watch=inspect) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="m")
        before = len(models.chats)
        pauses = [Pause() for _ in range(3)]
        models.will(silent, *[stream(pause, text("a"), STOP) for pause in pauses])
        runs = [ask(client, assistant, f"Go {n}") for n in range(3)]
        eventually(lambda: len(models.chats) == before + 1, "the first is asked")
        built_in = client.beta.assistants.create(model="echo")
        assert ended(client, ask(client, built_in, "Hi")).status == "completed"
        assert [status_of(client, run) for run in runs] == ["in_progress", "queued", "queued"]
        served.kill()
        served.start()
        client = served.client()
        for n, pause in enumerate(pauses):
            eventually(lambda pause=pause: pause.reached, "the next is asked")
            assert models.asked.json["messages"][-1]["content"] == f"Go {n}"
            assert [status_of(client, run) for run in runs[n + 1 :]] == ["queued"] * (2 - n)
            pause.go()
            assert ended(client, runs[n]).status == "completed"


def test_a_dead_server_stops_no_other(models: ModelServer, tmp_path: Path) -> None:
    """More of its runs than may be in progress pause between their tries; the rest stay queued."""
    args = [
        *("--upstream", f"http://127.0.0.1:{free_port()}/v1", "--model-map", "dead=m"),
        *("--upstream", models.url, "--max-concurrent-runs", "2"),
    ]
    with Served(tmp_path, args=args, watch=inspect) as served:
        client = served.client()
        dead, alive, built_in = (
            client.beta.assistants.create(model=model) for model in ("dead", "m", "echo")
        )
        stuck = [ask(client, dead, "Go") for _ in range(5)]
        for assistant in (alive, built_in):
            runs = [ask(client, assistant, "Go") for _ in range(5)]
            assert {ended(client, run).status for run in runs} == {"completed"}
        seen = [status_of(client, run) for run in stuck]
        assert sorted(seen) == ["in_progress"] * 2 + ["queued"] * 3
        for run in stuck:
            client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        assert {ended(client, run).status for run in stuck} == {"cancelled"}
