"""The executor: what a model says is stored once, or not at all, and no run outlives its end."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runbell.runs import RunStatus, Usage
from runbell.service import draft as draft_module
from runbell.service.backends import Finished, TextDelta, ToolCallDelta
from runbell.service.draft import Draft
from runbell.service.operations import threads, turns
from runbell.service.wire.requests import CreateMessage, RequestTruncationStrategy
from runbell.storage.records import Message, TextPart
from runbell.testing.backends import ScriptedBackend
from runbell.testing.databases import writer_held
from runbell.testing.embedded import EmbeddedService, on_a_service
from runbell.testing.faults import armed


async def executing(service: EmbeddedService, **fields: Any) -> str:
    """A run whose model is thinking."""
    run = await service.run(await service.thread("Hello"), **fields)
    await service.settle()
    assert len(service.backend.open) == 1
    return run


async def said(service: EmbeddedService, run: str) -> list[str]:
    """What the model has said in the run's thread, the oldest first."""
    thread = (await service.find(run)).thread_id
    return [text(m) for m in await service.messages(thread) if m.role == "assistant"]


async def broken_off(service: EmbeddedService, run: str) -> list[tuple[str, str | None]]:
    """What was said of answers that did not come to their end, and why they did not."""
    thread = (await service.find(run)).thread_id
    return [
        (text(m), m.incomplete_reason)
        for m in await service.messages(thread)
        if m.role == "assistant" and m.status == "incomplete"
    ]


def text(message: Message) -> str:
    return "".join(part.text.value for part in message.content if isinstance(part, TextPart))


# What a model says.


@on_a_service()
async def test_an_answer_becomes_a_message_and_a_step_and_ends_the_run(
    service: EmbeddedService,
) -> None:
    """One of each, from all the pieces in order."""
    run = await executing(service)
    service.backend.turn.play(
        TextDelta("Hel"),
        TextDelta("lo"),
        Finished("stop", Usage(prompt_tokens=5, completion_tokens=2)),
    )
    await service.settle()
    assert await service.history(run) == ["created", "in_progress", "completed"]
    assert await said(service, run) == ["Hello"]
    (step,) = await service.steps(run)
    assert (step.type, step.status) == ("message_creation", "completed")
    assert (await service.find(run)).usage == Usage(5, 2)


@on_a_service()
async def test_an_empty_answer_is_an_answer(service: EmbeddedService) -> None:
    """A model that has nothing to say completes the run, with an empty message."""
    run = await executing(service)
    service.backend.turn.say("")
    await service.settle()
    assert await service.status(run) == "completed"
    assert await said(service, run) == [""]


@on_a_service()
async def test_calls_are_put_together_from_their_pieces(service: EmbeddedService) -> None:
    """By index, and stand as they began; the model's own id is kept, else one is made."""
    run = await executing(service)
    service.backend.turn.play(
        ToolCallDelta(1, "g-2", '{"b"', id="call_of_the_model"),
        ToolCallDelta(0, "f"),
        ToolCallDelta(1, "", ": 2}"),
        ToolCallDelta(0, "", "{}"),
        Finished("stop", Usage(1, 1)),
    )
    await service.settle()
    second, first = (await service.find(run)).tool_calls
    assert (first.name, first.arguments) == ("f", "{}")
    assert first.id.startswith("call_")
    assert (second.id, second.name, second.arguments) == ("call_of_the_model", "g-2", '{"b": 2}')


class CountedText(str):
    """A text that counts what is copied when it is added to another."""

    copied = 0

    def __radd__(self, before: str) -> str:
        CountedText.copied += len(before)
        return before + str(self)


