"""Whatever functions, hooks and those who close a waiter do: nobody waits for ever."""

from __future__ import annotations

import asyncio
import json
import math
import sys
import threading

import pytest

import runbell
from runbell.client.view import View
from runbell.errors import RunbellError
from runbell.pacing import Fixed
from tests.waiter.mock import (
    LIMIT,
    QUICK,
    Story,
    after,
    answer,
    async_client,
    client,
    ended,
    fields,
    run,
    until,
    wants_one_call,
)


class Job:
    def __init__(self, name):
        self.id = name


class Jobs:
    """Jobs that end when they are looked at, unless they are called `busy`."""

    def owns(self, item):
        return isinstance(item, Job)

    def view(self, item):
        done = item.id.startswith("done")
        return View(item.id, "done" if done else "busy", "completed" if done else "pending")

    def retrieve(self, client, item, **options):
        return item


def jobs(**options):
    return runbell.Waiter(None, providers=[Jobs()], policy=QUICK, **options)


def async_jobs(**options):
    return runbell.AsyncWaiter(None, providers=[Jobs()], policy=QUICK, **options)


# Closing.


def test_a_waiter_that_is_closed_before_its_first_step_ends_its_waits():
    async def story():
        waiter = async_jobs()
        waiting = asyncio.create_task(waiter.wait(Job("busy")))
        await asyncio.sleep(0)
        await waiter.aclose()
        with pytest.raises(RunbellError, match="closed"):
            await asyncio.wait_for(waiting, LIMIT)

    asyncio.run(story())


def test_a_closed_waiter_takes_no_more_waits():
    async def story():
        waiter = async_jobs()
        await waiter.aclose()
        with pytest.raises(RunbellError, match="closed"):
            await waiter.wait(Job("busy"))

    asyncio.run(story())
    waiter = jobs()
    waiter.close()
    with pytest.raises(RunbellError, match="closed"):
        waiter.wait(Job("busy"))


def test_a_wait_that_arrives_while_the_waiter_is_closed_ends():
    in_hook, gate = threading.Event(), threading.Event()

    def hook(record):
        in_hook.set()
        gate.wait(LIMIT)

    waiter = jobs()
    with after(gate):
        first = Story(waiter.wait, Job("busy"), hooks=[hook])
        assert in_hook.wait(LIMIT)
        second = Story(waiter.wait, Job("busy-too"))
        until(lambda: not waiter._driver._box.is_empty)
        closing = Story(waiter.close)
        until(lambda: waiter._driver._closed)
    closing.end()
    for story in (first, second):
        with pytest.raises(RunbellError, match="closed"):
            story.end()


def test_closing_after_a_cancelled_wait_stops_its_tools():
    async def story():
        begun, stopped = asyncio.Event(), []

        async def f():
            begun.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                stopped.append(True)
                raise

        waiter = runbell.AsyncWaiter(async_client(wants_one_call), tools={"f": f}, policy=QUICK)
        waiting = asyncio.create_task(waiter.wait(run()))
        await asyncio.wait_for(begun.wait(), LIMIT)
        waiting.cancel()
        await asyncio.wait_for(waiter.aclose(), LIMIT)
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert stopped
        assert len(asyncio.all_tasks()) == 1  # nothing was begun again

    asyncio.run(story())


# Functions.


def leave():
    sys.exit(3)


def stop():
    raise StopIteration("here")


async def cancelled():
    raise asyncio.CancelledError("not mine")


async def leave_too():
    sys.exit(3)


async def cancel_oneself():
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


@pytest.mark.parametrize("function", [leave, stop, cancelled, leave_too, cancel_oneself])
@pytest.mark.parametrize("limit", [None, 30.0, math.inf])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_whatever_a_function_raises_is_told_to_the_model(function, limit, asynchronous):
    sent = []

    def serve(request):
        if request.method == "POST":
            sent.append(request.read())
        return wants_one_call(request)

    options = {"tools": {"f": function}, "policy": QUICK, "tool_timeout": limit}

    async def story():
        async with runbell.AsyncWaiter(async_client(serve), **options) as waiter:
            return await asyncio.wait_for(waiter.wait(run()), LIMIT)

    if asynchronous:
        found = asyncio.run(story())
    else:
        with runbell.Waiter(client(serve), **options) as waiter:
            found = ended(waiter.wait, run())
    assert found.status == "completed"
    (output,) = sent
    assert b"error" in output


async def runs_out():
    raise TimeoutError("the shop did not answer")


def runs_out_too():
    raise TimeoutError("the shop did not answer")


@pytest.mark.parametrize("function", [runs_out, runs_out_too])
@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_timeout_of_a_function_is_not_that_of_its_limit(function, asynchronous):
    sent = []

    def serve(request):
        if request.method == "POST":
            sent.append(json.loads(request.read())["tool_outputs"][0]["output"])
        return wants_one_call(request)

    options = {"tools": {"f": function}, "policy": QUICK, "tool_timeout": 30.0}

    async def story():
        async with runbell.AsyncWaiter(async_client(serve), **options) as waiter:
            await asyncio.wait_for(waiter.wait(run()), LIMIT)

    if asynchronous:
        asyncio.run(story())
    else:
        with runbell.Waiter(client(serve), **options) as waiter:
            ended(waiter.wait, run())
    assert [json.loads(each) for each in sent] == [
        {"error": "TimeoutError: the shop did not answer"}
    ]


def test_such_an_error_can_be_raised_by_choice():
    options = {"tools": {"f": leave}, "on_tool_error": "raise", "policy": QUICK}
    raised = pytest.raises(RunbellError, match="SystemExit: 3")
    with runbell.Waiter(client(wants_one_call), **options) as waiter, raised as caught:
        ended(waiter.wait, run())
    assert isinstance(caught.value.__cause__, SystemExit)


# Hooks and limits.


def test_a_hook_that_waits_is_told_that_it_cannot():
    errors = []

    def hook(record):
        try:
            waiter.wait(Job("busy"))
        except RunbellError as error:
            errors.append(str(error))

    with jobs() as waiter, pytest.raises(runbell.WaitTimeout):
        ended(waiter.wait, Job("busy"), hooks=[hook], timeout=1.0)
    assert "a hook must not wait" in errors[0]


@pytest.mark.parametrize("timeout", [math.inf, 1e300])
def test_a_timeout_can_be_without_an_end(timeout):
    looks = []

    def serve(request):
        looks.append(request)
        found = answer(fields("in_progress" if len(looks) < 3 else "completed"))
        found.headers["preference-applied"] = request.headers.get("prefer", "")
        return found

    with runbell.Waiter(client(serve), policy=Fixed(0.1)) as waiter:
        assert ended(waiter.wait, run(), timeout=timeout).status == "completed"
