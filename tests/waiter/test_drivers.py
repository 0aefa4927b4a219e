"""The same flow under every driver looks at the same moments; events take the place of looks."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import threading
import time

import pytest

import runbell
from runbell.client import threads
from runbell.client.learning import Learning
from runbell.client.mail import Landed
from runbell.client.simulation import Scripted, SimulatedRun, SimulatedRuns, Simulation
from runbell.client.waiter import _Waiter
from runbell.clock import VirtualClock
from runbell.errors import RunError
from runbell.pacing import Advised, Backoff, Fixed, Foresight, SqrtElapsed

LATENCY = 0.125
HISTORIES = {
    "quick": [(0.0, "queued"), (0.01, "completed")],
    "slow": [(0.0, "queued"), (3.0, "in_progress"), (47.5, "failed")],
    "middle": [(0.0, "queued"), (1.0, "in_progress"), (9.9, "incomplete")],
    "late": [(0.0, "queued"), (500.0, "completed")],
}
POLICIES = [Backoff(), Fixed(2), SqrtElapsed(), Advised(), None]


class Histories(SimulatedRuns):
    """Simulated runs for a driver of programs, whose answers say when they were asked for."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.world = Scripted(HISTORIES, latency=LATENCY)
        self.asked = []

    def look(self, item):
        now = self.clock.monotonic()
        self.asked.append((now, item.id))
        return self.world._run(item.id, now + LATENCY / 2)


class Awaited(Histories):
    async def retrieve(self, client, item, **options):
        run = self.look(item)
        await self.clock.sleep(LATENCY)
        return run


class Blocking(Histories):
    def retrieve(self, client, item, **options):
        return self.look(item)


class VirtualMailbox(threads.Mailbox):
    """Moves the clock when nothing else can happen; answers come after the latency."""

    def __init__(self, clock):
        super().__init__(clock)
        self.clock = clock
        self.news = threading.Condition()
        self.flying = 0
        self.landings = []
        self.mail = []

    def begun(self):
        with self.news:
            self.flying += 1

    def put(self, mail):
        with self.news:
            if isinstance(mail, Landed):
                self.flying -= 1
                due = self.clock.monotonic() + LATENCY
                heapq.heappush(self.landings, (due, mail.number, mail))
            elif mail is not None:
                self.mail.append(mail)
            self.news.notify_all()

    def take(self, until):
        with self.news:
            assert self.news.wait_for(lambda: not self.flying, 60)
            mail, self.mail = self.mail, []
            if mail:
                return mail
            moments = [at for at in (until, self.landings and self.landings[0][0]) if at]
            self.clock.advance(max(0.0, min(moments) - self.clock.monotonic()))
            while self.landings and self.landings[0][0] <= self.clock.monotonic():
                mail.append(heapq.heappop(self.landings)[2])
            return mail

    @property
    def is_empty(self):
        return not self.mail and not self.landings and not self.flying


def by_simulation(policy):
    world = Scripted(HISTORIES, latency=LATENCY)
    simulation = Simulation(world, learning=Learning(Foresight()))
    simulation.begin(0.0, HISTORIES, policy=policy, timeout=60.0)
    endings = {ending.item.id: ending.item.status for ending in simulation.run()}
    return sorted(world.requests), endings


def by_threads(policy):
    clock = VirtualClock(start_ms=0)
    provider = Blocking(clock)
    waiter = runbell.Waiter(object(), clock=clock, providers=[provider])
    box = waiter._driver._box = VirtualMailbox(clock)
    begin = waiter._driver._begin
    waiter._driver._begin = lambda order: (box.begun(), begin(order))
    runs = [SimulatedRun(name) for name in HISTORIES]
    ended = waiter.wait_all(runs, policy=policy, timeout=60.0, return_errors=True)
    return sorted(provider.asked), statuses(ended)


def by_tasks(policy):
    clock = VirtualClock(start_ms=0)
    provider = Awaited(clock)

    async def story():
        async with runbell.AsyncWaiter(object(), clock=clock, providers=[provider]) as waiter:
            runs = [SimulatedRun(name) for name in HISTORIES]
            waits = asyncio.create_task(
                waiter.wait_all(runs, policy=policy, timeout=60.0, return_errors=True)
            )
            while not waits.done():
                for _ in range(20):
                    await asyncio.sleep(0)
                if (wake := clock.next_wake()) is not None:
                    clock.advance(wake)
            return await waits

    ended = asyncio.run(story())
    return sorted(provider.asked), statuses(ended)


