"""Many runs at once: `GET /v1/runs?ids=…`, waiting for the first of them, and finding runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from openai import OpenAI
from openai.types.beta import Assistant

from runbell.runs import RunStatus
from runbell.service.operations import threads
from runbell.testing.embedded import EmbeddedService, on_a_service
from tests.protocol.conftest import Project
from tests.protocol.scenario import ask, until
from tests.served import Api
from tests.web import Exchange, Web

MAX_IDS = 200


async def several(service: EmbeddedService, count: int) -> list[str]:
    """Runs in progress, each on a thread of its own, in the order of their creation."""
    made = [await service.run(await service.thread("Hello"), f"run {n}") for n in range(count)]
    await service.settle()
    return made


def asked(web: Web, ids: list[str], *headers: tuple[str, str]) -> Exchange:
    return web.get(f"/v1/runs?ids={','.join(ids)}", *headers)


@on_a_service()
async def test_runs_come_in_the_order_of_the_question(service: EmbeddedService) -> None:
    """Across threads; each once; what is not there is named."""
    web, made = Web(service), await several(service, 5)
    ids = [made[3], "run_none", made[0], made[3], "nonsense", made[4], made[0]]
    answer = (await asked(web, ids).answered()).json()
    assert [run["id"] for run in answer["data"]] == [made[3], made[0], made[4]]
    assert answer["missing"] == ["run_none", "nonsense"]
    assert (answer["first_id"], answer["last_id"]) == (made[3], made[4])
    assert (answer["object"], answer["has_more"]) == ("list", False)
    retrieved = (await web.get(await web.path_of(made[3])).answered()).json()
    assert answer["data"][0] == retrieved


@pytest.mark.parametrize("form", ["ids={0},{1}", "ids={0}&ids={1}", "ids[]={0}&ids[]={1}"])
def test_ids_may_be_written_as_lists_are(tmp_path: Any, form: str) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        made = await several(service, 2)
        answer = await Web(service).get(f"/v1/runs?{form.format(*made)}").answered()
        assert [run["id"] for run in answer.json()["data"]] == made

    story(tmp_path)


@on_a_service()
async def test_how_many_may_be_asked_for(service: EmbeddedService) -> None:
    """200, counted without those that are named twice."""
    web = Web(service)
    made = await several(service, 3)
    ids = [f"run_{number}" for number in range(MAX_IDS - 3)]
    answer = await asked(web, [*ids, *made, *ids]).answered()
    assert [run["id"] for run in answer.json()["data"]] == made
    assert answer.json()["missing"] == ids
    refused = await asked(web, [*ids, *made, "run_more"]).answered()
    assert (refused.status, refused.json()["error"]["param"]) == (400, "ids")
    assert "200" in refused.json()["error"]["message"]


@pytest.mark.parametrize("query", ["ids=", "ids=,", "ids=a&limit=2", "ids=a&status=queued"])
def test_questions_that_make_no_sense(tmp_path: Any, query: str) -> None:
    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        assert (await Web(service).get(f"/v1/runs?{query}").answered()).status == 400

    story(tmp_path)


@on_a_service()
async def test_the_first_that_settles_is_the_answer(service: EmbeddedService) -> None:
    """All are answered as they are then; the client asks again for the others."""
    web, made = Web(service), await several(service, 4)
    exchange = asked(web, made, ("Prefer", "wait=60"))
    await service.settle()
    assert service.ctx.changes.waiting == 1
    await web.post(await web.path_of(made[1]), {"metadata": {"k": "v"}}).answered()
    await service.settle()
    assert not exchange.task.done(), "a change that settles nothing"
    turns = {turn.label: turn for turn in service.backend.open}
    turns["run 2"].call(("f", "{}"))
    await service.settle()
    assert exchange.task.done()
    statuses = [run["status"] for run in exchange.json()["data"]]
    assert statuses == ["in_progress", "in_progress", "requires_action", "in_progress"]
    assert exchange.headers["preference-applied"] == "wait=60"
    assert "openai-poll-after-ms" in exchange.headers
    assert web.nothing_held()
    again = asked(web, made[:2], ("Prefer", "wait=60"))
    await service.settle()
    turns["run 0"].say("Hi")
    await service.settle()
    assert [run["status"] for run in again.json()["data"]] == ["completed", "in_progress"]


@on_a_service()
async def test_what_settles_nothing_wakes_nobody(service: EmbeddedService) -> None:
    """Not a run's metadata, nor that it begins: looking at two hundred runs is dear."""
    web, made = Web(service), await several(service, 3)
    waiting = [asked(web, made, ("Prefer", "wait=60")) for _ in range(30)]
    await service.settle()
    calls = service.store.calls
    await web.post(await web.path_of(made[0]), {"metadata": {"k": "v"}}).answered()
    await service.settle()
    assert service.store.calls - calls < 10
    service.backend.open[0].say("Hello")
    for exchange in waiting:
        await exchange.answered()
        assert exchange.json()["data"][0]["status"] == "completed"


