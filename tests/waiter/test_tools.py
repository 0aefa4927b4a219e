"""Functions that the model calls: which fit, what they get, what becomes of what they give."""

from __future__ import annotations

import asyncio
import contextvars
import dataclasses
import json
import subprocess
import sys
import threading
import time

import pytest

import runbell
from runbell.client.records import ExpiryNear, Submitted, ToolCalled
from runbell.client.schema import problems
from runbell.client.tools import BadArguments, check, output_of, toolbox
from runbell.pacing import Fixed

QUICK = Fixed(0.05)
CALL = 'call get_weather {"city": "Oslo"}'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer", "maximum": 7}},
    "required": ["city"],
    "additionalProperties": False,
}


def get_weather(city):
    return {"city": city, "sky": "grå"}


# What fits.


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda city: None, "has 'days', which the function does not take"),
        (lambda city, days, unit: None, "the function needs 'unit', which the model's tool has"),
    ],
)
def test_a_function_has_to_fit_what_the_model_sees(function, complaint):
    with pytest.raises(runbell.ToolMismatch, match=complaint):
        check(toolbox({"f": function}), {"f": SCHEMA})


@pytest.mark.parametrize(
    "function",
    [
        lambda city, days=1: None,
        lambda **arguments: None,
        lambda city, *, days=1, unit="C": None,
    ],
)
def test_a_function_that_fits_is_taken(function):
    assert check(toolbox({"f": function}), {"f": SCHEMA, "g": {}})["f"].schema == SCHEMA


def test_functions_need_names_and_each_its_own():
    with pytest.raises(runbell.ToolMismatch, match="has no name"):
        toolbox([lambda: None])
    with pytest.raises(runbell.ToolMismatch, match="two tools are called get_weather"):
        toolbox([get_weather, get_weather])
    with pytest.raises(runbell.ToolMismatch, match="is no function but str"):
        toolbox({"f": "get_weather"})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "not a JSON object"),
        ("{}", "city is missing"),
        ('{"city": 1}', "city should be string, not integer"),
        ('{"city": "Oslo", "days": 8}', "days is beyond its maximum, 7"),
        ('{"city": "Oslo", "days": true}', "days should be integer, not boolean"),
        ('{"city": "Oslo", "wind": 1}', "wind is not known"),
    ],
)
def test_arguments_are_checked(text, complaint):
    tool = check(toolbox({"f": lambda city, days=1: None}), {"f": SCHEMA})["f"]
    with pytest.raises(BadArguments, match=complaint):
        tool.arguments(text)


def test_the_schema_checker_knows_what_tools_use():
    schema = {
        "type": "object",
        "properties": {
            "a": {"enum": [1, 2]},
            "b": {"type": ["string", "null"]},
            "c": {"type": "array", "items": {"type": "number", "exclusiveMinimum": 0}},
            "d": {"anyOf": [{"type": "string"}, {"const": 3}]},
        },
        "additionalProperties": {"type": "boolean"},
    }
    good = {"a": 1, "b": None, "c": [1, 0.5], "d": 3, "e": True}
    assert list(problems(good, schema)) == []
    for name, wrong in {"a": 3, "b": 1, "c": [0], "d": 4, "e": 1}.items():
        assert len(list(problems({**good, name: wrong}, schema))) == 1, name


def test_results_become_text():
    @dataclasses.dataclass
    class Point:
        x: int

    assert output_of("as it is") == "as it is"
    assert json.loads(output_of({"a": [Point(1), {2}, None]})) == {"a": [{"x": 1}, [2], None]}
    assert output_of({"sky": "grå"}) == '{"sky": "grå"}'
    with pytest.raises(TypeError):
        output_of(object())


# What is done with them.


def test_calls_are_made_together_and_submitted_together(stage):
    meeting = threading.Barrier(2, timeout=10)
    records = []

    def meet(city="nobody", **rest):
        meeting.wait()
        return city

    run = stage.run(f"{CALL}\ncall look-up {{}}")
    tools = {"get_weather": meet, "look-up": meet}
    with runbell.Waiter(stage.client, policy=QUICK, hooks=[records.append]) as waiter:
        ended = waiter.wait(run, tools=tools, timeout=60)
    assert stage.text(ended) == "Oslo\nnobody"
    assert len([each for each in records if isinstance(each, ToolCalled)]) == 2
    (submitted,) = [each for each in records if isinstance(each, Submitted)]
    assert len(submitted.call_ids) == 2
    assert len([each for each in stage.front.seen if each.method == "POST"]) == 1


def test_asynchronous_functions_run_on_the_loop_of_whoever_waits(stage):
    who = contextvars.ContextVar("who")

    async def story():
        loop = asyncio.get_running_loop()

        async def get_weather(city):
            assert asyncio.get_running_loop() is loop
            return who.get()

        def look_up():
            return who.get()

        tools = {"get_weather": get_weather, "look-up": look_up}
        async with stage.async_client() as client, runbell.AsyncWaiter(client) as waiter:
            who.set("the caller")
            run = stage.run(f"{CALL}\ncall look-up {{}}")
            return await waiter.wait(run, tools=tools, policy=QUICK, timeout=60)

    assert stage.text(asyncio.run(story())) == "the caller\nthe caller"


def test_asynchronous_functions_serve_a_synchronous_waiter_too(stage):
    async def get_weather(city):
        await asyncio.sleep(0)
        return city

    with runbell.Waiter(stage.client, policy=QUICK) as waiter:
        assert stage.text(waiter.wait(stage.run(CALL), tools=[get_weather])) == "Oslo"


