"""One effect and one answer, whatever happens between them: in virtual time, on a real store."""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import pytest

from runbell import faults
from runbell.errors import RequestRefused
from runbell.service.once import PRUNED_AT_ONCE, key_of, request_digest
from runbell.storage import idempotency
from runbell.storage.idempotency import KEPT_MS
from runbell.testing.databases import writer_held
from runbell.testing.faults import armed
from tests.idempotency.house import House, Reply, on_a_house, rest

THREAD: Any = {"messages": [{"role": "user", "content": "hello"}]}
DAY_SECONDS = KEPT_MS / 1000


def rows(house: House, table: str) -> int:
    """How many rows a table has, counted from outside."""
    with sqlite3.connect(house.service.store.inner.path) as connection:
        (count,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
    connection.close()
    assert isinstance(count, int)
    return count


def without_ids(reply: Reply) -> dict[str, str]:
    """Headers that are the same in each answer to the same request."""
    different = ("x-request-id", "openai-processing-ms", "idempotent-replayed")
    return {name: value for name, value in reply.headers.items() if name not in different}


@on_a_house()
async def test_the_same_request_has_one_effect_and_one_answer(house: House) -> None:
    first = await house.post("/v1/threads", THREAD, once="a")
    again = await house.post("/v1/threads", THREAD, once="a")
    assert first.ok()["object"] == "thread"
    assert not first.replayed
    assert again.replayed
    assert (again.status, again.body) == (first.status, first.body)
    assert without_ids(again) == without_ids(first)
    assert (rows(house, "threads"), rows(house, "messages")) == (1, 1)


@on_a_house()
async def test_without_a_key_each_request_is_its_own(house: House) -> None:
    for _ in range(2):
        assert not (await house.post("/v1/threads", THREAD)).replayed
    assert rows(house, "threads") == 2
    assert rows(house, "idempotency_keys") == 0


@on_a_house()
async def test_another_key_is_another_request(house: House) -> None:
    one = await house.post("/v1/threads", THREAD, once="a")
    two = await house.post("/v1/threads", THREAD, once="A")
    assert one.ok()["id"] != two.ok()["id"]


@on_a_house()
async def test_a_key_belongs_to_a_project(house: House) -> None:
    """What one project used says nothing to another."""
    mine = await house.post("/v1/threads", THREAD, once="a")
    theirs = await house.post("/v1/threads", {}, once="a", project="other")
    assert theirs.ok()["id"] != mine.ok()["id"]
    assert not theirs.replayed


@on_a_house()
async def test_another_body_or_path_is_a_409_that_nobody_retries(house: House) -> None:
    thread = (await house.post("/v1/threads", THREAD, once="a")).ok()["id"]
    for path, body in (
        ("/v1/threads", {}),
        ("/v1/threads", {**THREAD, "metadata": {"k": "v"}}),
        (f"/v1/threads/{thread}", THREAD and {"metadata": {}}),
        ("/v1/assistants", {"model": "echo"}),
    ):
        refused = await house.post(path, body, once="a")
        assert refused.status == 409
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("idempotency_key_reused", "Idempotency-Key")
        assert refused.headers["x-should-retry"] == "false"
        assert not refused.replayed
    assert (rows(house, "threads"), rows(house, "assistants")) == (1, 1)
    assert (await house.post("/v1/threads", THREAD, once="a")).ok()["id"] == thread


@on_a_house()
async def test_the_same_body_at_another_path_is_a_409(house: House) -> None:
    """Which object a request is about stands in its path."""
    one, two = [(await house.post("/v1/threads", {})).ok()["id"] for _ in range(2)]
    body = {"role": "user", "content": "x"}
    assert (await house.post(f"/v1/threads/{one}/messages", body, once="a")).status == 200
    assert (await house.post(f"/v1/threads/{two}/messages", body, once="a")).status == 409


@on_a_house()
async def test_the_prefix_of_azures_clients_is_the_same_path(house: House) -> None:
    first = await house.post("/v1/threads", THREAD, once="a")
    assert (await house.post("/openai/threads", THREAD, once="a")).body == first.body


@on_a_house()
async def test_what_failed_is_not_kept(house: House) -> None:
    """A refusal had no effect, so the key is free: for the same request, or for a better one."""
    thread = (await house.post("/v1/threads", THREAD)).ok()["id"]
    path = f"/v1/threads/{thread}/runs"
    refused = await house.post(path, {"assistant_id": "asst_nobody"}, once="a")
    assert refused.status == 404
    assert rows(house, "idempotency_keys") == 0
    body = {"assistant_id": house.service.assistant}
    assert (await house.post(path, body, once="a")).ok()["status"] == "queued"
    # The thread is busy now; when it is not any more, the same key may try the same again.
    busy = await house.post(path, body, once="b")
    assert busy.status == 400
    await house.service.settle()
    house.service.backend.turn.say("done")
    await house.service.settle()
    later = await house.post(path, body, once="b")
    assert later.ok()["status"] == "queued"
    assert not later.replayed


@on_a_house()
async def test_a_body_that_is_not_a_request_does_not_use_its_key_up(house: House) -> None:
    assert (await house.post("/v1/threads", raw=b"{nonsense", once="a")).status == 400
    assert (await house.post("/v1/threads", {"unknown": 1}, once="a")).status == 400
    assert (await house.post("/v1/threads", THREAD, once="a")).status == 200


@on_a_house()
async def test_the_first_answer_stays_although_things_went_on(house: House) -> None:
    """The run was queued when it was created; that it has ended by now changes no answer."""
    body = {"assistant_id": house.service.assistant, "thread": THREAD}
    first = await house.post("/v1/threads/runs", body, once="a")
    await house.service.settle()
    house.service.backend.turn.say("done")
    await house.service.settle()
    assert await house.service.status(first.ok()["id"]) == "completed"
    again = await house.post("/v1/threads/runs", body, once="a")
    assert again.ok()["status"] == "queued"
    assert again.body == first.body


@on_a_house()
async def test_jobs_and_listeners_hear_of_it_as_ever(house: House) -> None:
    """A run that is created with a key is executed, and its cancel stops the model call."""
    body = {"assistant_id": house.service.assistant, "thread": THREAD}
    run = (await house.post("/v1/threads/runs", body, once="a")).ok()
    await house.service.settle()
    assert await house.service.status(run["id"]) == "in_progress"
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}/cancel"
    assert (await house.post(path, once="b")).ok()["status"] == "cancelling"
    await house.service.settle()
    assert await house.service.status(run["id"]) == "cancelled"
    # Without its key the second cancel is refused; with it, it is the first.
    assert (await house.post(path)).status == 400
    assert (await house.post(path, once="b")).ok()["status"] == "cancelling"
    assert await house.service.history(run["id"]) == [
        "created",
        "in_progress",
        "cancelling",
        "cancelled",
    ]


