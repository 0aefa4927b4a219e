"""Everything that can happen to runs, in every order, against a model of what has to come of it.

Real operations, real jobs, the real executor and a real SQLite file; time is virtual and the
language model is a script. After each step the service is left alone until nothing moves; then
every run, its events and the feed have to be what the model in `house` says.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from runbell.errors import RequestRefused
from runbell.runs import RunStatus
from runbell.service.operations import threads
from runbell.service.wire.requests import CreateMessage
from runbell.testing.backends import ScriptedTurn
from runbell.testing.embedded import embedded
from runbell.testing.histories import check_histories
from tests.lifecycle.house import CANCEL_GRACE_MS, House, HouseRun, HouseThread

T = TypeVar("T")
S = RunStatus

draws = st.data()

ANSWERS = ["all", "all", "one is missing", "one is unknown", "one too many"]
"""How tool outputs are submitted."""
lifetimes = st.sampled_from([5, 60, 600, 600])


class Service(RuleBasedStateMachine):
    """The service, and beside it the model of what it has to be."""

    @initialize()
    def open(self) -> None:
        self.house = House()
        self.runner = asyncio.Runner()
        self.directory = tempfile.TemporaryDirectory()
        self.stack = AsyncExitStack()
        path = Path(self.directory.name) / "runbell.db"
        opening = embedded(path, cancel_grace=CANCEL_GRACE_MS / 1000)
        self.service = self.do(self.stack.enter_async_context(opening))
        for seconds in (600, 60):
            self.begin(seconds)
            self.queue(self.house.threads[-1], 600, enqueue=True)

    def teardown(self) -> None:
        if not hasattr(self, "service"):
            return
        try:
            self.everything_ends()
        finally:
            self.do(self.stack.aclose())
            self.runner.close()
            self.directory.cleanup()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def settle(self) -> None:
        self.do(self.service.settle())

    @property
    def now_ms(self) -> int:
        return self.service.clock.now_ms()

    def turn_of(self, run: HouseRun) -> ScriptedTurn:
        (turn,) = self.turns_of(run)
        return turn

    def turns_of(self, run: HouseRun) -> list[ScriptedTurn]:
        return [turn for turn in self.service.backend.open if turn.label == run.label]

    # What clients do.

    @rule(seconds=lifetimes)
    def begin(self, seconds: int) -> None:
        thread = HouseThread(self.do(self.service.thread("Hello")))
        self.house.threads.append(thread)
        self.queue(thread, seconds, enqueue=False)

    @rule(data=draws, enqueue=st.sampled_from([True, True, False]), seconds=lifetimes)
    def create_run(self, data: st.DataObject, enqueue: bool, seconds: int) -> None:
        self.queue(data.draw(st.sampled_from(self.house.there)), seconds, enqueue=enqueue)

    def queue(self, thread: HouseThread, seconds: int, *, enqueue: bool) -> None:
        label = f"run {len(self.house.all_runs) + 1}"
        run = HouseRun(label, thread, self.now_ms + seconds * 1000)
        creating = self.service.run(
            thread.id,
            label,
            expires_after=float(seconds),
            on_active_run="enqueue" if enqueue else None,
            additional_messages=(CreateMessage(role="user", content=f"for {label}"),),
        )
        if thread.active is not None and not enqueue:
            with pytest.raises(RequestRefused, match="already has an active run"):
                self.do(creating)
            return
        run.id = self.do(creating)
        if thread.active is not None:
            run.waits = True
        else:
            run.begin()
        thread.runs.append(run)
        self.settle()

    @rule(data=draws, how=st.sampled_from(ANSWERS))
    def submit_outputs(self, data: st.DataObject, how: str) -> None:
        run = data.draw(st.sampled_from(self.house.runs()))
        calls = [call.id for call in self.do(self.service.find(run.id)).tool_calls]
        answered = {
            "all": calls,
            "one is missing": calls[1:],
            "one is unknown": [*calls[1:], "call_unknown"],
            "one too many": [*calls, "call_unknown"],
        }[how]
        outputs = {call: f"output of {call}" for call in reversed(answered)}
        if run.status is not S.REQUIRES_ACTION or how != "all":
            with pytest.raises(RequestRefused, match=r"do not accept|Expected tool outputs"):
                self.do(self.service.submit(run.id, outputs))
            return
        self.do(self.service.submit(run.id, outputs))
        run.begin()
        self.settle()

    @rule(data=draws, stubborn=st.booleans())
    def cancel(self, data: st.DataObject, stubborn: bool) -> None:
        run = data.draw(st.sampled_from(self.house.runs()))
        if run.status.is_terminal:
            with pytest.raises(RequestRefused, match="Cannot cancel run with status"):
                self.do(self.service.cancel(run.id))
            return
        stubborn = stubborn and run.executed
        if stubborn:
            self.turn_of(run).stubborn = True
        self.do(self.service.cancel(run.id))
        if stubborn:
            run.status = S.CANCELLING
            run.forced_end_ms = self.now_ms + CANCEL_GRACE_MS
        elif run.status is not S.CANCELLING:
            run.end(S.CANCELLED, self.now_ms)
        self.settle()

    @rule(data=draws)
    def add_message(self, data: st.DataObject) -> None:
        thread = data.draw(st.sampled_from(self.house.there))
        message = CreateMessage(role="user", content="more")
        adding = threads.add_message(self.service.ctx, self.service.project, thread.id, message)
        if thread.active is not None:
            with pytest.raises(RequestRefused, match="Can't add messages to"):
                self.do(adding)
            return
        self.do(adding)
        thread.added += 1

    @rule(data=draws)
    def delete_thread(self, data: st.DataObject) -> None:
        thread = data.draw(st.sampled_from(self.house.there))
        if len(self.house.there) == 1:
            self.begin(600)  # so that there is always something left to happen to
        self.do(threads.delete(self.service.ctx, self.service.project, thread.id))
        thread.deleted = True
        for run in thread.runs:
            if run.live:
                run.status, run.waits = S.CANCELLED, False
        self.settle()

    # What models do.

    @precondition(lambda self: self.house.executed)
    @rule(
        data=draws,
        how=st.sampled_from(["say", "call", "call", "fail", "crash", "cut", "break off"]),
    )
    def model_ends_its_turn(self, data: st.DataObject, how: str) -> None:
        run = data.draw(st.sampled_from(self.house.executed))
        turn = self.turn_of(run)
        match how:
            case "say":
                turn.say(f"answer to {run.label}")
                run.end(S.COMPLETED, self.now_ms)
            case "cut":
                turn.say("half an", reason="max_completion_tokens")
                run.end(S.INCOMPLETE, self.now_ms)
            case "call":
                turn.call(("f", "{}"), ("g-2", '{"a": 1}'))
                run.status = S.REQUIRES_ACTION
            case "fail":
                turn.fail()
                run.end(S.FAILED, self.now_ms)
            case "crash":
                turn.crash(RuntimeError("a defect of the backend"))
                run.end(S.FAILED, self.now_ms)
            case "break off":
                turn.play()
                run.end(S.FAILED, self.now_ms)
        run.answered = how in ("say", "cut")
        self.settle()

    @precondition(lambda self: any(turn.stubborn for turn in self.service.backend.open))
    @rule(data=draws, how=st.sampled_from(["say", "call", "fail"]))
    def stubborn_model_lets_go(self, data: st.DataObject, how: str) -> None:
        turns = [turn for turn in self.service.backend.open if turn.stubborn]
        turn = data.draw(st.sampled_from(turns))
        if how == "say":
            turn.say("too late")
        elif how == "call":
            turn.call(("f", "{}"))
        else:
            turn.fail()
        for run in self.house.runs([S.CANCELLING]):
            if run.label == turn.label:
                run.end(S.CANCELLED, self.now_ms)
        self.settle()

    @precondition(lambda self: self.house.executed)
    @rule(data=draws, cancel_first=st.booleans())
    def cancel_while_the_model_answers(self, data: st.DataObject, cancel_first: bool) -> None:
        run = data.draw(st.sampled_from(self.house.executed))

        async def cancel() -> None:
            with contextlib.suppress(RequestRefused):
                await self.service.cancel(run.id)

        async def both() -> None:
            cancelling = asyncio.create_task(cancel())
            if cancel_first:
                await asyncio.sleep(0)
            self.turn_of(run).say("just in time")
            await cancelling

        self.do(both())
        self.settle()
        status = self.do(self.service.status(run.id))
        assert status in (S.CANCELLED, S.COMPLETED), "one of the two has won, and it is over"
        run.answered = status is S.COMPLETED
        run.end(status, self.now_ms)

    # What time and crashes do.

    @rule(seconds=st.sampled_from([0.1, 4.0, 11.0, 70.0]))
    def time_passes(self, seconds: float) -> None:
        self.do(self.service.advance(seconds))
        self.house.pass_time(self.now_ms)

    @rule(downtime=st.sampled_from([0.0, 0.0, 3.0, 20.0]))
    def process_dies_and_comes_back(self, downtime: float) -> None:
        held = self.house.executed
        self.do(self.service.crash())
        self.service.clock.advance(downtime)
        self.do(self.service.restart())
        self.settle()
        self.house.lose_workers(held, self.now_ms)

    # What has to hold after each of these.

    @invariant()
    def every_run_is_what_it_has_to_be(self) -> None:
        for run in self.house.runs():
            stored = self.do(self.service.find(run.id))
            assert (stored.status, stored.waits_turn) == (run.status, run.waits), run.label
            assert stored.takeovers == (run.lost if run.executed else 0)

    @invariant()
    def models_are_called_for_the_runs_that_are_executed(self) -> None:
        called = [turn.label for turn in self.service.backend.open if not turn.stubborn]
        assert sorted(called) == sorted(run.label for run in self.house.executed)

    @invariant()
    def one_run_holds_a_thread(self) -> None:
        for thread in self.house.there:
            holder = self.do(self.service.holder(thread.id))
            assert holder == (thread.active.id if thread.active else None)

    @invariant()
    def the_feed_is_the_history(self) -> None:
        histories = check_histories(self.do(self.service.feed()))
        assert set(histories) == {run.id for run in self.house.all_runs}
        for run in self.house.all_runs:
            last = histories[run.id][-1]["data"]
            assert last["status"] == run.status, "no event without a transition, nor the reverse"
            if not run.thread.deleted:
                stored = self.do(self.service.find(run.id))
                assert last["sequence"] == stored.sequence
                assert last["updated_at_ms"] == stored.updated_at_ms
                assert last["status_reason"] == stored.status_reason

    @invariant()
    def nothing_is_said_twice(self) -> None:
        for thread in self.house.there:
            said = self.do(self.service.messages(thread.id))
            spoken = [message for message in said if message.role == "assistant"]
            # What was broken off is kept, for those who have read it, and is no answer.
            broken = {
                "run_cancelled": S.CANCELLED,
                "run_expired": S.EXPIRED,
                "run_failed": S.FAILED,
            }
            answers = [str(m.run_id) for m in spoken if m.incomplete_reason not in broken]
            assert sorted(answers) == sorted(r.id for r in thread.runs if r.answered)
            status = {run.id: run.status for run in thread.runs}
            for message in spoken:
                if message.incomplete_reason in broken:
                    assert status[str(message.run_id)] is broken[message.incomplete_reason]
            assert len({each.run_id for each in spoken}) == len(spoken), "one message a run"
            assert len(said) - len(spoken) == thread.user_messages

    def everything_ends(self) -> None:
        """Once the longest time has passed, every run has ended, and every thread is free."""
        self.time_passes(601.0)
        assert not [run for run in self.house.all_runs if run.live]
        self.every_run_is_what_it_has_to_be()
        self.models_are_called_for_the_runs_that_are_executed()
        self.one_run_holds_a_thread()
        self.the_feed_is_the_history()
        self.nothing_is_said_twice()


TestService = Service.TestCase
TestService.settings = settings(
    deadline=None,
    derandomize=True,
    max_examples=30,
    stateful_step_count=40,
    # Shrinking a history of forty steps takes minutes; whoever needs it adds Phase.shrink.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
