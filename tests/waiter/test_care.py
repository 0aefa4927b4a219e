"""What a wait must not do twice, must not lose, and must not say."""

from __future__ import annotations

import itertools
import math
import pickle
import sqlite3
import threading
import time
from types import SimpleNamespace

import httpx
import openai
import pytest

import runbell
from runbell.client import fleet
from runbell.client.calls import Calls
from runbell.client.diagnosis import shown
from runbell.client.hands import ToolOutcome
from runbell.client.journal import Journal
from runbell.client.options import agreed
from runbell.client.wishes import UseTools
from runbell.errors import BadAnswer, ConfigurationError, RunbellError
from runbell.pacing import Backoff, Fixed
from runbell.runs import ToolCall
from tests.waiter.mock import (
    LIMIT,
    PAGE,
    QUICK,
    Story,
    after,
    answer,
    asking,
    async_client,
    client,
    ended,
    fields,
    run,
    until,
    wants_one_call,
)


def test_what_is_to_be_cancelled_is_not_begun_again():
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request.url.path)
            message = "Cannot cancel run with status 'expired'."
            return httpx.Response(400, json={"error": {"message": message}})
        return answer(fields("expired"))

    with runbell.Waiter(client(serve), restart_on={"expired"}, policy=QUICK) as waiter:
        assert ended(waiter.cancel, run(), timeout=60).status == "expired"
    assert [path.rpartition("/")[2] for path in posts] == ["cancel"]


# The journal.


def test_a_function_that_outlives_its_waiter_is_written_down(tmp_path):
    path, gate, ran = tmp_path / "waits.db", threading.Event(), []

    def f():
        ran.append(1)
        gate.wait(LIMIT)
        return "sunny"

    with after(gate), runbell.Waiter(client(wants_one_call), tools={"f": f}, journal=path) as old:
        story = Story(old.wait, run())
        until(lambda: ran)
        old.close()
        with pytest.raises(RunbellError, match="closed"):
            story.end()
        gate.set()
    with Journal(path) as journal:
        until(lambda: journal.output("run_1", "call_1") == "sunny")
    with runbell.Waiter(client(wants_one_call), tools={"f": f}, journal=path) as waiter:
        assert ended(waiter.wait, run(), timeout=LIMIT).status == "completed"
    assert ran == [1]


def test_an_output_that_cannot_be_kept_is_still_submitted(tmp_path, caplog):
    ran = []

    def f():
        ran.append(1)
        waiter._journal._db.execute("drop table tool_calls")
        return "sunny"

    path = tmp_path / "waits.db"
    with runbell.Waiter(client(wants_one_call), tools={"f": f}, journal=path) as waiter:
        assert ended(waiter.wait, run(), timeout=LIMIT).status == "completed"
    assert ran == [1]
    assert "its output was not kept" in caplog.text


def test_what_a_journal_cannot_do_is_an_error_of_ours(tmp_path):
    journal = Journal(tmp_path / "waits.db")
    journal._db.execute("drop table tool_calls")
    for act in (
        lambda: journal.begin("run", "call", "f", 0.0),
        lambda: journal.output("run", "call"),
        lambda: journal.finish("run", "call", "x"),
    ):
        with pytest.raises(RunbellError, match="can't be used") as caught:
            act()
        assert isinstance(caught.value.__cause__, sqlite3.Error)
    journal.close()


def test_outputs_that_are_still_needed_are_kept(monkeypatch):
    monkeypatch.setattr(fleet, "REMEMBERED_CALLS", 1)
    gate, ran = threading.Event(), []
    calls = (("call_1", "fast"), ("call_2", "slow"))
    sent = {}

    def stands(run_id):
        return fields("completed", run_id) if run_id in sent else asking(run_id, calls)

    def serve(request):
        if request.url.path == "/v1/runs":  # about those that happen to be asked about together
            runs = [stands(each) for each in request.url.params["ids"].split(",")]
            return answer({"object": "list", "data": runs, "missing": []})
        run_id = request.url.path.split("/")[5]
        if request.method == "POST":
            sent[run_id] = request.read()
        return answer(stands(run_id))

    def fast():
        ran.append(1)
        return "quick"

    def slow():
        gate.wait(LIMIT)
        return "late"

    tools = {"fast": fast, "slow": slow}
    with runbell.Waiter(client(serve), tools=tools, policy=QUICK) as waiter, after(gate):
        stories = [Story(waiter.wait, run("queued", f"run_{n}")) for n in range(3)]
        until(lambda: len(ran) == 3)
        gate.set()
        assert {story.end().status for story in stories} == {"completed"}
    assert len(ran) == 3
    assert all(b"quick" in body and b"late" in body for body in sent.values())


