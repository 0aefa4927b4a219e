"""`openai-poll-after-ms`: learned from the service's own runs, and told with every answer."""

from __future__ import annotations

import contextlib
import sqlite3
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from runbell.clock import VirtualClock
from runbell.runs import RunStatus
from runbell.runs.run import Run
from runbell.service.hints import (
    ENOUGH_OF_A_KIND,
    ENOUGH_OF_ALL,
    LEARNED_A_SECOND,
    LEAST_MS,
    MOST_MS,
    UNKNOWN_MS,
    WAITING,
    Hints,
)
from runbell.service.operations import runs
from runbell.storage.records import FunctionDefinition, FunctionTool, RunConfig
from runbell.storage.runs import RunRecord
from runbell.testing.embedded import EmbeddedService, on_a_service


async def stored(service: EmbeddedService, run_id: str, thread: str) -> RunRecord:
    return await runs.retrieve(service.ctx, service.project, thread, run_id)


async def begin(service: EmbeddedService) -> tuple[str, str]:
    thread = await service.thread("hello")
    run_id = await service.run(thread)
    await service.settle()
    return run_id, thread


async def live_through(service: EmbeddedService, seconds: float) -> None:
    """One run that takes so long."""
    run_id, _ = await begin(service)
    await service.advance(seconds)
    service.backend.turn.say("hi")
    await service.settle()
    assert await service.status(run_id) is RunStatus.COMPLETED


async def hint(service: EmbeddedService, hints: Hints | None = None) -> int:
    """What a run is told that has just begun."""
    run_id, thread = await begin(service)
    told = (hints or service.ctx.hints).poll_after_ms(await stored(service, run_id, thread))
    await service.cancel(run_id)
    await service.advance(60)
    return told


@on_a_service()
async def test_long_runs_are_looked_at_late_and_short_ones_soon(service: EmbeddedService) -> None:
    assert await hint(service) == UNKNOWN_MS
    for _ in range(20):
        await live_through(service, 120.0)
    long = await hint(service)
    assert 4 * UNKNOWN_MS < long < MOST_MS
    # What is slow today may be fast tomorrow.
    for _ in range(60):
        await live_through(service, 1.0)
    assert LEAST_MS < await hint(service) < long / 4


@on_a_service()
async def test_a_kind_that_was_never_seen_is_told_what_holds_for_all(
    service: EmbeddedService,
) -> None:
    for number in range(ENOUGH_OF_ALL):
        await live_through(service, 60.0 + number)
    tools = (FunctionTool(FunctionDefinition("unheard_of")),)
    thread = await service.thread("hello")
    run_id = await service.run(thread, tools=tools)
    await service.settle()
    told = service.ctx.hints.poll_after_ms(await stored(service, run_id, thread))
    assert told > 2 * UNKNOWN_MS


@on_a_service()
async def test_a_start_learns_from_the_runs_that_are_stored(service: EmbeddedService) -> None:
    for seconds in [1.0] * 60 + [120.0] * 20:
        await live_through(service, seconds)
    again = Hints(service.clock)
    await again.learn(service.store)
    run_id, thread = await begin(service)
    record = await stored(service, run_id, thread)
    known = service.ctx.hints.poll_after_ms(record)
    assert known != Hints(service.clock).poll_after_ms(record)
    assert again.poll_after_ms(record) == known


@on_a_service()
async def test_a_start_passes_over_a_run_that_cannot_be_read(service: EmbeddedService) -> None:
    """One damaged row of thousands is no reason not to serve the others."""
    for _ in range(3):
        await live_through(service, 1.0)
    run_id, _ = await begin(service)
    await service.advance(1.0)
    service.backend.turn.say("hi")
    await service.settle()
    with contextlib.closing(sqlite3.connect(service.store.inner.path)) as database:  # type: ignore[attr-defined]
        database.execute("UPDATE runs SET config = '{\"broken' WHERE id = ?", (run_id,))
        database.commit()
    again = Hints(service.clock)
    await again.learn(service.store)
    (kind,) = again._known.dump()["kinds"]
    assert len(kind["ran"]) == 3


@on_a_service()
async def test_a_start_learns_that_cancelled_runs_would_have_taken_longer(
    service: EmbeddedService,
) -> None:
    """What ends sooner than it is cancelled is not all that there is."""
    for _ in range(10):
        await live_through(service, 1.0)
    for _ in range(10):
        run_id, _ = await begin(service)
        await service.advance(30.0)
        await service.cancel(run_id)
        await service.advance(60)
        assert await service.status(run_id) is RunStatus.CANCELLED
    again = Hints(service.clock)
    await again.learn(service.store)
    service.ctx.hints.poll_after_ms(await stored(service, *await begin(service)))
    (kind,) = again._known.dump()["kinds"]
    assert sorted(high is not None for _, high in kind["ran"]) == [False] * 10 + [True] * 10
    assert all(29 < low < 32 for low, high in kind["ran"] if high is None)
    assert kind == service.ctx.hints._known.dump()["kinds"][0]


