"""Two services on one PostgreSQL database: they wake each other, and one goes on when the other is
killed."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runbell.testing.receivers import Receiver
from tests.processes.house import House, several
from tests.served import eventually

RUNS = 200
SEVERAL = 5


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Two processes for all tests of this module; the last of them kills one."""
    with several(tmp_path_factory.mktemp("two")) as house:
        yield house


def test_a_wait_at_one_process_is_woken_by_the_other(house: House) -> None:
    """Not by its own look at the end of the wait, which would be after a minute."""
    run = house.run("call f {}")
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
    seen = house.api.get(path, headers={"Prefer": "wait=20"})
    assert seen.ok()["status"] == "requires_action"
    other = house.served[1].api()
    headers = {"Prefer": "wait=60", "If-None-Match": seen.headers["etag"]}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(house.api.get, path, headers=headers)
        eventually(lambda: house.holds("waits"), "it is held")
        assert not waiting.done()
        changed = other.post(path, {"metadata": {"by": "the other"}}).ok()
        assert waiting.result(60).ok()["metadata"] == changed["metadata"]
    other.post(f"{path}/cancel").ok()


def test_a_feed_at_one_process_hears_of_the_other(house: House) -> None:
    """Whoever follows it hears of each event, in order, wherever it happened."""
    thread = {"messages": [{"role": "user", "content": "x"}]}
    body = {"assistant_id": house.assistant, "thread": thread}
    run = house.served[1].api().post("/v1/threads/runs", body).ok()
    seen: list[Any] = []

    def complete() -> bool:
        seen[:] = [e["type"] for e in house.events() if e["data"]["id"] == run["id"]]
        return seen[-1:] == ["thread.run.completed"]

    eventually(complete, "the feed has the run's end")
    assert seen == ["thread.run.created", "thread.run.in_progress", "thread.run.completed"]


def test_a_limit_holds_for_both_together(house: House) -> None:
    """Of many requests at a time at both, as many are let in as the key may make."""
    printed = house.served[0].command_line("keys", "create", "--project", "limited", "--rpm", "2")
    key = printed.strip()

    def ask(number: int) -> Any:
        return house.served[number % 2].api(key).get("/v1/assistants")

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(16)))
    granted = [each for each in answers if each.status == 200]
    assert len(granted) == 2
    left = [int(each.headers["x-ratelimit-remaining-requests"]) for each in granted]
    assert sorted(left) == [0, 1]
    refused = next(each for each in answers if each.status != 200)
    assert refused.status == 429
    assert 0 < int(refused.headers["retry-after-ms"]) <= 30_000


def test_a_key_and_a_thread_are_the_same_at_both(house: House) -> None:
    """Requests with one `Idempotency-Key`, at both at a time, have one effect; and of many runs on
    one thread one begins."""
    thread = house.api.post("/v1/threads", {}).ok()["id"]
    body = {"assistant_id": house.assistant, "instructions": "x"}

    def create(number: int, **headers: str) -> Any:
        api = house.served[number % 2].api()
        return api.post(f"/v1/threads/{thread}/runs", body, headers=headers)

    message = {"role": "user", "content": "call f {}"}
    house.api.post(f"/v1/threads/{thread}/messages", message).ok()
    with ThreadPoolExecutor(8) as pool:
        once = list(pool.map(lambda n: create(n, **{"Idempotency-Key": "one"}), range(8)))
        assert {each.ok()["id"] for each in once} == {once[0].ok()["id"]}
        others = list(pool.map(create, range(8)))
        assert {each.status for each in others} == {400}
        line = list(
            pool.map(
                lambda n: (
                    house.served[n % 2]
                    .api()
                    .post(f"/v1/threads/{thread}/runs", {**body, "on_active_run": "enqueue"})
                ),
                range(8),
            )
        )
    run = once[0].ok()["id"]
    house.api.post(f"/v1/threads/{thread}/runs/{run}/cancel").ok()
    runs = [run, *(each.ok()["id"] for each in line)]

    def one_goes_on() -> bool:
        """Each run waits for its tools; cancelled, it lets the next one begin."""
        found = house.api.get(f"/v1/threads/{thread}/runs?limit=100").ok()["data"]
        assert {each["id"] for each in found} == set(runs)
        for each in found:
            if each["status"] == "requires_action":
                house.served[1].api().post(f"/v1/threads/{thread}/runs/{each['id']}/cancel").ok()
        return all(each["status"] == "cancelled" for each in found)

    eventually(one_goes_on, "every run had its turn")


def test_a_stream_tells_of_a_run_wherever_it_is_executed(house: House) -> None:
    """Many at a time, so that both processes execute some: each stream is whole, and in order."""

    def stream(number: int) -> list[str]:
        thread = {"messages": [{"role": "user", "content": f"sleep 0.05\n{number}"}]}
        body = {"assistant_id": house.assistant, "thread": thread, "stream": True}
        answer = house.api.post("/v1/threads/runs", body)
        lines = answer.body.decode().splitlines()
        said = [json.loads(line[6:]) for line in lines if line.startswith('data: {"id":"msg')]
        assert said[-1]["content"][0]["text"]["value"] == f"sleep 0.05\n{number}"
        return [line[7:] for line in lines if line.startswith("event: ")]

    with ThreadPoolExecutor(8) as pool:
        streams = list(pool.map(stream, range(24)))
    for events in streams:
        # What grew at the other process is told when it is whole.
        brief = [each for each in dict.fromkeys(events) if each not in GROWING]
        assert brief == TOLD


GROWING = {"thread.run.step.in_progress", "thread.message.in_progress"}
TOLD = [
    "thread.created",
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.message.created",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
    "done",
]