class Acting:
    """A wait, as far as the calls of its tools look at it."""

    def __init__(self, run_id):
        self.id, self.wish, self.tell = run_id, None, lambda *args, **more: None
        self.terms = SimpleNamespace(tool_timeout=None, raise_tool_errors=False, context=None)


def test_an_output_that_is_there_is_not_forgotten_while_the_next_call_begins():
    """As where a server wants another call answered, too, and others have had theirs meanwhile."""
    numbers = itertools.count()
    at_work = Calls(lambda deed: next(numbers), lambda tool: False, remembered=1)
    one, two = ToolCall("call_1", "f", "{}"), ToolCall("call_2", "f", "{}")
    wait, other = Acting("run_1"), Acting("run_2")

    def use(wait, *calls):
        wait.wish = UseTools(calls, {"f": None}, math.inf)
        return at_work.use(wait, wait.wish, 0.0)

    def lands(number, output):
        for wait, _, _ in at_work.landed(number, ToolOutcome(output), None):
            wait.wish = None

    assert use(wait, one) is None
    assert use(other, one) is None
    lands(0, "sunny")
    lands(1, "of another run")
    assert use(wait, one, two) is None
    ((found, outputs, _),) = at_work.landed(2, ToolOutcome("windy"), None)
    assert (found, outputs) == (wait, {"call_1": "sunny", "call_2": "windy"})


# Events.


class Bell:
    def __init__(self):
        self.deliver = {}

    def subscribe(self, run_id, deliver):
        self.deliver[run_id] = deliver

    def unsubscribe(self, run_id, deliver):
        self.deliver.pop(run_id, None)


def test_an_event_that_comes_while_outputs_are_submitted_is_not_lost():
    bell, submitted = Bell(), []

    def ring(found):
        bell.deliver["run_1"]({"type": "thread.run." + found["status"], "data": found})

    def serve(request):
        if request.method == "POST":
            submitted.append(request)
            ring(fields("completed"))
            time.sleep(0.1)  # the event has to be read before this answer
            return answer(fields("queued"))
        return answer(fields("completed" if submitted else "in_progress"))

    with runbell.Waiter(client(serve), events=bell, tools={"f": lambda: "x"}) as waiter:
        story = Story(waiter.wait, run(), timeout=60, policy=Fixed(50))
        until(lambda: "run_1" in bell.deliver)
        ring(asking())
        assert story.end().status == "completed"


# What is said.


def test_secrets_of_a_url_are_not_shown():
    assert shown("https://me:word@host.test:81/v1/?key=word#word") == "https://host.test:81/v1/"
    with (
        runbell.Waiter(
            client(lambda request: httpx.Response(400, json={}), "http://me:word@host.test/v1")
        ) as waiter,
        pytest.raises(openai.BadRequestError) as caught,
    ):
        ended(waiter.wait, run())
    notes = "\n".join(caught.value.__notes__)
    assert "http://host.test/v1" in notes
    assert "word" not in notes
    assert "the client's key is sk-ab***op" in notes  # also for what is a bad request


def test_a_client_of_the_other_kind_is_refused():
    with pytest.raises(ConfigurationError, match="AsyncWaiter can't use a client like OpenAI"):
        runbell.AsyncWaiter(client(wants_one_call))
    with pytest.raises(ConfigurationError, match="Waiter can't use a client like AsyncOpenAI"):
        runbell.Waiter(async_client(wants_one_call))
    azure = openai.AzureOpenAI(api_key="k", azure_endpoint="http://a.test", api_version="1")
    with pytest.raises(ConfigurationError, match="take Waiter"):
        runbell.AsyncWaiter(azure)
    azure.close()


