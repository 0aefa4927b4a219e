"""A disk that is full and a database that is locked, under a real service at work.

What writes is refused with a 503 and can be tried again, what reads goes on, nothing that was
promised is lost, and when the trouble is over the service goes on by itself.
"""

from __future__ import annotations

import contextlib
import re
import resource
import sqlite3
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.crash.clients import Client, Crowd
from tests.crash.crashing import ENV, check_rows
from tests.served import Answer, Served, eventually

Trouble = Callable[[Served], contextlib.AbstractContextManager[None]]

ROOM_TO_SPEAK = 200_000
"""Bytes that a service in trouble may log; its database's log is folded at 4 MB."""


@contextlib.contextmanager
def full_disk(served: Served) -> Iterator[None]:
    """Nothing of the process's files can be written beyond the first bytes: each write there fails,
    with EFBIG.

    SQLite writes its log from the start again once it was folded into the database, so that a log
    which cannot grow may still have room. What is left here is room for the service's own words,
    and too little of the log for it ever to be folded.
    """
    _, hard = resource.prlimit(served.pid, resource.RLIMIT_FSIZE)
    room = len(served.stderr().encode()) + ROOM_TO_SPEAK
    log = served.database_path.with_name(served.database_path.name + "-wal")
    while log.stat().st_size <= room:
        # How long it is by now depends on how many writes shared their commits.
        served.api().post("/v1/threads", {}).ok()
    resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.prlimit(served.pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextlib.contextmanager
def locked_database(served: Served) -> Iterator[None]:
    """Another process is in the middle of a transaction, as a backup or a migration may be."""
    with contextlib.closing(
        sqlite3.connect(served.database_path, isolation_level=None)
    ) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


TROUBLES = [
    pytest.param(
        full_disk,
        marks=pytest.mark.skipif(
            not sys.platform.startswith("linux"),
            reason="only Linux can take a running process's files the room to grow",
        ),
    ),
    locked_database,
]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with Served(tmp_path, env=ENV) as served:
        yield served
    check_rows(served.database_path)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ready(served: Served) -> int:
    return served.request("GET", "/readyz").status


def waits(served: Served, who: str) -> bool:
    """The service has said that this waits for the database."""
    return bool(re.search(rf" waits? for the database.*{who}", served.stderr()))


def check_refusal(answer: Answer) -> None:
    """A 503 in OpenAI's shape that a client can act on."""
    assert answer.status == 503, answer
    assert answer.headers["retry-after"] == "1"
    assert answer.error == {
        "message": "The database cannot be used at the moment; nothing was changed. "
        "Please try again.",
        "type": "server_error",
        "param": None,
        "code": "service_unavailable",
    }


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_cannot_be_written_is_refused_and_what_can_be_read_is_read(
    trouble: Trouble, served: Served
) -> None:
    """And the service is alive but not ready, until it is over; then it is, by itself."""
    client = Client(served)
    client.prepare()
    api = served.api()
    thread = client.post("/threads", {"messages": [user("Hello")]})["id"]
    asked = client.post(f"/threads/{thread}/runs", {"assistant_id": client.assistant})
    path = f"/v1/threads/{thread}/runs/{asked['id']}"
    run = eventually(lambda: _completed(api.get(path).ok()), "the run is completed")
    feed = client.events()
    assert ready(served) == 200
    with trouble(served):
        eventually(lambda: ready(served) == 503, "the service says that it is not ready")
        requests: list[tuple[Callable[..., Answer], str, dict[str, Any]]] = [
            (api.post, "/threads", {"messages": [user("lost")]}),
            (api.post, f"/threads/{thread}/messages", user("lost")),
            (api.post, f"/threads/{thread}/runs", {"assistant_id": client.assistant}),
            (api.post, "/assistants", {"model": "echo", "name": "lost"}),
            (api.delete, f"/threads/{thread}", {}),
        ]
        with ThreadPoolExecutor(len(requests)) as pool:
            for answer in pool.map(lambda each: each[0](f"/v1{each[1]}", json=each[2]), requests):
                check_refusal(answer)
        assert api.get(path).ok() == run
        assert len(client.listed(f"/threads/{thread}/messages")) == 2
        assert client.events() == feed
        assert served.request("GET", "/healthz").status == 200
    eventually(lambda: ready(served) == 200, "the service is ready again")
    assert client.events() == feed, "what was refused was not done"
    assert "lost" not in str(client.get("/assistants"))
    assert client.dialogue(thread) == [("user", "Hello"), ("assistant", "Hello")]
    client.post(f"/threads/{thread}/messages", user("at last"))


def _completed(run: Any) -> Any:
    return run if run["status"] == "completed" else None


@pytest.mark.parametrize("trouble", TROUBLES)
def test_runs_that_were_under_way_come_to_their_ends(trouble: Trouble, served: Served) -> None:
    """An answer that came meanwhile is kept and stored later, and the model is not asked twice; a
    run whose time was over expires; a cancel that could not be stored can be asked for again."""
    client = Client(served)
    client.prepare()
    runs = {
        name: client.post(
            "/threads/runs",
            {
                "assistant_id": client.assistant,
                "thread": {"messages": [user(text)]},
                **fields,
            },
        )
        for name, text, fields in (
            ("answers", "sleep 2\nHello", {}),
            ("expires", "sleep 600", {"expires_after": 3}),
            ("cancelled", "sleep 600", {}),
        )
    }
    paths = {n: f"/v1/threads/{run['thread_id']}/runs/{run['id']}" for n, run in runs.items()}
    api = served.api()

    def status(name: str) -> str:
        return str(api.get(paths[name]).ok()["status"])

    for name in paths:
        eventually(lambda name=name: status(name) == "in_progress", f"{name} is in progress")  # type: ignore[misc]
    with trouble(served):
        check_refusal(api.post(f"{paths['cancelled']}/cancel"))
        eventually(lambda: waits(served, runs["answers"]["id"]), "the answer waits")
        eventually(lambda: "jobs wait for the database" in served.stderr(), "the expiry waits, too")
        assert {status(name) for name in paths} == {"in_progress"}
    eventually(lambda: status("answers") == "completed", "the answer is stored")
    eventually(lambda: status("expires") == "expired", "the run expires")
    assert status("cancelled") == "in_progress"
    api.post(f"{paths['cancelled']}/cancel").ok()
    eventually(lambda: status("cancelled") == "cancelled", "the run is cancelled")


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_under_load_loses_nothing_that_was_promised(
    trouble: Trouble, served: Served
) -> None:
    """Clients who try again where they are told to see all of their stories come true."""
    crowd = Crowd(served)
    crowd.client.prepare()
    api = served.api()

    def write() -> Answer:
        return api.post("/v1/threads", json={"messages": [user("Hello")]})

    with crowd.playing():
        for _ in range(2):
            wanted = crowd.client.answers + 60
            crowd.eventually(lambda: crowd.client.answers >= wanted, "the crowd is at work")  # noqa: B023
            with trouble(served):
                # Not the crowd's writes: it may be that all of it waits for what the service does.
                for _ in range(4):
                    crowd.eventually(lambda: write().status == 503, "a write is refused")
    crowd.finish()
    assert served.request("GET", "/readyz").status == 200


def test_a_service_that_is_stopped_while_its_database_is_locked_ends(served: Served) -> None:
    """Whoever holds the lock does not hold up the stop: what waits for it is found again."""
    client = Client(served)
    client.prepare()
    body = {"assistant_id": client.assistant, "thread": {"messages": [user("sleep 2")]}}
    run = client.post("/threads/runs", body)
    with locked_database(served):
        eventually(lambda: waits(served, run["id"]), "the answer waits")
        served.stop()
    served.start()
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
    eventually(lambda: _completed(served.api().get(path).ok()), "the run is completed")
