"""A journal that several programs use: each call is made once, and no output is lost."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import stat
import threading
import time

import pytest

import runbell
from runbell.client import calls
from runbell.client.journal import KEEP_DURATIONS, LEASE_SECONDS, Journal, Stretch
from runbell.errors import RunbellError
from tests.waiter.mock import (
    LIMIT,
    QUICK,
    Ahead,
    Story,
    after,
    answer,
    asking,
    async_client,
    client,
    ended,
    fields,
    run,
    until,
    wants_one_call,
)


def test_two_programs_make_a_call_once(tmp_path):
    path, gate, ran, sent = tmp_path / "waits.db", threading.Event(), [], []

    def f():
        ran.append(1)
        gate.wait(LIMIT)
        return "sunny"

    def serve(request):
        if request.method == "POST":
            sent.append(request.read())
        return wants_one_call(request)

    options = {"tools": {"f": f}, "journal": path, "policy": QUICK}
    with (
        runbell.Waiter(client(serve), **options) as one,
        runbell.Waiter(client(serve), **options) as other,
        after(gate),
    ):
        stories = [Story(one.wait, run())]
        until(lambda: ran)
        stories.append(Story(other.wait, run()))
        until(lambda: other._driver._fleet._calls)
        gate.set()
        assert [story.end().status for story in stories] == ["completed"] * 2
    assert ran == [1]
    assert len(sent) == 2
    assert all(b"sunny" in body for body in sent)


def test_a_claim_is_free_when_it_is_not_renewed(tmp_path):
    now = 1000.0
    with Journal(tmp_path / "w.db") as crashed, Journal(tmp_path / "w.db") as other:
        assert crashed.begin("run", "call", "f", now) == "first"
        assert crashed.begin("run", "call", "f", now + 1) == "held"
        assert other.begin("run", "call", "f", now + LEASE_SECONDS - 1) == "held"
        assert other.begin("run", "call", "f", now + LEASE_SECONDS) == "again"
        crashed.finish("run", "call", "of nobody")  # it lost the call
        assert other.output("run", "call") is None
        other.finish("run", "call", "sunny")
        assert crashed.output("run", "call") == "sunny"
        assert crashed.begin("run", "call", "f", now + 1e6) == "first"  # it is forgotten by then


def test_a_claim_is_renewed_and_one_that_is_given_up_is_free(tmp_path, monkeypatch):
    monkeypatch.setattr("runbell.client.journal.LEASE_SECONDS", 0.06)
    now = time.time()
    with Journal(tmp_path / "w.db") as one, Journal(tmp_path / "w.db") as other:
        assert one.begin("run", "call", "f", now) == "first"
        held = "select held_until from tool_calls"
        until(lambda: one._all(held)[0][0] > now + 0.1)
        one.finish("run", "call", None)
        assert other.begin("run", "call", "f", time.time()) == "again"


def test_a_function_in_a_thread_that_outlives_its_waiter_is_written_down(tmp_path):
    path, gate, begun = tmp_path / "waits.db", threading.Event(), threading.Event()
    ran = []

    def f():
        ran.append(1)
        begun.set()
        gate.wait(LIMIT)
        return {"sky": "blue"}

    async def story():
        waiter = runbell.AsyncWaiter(
            async_client(wants_one_call), tools={"f": f}, journal=path, policy=QUICK
        )
        waiting = asyncio.create_task(waiter.wait(run()))
        await asyncio.to_thread(begun.wait, LIMIT)
        await waiter.aclose()
        with pytest.raises(RunbellError, match="closed"):
            await waiting

    with after(gate):
        asyncio.run(story())
        gate.set()
    with Journal(path) as journal:
        until(lambda: journal.output("run_1", "call_1") == '{"sky": "blue"}')
    with runbell.Waiter(client(wants_one_call), tools={"f": f}, journal=path) as waiter:
        assert ended(waiter.wait, run(), timeout=LIMIT).status == "completed"
    assert ran == [1]


def test_a_coroutine_that_is_cancelled_frees_its_call(tmp_path):
    path, begun = tmp_path / "waits.db", threading.Event()

    async def f():
        begun.set()
        await asyncio.sleep(60)

    async def story():
        options = {"tools": {"f": f}, "journal": path, "policy": QUICK}
        async with runbell.AsyncWaiter(async_client(wants_one_call), **options) as waiter:
            waiting = asyncio.create_task(waiter.wait(run()))
            await asyncio.to_thread(begun.wait, LIMIT)
        with pytest.raises(RunbellError, match="closed"):
            await waiting

    asyncio.run(story())
    with Journal(path) as journal:
        assert journal.begin("run_1", "call_1", "f", time.time()) == "again"


def test_nobody_else_may_read_it(tmp_path):
    path = tmp_path / "waits.db"
    old = os.umask(0)
    try:
        with Journal(path):
            for each in tmp_path.iterdir():
                assert stat.S_IMODE(each.stat().st_mode) == 0o600, each
    finally:
        os.umask(old)


def test_a_journal_from_before_claims_is_taken_on(tmp_path):
    path = tmp_path / "waits.db"
    with sqlite3.connect(path) as old:
        old.execute(
            "create table tool_calls (run_id text not null, call_id text not null, name text not "
            "null, begun_at real not null, output text, primary key (run_id, call_id)) "
            "without rowid"
        )
        old.execute("insert into tool_calls values ('run', 'call', 'f', ?, 'sunny')", [time.time()])
    old.close()
    with Journal(path) as journal:
        assert journal.begin("run", "call", "f", time.time()) == "held"
        assert journal.output("run", "call") == "sunny"


def test_durations_are_kept_and_bounded(tmp_path):
    count = KEEP_DURATIONS + 20
    seen = [Stretch('["a"]', (0.0, 1.0), (n, n + 1.0), n) for n in range(count)]
    seen.append(Stretch('["b"]', None, (600.0, None), 7))
    with Journal(tmp_path / "w.db") as journal:
        for each in seen:
            journal.note(each)
    with Journal(tmp_path / "w.db") as journal:
        assert journal.stretches() == seen[-KEEP_DURATIONS - 1 :]
        shown = "select queue_seconds, run_seconds, ended, at_ms from durations where key = ?"
        assert journal._all(shown + " order by id desc limit 1", '["a"]') == [
            (0.5, count - 0.5, 1, count - 1)
        ]
        assert journal._all(shown, '["b"]') == [(None, 600.0, 0, 7)]


def test_a_kind_that_is_no_unicode_is_kept_like_any_other(tmp_path):
    """A server's JSON may hold half of a surrogate pair."""
    half = Stretch(json.dumps(["gpt-\ud800"], ensure_ascii=False), None, (1.0, 2.0), 1, "\udfff")
    with Journal(tmp_path / "w.db") as journal:
        journal.note(half)
        journal.note(Stretch('["ü"]', None, (1.0, 2.0), 2))
    with Journal(tmp_path / "w.db") as journal:
        assert [json.loads(each.key) for each in journal.stretches()] == [["gpt-\ud800"], ["ü"]]
        journal.begin("run", "call", "f", time.time())
        with pytest.raises(RunbellError, match="can't encode"):
            journal.finish("run", "call", "\ud800")