@on_a_service()
async def test_long_arguments_are_put_together_once(service: EmbeddedService) -> None:
    """However many parts they come in: what was said before is not copied with each."""
    run = await executing(service)
    parts = [ToolCallDelta(0, "f", CountedText("[1"), id="c")]
    parts += [ToolCallDelta(0, CountedText(""), CountedText(",1")) for _ in range(1_000)]
    service.backend.turn.play(*parts, ToolCallDelta(0, "", "]"), Finished("stop", Usage(1, 1)))
    await service.settle()
    (call,) = (await service.find(run)).tool_calls
    assert (call.name, call.arguments) == ("f", "[1" + ",1" * 1_000 + "]")
    assert CountedText.copied == 0


@on_a_service()
async def test_text_beside_calls_is_kept_as_a_message_of_its_own(service: EmbeddedService) -> None:
    """The run waits for outputs, what was said is in the thread, and tokens are counted once."""
    run = await executing(service)
    service.backend.turn.play(
        TextDelta("Let me see."), ToolCallDelta(0, "f", "{}"), Finished("stop", Usage(3, 4))
    )
    await service.settle()
    assert await service.status(run) == "requires_action"
    assert await said(service, run) == ["Let me see."]
    counted = [step.usage.total_tokens for step in await service.steps(run) if step.usage]
    assert counted == [7]


@on_a_service()
async def test_each_turn_is_told_what_came_before(service: EmbeddedService) -> None:
    """The thread's messages, the calls with their outputs, and what is left of the limits."""
    thread = await service.thread("one", "two", "three")
    run = await service.run(
        thread,
        max_prompt_tokens=1_000,
        max_completion_tokens=500,
        truncation_strategy=RequestTruncationStrategy(type="last_messages", last_messages=2),
    )
    await service.settle()
    first = service.backend.turn
    assert [text(message) for message in first.request.messages] == ["two", "three"]
    assert first.request.steps == ()
    assert (first.request.max_prompt_tokens, first.request.max_completion_tokens) == (1_000, 500)
    first.call(("f", "{}"), usage=Usage(300, 20))
    await service.settle()
    (call,) = (await service.find(run)).tool_calls
    await service.submit(run, {call.id: "42"})
    await service.settle()
    second = service.backend.turn.request
    (step,) = second.steps
    assert [(told.name, told.output) for told in step.tool_calls] == [("f", "42")]
    assert (second.max_prompt_tokens, second.max_completion_tokens) == (700, 480)
    service.backend.turn.say("done", usage=Usage(400, 30))
    await service.settle()
    assert (await service.find(run)).usage == Usage(700, 50)


@on_a_service()
async def test_a_run_that_waited_is_told_what_was_said_before_its_turn(
    service: EmbeddedService,
) -> None:
    """The answer of the run before it, and then its own messages, in this order."""
    thread = await service.thread("first question")
    await service.run(thread, "first")
    more = (CreateMessage(role="user", content="second question"),)
    await service.run(thread, "second", on_active_run="enqueue", additional_messages=more)
    await service.settle()
    service.backend.turn.say("first answer")
    await service.settle()
    turn = service.backend.turn
    assert turn.label == "second"
    assert [text(message) for message in turn.request.messages] == [
        "first question",
        "first answer",
        "second question",
    ]


# How a model fails.


@on_a_service()
async def test_a_model_that_refuses_fails_the_run_in_its_own_words(
    service: EmbeddedService,
) -> None:
    """Code and message of the ModelError become `last_error`; what it had said is dropped."""
    run = await executing(service)
    service.backend.turn.fail("rate_limit_exceeded", "Come back tomorrow.")
    await service.settle()
    ended = await service.find(run)
    assert ended.status == "failed"
    assert ended.last_error is not None
    assert ended.last_error.code == "rate_limit_exceeded"
    assert ended.last_error.message == "Come back tomorrow."
    assert await said(service, run) == []


