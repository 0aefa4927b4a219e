"""Many waits: one budget, few calls, and nobody starves."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref

import httpx
import pytest

import runbell
from runbell.client.alarms import Alarms
from runbell.client.simulation import Scripted, Simulation
from runbell.client.view import View
from runbell.clock import VirtualClock
from runbell.pacing import Backoff, FairPacer, Fixed
from runbell.testing.front import refuse
from tests.waiter.mock import answer, async_client, client, fields, run, wants_one_call


def test_all_come_back_in_order(stage):
    runs = [stage.run(f"sleep {number % 3 / 10}\nhello") for number in range(12)]
    runs.append(stage.run("fail server_error Broken."))
    with runbell.Waiter(stage.client) as waiter:
        ended = waiter.wait_all(runs, timeout=60)
        assert [run.id for run in ended] == [run.id for run in runs]
        assert [run.status for run in ended] == ["completed"] * 12 + ["failed"]
        assert waiter.wait_all([]) == []


def test_each_comes_as_it_ends(stage):
    slow, quick = stage.run("sleep 600"), stage.run("hello")
    ended = []

    async def story():
        async with stage.async_client() as client, runbell.AsyncWaiter(client) as waiter:
            async for run in waiter.as_completed([slow, quick], timeout=60):
                ended.append(run.id)
                if run.id == quick.id:
                    await asyncio.to_thread(stage.cancel, slow)

    asyncio.run(story())
    assert ended == [quick.id, slow.id]


def test_the_first_error_is_raised_or_given_back_by_choice(stage):
    runs = [stage.run("call look-up {}"), stage.run("hello")]
    with runbell.Waiter(stage.client) as waiter:
        with pytest.raises(runbell.ActionRequired):
            waiter.wait_all(runs, timeout=60)
        first, second = waiter.wait_all(runs, timeout=30, return_errors=True)
    assert isinstance(first, runbell.ActionRequired)
    assert second.status == "completed"


def test_a_server_that_holds_is_asked_once_or_twice_a_run(stage):
    with runbell.Waiter(stage.client) as waiter:
        # Not over before the first look, on a busy machine neither.
        waiter.wait(stage.run("sleep 3\nhello"))
        assert len(stage.front.looks) == 2
        assert stage.front.looks[0].headers["prefer"] == "wait=0"
        for _ in range(3):
            waiter.wait(stage.run("sleep 0.3\nhello"))
    assert len(stage.front.looks) == 5
    hold = stage.front.looks[-1].headers["prefer"]
    assert hold.startswith("wait=")
    # The client's own time limit is ten minutes; a proxy's is mostly one.
    assert 40 <= int(hold.removeprefix("wait=")) < 60


def test_a_hold_is_shorter_than_the_clients_own_limit(stage):
    client = stage.client.with_options(timeout=8)
    with runbell.Waiter(client) as waiter:
        waiter.wait(stage.run("sleep 2\nhello"))
    assert stage.front.looks[-1].headers["prefer"] == "wait=3"


def test_many_runs_are_asked_about_together(stage):
    runs = [stage.run(f"sleep {number / 40}\nhello") for number in range(60)]
    with runbell.Waiter(stage.client, hold=False, policy=Backoff()) as waiter:
        ended = waiter.wait_all(runs, timeout=60)
    together = len(stage.front.seen)
    assert {run.status for run in ended} == {"completed"}
    one_by_one = [look.path for look in stage.front.looks if "/v1/runs?ids=" not in look.path]
    # One that happens to be due alone is asked about alone, such as the last, until it ends.
    assert len(set(one_by_one)) <= 2, one_by_one
    # What the same runs cost one by one, with the same policy.
    histories = {str(n): [(0.0, "queued"), (n / 40, "completed")] for n in range(60)}
    alone = Scripted(histories, latency=0.01)
    simulation = Simulation(alone)
    simulation.begin(0.0, histories, policy=Backoff())
    simulation.run()
    assert together * 20 <= len(alone.requests), (together, len(alone.requests))


def test_a_server_without_batches_is_asked_one_by_one(stage):
    stage.front.rule(lambda r: refuse(404) if r.path.endswith("/v1/runs") else None)
    runs = [stage.run("sleep 0.2\nhello") for _ in range(55)]
    with runbell.Waiter(stage.client) as waiter:
        ended = waiter.wait_all(runs, timeout=60)
    assert {run.status for run in ended} == {"completed"}
    assert len([look for look in stage.front.looks if "ids=" in look.path]) == 1


def test_runs_that_share_a_thread_are_listed_where_there_are_no_batches(stage):
    stage.front.rule(lambda r: refuse(404) if r.path.endswith("/v1/runs") else None)
    first = stage.run("sleep 0.5\nhello")
    queue = {"on_active_run": "enqueue"}
    runs = [first]
    runs += [stage.run("", thread=first.thread_id, extra_body=queue) for _ in range(4)]
    runs += [stage.run("hello") for _ in range(50)]
    with runbell.Waiter(stage.client, policy=Fixed(0.2)) as waiter:
        ended = waiter.wait_all(runs, timeout=60)
    assert {run.status for run in ended} == {"completed"}
    lists = [x for x in stage.front.looks if x.path.startswith(f"/v1/threads/{first.thread_id}/ru")]
    assert any("limit=100" in look.path for look in lists)


def test_a_run_that_is_missing_raises_what_the_server_says(stage):
    ghost = runbell.RunRef("thread_x", "run_ghost")
    runs = [*(stage.run("hello") for _ in range(52)), ghost]
    with runbell.Waiter(stage.client) as waiter:
        *ended, error = waiter.wait_all(runs, timeout=60, return_errors=True)
    assert {run.status for run in ended} == {"completed"}
    assert error.status_code == 404


class Thing:
    """What somebody's own server makes."""

    def __init__(self, name, status="queued"):
        self.id, self.status = name, status


