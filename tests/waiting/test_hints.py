"""`openai-poll-after-ms`: learned from the service's own runs, and told with every answer."""

from __future__ import annotations

from pathlib import Path

from runbell.runs import RunStatus
from runbell.service.hints import (
    ENOUGH_OF_ALL,
    LEARNED_A_SECOND,
    LEAST_MS,
    MOST_MS,
    UNKNOWN_MS,
    Hints,
)
from runbell.service.operations import runs
from runbell.storage.records import FunctionDefinition, FunctionTool
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


@on_a_service()
async def test_a_busy_service_learns_from_some_of_its_runs(service: EmbeddedService) -> None:
    """However many end in one second; and from what comes later as well."""
    threads = [await service.thread("hello") for _ in range(3 * LEARNED_A_SECOND)]
    for thread in threads:
        run_id = await service.run(thread)
        await service.settle()
        service.backend.turn.say("hi")
        await service.settle()
        assert await service.status(run_id) is RunStatus.COMPLETED
    learned = service.ctx.hints._known.dump()["kinds"]
    assert [len(kind["ran"]) for kind in learned] == [LEARNED_A_SECOND]
    assert not service.ctx.hints._parts
    await live_through(service, 5.0)
    learned = service.ctx.hints._known.dump()["kinds"]
    assert len(learned[0]["ran"]) == LEARNED_A_SECOND + 1


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