@on_a_service()
async def test_a_backend_that_breaks_fails_the_run_and_tells_nobody_why(
    service: EmbeddedService,
) -> None:
    """A defect of a backend ends one run; its text, which may hold anything, stays in the log."""
    run = await executing(service)
    service.backend.turn.crash(ZeroDivisionError("secret"))
    await service.settle()
    ended = await service.find(run)
    assert ended.status == "failed"
    assert ended.last_error is not None
    assert ended.last_error.code == "server_error"
    assert "secret" not in repr(ended)
    assert await service.status(await executing(service)) == "in_progress", "the next one goes on"


@on_a_service()
async def test_an_answer_that_breaks_off_is_no_answer(service: EmbeddedService) -> None:
    """The run fails; what was said by then is kept, and is not taken for an answer."""
    run = await executing(service)
    service.backend.turn.play(TextDelta("half an ans"))
    await service.settle()
    assert await service.status(run) == "failed"
    assert await broken_off(service, run) == [("half an ans", "run_failed")]


@pytest.mark.parametrize(
    "piece", [TextDelta("x" * 60), ToolCallDelta(0, "f", "x" * 60)], ids=["text", "arguments"]
)
def test_a_model_that_does_not_stop_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: TextDelta
) -> None:
    """Text and arguments of a turn are bounded, so that one run cannot take all memory."""
    monkeypatch.setattr(draft_module, "MAX_ANSWER_CHARS", 100)

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        run = await executing(service)
        service.backend.turn.play(piece, piece, Finished("stop", Usage()))
        await service.settle()
        ended = await service.find(run)
        assert ended.last_error is not None
        assert "more than 100 characters" in ended.last_error.message

    story(tmp_path)


@on_a_service()
async def test_an_answer_that_is_cut_off_is_kept_as_incomplete(service: EmbeddedService) -> None:
    """The part that there is becomes an incomplete message, and the run says which limit it was."""
    run = await executing(service)
    service.backend.turn.say("half", reason="max_completion_tokens")
    await service.settle()
    ended = await service.find(run)
    assert (ended.status, ended.incomplete_reason) == ("incomplete", "max_completion_tokens")
    (message,) = (m for m in await service.messages(ended.thread_id) if m.role == "assistant")
    assert (message.status, message.incomplete_reason) == ("incomplete", "max_tokens")


# Cancelled, expired, deleted.


@on_a_service()
async def test_a_cancel_stops_the_model_call(service: EmbeddedService) -> None:
    """At once: no time passes, nothing is stored, and the thread is free."""
    run = await executing(service)
    turn = service.backend.turn
    await service.cancel(run)
    await service.settle()
    assert turn.stopped
    assert turn.over
    assert await service.history(run) == ["created", "in_progress", "cancelling", "cancelled"]
    assert await said(service, run) == []
    assert await service.holder((await service.find(run)).thread_id) is None


@on_a_service()
async def test_a_cancel_that_is_committed_with_the_claim_is_heard(service: EmbeddedService) -> None:
    """The model is not called, or is stopped at once; nobody waits for the grace to pass."""
    run = await service.run(await service.thread("Hello"))
    async with writer_held(service.store):
        for _ in range(10):
            await asyncio.sleep(0)  # until the claim waits for the writer
        cancelling = asyncio.create_task(service.cancel(run))
        await asyncio.sleep(0)
    await cancelling
    await service.settle()
    assert await service.status(run) == "cancelled"
    assert service.backend.open == []
    assert service.clock.monotonic() == 0


@on_a_service()
async def test_an_expiry_stops_the_model_call(service: EmbeddedService) -> None:
    """And nothing that it says afterwards is stored."""
    run = await executing(service, expires_after=5.0)
    turn = service.backend.turn
    turn.stubborn = True
    await service.advance(5.0)
    assert turn.stopped
    turn.say("too late")
    await service.settle()
    assert await service.history(run) == ["created", "in_progress", "expired"]
    assert await said(service, run) == []


