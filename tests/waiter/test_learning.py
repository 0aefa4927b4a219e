"""The default policy learns: what is seen of runs, what is made of it, and where it is kept."""

from __future__ import annotations

import json
import random
import sqlite3
import time
from contextlib import closing
from dataclasses import replace

import httpx
import openai
import pytest
from openai.types.beta.threads import Run

import runbell
from runbell.client.fleet import Fleet
from runbell.client.flow import waiting
from runbell.client.journal import Journal
from runbell.client.learning import FEW, Learned, Learning, Seen, stretch_of
from runbell.client.mail import Join, Landed
from runbell.client.providers import Responses, Runs
from runbell.client.quota import Quota
from runbell.client.server import Server
from runbell.client.simulation import Scripted, SimulatedRun, SimulatedRuns, Simulation
from runbell.client.view import Answer, View
from runbell.client.wait import Terms, Wait
from runbell.clock import VirtualClock
from runbell.errors import ConfigurationError
from runbell.pacing import FairPacer, Fixed, Foresight, WorthPacer
from tests.waiter.mock import QUICK, asking, client, ended, fields, run

DONE = View("r", "completed", "completed")


def simulated(histories, learning, per_minute=None, **terms):
    """Runs of one kind that begin a while apart: calls a run, and delays."""
    world = Scripted(histories)
    pacer = FairPacer() if per_minute is None else WorthPacer(per_minute)
    simulation = Simulation(world, pacer, learning=learning)
    for name, history in histories.items():
        made = SimulatedRun(name, created_at=history[0][0], kind=("a", "m", ()))
        simulation.begin(history[0][0], [made], timeout=600.0, **terms)
    endings = {ending.item.id: ending for ending in simulation.run()}
    delays = [endings[name].at - history[-1][0] for name, history in histories.items()]
    return len(world.requests) / len(histories), sum(delays) / len(delays)


def histories(count, *, queued=0.0, apart=200.0):
    rng = random.Random(7)
    return {
        f"r{n}": [
            (n * apart, "queued"),
            (n * apart + queued, "in_progress"),
            (n * apart + queued + rng.uniform(18, 22), "completed"),
        ]
        for n in range(count)
    }


@pytest.mark.parametrize("queued", [0.0, 10.0])
def test_it_learns_from_what_it_sees(queued):
    learning = Learning(Foresight())
    cold, cold_delay = simulated(histories(1, queued=queued), Learning(Foresight()))
    simulated(histories(20, queued=queued), learning)
    taught, delay = simulated(histories(20, queued=queued), learning)
    assert learning.foresight.runs(("a", "m", ())) == 40
    assert taught < 0.8 * cold
    assert delay < 1.0
    assert delay < cold_delay
    assert learning.foresight.survival(("a", "m", ()), 17.0) > 0.9  # of the run, not of the queue
    assert learning.foresight.survival(("a", "m", ()), 23.5) < 0.1


def test_what_is_seen_with_another_policy_is_learned_too():
    learning = Learning(Foresight())
    simulated(histories(10), learning, policy=Fixed(1.0))
    assert learning.foresight.survival(("a", "m", ()), 16.0) > 0.9


def test_a_wait_that_gives_up_learns_that_it_takes_longer():
    learning = Learning(Foresight())
    seen = []
    learning.foresight.observe = lambda *given, **more: seen.append((given, more))
    simulated({"r": [(0.0, "queued"), (0.0, "in_progress"), (5000.0, "completed")]}, learning)
    (((_, seconds), more),) = seen
    assert more["ended"] is False
    assert 400 < seconds < 600