class Things:
    """All that are asked about have ended, but one."""

    def __init__(self):
        self.alive = weakref.WeakSet()

    def owns(self, item):
        return isinstance(item, Thing)

    def view(self, item):
        return View(item.id, item.status, "completed" if item.status == "done" else "pending")

    def retrieve(self, client, item, **options):
        answered = Thing(item.id, "queued" if item.id == "long" else "done")
        self.alive.add(answered)
        return answered


def test_who_has_ended_is_forgotten_while_others_wait():
    """They had a day left, each; one who waits for something else must not keep them."""
    things = Things()

    async def story():
        async with runbell.AsyncWaiter(object(), providers=[things], policy=Fixed(0.01)) as waiter:
            waiting = asyncio.create_task(waiter.wait(Thing("long"), policy=Fixed(3600)))
            for batch in range(5):
                await waiter.wait_all([Thing(f"{batch} {n}") for n in range(60)])
            gc.collect()
            alive = len(things.alive)
            waiting.cancel()
            return alive

    # The one that is left, and answers of the last turn.
    assert asyncio.run(story()) < 100


def test_who_used_tools_and_has_ended_is_forgotten_too():
    options = {"tools": {"f": lambda: "sunny"}, "policy": Fixed(0.01)}
    with runbell.Waiter(client(wants_one_call), **options) as waiter:
        assert waiter.wait(run()).status == "completed"
        assert not waiter._driver._fleet._calls._acting


class Sleeper:
    alarm = None


def test_an_alarm_is_the_nearest_that_was_set_and_what_is_cancelled_goes():
    alarms, sleepers = Alarms(), [Sleeper() for _ in range(1000)]
    for place, sleeper in enumerate(sleepers):
        for at in (5000.0, float(place), 9000.0, float("inf")):
            alarms.set(sleeper, at)
    assert alarms.due(-1.0) is None
    assert [alarms.due(2.0) for _ in range(4)] == [*sleepers[:3], None]
    for sleeper in sleepers[:-1]:
        alarms.cancel(sleeper)
        alarms.cancel(sleeper)
        assert len(alarms._heap) <= 2 * len(alarms)
    assert (len(alarms), alarms.next_at()) == (1, 999.0)
    alarms.cancel(sleepers[-1])
    assert (len(alarms), alarms.next_at(), alarms.due(1e9)) == (0, None, None)