@on_a_service()
async def test_deleting_a_thread_stops_its_model_call(service: EmbeddedService) -> None:
    """The run's end is in the feed, and the answer finds nothing that it could be stored in."""
    run = await executing(service)
    turn = service.backend.turn
    turn.stubborn = True
    thread = (await service.find(run)).thread_id
    await threads.delete(service.ctx, service.project, thread)
    await service.settle()
    assert turn.stopped
    turn.say("too late")
    await service.settle()
    assert await service.history(run) == ["created", "in_progress", "cancelling", "cancelled"]


@on_a_service(cancel_grace=8.0)
async def test_the_late_answer_of_a_cancelled_run_is_dropped(service: EmbeddedService) -> None:
    """A worker that did not let go is not waited for, and what it brings then changes nothing."""
    run = await executing(service)
    turn = service.backend.turn
    turn.stubborn = True
    await service.cancel(run)
    await service.advance(7.9)
    assert await service.status(run) == "cancelling"
    await service.advance(0.2)
    assert await service.status(run) == "cancelled"
    before = await service.feed()
    turn.say("too late")
    await service.settle()
    assert await service.feed() == before
    assert await said(service, run) == []


@on_a_service()
async def test_a_worker_that_lets_go_late_ends_the_cancel_itself(service: EmbeddedService) -> None:
    """The tokens that were used count; the text is kept as one that was broken off."""
    run = await executing(service)
    turn = service.backend.turn
    turn.stubborn = True
    await service.cancel(run)
    await service.settle()
    turn.say("as it happens", usage=Usage(7, 8))
    await service.settle()
    ended = await service.find(run)
    assert (ended.status, ended.usage) == ("cancelled", Usage(7, 8))
    assert await broken_off(service, run) == [("as it happens", "run_cancelled")]


# Workers that are lost, and come back.


@on_a_service()
async def test_a_run_whose_worker_was_lost_is_taken_over(service: EmbeddedService) -> None:
    """The model is called again, and no event is made of it: for clients nothing has happened."""
    run = await executing(service)
    await service.restart()
    await service.settle()
    assert (await service.find(run)).attempt == 2
    assert await service.history(run) == ["created", "in_progress"]
    service.backend.turn.say("at last")
    await service.settle()
    assert await said(service, run) == ["at last"]
    assert (await service.find(run)).takeovers == 0


@on_a_service()
async def test_a_run_that_kills_its_workers_is_given_up(service: EmbeddedService) -> None:
    """Six workers in a row, then it fails and says so, rather than to take the service down."""
    run = await executing(service)
    for _ in range(turns.MAX_TAKEOVERS):
        assert await service.status(run) == "in_progress"
        await service.restart()
        await service.settle()
    calls = len(service.backend.turns)
    await service.restart()
    await service.settle()
    ended = await service.find(run)
    assert ended.status == "failed"
    assert ended.status_reason is not None
    assert "6 workers in a row were lost" in ended.status_reason
    assert len(service.backend.turns) == calls == 6


@on_a_service()
async def test_lost_workers_are_counted_for_each_turn_anew(service: EmbeddedService) -> None:
    """A long run on a service that is often restarted is no poison."""
    run = await executing(service)
    for _ in range(2):
        for _ in range(turns.MAX_TAKEOVERS):
            await service.restart()
            await service.settle()
        service.backend.turn.call(("f", "{}"))
        await service.settle()
        (call,) = (await service.find(run)).tool_calls
        await service.submit(run, {call.id: "42"})
        await service.settle()
    assert await service.status(run) == "in_progress"