@pytest.mark.parametrize(
    ("seen", "view", "queue", "ran"),
    [
        # Never seen waiting: it started at once. Between two looks it ended.
        (Seen(0.0, None, 1.0, 4.0, 6.0, True), DONE, None, (4.0, 6.0)),
        # Seen waiting until 2, going on from 4: it started at 3, by what was seen.
        (Seen(0.0, 2.0, 4.0, 8.0, 9.0, True), DONE, (2.0, 4.0), (5.0, 6.0)),
        # The wait began when it was 10 s old.
        (Seen(10.0, None, 0.1, 1.0, 2.0, True), DONE, None, (11.0, 12.0)),
        # One look, and stamps of whole seconds: 3 s of queue, 5 of running.
        (
            Seen(0.0, None, None, 0.0, 60.0, True),
            View("r", "failed", "ended", created_at=100, started_at=103, ended_at=108),
            (2.0, 4.0),
            (4.0, 6.0),
        ),
        # After outputs were submitted the stamps are about another part.
        (
            Seen(0.0, None, 1.0, 1.0, 2.0, False),
            View("r", "completed", "completed", created_at=100, started_at=103, ended_at=180),
            None,
            (1.0, 2.0),
        ),
        # Somebody cancelled it, or nobody looks any more.
        (
            Seen(0.0, None, 1.0, 7.0, 9.0, True),
            View("r", "cancelled", "ended"),
            None,
            (7.0, None),
        ),
        (Seen(0.0, None, 1.0, 7.0, None, True), View("r", "x", "pending"), None, (7.0, None)),
    ],
)
def test_what_is_seen_bounds_what_it_took(seen, view, queue, ran):
    assert stretch_of(seen, view) == (queue, ran)


def test_what_says_nothing_is_not_learned():
    nothing = Seen(None, None, None, 0.0, 3.0, True)
    assert stretch_of(nothing, DONE) is None
    assert stretch_of(nothing._replace(age=0.0, over=None), View("r", "x", "pending")) is None


def test_it_is_kept_in_the_journal(tmp_path):
    path, kind = tmp_path / "waits.db", ("asst_1", "m", ())

    def serve(request):
        return httpx.Response(200, json=fields("completed", request.url.path.rpartition("/")[2]))

    with runbell.Waiter(client(serve), journal=path, policy=QUICK) as waiter:
        for number in range(3):
            ended(waiter.wait, run("queued", f"run_{number}"), timeout=60)
    with Journal(path) as journal:
        rows = journal._all("select key, queue_seconds, run_seconds, ended from durations")
    assert [(json.loads(row[0]), row[1], row[3]) for row in rows] == [
        (["asst_1", "m", []], None, 1)
    ] * 3
    assert all(0 <= row[2] < 10 for row in rows)
    with runbell.Waiter(client(serve), journal=path) as again:
        assert again._learning.foresight.runs(kind) == 3


def test_each_part_of_a_run_is_a_stretch_and_its_stamps_are_of_the_first():
    both = (("call_1", "f"), ("call_2", "f"))
    now = int(time.time())
    done = fields("completed", started_at=now - 500, completed_at=now)
    looks = iter([asking(), asking(), asking(calls=both), asking(calls=both), done])
    message = "Expected tool outputs for call_ids ['call_1', 'call_2'], got ['call_1']"
    posts = iter(
        [
            httpx.Response(400, json={"error": {"message": message}}),
            httpx.Response(200, json=fields("queued")),
        ]
    )

    def serve(request):
        return next(posts) if request.method == "POST" else httpx.Response(200, json=next(looks))

    told = []
    with runbell.Waiter(client(serve), tools={"f": lambda: "x"}, policy=QUICK) as waiter:
        waiter._learning.observe = lambda kind, seen, view, now: told.append((seen, view))
        ended(waiter.wait, run(), timeout=60)
    # Until it wanted outputs, and from the submission to the end.
    assert [view.status for _, view in told] == ["requires_action", "completed"]
    assert all(stretch_of(*each)[1][1] < 20 for each in told)


# What it asks first.


def test_a_run_that_may_be_old_is_looked_at_first():
    learned = Learned(Foresight())
    assert learned.next_delay(0.0, 0) == 0.0
    learned.know(("a",), 0.0)
    assert learned.next_delay(0.0, 0) > 0.1  # a look at once would be in vain