def statuses(ended):
    runs = [each.run if isinstance(each, RunError) else each for each in ended]
    return {run.id: run.status for run in runs}


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: repr(policy or "the default"))
def test_three_drivers_look_at_the_same_moments(policy):
    looks, endings = by_simulation(policy)
    assert len(looks) > 10
    assert endings["slow"] == "failed"
    assert endings["late"] == "queued"
    for drive in (by_threads, by_tasks):
        other, ended = drive(policy)
        assert ended == endings
        assert [name for _, name in other] == [name for _, name in looks]
        assert [at for at, _ in other] == pytest.approx([at for at, _ in looks])


def test_both_waiters_offer_the_same():
    def offered(kind):
        return {name for name in vars(kind) if not name.startswith("_")} - {"aclose", "close"}

    assert offered(runbell.AsyncWaiter) == offered(runbell.Waiter)
    assert issubclass(runbell.Waiter, _Waiter)


# Events.


class Bell:
    """An event source whose events a test makes from the runs of the service."""

    def __init__(self):
        self.subscribed = {}

    def subscribe(self, run_id, deliver):
        self.subscribed[run_id] = deliver

    def unsubscribe(self, run_id, deliver):
        self.subscribed.pop(run_id, None)

    def ring(self, run, **changes):
        data = {**run.to_dict(), **changes}
        event = {"type": f"thread.run.{data['status']}", "data": data}
        self.subscribed[run.id](event)


def subscribed(bell, run):
    limit = time.monotonic() + 60
    while run.id not in bell.subscribed:
        assert time.monotonic() < limit
        time.sleep(0.01)


def settled(stage, run, status):
    return stage.served.client().beta.threads.runs.poll(run.id, thread_id=run.thread_id)


@contextlib.contextmanager
def meanwhile(work):
    worker = threading.Thread(target=work)
    worker.start()
    yield
    worker.join(60)
    assert not worker.is_alive()


def test_an_event_ends_a_wait_without_a_call(stage):
    bell, run = Bell(), stage.run("hello")

    def ring():
        subscribed(bell, run)
        bell.ring(run, status="in_progress")
        bell.ring(settled(stage, run, "completed"))

    with runbell.Waiter(stage.client, events=bell) as waiter, meanwhile(ring):
        ended = waiter.wait(run, timeout=60)
    assert (ended.status, ended.usage.completion_tokens) == ("completed", 1)
    assert not stage.front.seen
    assert not bell.subscribed


def test_tools_start_from_an_event(stage):
    bell, run = Bell(), stage.run('call get_weather {"city": "Oslo"}')
    tools = {"get_weather": lambda city: city}

    async def story():
        client = stage.async_client()
        async with client, runbell.AsyncWaiter(client, events=bell, tools=tools) as waiter:
            waiting = asyncio.create_task(waiter.wait(run, timeout=60))
            await asyncio.sleep(0)
            await asyncio.sleep(0.05)
            asks = await asyncio.to_thread(settled, stage, run, "requires_action")
            bell.ring(asks)
            bell.ring(asks)
            while not stage.front.seen:
                await asyncio.sleep(0.01)
            ended = await asyncio.to_thread(settled, stage, run, "completed")
            bell.ring(asks)
            bell.ring(ended)
            return await waiting

    assert asyncio.run(story()).status == "completed"
    assert [each.method for each in stage.front.seen] == ["POST"]


def test_a_truncated_event_is_one_look_and_a_lost_one_costs_time_only(stage):
    bell, run = Bell(), stage.run("hello")

    def ring():
        subscribed(bell, run)
        bell.ring(settled(stage, run, "completed"), truncated=True)

    with runbell.Waiter(stage.client, events=bell) as waiter, meanwhile(ring):
        assert waiter.wait(run, timeout=60).status == "completed"
    assert len(stage.front.looks) == 1
    lost = stage.run("hello")
    with runbell.Waiter(stage.client, events=Bell(), policy=Fixed(0.2)) as waiter:
        assert waiter.wait(lost, timeout=60).status == "completed"
