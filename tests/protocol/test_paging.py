"""Lists: cursors, order, limits, the same for every list.

Every test runs on each of the lists, filled with more rows than one page has, all created within
the same second or two, so that stamps cannot order them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from tests.protocol.conftest import Project
from tests.protocol.scenario import (
    ask,
    create_run,
    function_tool,
    occupied,
    outputs_for,
    say,
    until,
)
from tests.served import Answer, Api

COUNT = 23

KINDS = ("assistants", "messages", "runs", "steps")


@dataclass(frozen=True)
class Listing:
    """One list: where it is, what it holds, oldest first, and the noun of its 404s."""

    api: Api
    path: str
    ids: tuple[str, ...]
    noun: str

    def get(self, **query: Any) -> Answer:
        return self.api.get(f"{self.path}?{'&'.join(f'{k}={v}' for k, v in query.items())}")

    def page(self, **query: Any) -> tuple[list[str], bool]:
        answer = self.get(**query).ok()
        return [item["id"] for item in answer["data"]], answer["has_more"]

    def ordered(self, order: str) -> list[str]:
        return list(self.ids if order == "asc" else self.ids[::-1])


def many_assistants(project: Project) -> Listing:
    ids = [project.client.beta.assistants.create(model="echo").id for _ in range(COUNT)]
    return Listing(project.api, "/v1/assistants", tuple(ids), "assistant")


def many_messages(project: Project) -> Listing:
    threads = project.client.beta.threads
    thread_id = threads.create().id
    ids = [threads.messages.create(thread_id, role="user", content=f"{n}").id for n in range(COUNT)]
    return Listing(project.api, f"/v1/threads/{thread_id}/messages", tuple(ids), "message")


def many_runs(project: Project) -> Listing:
    client = project.client
    assistant = client.beta.assistants.create(model="echo")
    with occupied(client, assistant) as first:
        runs = [
            create_run(
                client,
                assistant,
                first.thread_id,
                on_active_run="enqueue",
                additional_messages=[{"role": "user", "content": "next"}],
            )
            for _ in range(COUNT - 1)
        ]
    for run in runs:
        until(client, run, "completed")
    ids = (first.id, *(run.id for run in runs))
    return Listing(project.api, f"/v1/threads/{first.thread_id}/runs", ids, "run")


def many_steps(project: Project) -> Listing:
    client = project.client
    assistant = client.beta.assistants.create(model="echo", tools=[function_tool("f")])
    text = "\n".join("call f {}" for _ in range(COUNT - 1))
    run = until(client, ask(client, assistant, text, parallel_tool_calls=False))
    path = f"/v1/threads/{run.thread_id}/runs/{run.id}/steps"
    ids: list[str] = []
    while True:
        (newest,) = project.api.get(f"{path}?limit=1").ok()["data"]
        ids.append(newest["id"])
        if run.status == "completed":
            break
        client.beta.threads.runs.submit_tool_outputs(
            run.id, thread_id=run.thread_id, tool_outputs=outputs_for(run, ["x"])
        )
        run = until(client, run)
    return Listing(project.api, path, tuple(ids), "run step")


@pytest.fixture(scope="module")
def listings(new_project: Callable[[], Project]) -> dict[str, Listing]:
    """The lists, filled. The other makers need assistants, so that list has its own project."""
    first, second = new_project(), new_project()
    return {
        "assistants": many_assistants(first),
        "messages": many_messages(second),
        "runs": many_runs(second),
        "steps": many_steps(second),
    }


@pytest.fixture(params=KINDS)
def listing(request: pytest.FixtureRequest, listings: dict[str, Listing]) -> Listing:
    return listings[request.param]


@pytest.mark.parametrize(("order", "limit"), list(product(["asc", "desc"], [1, 7, 23, 100])))
def test_all_pages_together_are_the_list(listing: Listing, order: str, limit: int) -> None:
    """Nothing twice, nothing left out, whatever the page's size."""
    seen, more = listing.page(order=order, limit=limit)
    while more:
        page, more = listing.page(order=order, limit=limit, after=seen[-1])
        assert page
        seen += page
    assert seen == listing.ordered(order)


