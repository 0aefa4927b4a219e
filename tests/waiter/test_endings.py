"""Every way in which a run ends, over HTTP, with the stock SDK."""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import openai
import pytest

import runbell
from runbell.client.records import Ended, Polled, Restarted, Retried
from runbell.pacing import Backoff, Fixed

QUICK = Fixed(0.05)


def test_a_completed_run_is_given_back(stage):
    with runbell.Waiter(stage.client) as waiter:
        run = waiter.wait(stage.run("hello"), timeout=60)
    assert runbell.raise_for_status(run) is run
    assert run.status == "completed"
    assert run.usage.completion_tokens == 1
    assert stage.text(run) == "hello"


def test_a_run_that_has_ended_costs_no_call(stage):
    with runbell.Waiter(stage.client) as waiter:
        run = waiter.wait(stage.run("hello"))
        looks = len(stage.front.seen)
        assert waiter.wait(run) is run
    assert len(stage.front.seen) == looks


@pytest.mark.parametrize(
    ("text", "options", "error", "code", "retryable"),
    [
        ("fail server_error Broken.", {}, runbell.RunFailed, "server_error", True),
        ("fail rate_limit_exceeded Full.", {}, runbell.RunFailed, "rate_limit_exceeded", True),
        ("fail invalid_prompt No.", {}, runbell.RunFailed, "invalid_prompt", False),
        ("one\nincomplete", {}, runbell.RunIncomplete, "max_completion_tokens", False),
        ("sleep 60", {"expires_after": 1}, runbell.RunExpired, None, True),
    ],
)
def test_every_ending_has_its_error(stage, text, options, error, code, retryable):
    run = stage.run(text, extra_body=options)
    with runbell.Waiter(stage.client) as waiter:
        ended = waiter.wait(run)
    with pytest.raises(error) as caught:
        runbell.raise_for_status(ended)
    raised = caught.value
    assert isinstance(raised, runbell.RunError)
    assert (raised.code, raised.retryable, raised.status) == (code, retryable, ended.status)
    assert (raised.run_id, raised.thread_id, raised.run) == (run.id, run.thread_id, ended)
    assert run.id in str(raised)
    assert run.thread_id in str(raised)
    if code in ("server_error", "invalid_prompt"):
        assert raised.message == ended.last_error.message


def test_cancel_sees_it_through(stage):
    run = stage.run("sleep 60")
    with runbell.Waiter(stage.client, policy=QUICK) as waiter:
        ended = waiter.cancel(run, timeout=60)
        assert ended.status == "cancelled"
        assert waiter.cancel(run).status == "cancelled"
    with pytest.raises(runbell.RunCancelled):
        runbell.raise_for_status(ended)


def test_a_status_of_the_future_ends_the_wait(stage):
    run = stage.run("hello")
    unknown = run.model_copy(update={"status": "hibernating"})
    with runbell.Waiter(stage.client) as waiter:
        assert waiter.wait(unknown) is unknown
    with pytest.raises(runbell.RunError, match="is hibernating") as caught:
        runbell.raise_for_status(unknown)
    assert type(caught.value) is runbell.RunError


def test_a_run_that_goes_on_is_no_success(stage):
    with pytest.raises(runbell.RunError, match="has not ended"):
        runbell.raise_for_status(stage.run("sleep 60"))


def test_the_time_is_one_for_the_whole_wait_and_the_run_goes_on(stage):
    run = stage.at_work()
    began = time.monotonic()
    with runbell.Waiter(stage.client) as waiter:
        with pytest.raises(runbell.WaitTimeout) as caught:
            waiter.wait(run, timeout=0.4)
        error = caught.value
        assert isinstance(error, TimeoutError)
        assert time.monotonic() - began >= 0.4
        assert (error.run_id, error.thread_id, error.status) == (
            run.id,
            run.thread_id,
            "in_progress",
        )
        assert error.run.status == "in_progress"
        assert "wait for it again to resume" in str(error)
        stage.cancel(run)
        assert waiter.wait(error.run).status == "cancelled"


def test_a_server_that_hangs_does_not_stretch_the_time(stage):
    from runbell.testing.front import slow

    run = stage.run("hello")
    stage.front.rule(lambda request: slow(30))
    began = time.monotonic()
    with runbell.Waiter(stage.client) as waiter, pytest.raises(runbell.WaitTimeout) as caught:
        waiter.wait(run, timeout=0.5)
    # Before the server would have answered, on a busy machine too.
    assert time.monotonic() - began < 25
    assert caught.value.polls == 0


def test_a_timeout_can_cancel(stage):
    run = stage.run("sleep 60")
    with runbell.Waiter(stage.client) as waiter:
        with pytest.raises(runbell.WaitTimeout):
            waiter.wait(run, timeout=0.3, cancel_on_timeout=True)
        assert waiter.wait(run, timeout=60).status == "cancelled"


def test_a_cancelled_task_detaches(stage):
    async def story():
        async with stage.async_client() as client, runbell.AsyncWaiter(client) as waiter:
            run = await asyncio.to_thread(stage.at_work)
            waiting = asyncio.create_task(waiter.wait(run))
            while not stage.front.seen:
                await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.to_thread(stage.cancel, run)
            assert (await waiter.wait(run, timeout=60)).status == "cancelled"

    asyncio.run(story())