def test_advice_counts_where_little_is_known():
    foresight = Foresight()
    learned = Learned(foresight)
    learned.know(("a",), 0.0)
    learned.saw(SimulatedRun("r", "in_progress"), 7.0)
    assert learned.next_delay(1.0, 1) == 7.0
    for _ in range(FEW):
        foresight.observe(("a",), 1.2)
    learned = Learned(foresight)
    learned.know(("a",), 0.0)
    learned.saw(SimulatedRun("r", "in_progress"), 7.0)
    assert learned.next_delay(1.0, 1) < 2.0


def test_a_kind_is_assistant_model_and_tools():
    tools = [{"type": "function", "function": {"name": name}} for name in "ba"]
    made = Run.model_validate(
        fields("queued", tools=[*tools, {"type": "file_search"}])
        | {"parallel_tool_calls": True, "response_format": "auto", "tool_choice": "auto"}
    )
    assert Runs().kind_of(made) == ("asst_1", "m", ("a", "b", "file_search"))
    assert Runs().kind_of(runbell.RunRef("t", "r")) is None
    response = type("Response", (), {"model": "m"})()
    assert Responses().kind_of(response) == ("response", "m")


# One budget.


class Expecting(FairPacer):
    def __init__(self):
        super().__init__()
        self.expected = []
        self.seen = []

    def expect(self, wait, curve, began, looked):
        self.expected.append((began, looked, round(curve.alive(0.0), 3)))

    def saw_remaining(self, remaining, limit, now, *, sent, reset):
        self.seen.append((remaining, limit, now, sent, reset))


def test_a_pacer_is_told_what_to_expect_and_what_others_take():
    clock, pacer = VirtualClock(start_ms=0), Expecting()
    fleet = Fleet(clock, pacer, Server())
    terms = Terms(
        SimulatedRuns(), Fixed(2.0), clock, random.Random(0), learning=Learning(Foresight())
    )
    made = SimulatedRun("r", created_at=0.0, kind=("a",))
    wait = Wait(made, terms, lambda *ended: None)
    (order,) = fleet.turn([Join([wait], waiting)]).orders
    clock.advance(0.5)
    going = SimulatedRun("r", "in_progress", created_at=0.0, kind=("a",))
    fleet.turn([Landed(order.number, Answer(going, quota=Quota(7.0, 500.0, 59.0)))])
    assert pacer.expected == [(0.0, 0.0, 1.0), (0.0, 0.5, 1.0)]
    assert pacer.seen == [(7.0, 500.0, 0.5, 0.0, 59.0)]


def test_quota_is_read_from_an_answer_and_from_a_refusal():
    seen = []
    said = iter((("0", "120ms", 429), ("12", "1m1.5s", 200)))

    def serve(request):
        remaining, reset, status = next(said)
        headers = {
            "x-ratelimit-remaining-requests": remaining,
            "x-ratelimit-limit-requests": "500",
            "x-ratelimit-reset-requests": reset,
        }
        return httpx.Response(status, json=fields("completed"), headers=headers)

    with runbell.Waiter(client(serve), calls_per_minute=6000, policy=QUICK) as waiter:
        waiter._driver._fleet._saw_remaining = lambda *given, sent, reset: seen.append(
            (*given[:2], reset)
        )
        ended(waiter.wait, run(), timeout=60)
    # What is refused says it too.
    assert seen == [(0.0, 500.0, 0.12), (12.0, 500.0, 61.5)]