# Duplicates at the same time.


@on_a_house()
async def test_duplicates_in_one_group_commit_have_one_effect(house: House) -> None:
    async with writer_held(house.service.store):
        tasks = [
            asyncio.create_task(house.post("/v1/threads", THREAD, once="a")) for _ in range(20)
        ]
        await rest()
    replies = await asyncio.gather(*tasks)
    assert {reply.body for reply in replies} == {replies[0].body}
    assert sorted(reply.replayed for reply in replies) == [False] + [True] * 19
    assert (rows(house, "threads"), rows(house, "messages")) == (1, 1)


@on_a_house()
async def test_duplicates_in_two_group_commits_have_one_effect(house: House) -> None:
    """The second is asked for while the first is being committed."""
    second: list[asyncio.Task[Reply]] = []
    loop = asyncio.get_running_loop()
    groups = []

    def begin_second() -> None:
        second.append(asyncio.create_task(house.post("/v1/threads", THREAD, once="a")))

    def look(point: str) -> None:
        groups.append(point)
        if point == "storage.group.executed" and groups.count(point) == 1:
            loop.call_soon_threadsafe(begin_second)

    with armed(look):
        first = await house.post("/v1/threads", THREAD, once="a")
        (again,) = await asyncio.gather(*second)
    assert groups.count("storage.group.executed") == 2
    assert (first.replayed, again.replayed) == (False, True)
    assert first.body == again.body
    assert rows(house, "threads") == 1


