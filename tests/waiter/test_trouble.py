"""What networks and servers do to a wait, over HTTP."""

from __future__ import annotations

import random
import time

import openai
import pytest

import runbell
from runbell.client.diagnosis import key_note, masked
from runbell.client.records import Retried
from runbell.pacing import Fixed
from runbell.testing.front import again, garbage, lost, passed, refuse, reset, slow, stale

QUICK = Fixed(0.05)


@pytest.mark.parametrize(
    "faults",
    [
        (refuse(429, retry_after=0.2),),
        (refuse(429),),
        (refuse(500), refuse(502), refuse(503)),
        (reset(), reset()),
        (lost(), lost()),
        (slow(0.5),),
        (garbage(), garbage()),
        (again(1), again(2), again(1)),
        (refuse(408), refuse(409)),
    ],
)
def test_a_wait_survives(stage, faults):
    stage.front.do(passed(), *faults)
    with runbell.Waiter(stage.client) as waiter:
        run = waiter.wait(stage.run("sleep 0.3\nhello"), timeout=60)
    assert run.status == "completed"


def test_many_waits_survive_everything_at_once(stage):
    rng = random.Random(7)
    faults = [refuse(429, 0.1), refuse(429), refuse(500), reset(), lost(), slow(0.2), garbage()]

    def rule(request):
        return rng.choice(faults) if rng.random() < 0.3 else None

    stage.front.rule(rule)
    runs = [stage.run('call get_weather {"city": "Oslo"}\nsleep 0.2') for _ in range(20)]
    called = []

    def get_weather(city):
        called.append(city)

    with runbell.Waiter(stage.client, tools=[get_weather]) as waiter:
        ended = waiter.wait_all(runs, timeout=90)
    assert {run.status for run in ended} == {"completed"}
    assert [run.id for run in ended] == [run.id for run in runs]
    assert called == ["Oslo"] * 20


def test_retry_after_binds(stage):
    stage.front.do(refuse(429, retry_after=1.0))
    records = []
    run = stage.run("hello")
    with runbell.Waiter(stage.client, hooks=[records.append]) as waiter:
        began = time.monotonic()
        waiter.wait(run, timeout=60)
    assert time.monotonic() - began >= 1.0
    (retried,) = [each for each in records if isinstance(each, Retried)]
    assert retried.delay >= 1.0
    assert isinstance(retried.error, openai.RateLimitError)


def test_a_retry_after_beyond_the_deadline_is_a_timeout_with_its_reason(stage):
    stage.front.rule(lambda request: refuse(429, retry_after=60))
    with runbell.Waiter(stage.client) as waiter, pytest.raises(runbell.WaitTimeout) as caught:
        waiter.wait(stage.run("sleep 60"), timeout=20)
    assert isinstance(caught.value.__cause__, openai.RateLimitError)
    assert len(stage.front.seen) == 1


def test_too_many_failures_raise_the_last(stage):
    stage.front.rule(lambda request: refuse(500))
    run = stage.run("sleep 60")
    with runbell.Waiter(stage.client) as waiter, pytest.raises(openai.APIError) as caught:
        waiter.wait(run, max_errors=2)
    assert isinstance(caught.value, openai.InternalServerError)
    notes = "\n".join(caught.value.__notes__)
    assert "2 requests in a row failed" in notes
    assert run.id in notes
    assert len(stage.front.seen) == 2


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
    ],
)
def test_what_trying_again_does_not_mend_is_raised_at_once(stage, status, error, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-exported-after-the-client-was-made")
    stage.front.rule(lambda request: refuse(status))
    run = stage.run("hello")
    with runbell.Waiter(stage.client) as waiter, pytest.raises(error) as caught:
        waiter.wait(run)
    notes = "\n".join(caught.value.__notes__)
    assert run.id in notes
    assert run.thread_id in notes
    assert stage.front.base_url in notes
    assert stage.client.api_key not in notes
    assert len(stage.front.seen) == 1
    if status != 400:
        assert masked(stage.client.api_key) in notes
        assert "a client reads the variable once, when it is made" in notes
        assert "exported or changed after that, make a new client" in notes


def test_the_key_note_knows_where_a_key_came_from():
    client = openai.OpenAI(api_key="sk-0123456789abcdef", base_url="http://127.0.0.1:9")
    key = client.api_key
    assert "is the one in OPENAI_API_KEY now" in key_note(key, client, {"OPENAI_API_KEY": key})
    assert "OPENAI_API_KEY is not set" in key_note(key, client, {})
    other = key_note(key, client, {"OPENAI_API_KEY": "sk-another-key-altogether"})
    assert "not the one in OPENAI_API_KEY now (sk-an***er)" in other
    for note in (other, key_note(key, client, {})):
        assert key not in note
    assert masked("short") == "***"


def test_a_stale_required_action_is_not_answered_twice(stage):
    """After the outputs were taken, replicas that are behind still ask for them."""
    calls = []
    run = stage.run('call get_weather {"city": "Oslo"}\nsleep 0.5')

    def rule(request):
        submitted = any("submit_tool_outputs" in each.path for each in stage.front.seen)
        late = len(stage.front.looks) < 6
        return stale("requires_action") if submitted and late else None

    stage.front.rule(rule)

    def get_weather(city):
        calls.append(city)

    with runbell.Waiter(stage.client, policy=QUICK, tools=[get_weather]) as waiter:
        ended = waiter.wait(run, timeout=60)
    assert ended.status == "completed"
    assert calls == ["Oslo"]
    assert len(stage.front.looks) >= 6
    submits = [each for each in stage.front.seen if "submit_tool_outputs" in each.path]
    assert len(submits) == 1


def test_outputs_whose_acknowledgement_was_lost_are_not_lost(stage):
    calls = []
    run = stage.run('call get_weather {"city": "Oslo"}')

    def get_weather(city):
        calls.append(city)
        return "rain"

    def rule(request):
        first = not any("submit_tool_outputs" in each.path for each in stage.front.seen)
        return lost() if first and "submit_tool_outputs" in request.path else None

    stage.front.rule(rule)
    with runbell.Waiter(stage.client, policy=QUICK, tools=[get_weather]) as waiter:
        ended = waiter.wait(run, timeout=60)
    assert ended.status == "completed"
    assert calls == ["Oslo"]
    assert stage.text(ended) == "rain"


def test_outputs_that_somebody_else_handed_in_are_looked_past(stage):
    run = stage.run('call get_weather {"city": "Oslo"}')

    def get_weather(city):
        seen = stage.direct.beta.threads.runs.retrieve(run.id, thread_id=run.thread_id)
        (call,) = seen.required_action.submit_tool_outputs.tool_calls
        stage.direct.beta.threads.runs.submit_tool_outputs(
            run.id,
            thread_id=run.thread_id,
            tool_outputs=[{"tool_call_id": call.id, "output": "theirs"}],
        )
        return "ours"

    with runbell.Waiter(stage.client, policy=QUICK, tools=[get_weather]) as waiter:
        ended = waiter.wait(run, timeout=60)
    assert ended.status == "completed"
    assert stage.text(ended) == "theirs"