class Limited:
    """A world whose server allows so many requests a minute and refuses the rest.

    Attributes:
        tells: its headers say what is left; else nothing but 429 does.
        window: all of the limit is there again each minute, and nothing meanwhile.
    """

    def __init__(self, world, limit, *, tells=True, window=False):
        self.world, self.limit, self.tells, self.window = world, limit, tells, window
        self.left, self.at, self.refused, self.sent = float(limit), 0.0, 0, 0

    def perform(self, order, sent):
        self.sent += 1
        if self.window:
            self.left = float(self.limit) if sent // 60 > self.at // 60 else self.left
            reset = 60 - sent % 60
        else:
            self.left = min(self.left + (sent - self.at) * self.limit / 60, self.limit)
            reset = (self.limit - self.left) * 60 / self.limit
        self.at = sent
        if self.left < 1:
            self.refused += 1
            response = httpx.Response(429, request=httpx.Request("GET", "http://server"))
            error = openai.RateLimitError("slow down", response=response, body=None)
            return sent + 0.15, Landed(order.number, error=error)
        self.left -= 1
        at, landed = self.world.perform(order, sent)
        quota = Quota(float(int(self.left)), float(self.limit), reset) if self.tells else None
        return at, replace(landed, value=replace(landed.value, quota=quota))


def crowd(limit, budget=None, runs=150, **options):
    """Many cold waits that begin at once: the server's refusals, and how the waits ended."""
    rng = random.Random(1)
    histories = {
        f"r{n}": [(0.0, "in_progress"), (rng.uniform(20, 60), "completed")] for n in range(runs)
    }
    server = Limited(Scripted(histories), limit, **options)
    simulation = Simulation(server, WorthPacer(budget), learning=Learning(Foresight()))
    made = [SimulatedRun(name, created_at=0.0, kind=("a",)) for name in histories]
    simulation.begin(0.0, made, timeout=1200.0)
    errors = [ending.error for ending in simulation.run() if ending.error is not None]
    return server, errors


@pytest.mark.parametrize("window", [False, True])
@pytest.mark.parametrize("budget", [None, 500])
def test_a_server_that_tells_its_limit_has_nothing_to_refuse(budget, window):
    """Whatever was agreed, a budget above what the server allows included."""
    server, errors = crowd(60, budget, window=window)
    assert errors == []
    # A window that is used up within seconds looks like a bucket, until it refuses once.
    assert server.refused <= window
    assert server.sent < 400


def test_a_server_that_tells_nothing_is_found_out_about_by_what_it_refuses():
    server, errors = crowd(60, tells=False)
    assert errors == []
    assert server.refused < 0.2 * server.sent


def test_a_waiter_without_a_budget_heeds_the_servers():
    with runbell.Waiter(client(lambda request: httpx.Response(500))) as waiter:
        assert isinstance(waiter._pacer, WorthPacer)


def test_what_fails_in_what_learns_ends_no_wait(caplog):
    """Whatever fails there: a wait goes on without it."""
    for name in ("schedule", "observe", "runs", "policy", "answered"):
        learning = Learning(Foresight())
        broken = lambda *given, **more: 1 / 0  # noqa: E731
        setattr(learning.foresight, name, broken)
        simulated(histories(2), learning, per_minute=600)
    assert "nothing is foreseen" in caplog.text
    assert "nothing is learned" in caplog.text


def test_a_first_try_is_quick_and_the_second_knows_better():
    def delay(learning, seconds):
        return simulated({"r": [(0.0, "in_progress"), (seconds, "completed")]}, learning)[1]

    late = [delay(Learning(Foresight()), 0.7 + 0.05 * step) for step in range(13)]
    assert sum(late) / len(late) < 0.8
    learning = Learning(Foresight())
    assert learning.policy(None).next_delay(0, 0) == 0.0
    policy = learning.policy(None)
    policy.know("new", 0.0)
    assert policy.next_delay(0.0, 0) <= 1.0
    for _ in range(FEW):
        learning.foresight.observe("another", 60.0)
    policy.know("new", 0.0)
    assert policy.next_delay(0.0, 0) == learning.foresight.policy("new").next_delay(0.0, 0)


def test_a_dear_call_is_not_spent_on_a_first_try():
    policy = Learning(Foresight(price=25.0)).policy(None)
    policy.know("new", 0.0)
    assert policy.next_delay(0.0, 0) == pytest.approx(10.0)