def test_a_function_that_raises_tells_the_model(stage):
    def get_weather(city):
        raise ValueError("no such city")

    records = []
    with runbell.Waiter(stage.client, policy=QUICK, hooks=[records.append]) as waiter:
        ended = waiter.wait(stage.run(CALL), tools=[get_weather], timeout=60)
    assert json.loads(stage.text(ended)) == {"error": "ValueError: no such city"}
    assert [e.error for e in records if isinstance(e, ToolCalled)] == ["ValueError: no such city"]


def test_or_it_raises_by_choice_and_can_be_called_again(stage):
    answers = iter([ValueError("not yet"), "rain"])

    def get_weather(city):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    run = stage.run(CALL)
    options = {"tools": [get_weather], "on_tool_error": "raise", "timeout": 30}
    with runbell.Waiter(stage.client, policy=QUICK, **options) as waiter:
        with pytest.raises(ValueError, match="not yet"):
            waiter.wait(run)
        assert stage.text(waiter.wait(run)) == "rain"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_function_has_a_time_limit(stage, asynchronous):
    def blocks(city):
        time.sleep(30)

    async def sleeps(city):
        await asyncio.sleep(30)

    options = {
        "tools": {"get_weather": sleeps if asynchronous else blocks},
        "tool_timeout": 0.2,
        "policy": QUICK,
        "timeout": 30,
    }
    with runbell.Waiter(stage.client, **options) as waiter:
        ended = waiter.wait(stage.run(CALL))
    assert json.loads(stage.text(ended)) == {"error": "it took longer than 0.2 s"}

    async def story():
        async with stage.async_client() as client, runbell.AsyncWaiter(client, **options) as waiter:
            return await waiter.wait(stage.run(CALL))

    assert json.loads(stage.text(asyncio.run(story()))) == {"error": "it took longer than 0.2 s"}


def test_a_function_that_is_too_slow_for_the_run_is_warned_about_and_given_up(stage, caplog):
    records = []

    def get_weather(city):
        time.sleep(30)

    run = stage.run(CALL, extra_body={"expires_after": 4})
    with runbell.Waiter(stage.client, policy=QUICK, hooks=[records.append]) as waiter:
        ended = waiter.wait(run, tools=[get_weather])
    assert ended.status == "completed"
    assert "not finished before the run expires" in stage.text(ended)
    (near,) = [each for each in records if isinstance(each, ExpiryNear)]
    assert near.seconds < 5
    assert "expires in" in caplog.text


def test_nobody_to_call_is_said_at_once(stage):
    run = stage.run(f"{CALL}\ncall look-up {{}}")
    called = []
    with runbell.Waiter(stage.client, policy=QUICK) as waiter:
        with pytest.raises(runbell.ActionRequired, match=r"get_weather .call_.*look-up") as caught:
            waiter.wait(run)
        with pytest.raises(runbell.ActionRequired) as partly:
            waiter.wait(run, tools={"get_weather": lambda city: called.append(city)})
    assert [(c.name, c.arguments) for c in caught.value.calls] == [
        ("get_weather", '{"city": "Oslo"}'),
        ("look-up", "{}"),
    ]
    assert [call.name for call in partly.value.calls] == ["look-up"]
    assert not called


def test_a_mismatch_is_said_before_anything_is_asked(stage):
    run = stage.run(CALL)
    with runbell.Waiter(stage.client) as waiter, pytest.raises(runbell.ToolMismatch):
        waiter.wait(run, tools={"get_weather": lambda town: None})
    assert not stage.front.seen


def test_a_wait_that_begins_again_does_not_call_again(stage):
    calls = []

    def get_weather(city):
        calls.append(city)
        time.sleep(0.6)
        return "rain"

    run = stage.run(CALL)
    with runbell.Waiter(stage.client, policy=QUICK, tools=[get_weather]) as waiter:
        with pytest.raises(runbell.WaitTimeout):
            waiter.wait(run, timeout=0.3)
        assert stage.text(waiter.wait(run, timeout=60)) == "rain"
    assert calls == ["Oslo"]


CRASHES = """
import os, sys, openai, runbell
base_url, key, thread, run, journal, dies = sys.argv[1:]
client = openai.OpenAI(base_url=base_url, api_key=key)

def get_weather(city):
    print("called", flush=True)
    return "rain"

def crash(record):
    if dies == "yes" and type(record).__name__ == "ToolCalled":
        os._exit(9)

with runbell.Waiter(client, journal=journal, hooks=[crash]) as waiter:
    run = waiter.wait(runbell.RunRef(thread, run), tools=[get_weather], timeout=60)
print(run.status)
"""


def test_outputs_survive_a_crash(stage, tmp_path):
    run = stage.run(CALL)
    journal = tmp_path / "waits.db"

    def program(dies):
        words = (stage.front.base_url, stage.client.api_key, run.thread_id, run.id, str(journal))
        command = [sys.executable, "-W", "ignore", "-c", CRASHES, *words, dies]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    first = program("yes")
    assert (first.returncode, first.stdout) == (9, "called\n"), first.stderr
    second = program("no")
    assert second.stdout == "completed\n", second.stderr
    assert stage.text(run) == "rain"


def test_a_journal_that_cannot_be_is_said_at_once(stage, tmp_path):
    with pytest.raises(runbell.RunbellError, match=r"the journal .* can't be used"):
        runbell.Waiter(stage.client, journal=tmp_path / "no" / "waits.db")


@pytest.mark.parametrize(
    ("tools", "complaint"),
    [
        (get_weather, "a list of functions"),
        ("get_weather", "a list of functions"),
        (["get_weather"], "'get_weather' is no function"),
    ],
)
def test_what_is_no_list_of_functions_is_said_to_be_none(tools, complaint):
    with pytest.raises(runbell.ToolMismatch, match=complaint):
        toolbox(tools)
