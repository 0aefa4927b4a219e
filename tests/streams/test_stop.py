"""Streams, and who reads none of them, when the process is told to stop."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest
from openai import APIError, OpenAI
from openai.types.beta import Assistant

from tests.protocol.scenario import say, until
from tests.served import Api, Served, eventually


def test_a_stream_ends_promptly_and_its_run_goes_on(tmp_path: Path) -> None:
    """With an error, since the run has not settled, and long before the process has to end; the
    next start takes it up."""
    with Served(tmp_path, args=["--shutdown-grace", "3600"]) as served:
        client = served.client()
        echo = client.beta.assistants.create(model="echo")
        thread = say(client, "sleep 5\nhello")
        stream = client.beta.threads.runs.create(thread, assistant_id=echo.id, stream=True)
        for event in stream:
            if event.event == "thread.run.in_progress":
                run = event.data
                break
        served.terminate()
        # Else it would tell how the run ends, for which the process waits.
        with pytest.raises(APIError, match="the run goes on: retrieve it"):
            list(stream)
        served.kill()
        served.start(port=served.port)
        assert until(client, run, "completed").status == "completed"


def test_a_client_that_does_not_read_holds_nothing_up(tmp_path: Path) -> None:
    """The process ends in time, and without a complaint."""
    with Served(tmp_path) as served:
        client, api = served.client(), served.api()
        echo = client.beta.assistants.create(model="echo")
        _fill_the_feed(client, api, echo)
        first = api.get("/v1/events?limit=1").ok()["first_id"]
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            raw.connect(("127.0.0.1", served.port))
            raw.sendall(
                f"GET /v1/events?after={first} HTTP/1.1\r\nHost: test\r\n"
                f"Accept: text/event-stream\r\nAuthorization: Bearer {served.key}\r\n\r\n".encode()
            )
            assert raw.recv(10)
            _wait_until_stuck(raw)
            served.stop()
        assert "ERROR" not in served.stderr(), served.output()


def _fill_the_feed(client: OpenAI, api: Api, echo: Assistant) -> None:
    """More bytes of events than a connection takes in by itself."""
    metadata = {f"k{number}": "x" * 512 for number in range(16)}
    body = {"assistant_id": echo.id, "metadata": metadata, "on_active_run": "enqueue"}
    for _ in range(5):
        thread = say(client, "hello")
        for _ in range(80):
            run = api.post(f"/v1/threads/{thread}/runs", body).ok()
        path = f"/v1/threads/{thread}/runs/{run['id']}"
        eventually(lambda: api.get(path).ok()["status"] == "completed", "its runs have ended")  # noqa: B023


def _wait_until_stuck(raw: socket.socket) -> None:
    """Return when nothing more arrives, since the service is at the end of its buffers."""
    time.sleep(0.5)
    assert raw.recv(1, socket.MSG_PEEK)