@on_a_house()
async def test_a_duplicate_of_what_is_rolled_back_takes_its_place(house: House) -> None:
    """In the same group commit: the first fails after it claimed the key, the second does not."""
    fine = {"assistant_id": house.service.assistant, "thread": THREAD}
    async with writer_held(house.service.store):
        failing = asyncio.create_task(
            house.post("/v1/threads/runs", {**fine, "assistant_id": "asst_nobody"}, once="a")
        )
        await rest()
        fitting = asyncio.create_task(house.post("/v1/threads/runs", fine, once="a"))
        await rest()
    assert (await failing).status == 404
    assert (await fitting).ok()["status"] == "queued"
    assert (rows(house, "threads"), rows(house, "runs")) == (1, 1)


@on_a_house()
async def test_a_commit_that_fails_keeps_neither_the_effect_nor_the_answer(house: House) -> None:
    def fail(point: str) -> None:
        if point == "storage.group.executed":
            raise sqlite3.OperationalError("the disk is gone")

    assert faults.POINTS["storage.group.executed"]
    with armed(fail):
        assert (await house.post("/v1/threads", THREAD, once="a")).status == 500
    assert (rows(house, "threads"), rows(house, "idempotency_keys")) == (0, 0)
    reply = await house.post("/v1/threads", THREAD, once="a")
    assert reply.ok()
    assert not reply.replayed


@on_a_house()
async def test_a_database_that_is_away_is_a_503_and_the_key_stays_free(house: House) -> None:
    house.service.store.away = True
    assert (await house.post("/v1/threads", THREAD, once="a")).status == 503
    house.service.store.away = False
    assert not (await house.post("/v1/threads", THREAD, once="a")).replayed


@on_a_house()
async def test_a_restart_forgets_no_answer(house: House) -> None:
    first = await house.post("/v1/threads", THREAD, once="a")
    await house.restart()
    again = await house.post("/v1/threads", THREAD, once="a")
    assert (again.body, again.replayed) == (first.body, True)


# A day later.


@on_a_house(started=False)
async def test_an_answer_is_kept_for_a_day(house: House) -> None:
    first = await house.post("/v1/threads", THREAD, once="a")
    house.service.clock.advance(DAY_SECONDS)
    assert (await house.post("/v1/threads", THREAD, once="a")).body == first.body
    house.service.clock.advance(0.001)
    later = await house.post("/v1/threads", THREAD, once="a")
    assert not later.replayed
    assert later.ok()["id"] != first.ok()["id"]


@on_a_house(started=False)
async def test_old_answers_make_room_a_few_at_a_time(house: House) -> None:
    """No request pays for a whole day's rows; each new one removes more than it adds."""
    old = 3 * PRUNED_AT_ONCE + 1
    for number in range(old):
        await house.post("/v1/threads", {}, once=f"old {number}")
    house.service.clock.advance(DAY_SECONDS / 2)
    await house.post("/v1/threads", {}, once="young")
    house.service.clock.advance(DAY_SECONDS / 2 + 1)
    counts = []
    for number in range(5):
        await house.post("/v1/threads", {}, once=f"new {number}")
        counts.append(rows(house, "idempotency_keys"))
    step = PRUNED_AT_ONCE - 1
    assert counts == [old + 1 - step, old + 1 - 2 * step, old + 1 - 3 * step, 5, 6]
    assert (await house.post("/v1/threads", {}, once="young")).replayed


@on_a_house(started=False)
async def test_an_old_key_that_was_not_removed_yet_is_free(house: House) -> None:
    """Also where more rows are old than one request removes."""
    for number in range(PRUNED_AT_ONCE + 5):
        await house.post("/v1/threads", {}, once=f"{number}")
    house.service.clock.advance(DAY_SECONDS + 1)
    last = f"{PRUNED_AT_ONCE + 4}"
    assert not (await house.post("/v1/threads", THREAD, once=last)).replayed
    assert (await house.post("/v1/threads", THREAD, once=last)).replayed


@on_a_house(started=False)
async def test_pruning_is_bounded_and_says_what_it_did(house: House) -> None:
    """For whoever prunes on a schedule."""
    for number in range(5):
        await house.post("/v1/threads", {}, once=f"{number}")
    store, now_ms = house.service.store, house.service.clock.now_ms()

    async def prune(before_ms: int, limit: int) -> int:
        return await store.write(lambda tx: idempotency.prune(tx, before_ms=before_ms, limit=limit))

    assert await prune(now_ms, 100) == 0
    assert [await prune(now_ms + 1, 2) for _ in range(4)] == [2, 2, 1, 0]


