"""LiteLLM's proxy as the model server: what it streams is its own, from mock answers of its own and
from a backend that speaks Anthropic's protocol, which it translates both ways.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta.threads import Run

from tests.independent.conftest import LITELLM
from tests.protocol.scenario import (
    TERMINAL,
    answer_of,
    ask,
    calls_of,
    function_tool,
    messages_of,
    outputs_for,
    until,
)
from tests.protocol.wire import inspect
from tests.served import Served, eventually
from tests.upstream.model_server import ModelServer, in_a_thread, stream

START_LIMIT_S = 120.0
"""It imports for long on a busy machine."""

KEY = f"sk-{secrets.token_hex(16)}"

MOCKED = {
    "plain": {"mock_response": "The answer is 4."},
    "slow": {"mock_response": "The answer is 4.", "mock_delay": 60},
    "limited": {"mock_response": "litellm.RateLimitError"},
    "broken": {"mock_response": "litellm.InternalServerError"},
    "small": {"mock_response": "litellm.ContextWindowExceededError"},
    "overloaded": {"mock_response": "Exception: mock_streaming_error"},
}


def config(anthropic: str) -> dict[str, Any]:
    """Nothing is tried again or left out by the proxy: that is what is tested here."""
    mocked = [
        {"model_name": name, "litellm_params": {"model": "openai/x", "api_key": "none", **mock}}
        for name, mock in MOCKED.items()
    ]
    claude = {
        "model": "anthropic/claude-3-5-sonnet-20241022",
        "api_key": "none",
        "api_base": anthropic,
    }
    return {
        "model_list": [*mocked, {"model_name": "claude", "litellm_params": claude}],
        "litellm_settings": {"num_retries": 0, "drop_params": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "general_settings": {"master_key": KEY},
    }


@pytest.fixture(scope="session")
def anthropic() -> Iterator[ModelServer]:
    """The server behind the proxy."""
    with in_a_thread() as server:
        yield server


@pytest.fixture(scope="session")
def proxy(anthropic: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """LiteLLM's proxy: its base URL."""
    directory = tmp_path_factory.mktemp("litellm")
    written = directory / "config.yaml"
    # JSON is YAML.
    written.write_text(json.dumps(config(anthropic.url.removesuffix("/v1"))))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = directory / "output.txt"
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(os.environ[LITELLM], "--config", str(written), "--telemetry", "False"),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            env={
                **os.environ,
                "HOME": str(directory),
                "LITELLM_LOCAL_MODEL_COST_MAP": "True",
                "NO_PROXY": "*",
                "PYTHONPATH": "",
            },
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            cwd=directory,
        )
    try:
        url = f"http://127.0.0.1:{port}"

        def lives() -> bool:
            assert process.poll() is None, output.read_text()[-4_000:]
            try:
                with urllib.request.urlopen(f"{url}/health/liveliness", timeout=5):
                    return True
            except (urllib.error.URLError, TimeoutError):
                return False

        eventually(lives, "the proxy lives", START_LIMIT_S)
        yield f"{url}/v1"
    finally:
        # It would wait for the slow answer that nobody wants any more.
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def house(proxy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    args = [
        *("--upstream", proxy, "--upstream-key-env", "LITELLM_KEY"),
        *("--upstream", proxy, "--upstream-key-env", "LITELLM_KEY", "--model-map", "gpt-4o=plain"),
        *("--upstream", proxy, "--model-map", "locked=plain"),
    ]
    env = {"LITELLM_KEY": KEY}
    with Served(tmp_path_factory.mktemp("house"), args=args, env=env, watch=inspect) as served:
        eventually(lambda: "models:" in served.stderr(), "the models are known")
        yield served


@pytest.fixture(scope="session")
def client(house: Served) -> OpenAI:
    return house.client()


def run_of(client: OpenAI, model: str, text: str = "What is 2+2?", **body: Any) -> Run:
    tools = [function_tool("f"), function_tool("g")] if model == "claude" else []
    assistant = client.beta.assistants.create(model=model, instructions="Be brief.", tools=tools)
    return ask(client, assistant, text, **body)


def ended(client: OpenAI, model: str, **body: Any) -> Run:
    return until(client, run_of(client, model, **body), *TERMINAL)


def test_its_models_are_listed(client: OpenAI) -> None:
    expected = {"echo", "gpt-4o", "locked", "claude", *MOCKED}
    assert {model.id for model in client.models.list()} == expected


@pytest.mark.parametrize("model", ["plain", "gpt-4o"])
def test_an_answer_with_the_tokens_that_it_counted(client: OpenAI, model: str) -> None:
    run = ended(client, model)
    assert (run.status, answer_of(client, run)) == ("completed", "The answer is 4.")
    assert run.usage is not None
    assert run.usage.completion_tokens == 6
    assert 5 < run.usage.prompt_tokens < 40


def test_everything_that_can_be_set_is_understood(client: OpenAI) -> None:
    schema = {"name": "n", "schema": {"type": "object", "properties": {}}}
    run = ended(
        client,
        "plain",
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=300,
        max_prompt_tokens=1_000,
        response_format={"type": "json_schema", "json_schema": schema},
        tools=[function_tool("f")],
        tool_choice="auto",
        parallel_tool_calls=False,
    )
    assert (run.status, answer_of(client, run)) == ("completed", "The answer is 4.")


def test_what_a_model_cannot_do_is_not_left_out(client: OpenAI) -> None:
    run = ended(client, "plain", reasoning_effort="low")
    assert run.status == "failed"
    assert run.last_error is not None
    assert run.last_error.code == "invalid_prompt"
    assert "reasoning_effort" in run.last_error.message


@pytest.mark.parametrize(
    ("model", "code", "message"),
    [
        ("limited", "rate_limit_exceeded", "over its limit (429): litellm.RateLimitError"),
        ("broken", "server_error", "failed (500): litellm.InternalServerError"),
        ("overloaded", "server_error", "failed (529): litellm.MidStreamFallbackError"),
        ("small", "invalid_prompt", "does not fit into the model (400): litellm.ContextWindow"),
        ("locked", "server_error", "does not accept the key that it was given (401)"),
    ],
)
def test_its_errors_become_the_runs(client: OpenAI, model: str, code: str, message: str) -> None:
    """Those that may pass are tried until the run's time is over."""
    run = ended(client, model, expires_after=4)
    assert run.status == "failed"
    assert run.last_error is not None
    assert (run.last_error.code, message in run.last_error.message) == (code, True), run.last_error


def test_a_cancel_does_not_wait_for_it(client: OpenAI) -> None:
    run = until(client, run_of(client, "slow"), "in_progress")
    begun = time.monotonic()
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert until(client, run, *TERMINAL).status == "cancelled"
    # The model takes a minute.
    assert time.monotonic() - begun < 30


# A model with tools, of another family.


def events(*data: dict[str, Any]) -> Any:
    """A stream as Anthropic's server sends it."""
    lines = (f"event: {each['type']}\ndata: {json.dumps(each)}\n\n".encode() for each in data)
    return stream(*lines, done=False)


def block(index: int, start: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def answer(reason: str, *blocks: list[dict[str, Any]]) -> Any:
    message = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "content": [],
        "model": "claude",
        "stop_reason": None,
        "usage": {"input_tokens": 25, "output_tokens": 1},
    }
    return events(
        {"type": "message_start", "message": message},
        *(event for block in blocks for event in block),
        {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": None},
            "usage": {"output_tokens": 9},
        },
        {"type": "message_stop"},
    )


def says(index: int, text: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, {"type": "text_delta", "text": text})


def calls(index: int, key: str, name: str, *parts: str) -> list[dict[str, Any]]:
    start = {"type": "tool_use", "id": key, "name": name, "input": {}}
    return block(index, start, *({"type": "input_json_delta", "partial_json": p} for p in parts))


def test_tools_of_another_family_of_models(client: OpenAI, anthropic: ModelServer) -> None:
    """Parallel calls and their outputs go there and back through the proxy's own translation."""
    anthropic.will(
        answer(
            "tool_use",
            says(0, "Let me see."),
            calls(1, "toolu_1", "f", "", '{"x":', " 1}"),
            calls(2, "toolu_2", "g"),
        ),
        answer("end_turn", says(0, "Both "), says(1, "are done.")),
    )
    run = until(client, run_of(client, "claude"), "requires_action")
    assert [(key, name, json.loads(arguments)) for key, name, arguments in calls_of(run)] == [
        ("toolu_1", "f", {"x": 1}),
        ("toolu_2", "g", {}),
    ]
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["one", "two"])
    )
    run = until(client, run, *TERMINAL)
    said = messages_of(client, run.thread_id)
    assert said == ["What is 2+2?", "Let me see.", "Both are done."]
    assert run.usage is not None
    assert (run.usage.prompt_tokens, run.usage.completion_tokens) == (50, 18)

    told = anthropic.chats[-1].json
    assert "Be brief." in json.dumps(told["system"])
    roles = [message["role"] for message in told["messages"]]
    assert roles == ["user", "assistant", "user"]
    spoken, *used = told["messages"][1]["content"]
    assert spoken["text"] == "Let me see."
    assert [(each["id"], each["name"], each["input"]) for each in used] == [
        ("toolu_1", "f", {"x": 1}),
        ("toolu_2", "g", {}),
    ]
    results = told["messages"][2]["content"]
    assert [each["tool_use_id"] for each in results] == ["toolu_1", "toolu_2"]
    assert "one" in json.dumps(results[0])
    assert "two" in json.dumps(results[1])


def test_an_answer_that_a_limit_has_cut(client: OpenAI, anthropic: ModelServer) -> None:
    anthropic.will(answer("max_tokens", says(0, "half an")))
    run = ended(client, "claude", max_completion_tokens=300)
    assert (run.status, answer_of(client, run)) == ("incomplete", "half an")
    assert anthropic.chats[-1].json["max_tokens"] == 300


def test_an_image_arrives(client: OpenAI, anthropic: ModelServer) -> None:
    png = (
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
        "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    )
    part = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
    content: Any = [{"type": "text", "text": "What is it?"}, part]
    anthropic.will(answer("end_turn", says(0, "A dot.")))
    assistant = client.beta.assistants.create(model="claude")
    thread = client.beta.threads.create(messages=[{"role": "user", "content": content}])
    run = client.beta.threads.runs.create(thread.id, assistant_id=assistant.id)
    run = until(client, run, *TERMINAL)
    assert answer_of(client, run) == "A dot."
    assert png in json.dumps(anthropic.chats[-1].json)


def test_its_key_is_nowhere(house: Served) -> None:
    written = [path.read_bytes() for path in house.directory.iterdir() if path.is_file()]
    assert not [data for data in written if KEY.encode() in data]
