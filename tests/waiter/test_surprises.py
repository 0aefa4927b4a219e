"""Answers that nobody expects end no wait but, at worst, their own."""

from __future__ import annotations

import httpx
import openai
import pytest

import runbell
from runbell.errors import BadAnswer
from tests.waiter.mock import PAGE, QUICK, answer, asking, client, ended, fields, run

ODD = {
    "page": PAGE,
    "null": httpx.Response(200, json=None),
    "list": httpx.Response(200, json=[1, 2]),
    "half": httpx.Response(200, content=b'{"id": "run_1", "stat'),
    "nothing of a run": httpx.Response(200, json={"ok": True}),
    "of another": httpx.Response(200, json=fields("completed", "run_2")),
}


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_to_a_submission_is_tried_again(odd):
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request)
            return ODD[odd] if len(posts) == 1 else answer(fields("completed"))
        return answer(asking())

    ran = []
    waiter = runbell.Waiter(client(serve), tools={"f": lambda: ran.append(1)}, policy=QUICK)
    with waiter:
        assert ended(waiter.wait, run(), timeout=60).status == "completed"
    assert (len(posts), len(ran)) == (2, 1)


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_to_a_cancel_is_tried_again_or_looked_at(odd):
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request)
            return ODD[odd] if len(posts) == 1 else answer(fields("cancelling"))
        return answer(fields("cancelled"))

    with runbell.Waiter(client(serve), policy=QUICK) as waiter:
        assert ended(waiter.cancel, run(), timeout=60).status == "cancelled"


@pytest.mark.parametrize("odd", ["page", "null", "half"])
def test_an_odd_answer_to_a_restart_is_tried_again(odd):
    posts = []

    def serve(request):
        if request.method == "POST":
            posts.append(request)
            return ODD[odd] if len(posts) == 1 else answer(fields("queued", "run_2"))
        return answer(fields("completed", "run_2"))

    with runbell.Waiter(client(serve), policy=QUICK, restart_on={"expired"}) as waiter:
        assert ended(waiter.wait, run("expired"), timeout=60).id == "run_2"


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_answer_to_a_look_is_one_failure(odd):
    looks = []

    def serve(request):
        looks.append(request)
        return ODD[odd] if len(looks) == 1 else answer(fields("completed"))

    with runbell.Waiter(client(serve), policy=QUICK) as waiter:
        assert ended(waiter.wait, run(), timeout=60).status == "completed"


def test_whoever_answers_nothing_else_ends_its_own_wait_alone():
    def serve(request):
        if request.method == "POST":
            return PAGE
        if "run_1" in request.url.path:
            return answer(asking())
        return answer(fields("completed", "run_2"))

    tools = {"f": lambda: "x"}
    with runbell.Waiter(client(serve), tools=tools, policy=QUICK, max_errors=2) as waiter:
        runs = [run(), run("queued", "run_2")]
        odd, good = ended(waiter.wait_all, runs, return_errors=True, timeout=60)
    assert isinstance(odd, BadAnswer)
    assert good.status == "completed"


def test_an_explanation_that_fails_leaves_nobody_waiting(monkeypatch):
    def fail(*given):
        raise ValueError("no words")

    monkeypatch.setattr("runbell.client.waiter.explain", fail)
    waiter = runbell.Waiter(client(lambda request: httpx.Response(400, json={})))
    with waiter, pytest.raises(openai.BadRequestError):
        ended(waiter.wait, run())
