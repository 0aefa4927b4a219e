"""Limits over real HTTP: what every answer says, what is counted and what is not, and the SDK."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from openai import AsyncOpenAI, OpenAI, RateLimitError

from tests.limits.conftest import SERVICE_RPM
from tests.served import Answer, Api, Served

NewKey = Callable[[int | None], str]

NAMES = (
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


def left(answer: Answer) -> int:
    """How many requests the answer says are left; it has to say the rest as well."""
    assert all(answer.headers.get(name) for name in NAMES), answer.headers
    return int(answer.headers["x-ratelimit-remaining-requests"])


def limited_api(limited: Served, new_key: NewKey, rpm: int | None) -> Api:
    return limited.api(new_key(rpm))


def drained(limited: Served, key: str) -> None:
    """Use up what a key has, on several connections: faster than it comes back."""

    def drain() -> int:
        connection = http.client.HTTPConnection("127.0.0.1", limited.port, timeout=60)
        status = 200
        while status == 200:
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            response.read()
            status = response.status
        connection.close()
        return status

    with ThreadPoolExecutor(8) as pool:
        assert {each.result() for each in [pool.submit(drain) for _ in range(8)]} == {429}


def test_every_kind_of_answer_carries_the_limit(limited: Served, new_key: NewKey) -> None:
    """Successes, errors of every layer, an answer that nothing changed, and a stream."""
    api = limited_api(limited, new_key, 20)
    began = time.monotonic()
    assistant = api.post("/v1/assistants", {"model": "echo"})
    body = {
        "assistant_id": assistant.ok()["id"],
        "thread": {"messages": [{"role": "user", "content": "hi"}]},
    }
    stream = api.post("/v1/threads/runs", {**body, "stream": True})
    created = api.post("/v1/threads/runs", body)
    run = created.ok()
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
    settled = api.get(path, headers={"Prefer": "wait=20"})
    same = api.get(path, headers={"If-None-Match": settled.headers["etag"]})
    answers = [
        assistant,
        stream,
        created,
        settled,
        same,
        api.get("/v1/threads/thread_X"),
        api.get("/v1/nothing"),
        api.delete("/v1/models"),
        api.post("/v1/threads", {"nonsense": 1}),
        api.post("/v1/threads", body=b"{", headers={"Content-Encoding": "gzip"}),
        api.get("/v1/models?x=1"),
    ]
    statuses = [answer.status for answer in answers]
    assert statuses == [200, 200, 200, 200, 304, 404, 404, 405, 400, 415, 400]
    assert [answer.headers["x-ratelimit-limit-requests"] for answer in answers] == ["20"] * 11
    # Each counts once; at 20 a minute, one comes back every three seconds.
    back = (time.monotonic() - began) / 3 + 1
    for number, answer in enumerate(answers, 1):
        assert 20 - number <= left(answer) <= 20 - number + back


def test_a_refusal_says_when_to_come_back(limited: Served, new_key: NewKey) -> None:
    api = limited_api(limited, new_key, 2)
    began = time.monotonic()
    assert [api.get("/v1/models").status for _ in range(3)] == [200, 200, 429]
    answer = api.get("/v1/models")
    assert left(answer) == 0
    assert (answer.error["type"], answer.error["code"]) == ("requests", "rate_limit_exceeded")
    ms = int(answer.headers["retry-after-ms"])
    assert 30_000 - 1000 * (time.monotonic() - began) <= ms <= 30_000
    assert int(answer.headers["retry-after"]) == -(-ms // 1000)
    assert answer.error["message"].startswith("Rate limit reached for API key sk-rb***")
    assert (
        f"Limit 2, Used 2, Requested 1. Please try again in {ms / 1000:g}s."
        in (answer.error["message"])
    )


def test_a_refused_post_has_no_effect(limited: Served, new_key: NewKey) -> None:
    api = limited_api(limited, new_key, 1)
    key = api.key
    assert api.post("/v1/assistants", {"model": "echo"}).status == 200
    assert api.post("/v1/assistants", {"model": "echo"}).status == 429
    # Another key of the project looks, since this one has to wait.
    (line,) = (
        line
        for line in limited.command_line("keys", "list").splitlines()
        if key is not None and f"{key[:5]}***{key[-2:]}" in line and "  1  " in line
    )
    project = line.split()[1]
    other = limited.api(limited.create_key(project))
    assert len(other.get("/v1/assistants").ok()["data"]) == 1


def test_a_wrong_key_costs_and_learns_nothing(limited: Served) -> None:
    for _ in range(3):
        answer = limited.request("GET", "/v1/models", key="sk-wrong-0123456789abcdef")
        assert answer.status == 401
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    answer = limited.request("GET", "/v1/models")
    assert answer.status == 401
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


def test_health_is_not_counted(limited: Served, new_key: NewKey) -> None:
    key = new_key(1)
    for path in ("/healthz", "/readyz") * 3:
        answer = limited.request("GET", path, key=key)
        assert answer.status == 200
        assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    assert limited.api(key).get("/v1/models").status == 200


def test_a_wait_that_is_held_counts_once(limited: Served, new_key: NewKey) -> None:
    """Also when it looks many times before it answers."""
    api = limited_api(limited, new_key, 30)
    assistant = api.post("/v1/assistants", {"model": "echo"}).ok()["id"]
    thread = {"messages": [{"role": "user", "content": "sleep 0.5"}]}
    run = api.post("/v1/threads/runs", {"assistant_id": assistant, "thread": thread}).ok()
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}"
    waited = api.get(path, headers={"Prefer": "wait=20"})
    assert waited.ok()["status"] == "completed"
    # At 30 a minute, one comes back every two seconds.
    assert left(waited) in (27, 28)
    assert left(api.get(path)) in (26, 27)


def test_the_services_limit_is_that_of_keys_without_one(limited: Served, new_key: NewKey) -> None:
    """That of the settings, and those that are made."""
    for api in (limited.api(), limited_api(limited, new_key, None)):
        answer = api.get("/v1/models")
        assert answer.headers["x-ratelimit-limit-requests"] == str(SERVICE_RPM)


def test_a_key_can_be_without_a_limit(limited: Served, new_key: NewKey) -> None:
    answer = limited_api(limited, new_key, 0).get("/v1/models")
    assert answer.status == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


def test_without_a_limit_nothing_is_said(api: Api) -> None:
    assert not any(name.startswith("x-ratelimit") for name in api.get("/v1/models").headers)


def test_the_list_of_keys_shows_their_limits(limited: Served, new_key: NewKey) -> None:
    shown = {}
    for rpm in (None, 0, 77):
        key = new_key(rpm)
        for line in limited.command_line("keys", "list").splitlines():
            if f"{key[:5]}***{key[-2:]}" in line:
                shown[rpm] = line.split()[3]
    assert (shown[0], shown[77]) == ("none", "77")
    assert shown[None].startswith("20"), "the time of its making, since it has none"


def test_a_limit_that_makes_no_sense_is_refused(limited: Served) -> None:
    with pytest.raises(AssertionError, match="--rpm"):
        limited.command_line("keys", "create", "--rpm", "-1")


# The stock SDK.


def test_the_stock_sdk_raises_its_own_error(limited: Served, new_key: NewKey) -> None:
    client = limited.client(new_key(1))
    client.models.list()
    with pytest.raises(RateLimitError) as caught:
        client.models.list()
    assert (caught.value.status_code, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.type == "requests"
    assert "Please try again in " in caught.value.message


def test_the_stock_sdk_waits_as_long_as_it_is_told(
    limited: Served, new_key: NewKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own retries, at their default number, a program stays within its limit by itself."""
    key = new_key(120)
    drained(limited, key)
    seen: list[Answer] = []
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        time.sleep(seconds)

    monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=sleep, time=time.time))
    client = limited.client(key, max_retries=2, watch=seen.append)
    for _ in range(20):
        client.models.list()
        if slept:  # where this test is slow, not the first request is one too many
            break
    *before, refused, again = seen
    assert {answer.status for answer in before} <= {200}
    assert (refused.status, again.status) == (429, 200), "what it is told is enough"
    told = int(refused.headers["retry-after-ms"])
    # Of 120 a minute, one comes back each half second, and not each of `retry-after`.
    assert 0 < told <= 500
    assert slept == [told / 1000]


def test_the_async_sdk_waits_as_well(limited: Served, new_key: NewKey) -> None:
    key = new_key(240)
    drained(limited, key)

    async def work() -> None:
        async with AsyncOpenAI(base_url=limited.base_url, api_key=key) as client:
            for _ in range(3):
                await client.models.list()

    asyncio.run(work())


def test_a_whole_run_within_a_limit(limited: Served, new_key: NewKey) -> None:
    """Create, poll to the end and read the answer, beginning with nothing left."""
    key = new_key(300)
    drained(limited, key)
    with OpenAI(base_url=limited.base_url, api_key=key) as client:
        assistant = client.beta.assistants.create(model="echo")
        run = client.beta.threads.create_and_run_poll(
            assistant_id=assistant.id,
            thread={"messages": [{"role": "user", "content": "2+2?"}]},
            poll_interval_ms=10,
        )
        assert run.status == "completed"
        assert len(client.beta.threads.messages.list(run.thread_id).data) == 2
