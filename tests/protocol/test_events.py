"""The feed: every status change of every run, in order, once, in one shape."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from openai.types.beta import Assistant

from tests.protocol.conftest import Project
from tests.protocol.scenario import (
    ask,
    calls_of,
    create_run,
    fields,
    function_tool,
    occupied,
    outputs_for,
    say,
    until,
)
from tests.protocol.wire import EVENT_SCHEMA
from tests.served import Api

EVENT_TYPES = [
    "thread.run.created",
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.requires_action",
    "thread.run.completed",
    "thread.run.incomplete",
    "thread.run.failed",
    "thread.run.cancelling",
    "thread.run.cancelled",
    "thread.run.expired",
]


@pytest.fixture(scope="module")
def project(new_project: Callable[[], Project]) -> Project:
    """One for all of these tests, in each of which every run settles: `feed` tells them apart."""
    return new_project()


@pytest.fixture(scope="module")
def assistant(project: Project) -> Assistant:
    return project.client.beta.assistants.create(
        model="echo", tools=[function_tool("get-weather"), function_tool("look_up")]
    )


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("thread.run.") for event in events]


@dataclass(frozen=True)
class Feed:
    """The project's feed from where it ended when the test began."""

    api: Api
    mark: str

    def page(self, query: str) -> Any:
        """A page; `query` may have a cursor of its own."""
        after = "" if "after=" in query or not self.mark else f"&after={self.mark}"
        return self.api.get(f"/v1/events?{query}{after}".replace("?&", "?")).ok()

    def read(self, query: str = "") -> list[dict[str, Any]]:
        """All that came since, which has to fit into one page."""
        page = self.page(f"limit=100&{query}" if query else "limit=100")
        assert page["has_more"] is False
        events: list[dict[str, Any]] = page["data"]
        return events


@pytest.fixture
def feed(project: Project) -> Feed:
    mark, more = "", True
    while more:
        after = f"&after={mark}" if mark else ""
        page = project.api.get(f"/v1/events?limit=100{after}").ok()
        mark, more = page["last_id"] or mark, page["has_more"]
    return Feed(project.api, mark)


def test_the_schema_is_published() -> None:
    """`wire.inspect` holds every event of every test against it."""
    assert EVENT_SCHEMA.exists()


# What a run's life looks like.


def test_a_run_that_completes(project: Project, feed: Feed, assistant: Assistant) -> None:
    run = until(project.client, ask(project.client, assistant, "hello", metadata={"k": "v"}))
    events = feed.read()
    assert kinds(events) == ["created", "in_progress", "completed"]
    assert [event["data"]["sequence"] for event in events] == [1, 2, 3]
    assert [e["data"]["status"] for e in events] == ["queued", "in_progress", "completed"]
    created, _, completed = (event["data"] for event in events)
    assert created["started_at_ms"] is None
    assert created["updated_at_ms"] == created["created_at_ms"]
    assert completed["updated_at_ms"] == completed["completed_at_ms"]
    assert completed["metadata"] == {"k": "v"}
    # The last event and the run say the same.
    run_fields = fields(run)
    shared = set(completed) & set(run_fields)
    assert {name: completed[name] for name in shared} == {n: run_fields[n] for n in shared}
    assert {"usage", "status_reason", "expires_at", "started_at"} <= shared


def test_a_run_that_needs_a_tool(project: Project, feed: Feed, assistant: Assistant) -> None:
    client = project.client
    run = until(client, ask(client, assistant, 'call get-weather {"city": "Oslo"}'))
    client.beta.threads.runs.submit_tool_outputs(
        run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["rain"])
    )
    until(client, run, "completed")
    events = feed.read()
    assert kinds(events) == [
        "created",
        "in_progress",
        "requires_action",
        "queued",
        "in_progress",
        "completed",
    ]
    assert [event["data"]["sequence"] for event in events] == [1, 2, 3, 4, 5, 6]
    required = events[2]["data"]["required_action"]
    assert required == fields(run)["required_action"]
    assert events[1]["data"]["started_at_ms"] == events[4]["data"]["started_at_ms"]


@pytest.mark.parametrize(
    ("text", "life"),
    [
        ("fail server_error x", ["created", "in_progress", "failed"]),
        ("incomplete", ["created", "in_progress", "incomplete"]),
        ("sleep 600", ["created", "in_progress", "expired"]),
        ("call look_up {}", ["created", "in_progress", "requires_action", "expired"]),
    ],
)
def test_a_run_that_does_not_complete(
    project: Project, feed: Feed, assistant: Assistant, text: str, life: list[str]
) -> None:
    run = ask(project.client, assistant, text, expires_after=3)
    until(project.client, run, life[-1])
    events = feed.read()
    assert kinds(events) == life
    ended = events[-1]["data"]
    assert ended["status_reason"]
    assert ended[f"{life[-1]}_at_ms"] == ended["updated_at_ms"]