@on_a_service()
async def test_a_settled_one_is_answered_at_once(service: EmbeddedService) -> None:
    web, made = Web(service), await several(service, 2)
    await service.cancel(made[0])
    await service.settle()
    exchange = asked(web, made, ("Prefer", "wait=60"))
    await service.settle()
    assert exchange.task.done()
    assert "openai-poll-after-ms" in exchange.headers, "the other one has not ended"
    await service.cancel(made[1])
    await service.settle()
    ended = await asked(web, made, ("Prefer", "wait=60")).answered()
    assert "openai-poll-after-ms" not in ended.headers


@on_a_service()
async def test_where_none_is_there_nobody_waits(service: EmbeddedService) -> None:
    answer = await asked(Web(service), ["run_a", "run_b"], ("Prefer", "wait=60")).answered()
    assert answer.json()["data"] == []
    assert answer.json()["missing"] == ["run_a", "run_b"]
    assert answer.json()["first_id"] is None


@on_a_service()
async def test_after_the_time_all_are_answered_as_they_are(service: EmbeddedService) -> None:
    web, made = Web(service), await several(service, 2)
    exchange = asked(web, [*made, "run_none"], ("Prefer", "wait=5"))
    await service.advance(4.9)
    assert not exchange.task.done()
    await service.advance(0.1)
    assert [run["status"] for run in exchange.json()["data"]] == ["in_progress"] * 2
    assert web.nothing_held()


@on_a_service()
async def test_runs_that_go_away_are_missing_then(service: EmbeddedService) -> None:
    """The last one gone, there is nothing to wait for."""
    web, made = Web(service), await several(service, 2)
    exchange = asked(web, made, ("Prefer", "wait=60"))
    await service.settle()
    for run in made:
        assert not exchange.task.done()
        thread = (await service.find(run)).thread_id
        await threads.delete(service.ctx, service.project, thread)
        await service.settle()
    assert (await exchange.answered()).json()["missing"] == made


@on_a_service()
async def test_a_client_that_leaves_is_noticed_at_once(service: EmbeddedService) -> None:
    web, made = Web(service), await several(service, 3)
    exchange = asked(web, made, ("Prefer", "wait=60"))
    await service.settle()
    exchange.leave()
    await service.settle()
    assert exchange.task.done()
    assert web.nothing_held()
    assert not service.ctx.changes._watches


def test_runs_of_other_projects_are_missing(
    new_project: Callable[[], Project], api: Api, client: OpenAI, echo: Assistant
) -> None:
    """As those that never were."""
    other = new_project()
    run = until(client, ask(client, echo, "hello"), "completed")
    path = f"/v1/runs?ids={run.id}"
    assert [found["id"] for found in api.get(path).ok()["data"]] == [run.id]
    answer = other.api.get(path, headers={"Prefer": "wait=60"}).ok()
    assert (answer["data"], answer["missing"]) == ([], [run.id])
    assert other.api.get("/v1/runs").ok()["data"] == []