def test_a_policy_that_ends_polling_ends_the_wait(stage):
    run = stage.run("sleep 60")
    with runbell.Waiter(stage.client) as waiter:
        with pytest.raises(runbell.WaitTimeout, match="its policy ended polling") as caught:
            waiter.wait(run, policy=Backoff(start=0.01, max_polls=3), hold=False)
        assert caught.value.polls == 3
        waiter.cancel(run)


def test_a_run_that_failed_is_begun_again(stage, caplog):
    """Echo fails for ever; what matters is which runs there are."""
    records = []
    run = stage.run("fail server_error Broken.", metadata={"a": "b"}, temperature=0.5)
    with runbell.Waiter(stage.client, hooks=[records.append]) as waiter:
        with caplog.at_level(logging.WARNING, "runbell"):
            last = waiter.wait(run, restart_on={"server_error"}, max_restarts=1, timeout=60)
        assert waiter.wait(stage.run("fail invalid_prompt No."), restart_on={"expired"})
    assert last.id != run.id
    assert (last.thread_id, last.metadata, last.temperature) == (run.thread_id, {"a": "b"}, 0.5)
    (restarted,) = [each for each in records if isinstance(each, Restarted)]
    assert (restarted.run_id, restarted.new_run_id) == (run.id, last.id)
    assert restarted.reason == "server_error"
    assert f"{last.id} does its work again" in caplog.text
    assert len(stage.direct.beta.threads.runs.list(run.thread_id).data) == 2


def test_a_creation_whose_answer_was_lost_makes_one_run(stage):
    from runbell.testing.front import lost

    run = stage.run("fail server_error Broken.")
    stage.front.rule(
        lambda request: lost() if request.method == "POST" and not stage.front.seen[1:] else None
    )
    with runbell.Waiter(stage.client) as waiter:
        waiter.wait(run, restart_on={"failed"}, max_restarts=1, timeout=60)
    assert len(stage.direct.beta.threads.runs.list(run.thread_id).data) == 2


def test_watching_tells_every_change(stage):
    with runbell.Waiter(stage.client, policy=Fixed(0.1)) as waiter:
        run, seen = stage.run("sleep 600"), []
        for update in waiter.watch(run):
            seen.append(update.status)
            if seen[-1] == "in_progress":
                stage.cancel(run)
        told = [status for status in seen if status not in ("queued", "cancelling")]
        assert told == ["in_progress", "cancelled"]
        watching = waiter.watch(stage.run("sleep 60"), timeout=0.3)
        with pytest.raises(runbell.WaitTimeout):
            list(watching)


def test_watching_in_an_event_loop_can_stop_early(stage):
    async def story():
        client = stage.async_client()
        async with client, runbell.AsyncWaiter(client, policy=Fixed(0.1)) as waiter:
            watching = waiter.watch(stage.run("sleep 60"))
            assert (await anext(watching)).status in ("queued", "in_progress")
            await watching.aclose()
            assert [u.status async for u in waiter.watch(stage.run("hello"))][-1] == "completed"

    asyncio.run(story())


def test_hooks_get_frozen_records_and_one_that_raises_harms_nobody(stage, caplog):
    records = []

    def broken(record):
        raise KeyError("mine")

    run = stage.run("hello")
    with runbell.Waiter(stage.client, hooks=[broken, records.append]) as waiter:
        waiter.wait(run)
    polled = [each for each in records if isinstance(each, Polled)]
    assert polled[-1].status == "completed"
    assert isinstance(records[-1], Ended)
    assert records[-1].polls == len(polled) == len(stage.front.looks)
    with pytest.raises(AttributeError):
        polled[0].status = "x"
    assert "a hook raised" in caplog.text


def test_one_waiter_serves_many_threads(stage):
    runs = [stage.run("sleep 0.2\nhello") for _ in range(8)]
    ended = []
    with runbell.Waiter(stage.client) as waiter:
        workers = [
            threading.Thread(target=lambda run=run: ended.append(waiter.wait(run).status))
            for run in runs
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
    assert ended == ["completed"] * 8


def test_the_sdks_own_retries_are_off(stage):
    from runbell.testing.front import refuse

    stage.front.do(refuse(500), refuse(500), refuse(500))
    records = []
    run = stage.run("hello")
    with runbell.Waiter(stage.client, hooks=[records.append]) as waiter:
        waiter.wait(run, timeout=60)
    assert [look.status for look in stage.front.looks[:3]] == [500, 500, 500]
    assert [each.failures for each in records if isinstance(each, Retried)] == [1, 2, 3]


def test_options_that_make_no_sense_are_refused(stage):
    with pytest.raises(TypeError, match="unknown options: timout"):
        runbell.Waiter(stage.client, timout=3)
    for wrong in ({"timeout": 0}, {"max_errors": 0}, {"on_tool_error": "ignore"}):
        with pytest.raises(runbell.RunbellError):
            runbell.Waiter(stage.client, **wrong)
    with runbell.Waiter(stage.client) as waiter, pytest.raises(runbell.RunbellError):
        waiter.wait("run_x")
    assert isinstance(stage.client, openai.OpenAI)