# One budget, in virtual time.


def fleet(runs, per_minute, seconds=(5, 60)):
    rng = random.Random(3)
    histories = {f"r{n}": [(0.0, "queued"), (rng.uniform(*seconds), "completed")] for n in runs}
    world = Scripted(histories)
    simulation = Simulation(world, FairPacer(per_minute))
    simulation.begin(0.0, histories, timeout=3600.0)
    return world, simulation.run()


def test_a_budget_is_kept_in_every_minute():
    world, endings = fleet(range(1000), 500)
    sent = [at for at, _ in world.requests]
    for place, at in enumerate(sent[:-500]):
        assert sent[place + 500] - at >= 60 - 1e-6
    assert len(endings) == 1000
    assert all(ending.error is None for ending in endings)


def test_nobody_starves():
    _, endings = fleet(range(1000), 500)
    polls = [ending.polls for ending in endings]
    assert min(polls) >= 1
    assert max(ending.waited for ending in endings) < 60 + 2 * 1000 / 500 * 60


def test_a_pause_that_a_server_asks_for_is_everybodys():
    pacer = FairPacer()
    pacer.want("a", 1.0)
    pacer.want("b", 2.0)
    pacer.pause(5.0)
    assert pacer.next_at() == 5.0
    assert pacer.take(4.9) is None
    assert [pacer.take(5.0), pacer.take(5.0), pacer.take(5.0)] == ["a", "b", None]


def test_what_is_urgent_comes_first_once_it_is_due():
    pacer = FairPacer(60)
    for name in "abc":
        pacer.want(name, 0.0)
    pacer.want("submit", 1.5, urgent=True)
    granted = [pacer.take(tenth / 10) for tenth in range(60)]
    assert [name for name in granted if name is not None] == ["a", "b", "submit", "c"]


def test_who_wants_anew_or_nothing_is_not_asked_about_twice():
    pacer = FairPacer()
    for at in range(200):
        pacer.want("a", float(at))
    pacer.want("b", 1.0)
    pacer.forget("b")
    assert pacer.along(10, 1000.0) == ["a"]
    assert pacer.next_at() is None
    with pytest.raises(ValueError, match="at least 1"):
        FairPacer(0.5)


def test_one_budget_is_shared_by_all_waits_of_a_waiter():
    """Ten waits that each want a look a second, of runs that have to be asked about one by one."""
    clock, sent = VirtualClock(), []

    def serve(request):
        sent.append(clock.monotonic())
        if request.url.path == "/v1/runs":
            return httpx.Response(404, json={"error": {"message": "Invalid URL."}})
        name = request.url.path.rpartition("/")[2]
        ended = clock.monotonic() >= 90
        return answer(fields("completed" if ended else "in_progress", name, thread_id=name))

    async def story():
        options = {"calls_per_minute": 60, "clock": clock, "policy": Fixed(1), "timeout": 3600}
        async with runbell.AsyncWaiter(async_client(serve), **options) as waiter:
            runs = [run("queued", f"run_{n}", thread_id=f"run_{n}") for n in range(10)]
            waits = asyncio.gather(*(waiter.wait(each) for each in runs))
            while not waits.done():
                quiet = 0
                while quiet < 10:  # time stands still while a request is under way
                    await asyncio.sleep(0)
                    quiet = 0 if waiter._driver._deeds else quiet + 1
                clock.advance(clock.next_wake() or 0.0)
            return await waits, waiter._pacer

    ended, pacer = asyncio.run(story())
    assert {each.status for each in ended} == {"completed"}
    assert len(sent) > 80
    assert all(late - early >= 60 - 1e-6 for early, late in zip(sent, sent[60:], strict=False))
    assert pacer.next_at() is None