# Streams.


@on_a_house()
async def test_a_stream_with_a_key_says_what_one_without_says(house: House) -> None:
    """Nothing twice, and nothing missing, although its transaction is another one."""
    heard = []
    for once in (None, "a"):
        thread = (await house.post("/v1/threads", THREAD)).ok()["id"]
        body = {"assistant_id": house.service.assistant, "stream": True}
        path = f"/v1/threads/{thread}/runs"
        reading = asyncio.create_task(house.post(path, body, once=once))
        await house.service.settle()
        house.service.backend.turn.say("Hi there")
        heard.append((await reading).events)
    assert heard[0] == heard[1]
    assert heard[0][:3] == ["thread.run.created", "thread.run.queued", "thread.run.in_progress"]


@on_a_house()
async def test_a_stream_whose_commit_fails_is_followed_by_nobody(house: House) -> None:
    body = {"assistant_id": house.service.assistant, "thread": THREAD, "stream": True}
    followed = []

    def fail(point: str) -> None:
        if point == "storage.group.executed":
            followed.append(dict(house.service.ctx.live._followers))
            raise sqlite3.OperationalError("the disk is gone")

    with armed(fail):
        assert (await house.post("/v1/threads/runs", body, once="a")).status == 500
    assert followed == [{}]
    assert house.service.ctx.live._followers == {}


@on_a_house()
async def test_a_stream_is_replayed_as_what_became_of_its_run(house: House) -> None:
    body = {"assistant_id": house.service.assistant, "thread": THREAD, "stream": True}
    reading = asyncio.create_task(house.post("/v1/threads/runs", body, once="a"))
    await house.service.settle()
    house.service.backend.turn.say("Hi there")
    await house.service.settle()
    first = await reading
    again = await house.post("/v1/threads/runs", body, once="a")
    assert first.events[:3] == ["thread.created", "thread.run.created", "thread.run.queued"]
    assert first.events[-2:] == ["thread.run.completed", "done"]
    assert again.replayed
    assert again.headers["content-type"] == first.headers["content-type"]
    assert again.events == [
        "thread.run.step.created",
        "thread.message.created",
        "thread.message.delta",
        "thread.message.completed",
        "thread.run.step.completed",
        "thread.run.completed",
        "done",
    ]
    assert b"Hi there" in again.body
    assert (rows(house, "threads"), rows(house, "runs")) == (1, 1)


@on_a_house()
async def test_a_duplicate_of_a_stream_in_flight_waits_for_its_end(house: House) -> None:
    """It says at once how the run stands, and no delta: nobody could make sense of half of them."""
    body = {"assistant_id": house.service.assistant, "thread": THREAD, "stream": True}
    replies = [Reply(), Reply()]
    tasks = [
        asyncio.create_task(house.post("/v1/threads/runs", body, once="a", reply=reply))
        for reply in replies
    ]
    await house.service.settle()
    early, late = sorted(replies, key=lambda reply: reply.replayed)
    assert (early.replayed, late.replayed) == (False, True)
    assert "thread.run.in_progress" in early.events
    assert late.events in (["thread.run.queued"], ["thread.run.in_progress"])
    third = asyncio.create_task(house.post("/v1/threads/runs", body, once="a"))
    await house.service.settle()
    house.service.backend.turn.say("Hi there")
    await house.service.settle()
    await asyncio.gather(*tasks)
    for reply in (late, await third):
        assert reply.events[-2:] == ["thread.run.completed", "done"]
        assert b"Hi there" in reply.body
    assert rows(house, "runs") == 1