# Finding runs.


async def found(service: EmbeddedService, query: str) -> list[str]:
    """The ids of all pages, two runs a page."""
    web, ids, after, more = Web(service), [], "", True
    while more:
        answer = await web.get(f"/v1/runs?limit=2&{query}{after}").answered()
        assert answer.status == 200, answer.body
        page = answer.json()
        ids += [run["id"] for run in page["data"]]
        more, after = page["has_more"], f"&after={page['last_id']}"
    return ids


@on_a_service()
async def test_runs_are_found_by_status(service: EmbeddedService) -> None:
    """The newest first; several statuses in any form of a list."""
    made = await several(service, 6)
    turns = {turn.label: turn for turn in service.backend.open}
    for number in (0, 2, 4):
        turns[f"run {number}"].say("Hi")
    turns["run 5"].call(("f", "{}"))
    await service.settle()
    completed, waiting = [made[4], made[2], made[0]], [made[5]]
    in_progress = [made[3], made[1]]
    assert await found(service, "") == made[::-1]
    assert await found(service, "order=asc") == made
    assert await found(service, "status=completed") == completed
    assert await found(service, "status=completed&order=asc") == completed[::-1]
    assert await found(service, "status=in_progress,requires_action") == waiting + in_progress
    assert await found(service, "status=queued&status[]=in_progress") == in_progress
    assert await found(service, "status=failed") == []
    everything = ",".join(RunStatus)
    assert await found(service, f"status={everything}") == made[::-1]
    before = await Web(service).get(f"/v1/runs?before={made[1]}&limit=2").answered()
    assert [run["id"] for run in before.json()["data"]] == [made[3], made[2]]


@on_a_service()
async def test_runs_are_found_by_when_they_were_created(service: EmbeddedService) -> None:
    """Whole seconds, as `created_at` has them, without those of the second itself."""
    made = []
    for _ in range(5):
        made.append(await service.run(await service.thread("Hello")))
        await service.advance(0.5)
    seconds = [(await service.find(run)).created_at_ms // 1000 for run in made]
    for at in range(seconds[0] - 1, seconds[-1] + 2):
        earlier = [run for run, created in zip(made, seconds, strict=True) if created < at]
        later = [run for run, created in zip(made, seconds, strict=True) if created > at]
        assert await found(service, f"order=asc&created_before={at}") == earlier
        assert await found(service, f"order=asc&created_after={at}") == later
    both = f"order=asc&created_after={seconds[0]}&created_before={seconds[-1]}"
    inner = [r for r, s in zip(made, seconds, strict=True) if seconds[0] < s < seconds[-1]]
    assert await found(service, both) == inner


@on_a_service()
async def test_stuck_runs_are_found(service: EmbeddedService) -> None:
    """Those that are in progress and were created before a certain moment."""
    old = await several(service, 3)
    await service.advance(120)
    await several(service, 3)
    moment = service.clock.now_ms() // 1000 - 60
    query = f"status=queued,in_progress,requires_action&created_before={moment}"
    assert await found(service, query) == old[::-1]


@pytest.mark.parametrize(
    "query",
    [
        "status=done",
        "status=",
        "created_before=yesterday",
        "created_before=-1",
        "created_after=1.5",
        "limit=0",
        "after=run_none",
        "nonsense=1",
        "created_before=1&created_before=2",
    ],
)
def test_what_cannot_be_found(tmp_path: Any, query: str) -> None:
    """A question that can't be meant is refused, and says which part of it."""

    @on_a_service()
    async def story(service: EmbeddedService) -> None:
        answer = await Web(service).get(f"/v1/runs?{query}").answered()
        assert answer.status in (400, 404), answer.body

    story(tmp_path)
