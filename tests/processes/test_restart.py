"""PostgreSQL is restarted in the middle of everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.testing.postgresql import own_server
from runbell.testing.receivers import Receiver
from tests.processes.house import House, several
from tests.served import eventually

RECOVERY_S = 3 * 5.0
"""Three times what is promised, since the machine may be busy."""


@pytest.fixture
def server() -> Iterator[PrivatePostgresql]:
    """A server of its own, which keeps what was committed."""
    with own_server() as server:
        yield server


def test_a_restart_of_the_database_is_waited_for(server: PrivatePostgresql, tmp_path: Path) -> None:
    """Meanwhile requests are answered with 503; afterwards all goes on by itself, soon; nothing
    that was acknowledged is lost, and nothing is doubled."""
    with Receiver() as receiver, several(tmp_path, 1, server.url()) as house:
        hook = {"name": "all", "url": receiver.url, "event_types": ["thread.run.*"]}
        house.api.post("/v1/webhook_endpoints", hook).ok()
        over, statuses = threading.Event(), list[int]()
        with ThreadPoolExecutor(3) as pool:
            asking = [pool.submit(_ask, house, over, statuses) for _ in range(2)]
            try:
                eventually(lambda: statuses.count(200) >= 20, "there are runs under way")
                server.halt()
                eventually(lambda: _status(house) == 503, "it says that it cannot")
                # Long enough for all that it does by itself to have failed, and failed again.
                eventually(lambda: statuses.count(503) >= 20, "everybody is refused")
                server.resume()
                eventually(lambda: _status(house) == 200, "it can again", RECOVERY_S)
                late = house.run("after the restart")
                path = f"/v1/threads/{late['thread_id']}/runs/{late['id']}"
                waited = house.api.get(path, headers={"Prefer": f"wait={RECOVERY_S:g}"})
                assert waited.ok()["status"] == "completed"
            finally:
                over.set()
            made = {run for each in asking for run in each.result(60)}
        assert set(statuses) == {200, 503}
        eventually(lambda: not house.rows(GOING_ON), "all have ended")
        eventually(lambda: not house.rows(OWED), "nothing is owed any more")
        histories = house.check()
        assert made <= set(histories)
        told = {event["id"] for history in histories.values() for event in history}
        assert told == {each.header("webhook-id") for each in receiver.requests}


GOING_ON = "SELECT id FROM runs WHERE status <> 'completed' LIMIT 1"
OWED = "SELECT id FROM deliveries WHERE status <> 'succeeded' LIMIT 1"


def _status(house: House) -> int:
    return house.api.get("/v1/assistants").status


def _ask(house: House, over: threading.Event, statuses: list[int]) -> list[str]:
    """Begin runs until it is over: those that were acknowledged. Adds the status of each answer."""
    runs = []
    body = {
        "assistant_id": house.assistant,
        "thread": {"messages": [{"role": "user", "content": "sleep 0.2\nx"}]},
    }
    while not over.is_set():
        answer = house.api.post("/v1/threads/runs", body)
        if answer.status == 200:
            runs.append(answer.json()["id"])
        else:
            assert answer.headers["retry-after"] == "1"
        statuses.append(answer.status)
        over.wait(0.02)
    return runs