def test_a_run_that_is_cancelled(project: Project, feed: Feed, assistant: Assistant) -> None:
    client = project.client
    with occupied(client, assistant) as run:
        client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        until(client, run, "cancelled")
    run = until(client, ask(client, assistant, "call look_up {}"), "requires_action")
    client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
    assert kinds(feed.read()) == [
        *("created", "in_progress", "cancelling", "cancelled"),
        *("created", "in_progress", "requires_action", "cancelled"),
    ]


def test_a_run_that_waits_its_turn(project: Project, feed: Feed, assistant: Assistant) -> None:
    """Waiting is no status of its own: it is created once, and starts later."""
    client = project.client
    with occupied(client, assistant) as first:
        second = create_run(
            client,
            assistant,
            first.thread_id,
            on_active_run="enqueue",
            additional_messages=[{"role": "user", "content": "next"}],
        )
        assert kinds([e for e in feed.read() if e["data"]["id"] == second.id]) == ["created"]
    until(client, second, "completed")
    assert kinds([e for e in feed.read() if e["data"]["id"] == second.id]) == [
        "created",
        "in_progress",
        "completed",
    ]


def test_what_changes_no_status_makes_no_event(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    client = project.client
    run = until(client, ask(client, assistant, "hello"))
    before = feed.read()
    client.beta.threads.runs.update(run.id, thread_id=run.thread_id, metadata={"k": "v"})
    client.beta.threads.update(run.thread_id, metadata={"k": "v"})
    refused = project.api.post(f"/v1/threads/{run.thread_id}/runs/{run.id}/cancel")
    assert refused.status == 400
    assert feed.read() == before


def test_events_outlive_their_thread(project: Project, feed: Feed, assistant: Assistant) -> None:
    client = project.client
    run = until(client, ask(client, assistant, "hello"))
    before = feed.read()
    client.beta.threads.delete(run.thread_id)
    assert feed.read() == before


# Reading the feed.


def test_an_empty_feed(new_project: Callable[[], Project]) -> None:
    assert new_project().api.get("/v1/events").ok() == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
def test_pages_follow_each_other(
    project: Project, feed: Feed, assistant: Assistant, limit: int
) -> None:
    for text in ("one", "fail server_error x", "three"):
        until(project.client, ask(project.client, assistant, text))
    whole = feed.read()
    assert len(whole) == 9
    seen: list[Any] = []
    cursor = ""
    more = True
    while more:
        page = feed.page(f"limit={limit}{cursor}")
        seen += page["data"]
        more = page["has_more"]
        assert len(page["data"]) == limit or not more
        cursor = f"&after={page['last_id']}"
    assert seen == whole
    assert feed.page(cursor[1:])["data"] == []


def test_twenty_is_the_default_page(project: Project, feed: Feed, assistant: Assistant) -> None:
    for _ in range(7):
        until(project.client, ask(project.client, assistant, "hello"))
    page = feed.page("")
    assert (len(page["data"]), page["has_more"]) == (20, True)
    assert page["data"] == feed.read()[:20]


def test_nothing_appears_behind_a_cursor_that_passed(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    """Commit order: a reader that follows the feed misses nothing, however many runs there are."""
    client = project.client

    def live(number: int) -> str:
        return until(client, ask(client, assistant, f"hello {number}"), "completed").id

    seen: list[dict[str, Any]] = []
    with ThreadPoolExecutor(8) as pool:
        runs = [pool.submit(live, number) for number in range(40)]
        while not all(run.done() for run in runs):
            follow(feed, seen)
        follow(feed, seen)
        ids = {run.result() for run in runs}
    assert len(seen) == 3 * 40
    assert len({event["id"] for event in seen}) == len(seen)
    for run_id in ids:
        mine = [event["data"]["sequence"] for event in seen if event["data"]["id"] == run_id]
        assert mine == [1, 2, 3]


def follow(feed: Feed, seen: list[dict[str, Any]]) -> None:
    """Read on from where `seen` ends, to the end of the feed."""
    more = True
    while more:
        page = feed.page(f"limit=10&after={seen[-1]['id']}" if seen else "limit=10")
        seen += page["data"]
        more = page["has_more"]


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        ("types=thread.run.completed", ["completed"]),
        ("types=thread.run.completed,thread.run.failed", ["failed", "completed"]),
        ("types=thread.run.completed&types=thread.run.failed", ["failed", "completed"]),
        (
            "types[]=thread.run.completed&types[]=thread.run.created",
            ["created", "created", "completed"],
        ),
        (
            "types=thread.run.*",
            ["created", "in_progress", "failed", "created", "in_progress", "completed"],
        ),
        ("types=thread.run.expired", []),
        ("types=thread.run.queued", []),
    ],
)
def test_types_filter_the_feed(
    project: Project, feed: Feed, assistant: Assistant, types: str, expected: list[str]
) -> None:
    for text in ("fail server_error x", "hello"):
        until(project.client, ask(project.client, assistant, text))
    assert kinds(feed.read(types)) == expected


