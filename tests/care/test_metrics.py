"""The page of metrics: a parser reads it, its numbers move as they should, and who may read it."""

from __future__ import annotations

import asyncio
import dataclasses
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

import runbell
from runbell.clock import VirtualClock
from runbell.runs import EVENT_TYPES
from runbell.service.metrics import Metrics
from runbell.service.operations import backlog
from runbell.service.operations.access import comes_from_here
from runbell.testing.databases import migrated_sqlite, opened, writer_held
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.protocol.scenario import ask, function_tool, say, until
from tests.served import Answer, Served, eventually

Numbers = dict[tuple[str, frozenset[tuple[str, str]]], float]


def numbers(text: str) -> Numbers:
    """Every sample of a page, by its name and labels; none stands there twice."""
    found: Numbers = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found, key
            found[key] = sample.value
    return found


def value(found: Numbers, name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def page(served: Served, **headers: str) -> Answer:
    answer = served.request("GET", "/metrics", headers=headers)
    assert answer.status == 200, answer
    return answer


def scrape(served: Served) -> Numbers:
    return numbers(page(served).body.decode())


def moved(before: Numbers, after: Numbers, name: str, **labels: str) -> float:
    key = (name, frozenset(labels.items()))
    return after[key] - before.get(key, 0.0)


RUN = "/v1/threads/{thread_id}/runs/{run_id}"
RUNS = "/v1/threads/{thread_id}/runs"


def test_the_numbers_follow_what_runs_and_requests_do(fresh: Served) -> None:
    client = fresh.client()
    assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
    before = scrape(fresh)
    assert {value(before, "runbell_run_transitions_total", type=kind) for kind in EVENT_TYPES} == {
        0.0
    }

    until(client, ask(client, assistant, "hello"), "completed")
    until(client, ask(client, assistant, "fail server_error no"), "failed")
    until(client, ask(client, assistant, "incomplete"), "incomplete")
    waiting = until(client, ask(client, assistant, "call f {}"), "requires_action")
    working = until(client, ask(client, assistant, "sleep 600"), "in_progress")
    fresh.api().get(f"/v1/threads/{waiting.thread_id}/runs/run_none")
    fresh.request("GET", "/v1/nothing/here")

    def counted() -> Numbers | None:
        """What a commit has changed is counted a moment behind it."""
        found = scrape(fresh)
        told = sum(number for (name, _), number in found.items() if name == transitions)
        return found if told >= 14 else None

    transitions = "runbell_run_transitions_total"
    after = eventually(counted, "everything is counted")
    assert value(after, "runbell_runs", status="requires_action") == 1
    assert value(after, "runbell_runs", status="in_progress") == 1
    assert value(after, "runbell_runs", status="queued") == 0
    assert value(after, "runbell_runs", status="cancelling") == 0
    told = {
        kind: value(after, "runbell_run_transitions_total", type=f"thread.run.{kind}")
        for kind in ("created", "in_progress", "completed", "failed", "incomplete", "expired")
    }
    assert told == {
        "created": 5,
        "in_progress": 5,
        "completed": 1,
        "failed": 1,
        "incomplete": 1,
        "expired": 0,
    }
    for outcome in ("answered", "failed", "incomplete", "tool_calls"):
        assert (
            value(after, "runbell_model_call_seconds_count", upstream="built-in", outcome=outcome)
            == 1
        )
    requests = "runbell_http_requests_total"
    assert value(after, requests, method="POST", route=RUNS, status="200") == 5
    assert value(after, requests, method="GET", route=RUN, status="404") == 1
    assert value(after, requests, method="GET", route="unmatched", status="401") == 1
    looks = value(after, requests, method="GET", route=RUN, status="200")
    seconds = "runbell_http_request_seconds_count"
    assert value(after, seconds, method="GET", route=RUN) == looks + 1
    assert moved(before, after, "runbell_group_commit_units_count") >= 5
    assert value(after, "runbell_group_commit_seconds_count") == value(
        after, "runbell_group_commit_units_count"
    )
    assert value(after, "runbell_database_readable") == 1
    assert value(after, "runbell_build_info", version=runbell.__version__) == 1
    assert value(after, "process_resident_memory_bytes") > 1e7

    client.beta.threads.runs.cancel(working.id, thread_id=working.thread_id)
    until(client, working, "cancelled")
    later = scrape(fresh)
    assert value(later, "runbell_runs", status="in_progress") == 0
    assert (
        value(later, "runbell_model_call_seconds_count", upstream="built-in", outcome="interrupted")
        == 1
    )
    modified = client.beta.threads.runs.update(
        waiting.id, thread_id=waiting.thread_id, metadata={"a": "b"}
    )
    assert modified.metadata == {"a": "b"}
    # Metadata are no change of status.
    kind = "thread.run.requires_action"
    assert value(scrape(fresh), "runbell_run_transitions_total", type=kind) == 1
    eventually(
        lambda: value(scrape(fresh), "runbell_event_loop_lag_seconds_count") > 1, "a lag is seen"
    )


def test_waits_and_streams_count_for_as_long_as_they_are_held(fresh: Served) -> None:
    client = fresh.client()
    assistant = client.beta.assistants.create(model="echo")
    run = until(client, ask(client, assistant, "sleep 600"), "in_progress")
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}"

    def held(name: str, count: int) -> None:
        eventually(lambda: value(scrape(fresh), name) == count, f"{name} is {count}")

    answers: list[Answer] = []
    wait = threading.Thread(
        target=lambda: answers.append(fresh.api().get(path, headers={"Prefer": "wait=55"}))
    )
    wait.start()
    try:
        held("runbell_waits_held", 1)
        with streaming(fresh, assistant.id, say(client, "sleep 600")):
            held("runbell_streams_held", 1)
            held("runbell_waits_held", 1)
        held("runbell_streams_held", 0)
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    finally:
        wait.join(60)
    assert answers[0].ok()["status"] in ("cancelling", "cancelled")
    held("runbell_waits_held", 0)
    labels = {"method": "POST", "route": RUNS, "status": "200"}
    assert value(scrape(fresh), "runbell_http_requests_total", **labels) == 2


