"""The one table of statuses and the one function that applies it, walked in every direction."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from runbell.errors import TransitionNotAllowed
from runbell.runs import TRANSITIONS, Change, Run, RunStatus, ToolCall, Usage, apply, take_over
from runbell.runs import lifecycle as lc
from tests.lifecycle.values import new_run

S = RunStatus

# The table once more, as `assistants-protocol.md` has it and by other means: one line a status.
# `queued → failed` is ours: a run whose model is not served any more cannot start.
EXPECTED = """
queued: in_progress cancelled failed expired
in_progress: completed failed incomplete requires_action cancelling expired
requires_action: queued cancelled expired
cancelling: cancelled completed failed incomplete expired
cancelled:
failed:
completed:
incomplete:
expired:
"""

STAMP_OF = {
    S.IN_PROGRESS: "started_at_ms",
    S.CANCELLING: "cancelling_at_ms",
    S.CANCELLED: "cancelled_at_ms",
    S.FAILED: "failed_at_ms",
    S.COMPLETED: "completed_at_ms",
    S.INCOMPLETE: "incomplete_at_ms",
    S.EXPIRED: "expired_at_ms",
}
TERMINAL = {S.CANCELLED, S.FAILED, S.COMPLETED, S.INCOMPLETE, S.EXPIRED}

usages = st.builds(Usage, st.integers(0, 10**6), st.integers(0, 10**6))
texts = st.text(max_size=30)
calls = st.lists(st.builds(ToolCall, texts, texts, texts), min_size=1, max_size=3).map(tuple)
changes = st.one_of(
    st.just(lc.started()),
    st.just(lc.resumed()),
    st.builds(lc.requires_action, calls, usages),
    st.builds(lc.completed, usages),
    st.builds(lc.failed, st.sampled_from(["server_error", "invalid_prompt"]), texts, usages),
    st.builds(lc.incomplete, st.sampled_from(["max_completion_tokens"]), usages),
    st.builds(lc.cancelled, texts, usages),
    st.just(Change(S.CANCELLING)),
    st.builds(Change, st.sampled_from(S), usage=usages),
)


def test_the_table_is_the_one_of_the_api() -> None:
    """From each status exactly these may follow, and a terminal one is followed by none."""
    table = {
        S(line.partition(":")[0]): frozenset(map(S, line.partition(":")[2].split()))
        for line in EXPECTED.split("\n")
        if line
    }
    assert table == TRANSITIONS
    assert {status for status in S if status.is_terminal} == TERMINAL
    assert {status for status in S if not TRANSITIONS[status]} == TERMINAL


def test_every_status_can_be_reached_and_can_end() -> None:
    """No status is an island, and from each there is a way to expire: no run lives for ever."""
    reached = {S.QUEUED}
    while more := {to for status in reached for to in TRANSITIONS[status]} - reached:
        reached |= more
    assert reached == set(S)
    assert all(S.EXPIRED in TRANSITIONS[status] for status in set(S) - TERMINAL)


@pytest.mark.parametrize("source", S)
@pytest.mark.parametrize("target", S)
def test_apply_accepts_the_ways_of_the_table_and_no_other(source: S, target: S) -> None:
    """All 81 pairs: a way of the table changes the status, any other is refused by name."""
    run = new_run(status=source)
    if target in TRANSITIONS[source]:
        assert apply(run, Change(target), now_ms=2_000_000).status is target
        return
    with pytest.raises(TransitionNotAllowed) as caught:
        apply(run, Change(target), now_ms=2_000_000)
    assert (caught.value.source, caught.value.target) == (source, target)


@pytest.mark.parametrize("status", S)
def test_what_cancel_does_depends_on_who_holds_the_run(status: S) -> None:
    """Nobody: it ends at once. A worker: it is asked to let go. Ended or ending: refused."""
    expected = {S.QUEUED: S.CANCELLED, S.REQUIRES_ACTION: S.CANCELLED, S.IN_PROGRESS: S.CANCELLING}
    run = new_run(status=status)
    if status in expected:
        assert lc.cancel(run).to is expected[status]
        return
    with pytest.raises(TransitionNotAllowed):
        lc.cancel(run)


@pytest.mark.parametrize("status", S)
def test_only_a_run_in_progress_is_taken_over(status: S) -> None:
    """A takeover is a new attempt without a new status; it owes no event."""
    run = new_run(status=status, attempt=3, takeovers=1, sequence=7)
    if status is not S.IN_PROGRESS:
        with pytest.raises(TransitionNotAllowed):
            take_over(run)
        return
    taken = take_over(run)
    assert (taken.attempt, taken.takeovers) == (4, 2)
    assert dataclasses.replace(taken, attempt=3, takeovers=1) == run


def test_the_reason_of_an_expiry_says_how_long_and_where_it_stood() -> None:
    """Nobody has to guess what the run was waiting for when its time was over."""
    run = new_run(status=S.REQUIRES_ACTION)
    ended = apply(run, lc.expired(run), now_ms=1_600_001)
    assert ended.status_reason == "Not finished 600 s after its creation; it was requires_action."


@settings(deadline=None, derandomize=True)
@given(message=st.text(max_size=3_000))
def test_reasons_and_messages_are_bounded(message: str) -> None:
    """Both travel in every event, so neither may grow with what a model says."""
    ended = apply(new_run(), lc.failed("server_error", message), now_ms=1_000_000)
    assert ended.last_error is not None
    assert ended.last_error.message == message[:1_000]
    assert ended.status_reason is not None
    assert 0 < len(ended.status_reason) <= 1_000


class Life(RuleBasedStateMachine):
    """One run from its creation on, under a clock that also goes back."""

    @initialize(waits=st.booleans())
    def create(self, waits: bool) -> None:
        self.history = [new_run(waits_turn=waits)]
        self.changes: list[Change] = []
        self.takeovers = 0
        self.attempts = 0
        self.now_ms = 1_000_000

    @property
    def run_(self) -> Run:
        return self.history[-1]

    @rule(milliseconds=st.integers(-5_000, 5_000))
    def let_time_pass(self, milliseconds: int) -> None:
        self.now_ms += milliseconds

    @rule(change=changes)
    def change(self, change: Change) -> None:
        before = self.run_
        copy = dataclasses.replace(before)
        try:
            after = apply(before, change, now_ms=self.now_ms)
        except TransitionNotAllowed:
            assert change.to not in TRANSITIONS[before.status]
            return
        finally:
            assert before == copy, "a run is a value: what was read does not change"
        assert change.to in TRANSITIONS[before.status]
        self._check_step(before, change, after)
        self.history.append(after)
        self.changes.append(change)
        self.takeovers = 0
        self.attempts += change.to is S.IN_PROGRESS

    @precondition(lambda self: self.run_.status is S.IN_PROGRESS)
    @rule()
    def lose_the_worker(self) -> None:
        self.history[-1] = take_over(self.run_)
        self.takeovers += 1
        self.attempts += 1

    def _check_step(self, before: Run, change: Change, after: Run) -> None:
        assert after.status is change.to
        assert after.sequence == before.sequence + 1
        assert after.updated_at_ms == max(self.now_ms, before.updated_at_ms)
        assert after.usage == before.usage + change.usage
        assert after.tool_calls == change.tool_calls
        for status, stamp in STAMP_OF.items():
            was, is_ = getattr(before, stamp), getattr(after, stamp)
            if was is not None or status is not change.to:
                assert is_ == was, f"{stamp} is set once, by its own status"
            else:
                assert is_ == after.updated_at_ms
        for constant in ("id", "project_id", "thread_id", "assistant_id", "metadata"):
            assert getattr(after, constant) == getattr(before, constant)
        assert (after.created_at_ms, after.expires_at_ms) == (1_000_000, 1_600_000)

    @invariant()
    def the_run_is_consistent(self) -> None:
        run = self.run_
        assert run.sequence == len(self.history)
        assert run.attempt == self.attempts
        assert run.takeovers == self.takeovers
        assert run.usage.total_tokens == sum(c.usage.total_tokens for c in self.changes)
        assert (run.status_reason is not None) == run.status.is_terminal
        assert run.status_reason != ""
        assert (run.incomplete_reason is None) or run.status is S.INCOMPLETE
        assert (run.last_error is None) or run.status.is_terminal
        assert not (run.waits_turn and run.status.is_terminal), "what has ended waits for nothing"

    @invariant()
    def stamps_are_in_the_order_of_the_statuses(self) -> None:
        times = [run.updated_at_ms for run in self.history]
        assert times == sorted(times), "a clock that goes back does not put stamps out of order"
        assert all(time >= self.run_.created_at_ms for time in times)


TestLife = Life.TestCase
TestLife.settings = settings(
    deadline=None, derandomize=True, max_examples=150, stateful_step_count=30
)