@on_a_house()
async def test_a_stream_that_stopped_at_a_tool_call_is_replayed_with_it(house: House) -> None:
    """And after the outputs came, as what the run is by then."""
    body = {"assistant_id": house.service.assistant, "thread": THREAD, "stream": True}
    reading = asyncio.create_task(house.post("/v1/threads/runs", body, once="a"))
    await house.service.settle()
    house.service.backend.turn.call("f")
    await house.service.settle()
    first = await reading
    again = await house.post("/v1/threads/runs", body, once="a")
    for reply in (first, again):
        assert reply.events[-2:] == ["thread.run.requires_action", "done"]
    run_id = await _only_run(house)
    run = await house.service.find(run_id)
    outputs = [{"tool_call_id": call.id, "output": "42"} for call in run.tool_calls]
    path = f"/v1/threads/{run.thread_id}/runs/{run_id}/submit_tool_outputs"
    submit = {"tool_outputs": outputs, "stream": True}
    submitting = asyncio.create_task(house.post(path, submit, once="b"))
    await house.service.settle()
    house.service.backend.turn.say("It is 42")
    await house.service.settle()
    submitted = await submitting
    # The step that the outputs complete belongs to the stream, as it does without a key.
    assert submitted.events[:2] == ["thread.run.step.completed", "thread.run.queued"]
    assert submitted.events[-2:] == ["thread.run.completed", "done"]
    for path_, body_, key in (("/v1/threads/runs", body, "a"), (path, submit, "b")):
        reply = await house.post(path_, body_, once=key)
        assert reply.events[-2:] == ["thread.run.completed", "done"]
        assert b"It is 42" in reply.body
    assert (await house.service.history(run_id)).count("queued") == 1


@on_a_house()
async def test_outputs_that_are_refused_leave_no_follower(house: House) -> None:
    """A stream that never began holds nothing."""
    body = {"assistant_id": house.service.assistant, "thread": THREAD}
    run = (await house.post("/v1/threads/runs", body)).ok()
    path = f"/v1/threads/{run['thread_id']}/runs/{run['id']}/submit_tool_outputs"
    submit = {"tool_outputs": [{"tool_call_id": "call_x", "output": ""}], "stream": True}
    assert (await house.post(path, submit, once="a")).status == 400
    assert not house.service.ctx.live.followed(run["id"])


@on_a_house()
async def test_a_streams_run_that_is_gone_is_a_404(house: House) -> None:
    body = {"assistant_id": house.service.assistant, "thread": THREAD, "stream": True}
    reading = asyncio.create_task(house.post("/v1/threads/runs", body, once="a"))
    await house.service.settle()
    house.service.backend.turn.say("Hi")
    await house.service.settle()
    await reading
    run = await house.service.find(await _only_run(house))
    connection = sqlite3.connect(house.service.store.inner.path)
    with connection:
        connection.execute("DELETE FROM runs")
    connection.close()
    reply = await house.post("/v1/threads/runs", body, once="a")
    assert reply.status == 404
    assert reply.json()["error"]["message"] == f"No run found with id '{run.id}'."
    assert not house.service.ctx.live.followed(run.id)


async def _only_run(house: House) -> str:
    (event,) = [e for e in await house.service.feed() if e["type"] == "thread.run.created"]
    return event["data"]["id"]


# Keys.


@pytest.mark.parametrize("key", ["a", "x" * 255, "with spaces", '"quoted"', "~!@#$%^&*()"])
def test_keys_that_can_be_used(key: str) -> None:
    assert key_of([(b"accept", b"*/*"), (b"idempotency-key", key.encode())]) == key


@pytest.mark.parametrize(
    "values",
    [[b""], [b"   "], [b"x" * 256], [b"caf\xc3\xa9"], [b"\x00"], [b"a\tb"], [b"a", b"a"]],
)
def test_keys_that_cannot(values: list[bytes]) -> None:
    with pytest.raises(RequestRefused) as caught:
        key_of([(b"idempotency-key", value) for value in values])
    assert (caught.value.status, caught.value.code) == (400, "invalid_idempotency_key")
    assert "1 to 255 printable ASCII characters" in caught.value.message


def test_no_key_is_none() -> None:
    assert key_of([(b"authorization", b"Bearer x")]) is None


def test_a_digest_tells_method_path_and_body_apart() -> None:
    asked = [
        ("POST", "/v1/threads", b"{}"),
        ("PUT", "/v1/threads", b"{}"),
        ("POST", "/v1/threads2", b"{}"),
        ("POST", "/v1/threads", b"{} "),
        ("POST", "/v1/threads", b""),
        ("POST", "/v1/threads ", b"{}"),
        ("POST", "/v1/threads{}", b""),
    ]
    assert len({request_digest(*each) for each in asked}) == len(asked)
    assert request_digest(*asked[0]) == request_digest(*asked[0])


def test_a_path_with_any_letters_has_a_digest() -> None:
    """A path is what a client wrote, decoded."""
    assert request_digest("POST", "/v1/threads/é\udcff/messages", b"")
