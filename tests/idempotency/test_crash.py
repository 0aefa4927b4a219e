"""Killed between the effect and its answer: whoever asks again gets the one that was meant for it.

A real process dies, with SIGKILL, at a fault point on a request's way; it is started again on the
same file, and the client sends the same request with the same key.
"""

from __future__ import annotations

import http.client
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from runbell.testing.faults import Kill
from runbell.testing.histories import check_histories
from tests.served import RUNBELL, Answer, Api, Served, eventually

HELLO = [{"role": "user", "content": "hello"}]

# What is true at each point on the way of the request that dies there: is it stored?
POINTS = {
    "storage.group.begun": False,
    "storage.group.executed": False,
    "storage.group.committed": True,
    "operations.committed": True,
}


def dying(kill: Kill) -> tuple[str, ...]:
    """A service that dies there when it is asked something after SIGUSR1."""
    program = (sys.executable, "-m", "runbell.testing.faulty")
    return (*program, "--on-signal", "--kill-at", str(kill), "--")


def die(service: Served, kill: Kill) -> None:
    """See it die of what it was just asked, and start it for good."""
    service.wait_dead()
    assert kill.last_words in service.stderr()
    service.command = RUNBELL
    service.start()


def post(api: Api, path: str, body: Any, key: str) -> Answer | None:
    """The answer; None where the process died instead."""
    try:
        return api.post(path, body, headers={"Idempotency-Key": key})
    except (http.client.HTTPException, ConnectionError):
        return None


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
@pytest.mark.parametrize("point", POINTS)
def test_a_run_is_created_once(tmp_path: Path, point: str, stream: bool) -> None:
    """One thread, one run, one history; the second request is answered by the first's run."""
    kill = Kill(point)
    with Served(tmp_path, command=dying(kill)) as service:
        assistant = service.api().post("/v1/assistants", {"model": "echo"}).ok()["id"]
        body: Any = {"assistant_id": assistant, "thread": {"messages": HELLO}, "stream": stream}
        os.kill(service.pid, signal.SIGUSR1)
        assert post(service.api(), "/v1/threads/runs", body, "a") is None
        die(service, kill)
        again = post(service.api(), "/v1/threads/runs", body, "a")
        assert again is not None
        assert again.status == 200, again
        stored = POINTS[point]
        assert again.headers.get("idempotent-replayed") == ("true" if stored else None)
        third = post(service.api(), "/v1/threads/runs", body, "a")
        assert third is not None
        assert third.headers["idempotent-replayed"] == "true"
        _check_one_run(service, again, third, stream=stream)


def _check_one_run(service: Served, again: Answer, third: Answer, *, stream: bool) -> None:
    api = service.api()

    def ended() -> Any:
        events = api.get("/v1/events?limit=100").ok()["data"]
        return events if events and events[-1]["data"]["status"] == "completed" else None

    (history,) = check_histories(eventually(ended, "the run is completed"), ended=True).values()
    run = history[0]["data"]
    listed = api.get(f"/v1/threads/{run['thread_id']}/runs").ok()["data"]
    assert [each["id"] for each in listed] == [run["id"]]
    said = api.get(f"/v1/threads/{run['thread_id']}/messages").ok()["data"]
    assert [message["role"] for message in said] == ["assistant", "user"]
    if stream:
        for answer in (again, third):
            assert answer.body.endswith(b"event: done\ndata: [DONE]\n\n")
            assert b"event: thread.run.completed\n" in answer.body
            assert run["id"].encode() in answer.body
    else:
        assert again.body == third.body
        assert again.json()["id"] == run["id"]
        assert again.json()["status"] == "queued"


@pytest.mark.parametrize("point", ["storage.group.executed", "storage.group.committed"])
def test_outputs_are_given_once(tmp_path: Path, point: str) -> None:
    """A tool may have done something that cannot be done twice: its outputs are in, or they are
    not, and the same request says so either way."""
    kill = Kill(point)
    with Served(tmp_path, command=dying(kill)) as service:
        api = service.api()
        tool = {"type": "function", "function": {"name": "f"}}
        made = api.post("/v1/assistants", {"model": "echo", "tools": [tool]}).ok()
        thread = {"messages": [{"role": "user", "content": "call f {}"}]}
        run = api.post("/v1/threads/runs", {"assistant_id": made["id"], "thread": thread}).ok()
        path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"

        def waiting() -> Any:
            seen = api.get(path).ok()
            return seen if seen["status"] == "requires_action" else None

        (call,) = eventually(waiting, "it waits for outputs")["required_action"][
            "submit_tool_outputs"
        ]["tool_calls"]
        body = {"tool_outputs": [{"tool_call_id": call["id"], "output": "rain"}]}
        os.kill(service.pid, signal.SIGUSR1)
        assert post(api, f"{path}/submit_tool_outputs", body, "a") is None
        die(service, kill)
        api = service.api()
        replies = [post(api, f"{path}/submit_tool_outputs", body, "a") for _ in range(2)]
        assert [reply is not None and reply.status for reply in replies] == [200, 200]
        eventually(lambda: api.get(path).ok()["status"] == "completed", "it is completed")
        events = api.get("/v1/events?limit=100").ok()["data"]
        (history,) = check_histories(events, ended=True).values()
        assert [event["type"] for event in history].count("thread.run.queued") == 1
        # Without a key the run itself refuses outputs that it has.
        assert api.post(f"{path}/submit_tool_outputs", body).status == 400