@on_a_service()
async def test_a_worker_that_was_believed_lost_changes_nothing(service: EmbeddedService) -> None:
    """Its writes name the attempt that it was given; a later attempt has the run now."""
    run = await service.run(await service.thread("Hello"))
    await service.crash()
    claimed = await turns.claim(service.ctx, run)
    assert claimed is not None
    zombie = await turns.prepare(service.ctx, claimed)
    draft = Draft(service.ctx, claimed.run)
    draft.add(TextDelta("zombie"))
    answer = draft.add(Finished("stop", Usage(1, 1)))
    assert answer is not None
    await service.restart()
    await service.settle()
    assert (await service.find(run)).attempt == zombie.run.attempt + 1
    before = (await service.find(run), await service.feed())
    await turns.settle(service.ctx, zombie, answer)
    assert (await service.find(run), await service.feed()) == before
    assert await said(service, run) == []
    service.backend.turn.say("the living")
    await service.settle()
    assert await said(service, run) == ["the living"]


@on_a_service()
async def test_news_from_before_its_claim_stops_no_call(service: EmbeddedService) -> None:
    """What another process tells of a run may come when this one has begun to execute it."""
    run = await executing(service)
    now = await service.find(run)
    service.ctx.changes.publish(replace(now, status=RunStatus.QUEUED, attempt=now.attempt - 1))
    await service.settle()
    service.backend.turn.say("Hi")
    await service.settle()
    assert await said(service, run) == ["Hi"]


@on_a_service()
async def test_news_of_a_later_claim_stops_the_call(service: EmbeddedService) -> None:
    run = await executing(service)
    now = await service.find(run)
    service.ctx.changes.publish(replace(now, attempt=now.attempt + 1))
    await service.settle()
    assert service.backend.turns[-1].stopped


@on_a_service()
async def test_a_job_of_another_turn_takes_a_run_from_nobody(service: EmbeddedService) -> None:
    """Left from earlier, or put by hand: the worker that executes the run is not lost for it. Where
    it is lost after all, and comes back, it hears that somebody else has the run."""
    run = await executing(service)
    turn = (await service.find(run)).sequence - 1
    for other in (turn - 1, turn + 1, -1):
        assert await turns.claim(service.ctx, run, other) is None
    assert (await service.find(run)).attempt == 1
    assert await turns.claim(service.ctx, run, turn) is not None
    await service.settle()
    assert (await service.find(run)).attempt == 2
    assert service.backend.turns[-1].stopped


@on_a_service()
async def test_a_job_whose_turn_is_not_known_begins_a_run(service: EmbeddedService) -> None:
    """An earlier version has put it."""
    await service.crash()
    run = await service.run(await service.thread("Hello"))
    assert await turns.claim(service.ctx, run, 0) is None
    assert await turns.claim(service.ctx, run, -1) is not None


@on_a_service()
async def test_an_orderly_stop_is_said_before_anybody_goes_on(service: EmbeddedService) -> None:
    """It counts as no lost worker, whoever takes the run up, and however soon."""
    run = await executing(service)
    await service.restart()
    await service.settle()
    assert (await service.find(run)).takeovers == 1
    await service.jobs.stop(0)
    assert (await service.find(run)).takeovers == 0


@on_a_service()
async def test_a_model_that_is_not_served_any_more_fails_its_runs(service: EmbeddedService) -> None:
    """After a restart with other models a queued run does not wait for ever; its line goes on."""
    thread = await service.thread("Hello")
    await service.crash()
    first = await service.run(thread)
    second = await service.run(thread, model="echo", on_active_run="enqueue")
    service.backend = ScriptedBackend("another")
    await service.restart()
    await service.settle()
    ended = await service.find(first)
    assert await service.history(first) == ["created", "failed"]
    assert ended.last_error is not None
    assert "'scripted' is not served any more" in ended.last_error.message
    assert await service.status(second) == "completed"


@on_a_service()
async def test_a_model_that_vanished_while_a_run_was_in_progress_fails_the_run(
    service: EmbeddedService,
) -> None:
    """The same for a run that a lost worker held."""
    run = await executing(service)
    await service.crash()
    service.backend = ScriptedBackend("another")
    await service.restart()
    await service.settle()
    assert await service.history(run) == ["created", "in_progress", "failed"]


