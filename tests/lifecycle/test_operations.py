"""Everything that can happen to runs, in every order, against a model of what has to come of it.

Real operations, real jobs, the real executor and a real SQLite file; time is virtual and the
language model is a script. After each step the service is left alone until nothing moves; then
every run, its events and the feed must be what the model in this module says.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runbell.errors import RequestRefused
from runbell.runs import RunStatus
from runbell.service.operations import threads as thread_operations
from runbell.service.wire.requests import CreateMessage
from runbell.storage import runs as run_rows
from runbell.testing.backends import ScriptedTurn
from runbell.testing.embedded import EmbeddedService, embedded
from tests.lifecycle.history import check_histories

T = TypeVar("T")
S = RunStatus

CANCEL_GRACE = 10.0
LOST_WORKERS = 6
"""So many workers in a row may be lost before the run fails."""


@dataclass
class ModelRun:
    """What a run has to be."""

    label: str
    thread: ModelThread
    expires_at: float
    id: str = ""
    status: S = S.QUEUED
    waits: bool = False
    lost: int = 0
    cancelling_until: float = 0.0
    said: int = 0

    @property
    def live(self) -> bool:
        return not self.status.is_terminal

    def end(self, status: S, now: float) -> None:
        self.status = status
        if self.waits:
            self.waits = False
        else:
            self.thread.pass_turn(now)


@dataclass
class ModelThread:
    """What a thread has to hold; `line` are its waiting runs."""

    id: str
    runs: list[ModelRun] = field(default_factory=list)
    deleted: bool = False
    added: int = 0

    @property
    def active(self) -> ModelRun | None:
        found = [run for run in self.runs if run.live and not run.waits]
        assert len(found) <= 1
        return found[0] if found else None

    def pass_turn(self, now: float) -> None:
        waiting = [run for run in self.runs if run.live and run.waits]
        if not waiting:
            return
        waiting[0].waits = False
        if waiting[0].expires_at <= now:
            waiting[0].end(S.EXPIRED, now)
        else:
            waiting[0].status = S.IN_PROGRESS
            waiting[0].lost = 0


class House(RuleBasedStateMachine):
    """A service, and the model of it."""

    @initialize()
    def open(self) -> None:
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.threads: list[ModelThread] = []
        self.count = 0
        self.stack = AsyncExitStack()
        path = Path(self.directory.name) / "runbell.db"
        self.service: EmbeddedService = self.do(
            self.stack.enter_async_context(embedded(path, cancel_grace=CANCEL_GRACE))
        )

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            self.everything_ends()
        finally:
            self.do(self.stack.aclose())
            self.runner.close()
            self.directory.cleanup()

    # Shorthands.

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def settle(self) -> None:
        self.do(self.service.settle())

    @property
    def now(self) -> float:
        return self.service.clock.monotonic()

    @property
    def runs(self) -> list[ModelRun]:
        return [run for thread in self.threads for run in thread.runs]

    def pick(self, data: st.DataObject, *statuses: S) -> ModelRun:
        return data.draw(st.sampled_from(self.those(*statuses)), label="run")

    def those(self, *statuses: S) -> list[ModelRun]:
        here = [run for run in self.runs if not run.thread.deleted]
        return [run for run in here if run.status in (statuses or tuple(S))]

    def turn_of(self, run: ModelRun) -> ScriptedTurn:
        (turn,) = [turn for turn in self.service.backend.open if turn.label == run.label]
        return turn

    def open_thread(self, data: st.DataObject) -> ModelThread:
        here = [thread for thread in self.threads if not thread.deleted]
        return data.draw(st.sampled_from(here), label="thread")

    # What can happen.

    @rule()
    def new_thread(self) -> None:
        self.threads.append(ModelThread(self.do(self.service.thread("Hello"))))

    @precondition(lambda self: any(not thread.deleted for thread in self.threads))
    @rule(data=st.data(), enqueue=st.booleans(), seconds=st.sampled_from([5, 60, 600]))
    def create_run(self, data: st.DataObject, enqueue: bool, seconds: int) -> None:
        thread = self.open_thread(data)
        self.count += 1
        run = ModelRun(f"run {self.count}", thread, self.now + seconds)
        waits = thread.active is not None
        extra = (CreateMessage(role="user", content=f"for {run.label}"),)
        creating = self.service.run(
            thread.id,
            run.label,
            expires_after=float(seconds),
            on_active_run="enqueue" if enqueue else None,
            additional_messages=extra,
        )
        if waits and not enqueue:
            with pytest.raises(RequestRefused, match=f"already has an active run {thread.active}"[:30]):
                self.do(creating)
            return
        run.id = self.do(creating)
        run.waits = waits
        thread.runs.append(run)
        if not waits:
            run.status = S.IN_PROGRESS
        self.settle()

    @precondition(lambda self: self.those(S.IN_PROGRESS))
    @rule(data=st.data(), how=st.sampled_from(["say", "call", "fail", "crash", "cut", "break off"]))
    def model_ends_its_turn(self, data: st.DataObject, how: str) -> None:
        run = self.pick_executing(data)
        if run is None:
            return
        turn = self.turn_of(run)
        run.lost = 0
        match how:
            case "say":
                turn.say(f"answer to {run.label}")
                run.said = 1
                run.end(S.COMPLETED, self.now)
            case "call":
                turn.call(("f", "{}"), ("g-2", '{"a": 1}'))
                run.status = S.REQUIRES_ACTION
            case "fail":
                turn.fail()
                run.end(S.FAILED, self.now)
            case "crash":
                turn.crash(RuntimeError("a defect of the backend"))
                run.end(S.FAILED, self.now)
            case "break off":
                turn.play()
                run.end(S.FAILED, self.now)
            case "cut":
                turn.say("half an", reason="max_completion_tokens")
                run.said = 1
                run.end(S.INCOMPLETE, self.now)
        self.settle()

    def pick_executing(self, data: st.DataObject) -> ModelRun | None:
        found = [run for run in self.those(S.IN_PROGRESS) if not run.waits]
        return data.draw(st.sampled_from(found), label="run") if found else None

    @precondition(lambda self: self.those())
    @rule(data=st.data(), how=st.sampled_from(["all", "all", "one missing", "one unknown"]))
    def submit_outputs(self, data: st.DataObject, how: str) -> None:
        run = self.pick(data)
        calls = [call.id for call in self.do(self.service.find(run.id)).tool_calls]
        outputs = {call: f"output of {call}" for call in reversed(calls)}
        if how == "one missing":
            outputs.popitem()if outputs else None
        elif how == "one unknown":
            outputs["call_unknown"] = "?"
        if run.status is not S.REQUIRES_ACTION or how != "all":
            with pytest.raises(RequestRefused):
                self.do(self.service.submit(run.id, outputs))
            return
        self.do(self.service.submit(run.id, outputs))
        run.status = S.IN_PROGRESS
        self.settle()

    @precondition(lambda self: self.those())
    @rule(data=st.data(), stubborn=st.booleans())
    def cancel(self, data: st.DataObject, stubborn: bool) -> None:
        run = self.pick(data)
        if run.status.is_terminal:
            with pytest.raises(RequestRefused, match="Cannot cancel run with status"):
                self.do(self.service.cancel(run.id))
            return
        executing = run.status is S.IN_PROGRESS
        if executing and stubborn:
            self.turn_of(run).stubborn = True
        self.do(self.service.cancel(run.id))
        if executing and stubborn:
            run.status = S.CANCELLING
            run.cancelling_until = self.now + CANCEL_GRACE
        elif run.status is not S.CANCELLING:
            run.end(S.CANCELLED, self.now)
        self.settle()

    @precondition(lambda self: self.those(S.CANCELLING))
    @rule(data=st.data(), how=st.sampled_from(["say", "call", "fail"]))
    def stubborn_model_lets_go(self, data: st.DataObject, how: str) -> None:
        run = self.pick(data, S.CANCELLING)
        turns = [turn for turn in self.service.backend.open if turn.label == run.label]
        if not turns:
            return  # its worker was lost in a restart: only the grace ends it
        if how == "say":
            turns[0].say("too late")
        elif how == "call":
            turns[0].call(("f", "{}"))
        else:
            turns[0].fail()
        run.end(S.CANCELLED, self.now)
        self.settle()

    @precondition(lambda self: self.those(S.IN_PROGRESS))
    @rule(data=st.data(), cancel_first=st.booleans())
    def cancel_while_the_model_answers(self, data: st.DataObject, cancel_first: bool) -> None:
        run = self.pick_executing(data)
        if run is None:
            return

        async def both() -> None:
            turn = self.turn_of(run)
            if cancel_first:
                cancelling = asyncio.create_task(self.service.cancel(run.id))
                await asyncio.sleep(0)
                turn.say("just in time")
            else:
                turn.say("just in time")
                cancelling = asyncio.create_task(self.service.cancel(run.id))
            with pytest.raises(RequestRefused) if False else _tolerant():
                await cancelling

        self.do(both())
        self.settle()
        status = self.do(self.service.status(run.id))
        assert status in (S.CANCELLED, S.COMPLETED), "one of the two has won, whole"
        run.said = int(status is S.COMPLETED)
        run.end(status, self.now)

    @precondition(lambda self: any(not thread.deleted for thread in self.threads))
    @rule(data=st.data())
    def add_message(self, data: st.DataObject) -> None:
        thread = self.open_thread(data)
        adding = thread_operations.add_message(
            self.service.ctx,
            self.service.project,
            thread.id,
            CreateMessage(role="user", content="more"),
        )
        if thread.active is not None:
            with pytest.raises(RequestRefused, match="Can't add messages to"):
                self.do(adding)
            return
        self.do(adding)
        thread.added += 1

    @precondition(lambda self: any(not thread.deleted for thread in self.threads))
    @rule(data=st.data())
    def delete_thread(self, data: st.DataObject) -> None:
        thread = self.open_thread(data)
        self.do(
            thread_operations.delete(self.service.ctx, self.service.project, thread.id)
        )
        thread.deleted = True
        for run in thread.runs:
            if run.live:
                run.status, run.waits = S.CANCELLED, False
        self.settle()

    @rule(seconds=st.sampled_from([0.1, 4.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        start = self.now
        self.do(self.service.advance(seconds))
        self.expect_deadlines(start, self.now)

    def expect_deadlines(self, start: float, end: float) -> None:
        """In the order in which they come: turns that are passed on may expire later."""
        while True:
            due = sorted(
                (moment, self.runs.index(run))
                for run in self.runs
                if run.live and not run.thread.deleted
                for moment in [self.deadline(run)]
                if moment <= end + 1e-6
            )
            if not due:
                return
            moment, index = due[0]
            run = self.runs[index]
            expires = run.expires_at <= moment + 1e-6
            run.end(S.EXPIRED if expires else S.CANCELLED, max(start, moment))

    def deadline(self, run: ModelRun) -> float:
        if run.status is S.CANCELLING:
            return min(run.expires_at, run.cancelling_until)
        return run.expires_at

    @rule(downtime=st.sampled_from([0.0, 0.0, 3.0, 20.0]))
    def process_dies_and_comes_back(self, downtime: float) -> None:
        self.do(self.service.crash())
        start = self.now
        self.service.clock.advance(downtime)
        self.do(self.service.restart())
        self.settle()
        self.expect_deadlines(start, self.now)
        for run in self.those(S.IN_PROGRESS):
            if run.waits or run.status is not S.IN_PROGRESS or run.expires_at <= self.now:
                continue
            run.lost += 1
            if run.lost == LOST_WORKERS:
                run.end(S.FAILED, self.now)

    # What has to hold after each of these.

    @invariant()
    def every_run_is_what_the_model_says(self) -> None:
        for run in self.runs:
            if run.thread.deleted:
                continue
            stored = self.do(self.service.find(run.id))
            assert (stored.status, stored.waits_turn) == (run.status, run.waits), run.label
            assert stored.takeovers == (run.lost if run.status is S.IN_PROGRESS else 0)

    @invariant()
    def the_model_is_called_for_the_runs_that_are_executed(self) -> None:
        executed = {run.label for run in self.those(S.IN_PROGRESS) if not run.waits}
        heard = [turn for turn in self.service.backend.open if not turn.stubborn]
        assert sorted(turn.label for turn in heard) == sorted(executed)

    @invariant()
    def one_run_holds_a_thread(self) -> None:
        for thread in self.threads:
            if not thread.deleted:
                held = self.do(self.service.store.read(lambda tx, t=thread: run_rows.active(tx, t.id)))
                assert held == (thread.active.id if thread.active else None)

    @invariant()
    def the_feed_is_the_history(self) -> None:
        histories = check_histories(self.do(self.service.feed()))
        assert set(histories) == {run.id for run in self.runs}
        for run in self.runs:
            last = histories[run.id][-1]["data"]
            assert last["status"] == run.status
            if not run.thread.deleted:
                stored = self.do(self.service.find(run.id))
                assert last["sequence"] == stored.sequence
                assert last["updated_at_ms"] == stored.updated_at_ms
                assert last["status_reason"] == stored.status_reason

    @invariant()
    def nothing_is_said_twice(self) -> None:
        for thread in self.threads:
            if thread.deleted:
                continue
            said = self.do(self.service.messages(thread.id))
            answered = [message.run_id for message in said if message.role == "assistant"]
            assert sorted(filter(None, answered)) == sorted(r.id for r in thread.runs if r.said)
            begun = sum(not run.waits and not self.expired_waiting(run) for run in thread.runs)
            asked = [message for message in said if message.role == "user"]
            assert len(asked) == 1 + thread.added + begun

    def expired_waiting(self, run: ModelRun) -> bool:
        """It ended before its turn came, so what it would have added was never said."""
        if run.status not in (S.EXPIRED, S.CANCELLED):
            return False
        return self.do(self.service.pending(run.id)) > 0

    def everything_ends(self) -> None:
        """Once the longest time has passed, every run has ended and no thread is held."""
        start = self.now
        self.do(self.service.advance(601.0))
        self.expect_deadlines(start, self.now)
        assert not [run for run in self.runs if run.live]
        assert not [turn for turn in self.service.backend.open if not turn.stubborn]
        for check in (self.every_run_is_what_the_model_says, self.the_feed_is_the_history):
            check()
