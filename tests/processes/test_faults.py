"""Two services, and what goes wrong around them: connections, rows, clocks, jobs, deployments."""

from __future__ import annotations

import http.client
import itertools
import json
import os
import re
import secrets
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any

import pytest

from tests.cli.conftest import Command, runbell
from tests.processes import strange
from tests.processes.house import House, several
from tests.served import Answer, eventually

__all__ = ["runbell"]

LISTENERS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'runbell listener'"
"""Of all databases on the server: no other test runs beside this one in its process."""


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Two processes for all tests of this module."""
    program = (sys.executable, "-m", strange.__name__)
    with several(tmp_path_factory.mktemp("faults"), command=program) as house:
        yield house


def _path(run: Any) -> str:
    return f"/v1/threads/{run['thread_id']}/runs/{run['id']}"


def test_a_listener_that_was_cut_misses_nothing(house: House) -> None:
    """A wait, a feed and a run's own stream are held while nobody can be told anything: what the
    other process changes meanwhile is found when somebody listens again."""
    run = house.run("call f {}")
    seen = house.api.get(_path(run), headers={"Prefer": "wait=20"})
    assert seen.ok()["status"] == "requires_action"
    heard: list[str] = []
    told = [f"thread.run.{each}" for each in ("created", "in_progress", "requires_action")]
    over = threading.Event()
    line = f"SELECT id FROM runs WHERE thread_id = '{run['thread_id']}' AND waits_turn"
    with ThreadPoolExecutor(3) as pool:
        headers = {"Prefer": "wait=60", "If-None-Match": seen.headers["etag"]}
        waiting = pool.submit(house.api.get, _path(run), headers=headers)
        streaming = pool.submit(_follow, house, run["id"], "thread.run.cancelled", heard, over)
        queued = {"assistant_id": house.assistant, "stream": True, "on_active_run": "enqueue"}
        path = f"/v1/threads/{run['thread_id']}/runs"
        behind = pool.submit(house.api.post, path, queued)
        try:
            eventually(
                lambda: house.holds("waits") and heard == told and bool(house.rows(line)),
                "all are held",
            )
            ((second,),) = house.rows(line)
            house.rows(ALLOW.format("false"))
            house.rows(f"SELECT pg_terminate_backend(pid) FROM ({LISTENERS}) AS listeners")
            eventually(lambda: not house.rows(LISTENERS), "nobody listens")
            for each in (f"{path}/{second}", _path(run)):
                # It may have to come again, since new connections are allowed to nobody.
                cancel = partial(house.served[1].api().post, f"{each}/cancel")
                eventually(lambda: cancel().status == 200, "it is cancelled")  # noqa: B023
            assert not waiting.done()
            assert not behind.done()
            assert heard == told
        finally:
            house.rows(ALLOW.format("true"))
            # Also where something has failed: else nothing here would end.
            house.api.post(f"{_path(run)}/cancel")
        try:
            lines = behind.result(60).body.decode().splitlines()
            kinds = [each.removeprefix("event: ") for each in lines if each.startswith("event: ")]
            assert kinds[1:] == ["thread.run.queued", "thread.run.cancelled", "done"]
            assert waiting.result(60).ok()["status"] == "cancelled"
            eventually(streaming.done, "the stream has told of it")
        finally:
            over.set()
        streaming.result(60)
    assert heard == [*told, "thread.run.cancelled"]


ALLOW = "UPDATE pg_database SET datallowconn = {} WHERE datname = current_database()"


def _follow(house: House, run_id: str, until: str, heard: list[str], over: threading.Event) -> None:
    """Stream the feed, and write down what it says of a run."""
    connection = http.client.HTTPConnection("127.0.0.1", house.served[0].port, timeout=60)
    key = f"Bearer {house.served[0].key}"
    headers = {"Authorization": key, "Accept": "text/event-stream"}
    connection.request("GET", "/v1/events?after=evt_0", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 200
    with closing(connection), closing(answer):
        while until not in heard and not over.is_set():
            line = answer.readline().decode()
            assert line, "the stream has ended"
            if line.startswith("data: "):
                event = json.loads(line[6:])
                if event["data"]["id"] == run_id:
                    heard.append(event["type"])


def test_whoever_gets_no_connection_is_told_to_come_again(house: House) -> None:
    """Somebody holds a row for which all of a process's connections wait, and more requests come:
    none hangs, none is a defect, and afterwards all is as before."""
    run = house.run("call f {}")
    house.api.get(_path(run), headers={"Prefer": "wait=20"}).ok()

    def change(number: int) -> Answer:
        return house.api.post(_path(run), {"metadata": {"number": str(number)}})

    with ThreadPoolExecutor(16) as pool:
        house.rows("BEGIN")
        house.rows(f"SELECT id FROM runs WHERE id = '{run['id']}' FOR UPDATE")
        try:
            answers = list(pool.map(change, range(16)))
        finally:
            house.rows("ROLLBACK")
        assert {each.status for each in answers} == {503}
        assert {each.headers["retry-after"] for each in answers} == {"1"}
    # One after the other: little patience is had with each other, too.
    assert [change(number).status for number in range(16)] == [200] * 16
    house.api.post(f"{_path(run)}/cancel").ok()


def test_a_clock_that_is_wrong_or_jumps_changes_nothing(house: House) -> None:
    """The database's time is everybody's: what is made by a machine that is an hour ahead is not
    older there, expires in time, and nobody else's runs expire."""
    waiting = house.run("call f {}")
    other = house.served[1].api()
    os.kill(house.served[1].pid, signal.SIGUSR1)
    for made_by in (other, house.api):
        thread = {"messages": [{"role": "user", "content": "call f {}"}]}
        body = {"assistant_id": house.assistant, "thread": thread, "expires_after": 1}
        run = made_by.post("/v1/threads/runs", body).ok()
        assert abs(run["created_at"] - waiting["created_at"]) < strange.JUMP_S / 2
        assert run["expires_at"] - run["created_at"] in (1, 2)
        eventually(lambda run=run: _status(house, run) == "expired", "it expires")  # type: ignore[misc]
    assert _status(house, waiting) == "requires_action"
    (call,) = other.get(_path(waiting)).ok()["required_action"]["submit_tool_outputs"]["tool_calls"]
    outputs = {"tool_outputs": [{"tool_call_id": call["id"], "output": "late"}]}
    other.post(f"{_path(waiting)}/submit_tool_outputs", outputs).ok()
    eventually(lambda: _status(house, waiting) == "completed", "it goes on")