@on_a_service()
async def test_what_cannot_be_executed_is_left_alone(service: EmbeddedService) -> None:
    """Jobs may come twice or late: for a run that waits, has ended or is gone there is no turn."""
    thread = await service.thread("Hello")
    active = await service.run(thread)
    waiting = await service.run(thread, on_active_run="enqueue")
    await service.settle()
    service.backend.turn.call(("f", "{}"))
    await service.settle()
    ended = await service.run(await service.thread("Hello"), model="echo")
    await service.settle()
    before = await service.feed()
    calls = len(service.backend.turns)
    for run in (active, waiting, ended, "run_that_is_gone"):
        await service.executor.execute(run)
    assert await service.feed() == before
    assert len(service.backend.turns) == calls


@on_a_service()
async def test_a_run_whose_time_was_over_before_it_began_is_not_begun(
    service: EmbeddedService,
) -> None:
    """After a long downtime no model is paid for runs that nobody waits for any more."""
    await service.crash()
    queued = await service.run(await service.thread("Hello"), expires_after=10.0)
    service.clock.advance(11.0)
    executing = asyncio.create_task(service.executor.execute(queued))
    await service.settle()
    executing.cancel()
    assert service.backend.turns == []
    assert await service.history(queued) == ["created", "expired"]


# A database that is away.


@on_a_service()
async def test_an_answer_waits_for_a_database_that_is_away(service: EmbeddedService) -> None:
    """It was paid: it is kept, and stored when that is possible; the model is not asked again."""
    run = await executing(service)
    service.store.away = True
    service.backend.turn.say("worth waiting for")
    await service.advance(120.0)
    assert await service.status(run) == "in_progress"
    assert service.store.refused > 10
    service.store.away = False
    await service.advance(2.0)
    assert await service.history(run) == ["created", "in_progress", "completed"]
    assert await said(service, run) == ["worth waiting for"]
    assert len(service.backend.turns) == 1


@on_a_service()
async def test_a_run_that_cannot_be_claimed_is_claimed_later(service: EmbeddedService) -> None:
    """Its job is not lost while the database is away."""
    await service.crash()
    run = await service.run(await service.thread("Hello"))
    service.store.away = True
    service.build()
    service.start()
    await service.advance(60.0)
    assert await service.status(run) == "queued"
    service.store.away = False
    await service.advance(5.0)
    assert await service.status(run) == "in_progress"


@on_a_service()
async def test_an_answer_that_waited_too_long_is_dropped_and_not_bought_again(
    service: EmbeddedService,
) -> None:
    """Once its time is over the run expires; the model is not called for it a second time."""
    run = await executing(service, expires_after=60.0)
    service.store.away = True
    service.backend.turn.say("too late")
    await service.advance(90.0)
    service.store.away = False
    await service.advance(10.0)
    assert await service.history(run) == ["created", "in_progress", "expired"]
    assert len(service.backend.turns) == 1
    assert await said(service, run) == []


# Where it can be killed.


def test_the_points_of_a_turn_are_where_their_names_say(tmp_path: Path) -> None:
    """What is committed at each point of the executor: a crash there finds just that."""
    found: list[tuple[str, str]] = []

    def look(point: str) -> None:
        if point.startswith("executor."):
            with contextlib.closing(sqlite3.connect(tmp_path / "runbell.db")) as connection:
                query = "SELECT status FROM runs ORDER BY position DESC"
                (status,) = connection.execute(query).fetchone()
            found.append((point, status))

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        await executing(service)
        service.backend.turn.say("done")
        await service.settle()
        run = await executing(service)
        await service.cancel(run)
        await service.settle()

    with armed(look):
        story(tmp_path)
    assert found == [
        ("executor.claimed", "in_progress"),
        ("executor.answered", "in_progress"),
        ("executor.settled", "completed"),
        ("executor.claimed", "in_progress"),
        ("executor.cancelling", "cancelling"),
        ("executor.settled", "cancelled"),
    ]