@pytest.mark.parametrize("options", [{"policy": Backoff(max_polls=1)}, {"timeout": 1.0}])
@pytest.mark.parametrize("accepts", [True, False])
def test_a_run_that_is_given_up_is_cancelled_and_that_is_said(options, accepts):
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request.url.path)
            if not accepts:
                return httpx.Response(400, json={"error": {"message": "Cannot cancel run."}})
            return answer(fields("cancelling"))
        return answer(fields("in_progress"))

    with runbell.Waiter(client(serve)) as waiter, pytest.raises(runbell.WaitTimeout) as caught:
        ended(waiter.wait, run(), cancel_on_timeout=True, **options)
    assert len(posts) == 1
    assert ("its cancel was asked for" in str(caught.value)) == accepts
    assert ("it goes on" in str(caught.value)) != accepts


def test_a_run_that_asks_for_nothing_is_a_bad_answer():
    def serve(request):
        return answer(fields("requires_action"))

    with runbell.Waiter(client(serve), policy=QUICK) as waiter, pytest.raises(BadAnswer) as caught:
        ended(waiter.wait, run(), max_errors=2)
    assert "does not say what it wants" in str(caught.value)


def test_each_wait_has_an_error_of_its_own():
    def serve(request):
        if request.url.path.endswith("/runs"):
            return httpx.Response(500, json={"error": {"message": "no"}})
        return answer(fields("in_progress", request.url.path.rpartition("/")[2]))

    runs = [run("queued", f"run_{number}") for number in range(60)]
    with runbell.Waiter(client(serve), policy=QUICK, hold=False, max_errors=1) as waiter:
        waiter._server.batches = True
        errors = ended(waiter.wait_all, runs, return_errors=True, timeout=LIMIT)
    assert len({id(error) for error in errors}) == 60
    for each, error in zip(runs, errors, strict=True):
        assert isinstance(error, openai.InternalServerError)
        assert error.response.status_code == 500
        (where,) = [note for note in error.__notes__ if "while waiting for" in note]
        assert where.startswith(f"while waiting for {each.id} of")


def test_errors_can_be_pickled():
    about = {"run": None, "run_id": "run_1", "thread_id": None, "status": "failed"}
    for error in (
        runbell.RunFailed("it failed", code="server_error", **about),
        runbell.WaitTimeout("too late", polls=3, waited=1.5, **about),
        runbell.ActionRequired("it asks", calls=(), **about),
        runbell.RunbellError("plain"),
    ):
        error.add_note("a note")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_two_runs_never_share_a_submissions_key():
    keys = []

    def serve(request):
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])
        return wants_one_call(request)

    with runbell.Waiter(client(serve), tools={"f": lambda: "x"}, policy=QUICK) as waiter:
        ended(waiter.wait, run())
    assert keys == ["runbell-run_1-call_1"]


def test_options_that_are_of_another_kind_are_refused_or_understood():
    with runbell.Waiter(client(lambda request: PAGE)) as waiter:
        for timeout in ("60", 0, float("nan")):
            with pytest.raises(ConfigurationError, match="timeout has to be seconds above 0"):
                waiter.wait(run(), timeout=timeout)
    assert agreed({"restart_on": "expired"})["restart_on"] == {"expired"}


def test_a_timeout_says_what_failed_last():
    def serve(request):
        raise httpx.ConnectError("refused")

    with runbell.Waiter(client(serve)) as waiter, pytest.raises(runbell.WaitTimeout) as caught:
        waiter.wait(runbell.RunRef("thread_1", "run_1"), timeout=1.0)
    assert caught.value.__notes__ == [
        "the last request failed: APIConnectionError: Connection error."
    ]
    assert isinstance(caught.value.__cause__, openai.APIConnectionError)
    assert "it goes on" not in str(caught.value)  # nobody has seen it