@contextmanager
def streaming(served: Served, assistant_id: str, thread_id: str) -> Iterator[None]:
    """A stream of a run, whose client leaves at the end of the block."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=60)
    body = json.dumps({"assistant_id": assistant_id, "stream": True})
    headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/json"}
    connection.request("POST", f"/v1/threads/{thread_id}/runs", body, headers)
    response = connection.getresponse()
    assert response.status == 200
    assert response.readline() == b"event: thread.run.created\n"
    try:
        yield
    finally:
        response.close()
        connection.close()


def test_a_client_that_leaves_a_wait_is_counted_as_one(fresh: Served) -> None:
    client = fresh.client()
    assistant = client.beta.assistants.create(model="echo")
    run = until(client, ask(client, assistant, "sleep 600"), "in_progress")
    leaving = fresh.client().with_options(timeout=0.3)
    with pytest.raises(Exception, match="timed out"):
        leaving.beta.threads.runs.retrieve(
            run.id, thread_id=run.thread_id, extra_headers={"Prefer": "wait=60"}
        )
    labels = {"method": "GET", "route": RUN, "status": "499"}
    eventually(
        lambda: ("runbell_http_requests_total", frozenset(labels.items())) in scrape(fresh),
        "the client's leaving is counted",
    )
    assert value(scrape(fresh), "runbell_waits_held") == 0


def test_the_page_is_prometheus_text_or_openmetrics(plain: Served) -> None:
    text = page(plain)
    assert text.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"_created" not in text.body
    accept = "application/openmetrics-text; version=1.0.0"
    answer = page(plain, Accept=accept)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = {family.name for family in openmetrics_families(answer.body.decode())}
    assert {"runbell_runs", "runbell_run_transitions", "runbell_http_requests"} <= families
    assert plain.request("HEAD", "/metrics").body == b""
    refused = plain.request("POST", "/metrics")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD")


def test_labels_come_from_tables_and_never_from_requests(fresh: Served) -> None:
    """Otherwise anybody could fill the memory, or write on the page."""
    for n in range(5):
        fresh.request("GET", f"/v1/secret-{n}")
        fresh.api().get(f"/v1/threads/thread_{n}?secret={n}")
        fresh.request("PROPFIND", "/v1/models")
    text = page(fresh).body.decode()
    assert "secret" not in text
    assert "thread_0" not in text
    assert "PROPFIND" not in text
    labels = {"method": "other", "route": "/v1/models", "status": "401"}
    assert value(numbers(text), "runbell_http_requests_total", **labels) == 5


@pytest.mark.parametrize(
    "mark", ["X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP", "Forwarded", "Via"]
)
def test_what_a_proxy_passes_on_needs_a_key_whatever_it_says(plain: Served, mark: str) -> None:
    headers = {mark: "127.0.0.1"}
    answer = plain.request("GET", "/metrics", headers=headers)
    assert answer.status == 401
    assert b"runbell_runs" not in answer.body
    assert plain.request("GET", "/metrics", headers=headers, key=plain.key).status == 200


def test_another_projects_key_does_not_show_everybodys_numbers(plain: Served) -> None:
    key = plain.create_key("a tenant")
    answer = plain.request("GET", "/metrics", headers={"Via": "1.1 proxy"}, key=key)
    assert answer.status == 403
    assert b"runbell_runs" not in answer.body


@pytest.mark.parametrize(
    ("peer", "here"),
    [
        (("127.0.0.1", 1), True),
        (("127.8.9.1", 1), True),
        (("::1", 1), True),
        (("::ffff:127.0.0.1", 1), True),
        (("::ffff:10.0.0.1", 1), False),
        (("10.0.0.1", 1), False),
        (("fe80::1%eth0", 1), False),
        (("localhost", 1), False),
        (("", 1), False),
        (None, False),
    ],
)
def test_only_loopback_is_here(peer: tuple[str, int] | None, here: bool) -> None:
    assert comes_from_here(peer, []) is here
    assert comes_from_here(peer, [(b"x-forwarded-for", b"127.0.0.1")]) is False


@on_a_service(cancel_grace=10.0, run_expiry=600.0, max_concurrent_runs=1)
async def test_what_is_due_and_for_how_long(service: EmbeddedService) -> None:
    await service.run(await service.thread("one"), "one")
    await service.run(await service.thread("two"), "two")
    await service.settle()
    service.clock.advance(7)
    seen = await backlog.look(service.ctx)
    assert seen is not None
    assert seen.runs == {"queued": 1, "in_progress": 1, "requires_action": 0, "cancelling": 0}
    assert (seen.due["run"].count, seen.due["run"].oldest_seconds) == (1, 7.0)
    assert seen.due["expire"].count == seen.due["finish_cancel"].count == 0
    # Nobody does what is due: the process is gone.
    await service.crash()
    service.clock.advance(600)
    seen = await backlog.look(service.ctx)
    assert seen is not None
    assert (seen.due["expire"].count, seen.due["expire"].oldest_seconds) == (2, 7.0)


@on_a_service(cancel_grace=10.0)
async def test_a_cancel_is_due_when_its_grace_is_over(service: EmbeddedService) -> None:
    run = await service.run(await service.thread("one"))
    await service.settle()
    service.backend.turn.stubborn = True
    await service.cancel(run)
    await service.settle()
    now = service.clock.now_ms()
    for seconds, due in ((9, (0, 0.0)), (13, (1, 3.0))):
        # The service's own clock stands still, so that nobody does the job meanwhile.
        later = VirtualClock(now + seconds * 1000)
        seen = await backlog.look(dataclasses.replace(service.ctx, clock=later))
        assert seen is not None
        assert (seen.due["finish_cancel"].count, seen.due["finish_cancel"].oldest_seconds) == due


@on_a_service()
async def test_a_run_that_waits_its_turn_is_not_due(service: EmbeddedService) -> None:
    thread = await service.thread("one")
    await service.run(thread)
    await service.run(thread, on_active_run="enqueue")
    await service.settle()
    seen = await backlog.look(service.ctx)
    assert seen is not None
    assert seen.runs["queued"] == 1
    assert seen.due["run"].count == 0


@on_a_service()
async def test_without_the_database_the_page_says_so(service: EmbeddedService) -> None:
    metrics = service.ctx.metrics
    assert 'runbell_runs{status="queued"}' in (
        metrics.page("", await backlog.look(service.ctx)).body.decode()
    )
    service.store.unreadable = True
    text = metrics.page("", await backlog.look(service.ctx)).body.decode()
    found = numbers(text)
    assert value(found, "runbell_database_readable") == 0
    assert "runbell_runs{" not in text
    assert "runbell_jobs_due{" not in text
    service.store.unreadable = False


def test_groups_of_writes_and_those_that_wait_are_seen(tmp_path: Path) -> None:
    async def story() -> None:
        async with opened(migrated_sqlite(tmp_path / "a.db")) as store:
            groups: list[tuple[int, float]] = []
            store.on_commit = lambda units, seconds: groups.append((units, seconds))
            async with writer_held(store):
                waiting = [asyncio.create_task(store.write(_nothing)) for _ in range(3)]
                await asyncio.sleep(0)
                assert store.waiting == 3
            await asyncio.gather(*waiting)
            assert [units for units, _ in groups] == [1, 3]
            assert all(seconds >= 0 for _, seconds in groups)
            with pytest.raises(ZeroDivisionError):
                await store.write(_divide)
            assert [units for units, _ in groups][2:] in ([], [1])

    asyncio.run(story())


async def _nothing(tx: object) -> None:
    pass


async def _divide(tx: object) -> None:
    raise ZeroDivisionError


def test_model_servers_are_told_apart() -> None:
    metrics = Metrics()
    metrics.model_called("127.0.0.1:8000", "failed", 0.1)
    metrics.model_tried_again("127.0.0.1:8000")
    metrics.model_called("127.0.0.1:8000", "answered", 0.1)
    metrics.model_called("[::1]:8000", "answered", 0.1)
    found = numbers(metrics.page("", None).body.decode())
    calls = "runbell_model_call_seconds_count"
    one, two = "127.0.0.1:8000", "[::1]:8000"
    assert value(found, calls, upstream=one, outcome="failed") == 1
    assert value(found, calls, upstream=one, outcome="answered") == 1
    assert value(found, calls, upstream=two, outcome="answered") == 1
    assert value(found, "runbell_model_call_retries_total", upstream=one) == 1
    assert ("runbell_model_call_retries_total", frozenset({("upstream", two)})) not in found


def test_services_in_one_process_do_not_share_numbers() -> None:
    one, two = Metrics(), Metrics()
    one.answered("GET", "/v1/models", 200, 0.1)
    assert 'route="/v1/models"' in one.page("", None).body.decode()
    assert 'route="/v1/models"' not in two.page("", None).body.decode()