@on_a_service()
async def test_a_wait_for_a_tool_is_no_part_of_how_long_a_run_takes(
    service: EmbeddedService,
) -> None:
    """Each part counts for itself: the hour until somebody ran the tool does not."""
    for _ in range(20):
        thread = await service.thread("hello")
        run_id = await service.run(thread, expires_after=7200)
        await service.settle()
        await service.advance(1.0)
        service.backend.turn.call(("f", "{}"))
        await service.settle()
        assert await service.status(run_id) is RunStatus.REQUIRES_ACTION
        await service.advance(3600)
        (call,) = (await service.find(run_id)).tool_calls
        await service.submit(run_id, {call.id: "done"})
        await service.settle()
        await service.advance(1.0)
        service.backend.turn.say("hi")
        await service.settle()
        assert await service.status(run_id) is RunStatus.COMPLETED
    assert await hint(service) < 3_000
    assert not service.ctx.hints._parts


class Lived:
    """Runs of one kind that are moved as a service moves them, so many at a time."""

    def __init__(self, hints: Hints | None = None) -> None:
        self.clock = VirtualClock()
        self.hints = hints or Hints(self.clock)
        self.count = 0

    def move(self, run_id: str, status: RunStatus, model: str = "m") -> RunRecord:
        now = self.clock.now_ms()
        run = Run(run_id, "p", "t", "asst", status, now, now + 600_000, now)
        record = RunRecord(run, RunConfig(model))
        self.hints.moved(record)
        return record

    def live(self, count: int, seconds: float, together: int = 8, model: str = "m") -> None:
        for _ in range(count // together):
            names = [f"run_{self.count + number}" for number in range(together)]
            self.count += together
            for status in (RunStatus.QUEUED, RunStatus.IN_PROGRESS):
                for name in names:
                    self.move(name, status, model)
            self.clock.advance(seconds)
            for name in names:
                self.move(name, RunStatus.COMPLETED, model)

    def hint(self, model: str = "m") -> int:
        record = self.move("now", RunStatus.QUEUED, model)
        self.move("now", RunStatus.IN_PROGRESS, model)
        told = self.hints.poll_after_ms(record)
        self.move("now", RunStatus.CANCELLED, model)
        return told

    def learned(self) -> list[int]:
        return [len(kind["ran"]) for kind in self.hints._known.dump()["kinds"]]


@pytest.mark.parametrize("together", [1, 8, 40])
def test_runs_that_became_slower_are_relearned_within_fifty_however_close_they_end(
    together: int,
) -> None:
    lived, fresh = Lived(), Lived()
    lived.live(80, 1.5, together)
    assert 1400 < lived.hint() < 1900
    lived.live(50 // together * together, 2.2, together)
    fresh.live(40, 2.2)
    assert lived.hint() == pytest.approx(fresh.hint(), rel=0.15)


def test_what_was_learned_is_worked_out_once_a_second_and_from_all_that_ended() -> None:
    lived = Lived()
    lived.live(40, 0.01)
    lived.hint()
    assert lived.learned() == [40]
    lived.live(40, 0.01)  # still within that second
    lived.hint()
    assert lived.learned() == [40]
    lived.clock.advance(1.0)
    lived.hint()
    assert lived.learned() == [82]  # the two that were told before were cancelled
    # Of very many within a second the latest tell enough, and nothing piles up.
    lived.live(10 * WAITING, 0.001, together=10 * WAITING)
    lived.hint()
    assert lived.learned()[0] <= 82 + 2 * WAITING
    assert len(lived.hints._kinds[("asst", "m", ())].waiting) <= WAITING


def test_in_one_second_not_all_kinds_are_worked_out_anew() -> None:
    lived = Lived()
    kinds = [f"m{number}" for number in range(LEARNED_A_SECOND + 5)]
    for model in kinds:
        lived.live(8, 0.001, model=model)
    for model in kinds:
        lived.hint(model)
    assert len(lived.learned()) == LEARNED_A_SECOND
    lived.clock.advance(1.0)
    for model in kinds:
        lived.hint(model)
    assert len(lived.learned()) == len(kinds)


def test_runs_that_another_process_executes_teach_both() -> None:
    """Who has queued them and is asked for hints, and who executes them, from one end to the
    other: in a single process, all of that is known. Nobody keeps what has ended."""
    clock, sequence = VirtualClock(), count(1)
    queues, executes, alone = (Hints(clock) for _ in range(3))

    def move(run: Run, status: RunStatus, **fields: int) -> Run:
        now_ms = clock.now_ms()
        run = replace(run, status=status, sequence=next(sequence), updated_at_ms=now_ms, **fields)
        record = RunRecord(run, RunConfig("m"))
        here, there = (queues, executes) if status is RunStatus.QUEUED else (executes, queues)
        here.moved(record)
        there.heard(run)
        alone.moved(record)
        return run

    for number in range(ENOUGH_OF_A_KIND):
        now_ms, sequence = clock.now_ms(), count(1)
        run = Run(
            f"run_{number}", "p", "t", "a", RunStatus.QUEUED, now_ms, now_ms + 600_000, now_ms
        )
        run = move(run, RunStatus.QUEUED)
        clock.advance(1.0)
        begun = run = move(run, RunStatus.IN_PROGRESS, started_at_ms=clock.now_ms())
        queues.heard(replace(run, status=RunStatus.FAILED, sequence=1))  # it is late
        clock.advance(20.0)
        move(run, RunStatus.COMPLETED, completed_at_ms=clock.now_ms())
    after = replace(begun, updated_at_ms=clock.now_ms() - 19_500)
    told = [
        each.poll_after_ms(RunRecord(after, RunConfig("m"))) for each in (queues, executes, alone)
    ]
    assert told == [told[0]] * 3
    assert told[0] != UNKNOWN_MS
    assert [each._parts for each in (queues, executes, alone)] == [{}] * 3
    assert queues._known.dump() == executes._known.dump() == alone._known.dump()


def test_a_run_that_was_taken_over_teaches_from_its_row() -> None:
    """Of its only part the row tells all. One that was being cancelled has taught before."""
    clock = VirtualClock()
    hints = Hints(clock)
    now_ms = clock.now_ms()
    run = Run("r", "p", "t", "a", RunStatus.COMPLETED, now_ms, now_ms + 600_000, now_ms + 3_000)
    run = replace(run, sequence=3, started_at_ms=now_ms + 1_000, completed_at_ms=now_ms + 3_000)
    hints.moved(RunRecord(run, RunConfig("m")))
    cancelled = replace(run, id="c", status=RunStatus.CANCELLED, sequence=4)
    cancelled = replace(cancelled, cancelling_at_ms=now_ms + 2_000, cancelled_at_ms=now_ms + 3_000)
    hints.moved(RunRecord(replace(cancelled, completed_at_ms=None), RunConfig("m")))
    (kind,) = hints._kinds.values()
    assert list(kind.waiting) == [(2.0, 1.0, True)]
    # Behind a wait for a tool it tells when the part begins, and not since when that had waited.
    after = replace(run, id="t", status=RunStatus.IN_PROGRESS, sequence=5, completed_at_ms=None)
    hints.moved(RunRecord(after, RunConfig("m")))
    after = replace(after, status=RunStatus.FAILED, sequence=6, updated_at_ms=now_ms + 7_000)
    hints.moved(RunRecord(after, RunConfig("m")))
    assert list(kind.waiting)[1:] == [(4.0, None, True)]


@on_a_service()
async def test_the_soonest_of_several_runs_is_told(service: EmbeddedService) -> None:
    hints = service.ctx.hints
    run_id, thread = await begin(service)
    record = await stored(service, run_id, thread)
    assert hints.soonest_ms([record]) == hints.poll_after_ms(record)
    service.backend.turn.say("hi")
    await service.settle()
    ended = await stored(service, run_id, thread)
    assert hints.soonest_ms([ended]) is None
    assert hints.soonest_ms([ended, record]) == hints.poll_after_ms(record)


def test_a_service_learns_before_it_answers(tmp_path: Path) -> None:
    """Of a process that was started again: what it says is what it said before."""
    from tests.served import Served

    with Served(tmp_path) as served:
        api = served.api()
        assistant = api.post("/v1/assistants", {"model": "echo"}).ok()["id"]

        def told() -> int:
            thread = {"messages": [{"role": "user", "content": "hello"}]}
            body = {"assistant_id": assistant, "thread": thread}
            made = api.post("/v1/threads/runs", body)
            path = f"/v1/threads/{made.json()['thread_id']}/runs/{made.json()['id']}"
            api.get(path, headers={"Prefer": "wait=10"}).ok()
            return int(made.headers["openai-poll-after-ms"])

        assert told() == UNKNOWN_MS
        for _ in range(20):
            known = told()
        assert known != UNKNOWN_MS
        served.restart()
        api = served.api()
        assert told() != UNKNOWN_MS