def test_the_latency_is_what_answers_take():
    learning, world = Learning(Foresight()), Scripted(histories(20), latency=0.6)
    simulation = Simulation(world, learning=learning)
    for name, history in histories(20).items():
        made = SimulatedRun(name, created_at=history[0][0], kind=("a",))
        simulation.begin(history[0][0], [made], timeout=600.0)
    simulation.run()
    assert learning.foresight.latency == pytest.approx(0.6)


def test_one_wait_is_enough_to_find_out_that_a_server_holds_nothing():
    learning = Learning(Foresight())
    for _ in range(60):
        learning.foresight.observe(("a",), 20.0 + random.Random(1).random())
    names = {f"r{n}": [(0.0, "in_progress"), (21.0, "completed")] for n in range(40)}
    for holds in (False, True):
        world = Scripted(names, holds=holds)
        simulation = Simulation(world, learning=learning, hold=True)
        made = [SimulatedRun(name, created_at=0.0, kind=("a",)) for name in names]
        simulation.begin(0.0, made, timeout=600.0)
        assert all(ending.error is None for ending in simulation.run())
        early = sum(at < 10 for at, _ in world.requests)
        # One that holds is asked to by all as soon as that is known.
        assert early == (41 if holds else 1)


def test_a_run_that_expires_is_looked_at_when_it_does():
    class Expiring(Scripted):
        def _run(self, run_id, at):
            return replace(super()._run(run_id, at), expires_at=50.0)

    world = Expiring({"r": [(0.0, "in_progress"), (50.0, "expired")]})
    simulation = Simulation(world, learning=Learning(Foresight()))
    simulation.begin(0.0, [SimulatedRun("r", created_at=0.0, expires_at=50.0)], policy=Fixed(17.0))
    (ending,) = simulation.run()
    assert ending.at - 50.0 < 0.5


def test_rows_that_make_no_sense_teach_nothing(tmp_path):
    path = tmp_path / "waits.db"
    Journal(path).close()
    with closing(sqlite3.connect(path)) as db:
        deep = "[" * 50_000 + "]" * 50_000
        row = "insert into durations (key, run_seconds, ended, at_ms, run_low, run_high) "
        for key, low in ((deep, 1.0), ('"k"', "x"), ('"k"', -1.0), ("{", 1.0), ('"k"', 2.0)):
            db.execute(row + "values (?, 1, 1, 1, ?, 3.0)", (key, low))
        db.commit()
    with Journal(path) as journal:
        learning = Learning(Foresight(), journal)
    assert learning.foresight.runs("k") == 1


def test_another_programs_file_is_refused_and_left_as_it_was(tmp_path):
    path = tmp_path / "waits.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("create table durations (id integer, key text, secret text)")
    with pytest.raises(ConfigurationError, match="another program's"):
        Journal(path)
    with closing(sqlite3.connect(path)) as db:
        (made,) = db.execute("select sql from sqlite_master").fetchall()
    assert made == ("CREATE TABLE durations (id integer, key text, secret text)",)


def test_a_tight_budget_goes_where_it_is_worth_most():
    """Runs of twenty seconds and of two hundred: what looks at all of them alike wastes calls on
    those that go on."""
    rng = random.Random(5)
    kinds = {"quick": (18.0, 22.0), "slow": (180.0, 220.0)}
    ends = {f"{kind} {n}": rng.uniform(*kinds[kind]) for n in range(30) for kind in kinds}

    def delay(pacer, policy=None):
        foresight = Foresight()
        for kind, (low, high) in kinds.items():
            for n in range(20):
                foresight.observe(kind, low + (high - low) * n / 20)
        histories = {name: [(0.0, "in_progress"), (end, "completed")] for name, end in ends.items()}
        simulation = Simulation(Scripted(histories), pacer, learning=Learning(foresight))
        runs = [SimulatedRun(name, created_at=0.0, kind=name.split()[0]) for name in ends]
        simulation.begin(0.0, runs, timeout=900.0, policy=policy)
        endings = simulation.run()
        return sum(ending.at - ends[ending.item.id] for ending in endings) / len(endings)

    assert delay(WorthPacer(20)) < 0.8 * delay(FairPacer(20), Fixed(1.0))