def test_the_keeper_outlives_any_error_and_goes_on_renewing_claims(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("runbell.client.journal.LEASE_SECONDS", 0.06)
    monkeypatch.setattr("runbell.client.journal.WRITE_SECONDS", 0.0)
    insert, defects = Journal._insert, [ValueError("with a secret")] * 2

    def fail(self, noted):
        if defects:
            raise defects.pop()
        insert(self, noted)

    monkeypatch.setattr(Journal, "_insert", fail)
    held, noted = "select held_until from tool_calls", Stretch('["m"]', None, (1.0, 2.0), 1)
    with Journal(tmp_path / "w.db") as journal:
        journal.begin("run", "call", "f", time.time())
        for left in (1, 0):
            journal.note(noted)
            until(lambda: len(defects) == left)  # noqa: B023 - it is waited for here
        last = journal._all(held)[0][0]
        until(lambda: journal._all(held)[0][0] > last)
        journal.note(noted)
        until(journal.stretches)
    (said,) = [each.getMessage() for each in caplog.records if each.name == "runbell"]
    assert said.endswith("durations were not kept: ValueError")


# Threads.


def test_functions_wait_for_a_thread_and_are_not_begun_when_nobody_wants_them(monkeypatch):
    monkeypatch.setattr(calls, "MAX_THREADS", 2)
    gate, ran, at_work, most = threading.Event(), [], [], []
    lock = threading.Lock()

    def f():
        with lock:
            ran.append(1)
            at_work.append(1)
            most.append(len(at_work))
        gate.wait(LIMIT)
        with lock:
            at_work.pop()
        return "x"

    def serve(request):
        run_id = request.url.path.split("/")[5]
        if request.method == "POST":
            return answer(fields("completed", run_id))
        wanted = tuple((f"{run_id}_{n}", "f") for n in range(3))
        return answer(asking(run_id, wanted))

    clock, tools = Ahead(), {"f": f}
    with (
        runbell.Waiter(client(serve), clock=clock, tools=tools, policy=QUICK) as waiter,
        after(gate),
    ):
        given_up = Story(waiter.wait, run("queued", "run_1"), timeout=300)
        until(lambda: len(ran) == 2)
        clock.seconds = 300
        # It looks at the clock when somebody comes.
        story = Story(waiter.wait, run("queued", "run_2"))
        with pytest.raises(runbell.WaitTimeout):
            given_up.end()
        gate.set()
        assert story.end().status == "completed"
    assert len(ran) == 5  # the third call of the first run was not wanted any more
    assert max(most) == 2


def test_whoever_lost_his_claim_gives_what_the_other_wrote_down(tmp_path):
    """A process that stood still for longer than its claim lasts."""
    path, gate, ran = tmp_path / "waits.db", threading.Event(), []
    sent = []

    def f():
        ran.append(1)
        gate.wait(LIMIT)
        return "old"

    def serve(request):
        if request.method == "POST":
            sent.append(request.read())
        return wants_one_call(request)

    with (
        runbell.Waiter(client(serve), tools={"f": f}, journal=path, policy=QUICK) as waiter,
        Journal(path) as other,
        after(gate),
    ):
        story = Story(waiter.wait, run())
        until(lambda: ran)
        assert other.begin("run_1", "call_1", "f", time.time() + 2 * LEASE_SECONDS) == "again"
        assert other.finish("run_1", "call_1", "new")
        gate.set()
        assert story.end().status == "completed"
    assert len(sent) == 1
    assert b"new" in sent[0]


def test_old_calls_are_not_looked_for_with_each_claim(tmp_path):
    statements = []
    with Journal(tmp_path / "waits.db") as journal:
        journal._db.set_trace_callback(statements.append)
        for number in range(10):
            journal.begin("run", str(number), "f", time.time())
    assert sum(each.startswith("delete") for each in statements) == 1