@pytest.mark.parametrize("kind", EVENT_TYPES)
def test_every_type_can_be_asked_for(project: Project, feed: Feed, kind: str) -> None:
    assert feed.read(f"types={kind}") == []


def test_a_filtered_feed_goes_on_from_any_event(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    """The cursor is a place in the feed, whether or not its event is of a wanted type."""
    for _ in range(3):
        until(project.client, ask(project.client, assistant, "hello"))
    events = feed.read()
    for index, event in enumerate(events):
        rest = feed.read(f"types=thread.run.completed&after={event['id']}")
        assert rest == [e for e in events[index + 1 :] if e["type"] == "thread.run.completed"]
    page = feed.page("types=thread.run.completed&limit=2")
    assert (len(page["data"]), page["has_more"]) == (2, True)


@pytest.mark.parametrize("types", ["", "thread.run.finished", "message.created", "thread.run"])
def test_a_type_that_does_not_exist_is_refused(project: Project, types: str) -> None:
    """A subscriber with a typing mistake would wait for ever."""
    answer = project.api.get(f"/v1/events?types={types}")
    assert (answer.status, answer.error["param"]) == (400, "types")


@pytest.mark.parametrize("limit", ["0", "101", "many"])
def test_a_page_has_its_limits(project: Project, limit: str) -> None:
    answer = project.api.get(f"/v1/events?limit={limit}")
    assert (answer.status, answer.error["param"]) == (400, "limit")


def test_an_unknown_cursor_is_not_found(project: Project) -> None:
    answer = project.api.get("/v1/events?after=evt_X")
    assert answer.status == 404
    assert answer.error["message"].startswith("No event found with id 'evt_X'.")


# Large ones.


def size_of(event: dict[str, Any]) -> int:
    return len(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode())


def test_a_large_event_leaves_the_calls_out(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    """Metadata stay where they fit; the run itself still has everything."""
    client = project.client
    arguments = json.dumps({"text": "x" * 25_000})
    run = ask(client, assistant, f"call get-weather {arguments}", metadata={"k": "v"})
    run = until(client, run, "requires_action")
    assert calls_of(run)[0][2] == arguments
    (event,) = feed.read("types=thread.run.requires_action")
    assert event["data"]["truncated"] is True
    assert "required_action" not in event["data"]
    assert event["data"]["metadata"] == {"k": "v"}
    assert size_of(event) <= 20_000
    others = feed.read("types=thread.run.created,thread.run.in_progress")
    assert not any("truncated" in event["data"] for event in others)


def test_an_event_that_just_fits_is_whole(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    arguments = json.dumps({"text": "x" * 15_000})
    run = ask(project.client, assistant, f"call get-weather {arguments}")
    run = until(project.client, run, "requires_action")
    (event,) = feed.read("types=thread.run.requires_action")
    assert event["data"]["required_action"] == fields(run)["required_action"]


def test_a_large_event_leaves_the_metadata_out_too(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    """Sixteen pairs of long strings, in a script of four bytes a character."""
    client = project.client
    metadata = {f"{number:02}" + "🌍" * 62: "🌍" * 512 for number in range(16)}
    run = ask(client, assistant, "call look_up {}", metadata=metadata)
    run = until(client, run, "requires_action")
    assert run.metadata == metadata
    for event in feed.read():
        assert event["data"]["truncated"] is True
        assert "metadata" not in event["data"]
        assert size_of(event) <= 20_000


def test_the_reasons_of_a_large_failure_fit(
    project: Project, feed: Feed, assistant: Assistant
) -> None:
    """What a model says when it fails may be long; the event stays small."""
    client = project.client
    text = "fail server_error " + "🌍" * 30_000
    until(client, create_run(client, assistant, say(client, text)), "failed")
    (event,) = feed.read("types=thread.run.failed")
    assert size_of(event) <= 20_000
    assert event["data"]["last_error"]["message"].startswith("🌍")