def test_what_a_stopped_worker_does_later_changes_nothing(house: House) -> None:
    """SIGSTOP, as a virtual machine is paused: its runs are taken over; when it goes on, it settles
    what is not its own any more, and nothing of that is stored."""
    before, other = house.ended(), house.served[1].pid
    runs: list[str] = []

    try:
        held = _stopped_amid(house, runs, "sleep {}\nx", 24)
        eventually(lambda: not _still_held(house, held), "it was taken over")
        eventually(lambda: house.ended() == before + len(runs), "all have ended")
    finally:
        os.kill(other, signal.SIGCONT)
    rows = house.rows("SELECT id, attempt, sequence, updated_at_ms FROM runs ORDER BY id")
    # It answers only when it has come through what had waited for it.
    eventually(lambda: house.served[1].api().get("/readyz").status == 200, "it goes on")
    again = house.run("and now?")
    path = f"/v1/threads/{again['thread_id']}/runs/{again['id']}"
    ended = house.served[1].api().get(path, headers={"Prefer": "wait=20"}).ok()
    assert ended["status"] == "completed"
    now = house.rows("SELECT id, attempt, sequence, updated_at_ms FROM runs ORDER BY id")
    assert [row for row in now if row[0] != again["id"]] == rows
    assert max(row[1] for row in rows if row[0] in runs) > 1, "it held none"
    house.check()


def test_a_killed_worker_loses_nothing(house: House) -> None:
    """`kill -9` in the middle of many runs with tools and webhooks: all finish, what it held is
    taken over, nothing is doubled, and no webhook is missing."""
    with Receiver() as receiver:
        hook = {"name": "all", "url": receiver.url, "event_types": ["thread.run.*"]}
        house.api.post("/v1/webhook_endpoints", hook).ok()
        before = house.ended()
        runs: list[str] = []
        over = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            answers = pool.submit(_answer_calls, house, over)
            try:
                held = _stopped_amid(house, runs, "sleep {}\ncall f {{}}", RUNS)
                house.served[1].kill()
                eventually(lambda: not _still_held(house, held), "it was taken over")
                eventually(lambda: house.ended() == before + len(runs), "all have ended")
            finally:
                over.set()
            answers.result(60)
        house.served[1].start()
        eventually(lambda: not _owed(house), "nothing is owed any more")
        histories = house.check()
        _check_runs(house, runs)
        sent = {e["id"]: e for each in runs for e in histories[each]}
        came = {each.header("webhook-id"): json.loads(each.body) for each in receiver.requests}
        assert {key: came.get(key) for key in sent} == sent


def _answer_calls(house: House, over: threading.Event) -> None:
    """Give every run the output that it asks for, until there is none any more."""
    while not over.is_set():
        page = house.api.get("/v1/runs?status=requires_action&limit=100").ok()
        for run in page["data"]:
            calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
            given = [{"tool_call_id": call["id"], "output": f"out {call['id']}"} for call in calls]
            path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"
            house.api.post(path, {"tool_outputs": given})
        over.wait(0.2)


WAITING = "SELECT 1 FROM runs WHERE status = 'queued' LIMIT 1"
PICKED = "SELECT id, queue_manager_id::text FROM pgqueuer WHERE status = 'picked'"


def _stopped_amid(house: House, runs: list[str], text: str, count: int) -> set[Any]:
    """Stop the second process when both are in the middle of several runs: the jobs of both.

    Args:
        runs: the ids of those that are made for it are added.
        text: their messages; has a place for the seconds that a model call takes.
    """
    for seconds in (2, 4, 8, 16, 32, 32, 32, 32):
        # On a busy machine the first of them may have ended when the last is made; and one process
        # may have been quick enough to take them all: those are at work when the next are made.
        with ThreadPoolExecutor(8) as pool:
            made = pool.map(lambda n: house.run(text.format(seconds), n % 2), range(count))  # noqa: B023
            runs.extend(run["id"] for run in made)
        eventually(lambda: _both(_held(house)) or not house.rows(WAITING), "all are taken")
        os.kill(house.served[1].pid, signal.SIGSTOP)
        # What it has now it keeps, until that is taken from it.
        held = _held(house)
        if _both(held):
            return held
        os.kill(house.served[1].pid, signal.SIGCONT)
    raise AssertionError("they were never both in the middle of several runs")


def _held(house: House) -> set[Any]:
    return set(house.rows(PICKED))


def _both(held: set[Any]) -> bool:
    """Two processes hold several of these."""
    managers = [manager for _, manager in held]
    return len(set(managers)) == 2 and min(map(managers.count, managers)) >= SEVERAL


def _still_held(house: House, held: set[Any]) -> set[Any]:
    return held & _held(house)


def _owed(house: House) -> list[Any]:
    return house.rows("SELECT id FROM deliveries WHERE status <> 'succeeded' LIMIT 1")


def _check_runs(house: House, runs: list[str]) -> None:
    names = ", ".join(f"'{run}'" for run in runs)
    counts = {"messages": 1, "run_steps": 2, "events": 6, "deliveries": 6}
    wrong = {"status <> 'completed'"} | {
        f"{number} <> (SELECT count(*) FROM {table} WHERE run_id = runs.id)"
        for table, number in counts.items()
    }
    for condition in wrong:
        found = house.rows(f"SELECT id FROM runs WHERE id IN ({names}) AND {condition}")
        assert not found, f"{condition}: {found}"
    took = house.rows(f"SELECT count(*) FROM runs WHERE id IN ({names}) AND attempt > 2")
    assert took[0][0] > 0, "the killed process held none"