@pytest.mark.parametrize(("order", "limit"), list(product(["asc", "desc"], [1, 7, 23])))
def test_a_list_can_be_walked_backwards(listing: Listing, order: str, limit: int) -> None:
    """`before` gives the page that immediately precedes the cursor, in the list's own order."""
    expected = listing.ordered(order)
    cursor, seen, more = expected[-1], [expected[-1]], True
    while more:
        page, more = listing.page(order=order, limit=limit, before=cursor)
        assert len(page) == min(limit, len(expected) - len(seen))
        seen = page + seen
        cursor = page[0]
    assert seen == expected


def test_twenty_newest_are_the_default(listing: Listing) -> None:
    page, more = listing.page()
    assert (page, more) == (listing.ordered("desc")[:20], True)


def test_has_more_is_false_on_a_page_that_ends_with_the_list(listing: Listing) -> None:
    assert listing.page(limit=COUNT) == (listing.ordered("desc"), False)
    assert listing.page(limit=COUNT - 1)[1] is True


def test_behind_the_last_row_is_an_empty_page(listing: Listing) -> None:
    answer = listing.get(after=listing.ordered("desc")[-1]).ok()
    assert answer == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }
    assert listing.get(before=listing.ordered("desc")[0]).ok() == answer


@pytest.mark.parametrize("order", ["asc", "desc"])
def test_between_two_cursors(listing: Listing, order: str) -> None:
    expected = listing.ordered(order)
    page, more = listing.page(order=order, after=expected[3], before=expected[9])
    assert (page, more) == (expected[4:9], False)


@pytest.mark.parametrize("cursor", ["after", "before"])
def test_a_cursor_that_the_list_does_not_have_is_not_found(
    listing: Listing, listings: dict[str, Listing], cursor: str
) -> None:
    """It never begins again from the start, which a client would follow for ever."""
    prefix = listing.ids[0].partition("_")[0]
    answer = listing.get(**{cursor: f"{prefix}_unknown"})
    assert answer.status == 404
    assert answer.error["message"] == f"No {listing.noun} found with id '{prefix}_unknown'."
    for other in listings.values():
        if other is not listing:
            assert listing.get(**{cursor: other.ids[0]}).status == 404


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "-1"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "1.5"}, "limit"),
        ({"order": "random"}, "order"),
        ({"order": ""}, "order"),
    ],
    ids=str,
)
def test_what_no_page_can_be_is_refused(
    listing: Listing, query: dict[str, str], param: str
) -> None:
    answer = listing.get(**query)
    assert (answer.status, answer.error["param"]) == (400, param)


def test_a_cursor_survives_what_is_created_meanwhile(api: Api, client: OpenAI) -> None:
    """Newest first, a new row is in front of the cursor and changes nothing behind it."""
    threads = client.beta.threads
    thread_id = say(client, "0")
    ids: Sequence[str] = [m.id for m in threads.messages.list(thread_id)] + [
        threads.messages.create(thread_id, role="user", content="x").id for _ in range(5)
    ]
    listing = Listing(api, f"/v1/threads/{thread_id}/messages", tuple(ids), "message")
    page, _ = listing.page(limit=3)
    threads.messages.create(thread_id, role="user", content="new")
    assert page + listing.page(after=page[-1])[0] == listing.ordered("desc")


def test_the_messages_of_a_run_are_paged_too(client: OpenAI, api: Api, echo: Assistant) -> None:
    run = until(client, ask(client, echo, "hello"))
    path = f"/v1/threads/{run.thread_id}/messages?run_id={run.id}"
    (message,) = api.get(path).ok()["data"]
    assert api.get(f"{path}&after={message['id']}").ok()["data"] == []
    assert api.get(f"{path}&limit=1").ok()["has_more"] is False