def _status(house: House, run: Any) -> str:
    return str(house.api.get(_path(run)).ok()["status"])


def test_a_deployment_is_not_noticed(house: House) -> None:
    """One process after the other is ended with SIGTERM and started anew, under load: a balancer
    that tries each request at most twice has an answer to each."""
    over, completed = threading.Event(), list[str]()
    balancer = _Balancer(house)

    def use() -> None:
        thread = {"messages": [{"role": "user", "content": "sleep 0.1\nx"}]}
        body = {"assistant_id": house.assistant, "thread": thread}
        while not over.is_set():
            run = balancer.ask("POST", "/v1/threads/runs", body)
            # A process that ends answers early those that it holds.
            while balancer.ask("GET", _path(run), headers=WAIT)["status"] != "completed":
                pass
            completed.append(run["id"])

    with ThreadPoolExecutor(4) as pool:
        users = [pool.submit(use) for _ in range(4)]
        try:
            for served in house.served:
                eventually(lambda: _more(completed, users), "there is a load")
                served.stop()
                again = balancer.again
                eventually(lambda: balancer.again > again, "the balancer notices")  # noqa: B023
                served.start()
            eventually(lambda: _more(completed, users), "it goes on")
        finally:
            over.set()
        for user in users:
            user.result(60)
    house.check()


WAIT = {"Prefer": "wait=5"}


def _more(completed: list[str], users: list[Future[None]]) -> bool:
    """Some runs were completed since the last time that this was asked."""
    for user in users:
        assert not user.done() or user.result() is None
    enough = len(completed) >= 10
    if enough:
        completed.clear()
    return enough


class _Balancer:
    """Sends each request to a process, and, where that does not take it, once to the other.

    Attributes:
        again: how many it had to send twice.
    """

    def __init__(self, house: House) -> None:
        self.house = house
        self.again = 0
        self._turns = itertools.count()

    def ask(self, method: str, path: str, json: Any = None, headers: Any = None) -> Any:
        turn = next(self._turns)
        if method == "POST":
            headers = {"Idempotency-Key": secrets.token_hex(8)}
        try:
            return self._send(turn, method, path, json, headers)
        except (OSError, http.client.HTTPException, _Refused):
            self.again += 1
            return self._send(turn + 1, method, path, json, headers)

    def _send(self, turn: int, method: str, path: str, json: Any, headers: Any) -> Any:
        served = self.house.served[turn % 2]
        answer = served.request(method, path, json=json, headers=headers, key=served.key)
        if answer.status == 503:
            raise _Refused
        return answer.ok()


class _Refused(Exception):
    """The process can't do it now."""


def test_a_poisoned_job_is_held_and_shown(house: House, runbell: Command) -> None:
    """A run whose row nobody can read: its job fails, again and again, and is then kept aside,
    where commands and numbers show it. Other runs go on; once mended and released, it is done."""
    run = house.run("call f {}")
    house.api.get(_path(run), headers={"Prefer": "wait=20"}).ok()
    job = f"dedupe_key = 'expire:{run['id']}:0'"
    ((config,),) = house.rows(f"SELECT config FROM runs WHERE id = '{run['id']}'")
    house.rows(f"UPDATE runs SET config = '?' WHERE id = '{run['id']}'")
    # Its other failures are behind it.
    house.rows(f"UPDATE pgqueuer SET attempts = 19, execute_after = now() WHERE {job}")
    held = f"SELECT status FROM pgqueuer WHERE {job} AND status = 'failed'"
    eventually(lambda: bool(house.rows(held)), "it is held")
    well = house.run("and others?")
    ended = house.api.get(_path(well), headers={"Prefer": "wait=20"}).ok()
    assert ended["status"] == "completed"
    number = re.compile(r'runbell_jobs_held\{kind="expire"\} 1.0')
    assert number.search(house.api.get("/metrics").body.decode())
    here = ("--database", house.url)
    listed = runbell("jobs", "list", *here).out
    assert re.search(rf"^\d+ +expire +{run['id']} .*it failed 20 times: \w+", listed, re.MULTILINE)
    checked = runbell("check", *here)
    assert (checked.code, "failed too often and is held" in checked.out) == (1, True)
    house.rows(f"UPDATE runs SET config = '{config}', expires_at_ms = 1 WHERE id = '{run['id']}'")
    assert "1 jobs are tried again" in runbell("jobs", "release", "--all", *here).out
    eventually(lambda: _status(house, run) == "expired", "it was done")
    assert house.rows("SELECT id FROM pgqueuer WHERE status = 'failed'") == []
    assert runbell("check", *here).code == 0
    assert runbell("jobs", "release", "1", *here).code == 1
    assert runbell("jobs", "release", *here).code == 2
    assert runbell("jobs", "list", "--database", "sqlite:///x.db").code == 1
    for served in house.served:
        # Their logs tell of the defect, which elsewhere would be one of ours.
        served.kill()
