"""One run's walk through all the rooms, told as a story.

Read it after `runs/lifecycle.py`. Time is virtual and the client is the stock SDK; everything else
is what `runbell serve` puts together.
"""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import httpx2
from openai import AsyncOpenAI

from runbell.clock import VirtualClock
from runbell.runs import RunStatus, lifecycle
from runbell.service.app import App
from runbell.service.databases import open_database
from runbell.service.operations.access import Access, create_key, ensure_project
from runbell.service.operations.context import Context
from runbell.service.server import build, handlers
from runbell.service.settings import Settings
from runbell.service.vault import Vault
from runbell.storage import runs
from runbell.storage.sqlite import SQLiteStore
from runbell.webhooks import Secret, verify

WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}


def test_one_run_walks_through_all_rooms(tmp_path: Path):
    asyncio.run(_the_walk(tmp_path / "walk.db"))


async def _the_walk(file: Path) -> None:
    # An empty file becomes a database, and a project gets a key: storage knows its digest alone.
    clock = VirtualClock()
    settings = Settings(allow_private_webhooks=True, database=f"sqlite:///{file}")
    async with open_database(settings) as database:
        store = database.store
        ctx, executor, deliverer = build(settings, database, clock, Vault(bytes(32)))
        project = await ensure_project(store, clock, "default")
        key, row = await create_key(store, clock, project, "keys")
        assert key not in repr(row)
        app = App(ctx, Access(store, settings_key=None, settings_project=project.id))
        transport = httpx2.ASGITransport(app)
        client = AsyncOpenAI(
            base_url="http://runbell/v1",
            api_key=key,
            http_client=httpx2.AsyncClient(transport=transport),
        )

        # A program of somebody's wants to be told how runs end.
        posts: list[Request] = []
        receiver, url = await _receiver(posts)
        endpoint = await client.webhooks.create(
            name="walk", url=url, event_types=["thread.run.completed"]
        )

        # Somebody asks for the weather. Nobody executes runs yet, so this one is simply kept.
        assistant = await client.beta.assistants.create(model="echo", tools=[WEATHER])
        thread = await client.beta.threads.create(
            messages=[{"role": "user", "content": 'call get_weather {"city": "Oslo"}\nsleep 2'}]
        )
        run = await client.beta.threads.runs.create(thread_id=thread.id, assistant_id=assistant.id)
        assert run.status == "queued"

        # The row is the truth: from it alone the engine knows what there is to do.
        ctx.jobs.start(handlers(executor, deliverer))
        await _until(store, run.id, RunStatus.REQUIRES_ACTION)

        # The model wants a tool called. No worker is held meanwhile; the run just stands there.
        run = await client.beta.threads.runs.retrieve(run.id, thread_id=thread.id)
        [call] = run.required_action.submit_tool_outputs.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == (
            "get_weather",
            {"city": "Oslo"},
        )

        # Three virtual seconds later the output is there; then the model thinks for two more.
        clock.advance(3)
        await client.beta.threads.runs.submit_tool_outputs(
            run.id,
            thread_id=thread.id,
            tool_outputs=[{"tool_call_id": call.id, "output": "rain, 4 °C"}],
        )
        await _until(store, run.id, RunStatus.IN_PROGRESS)
        while clock.next_wake() is None or clock.next_wake() > 2:
            await asyncio.sleep(0)
        clock.advance(2)
        await _until(store, run.id, RunStatus.COMPLETED)

        # The answer is in the thread, and the run's steps say how it came about.
        messages = await client.beta.threads.messages.list(thread.id)
        assert messages.data[0].content[0].text.value == "rain, 4 °C"
        steps = await client.beta.threads.runs.steps.list(run.id, thread_id=thread.id, order="asc")
        assert [step.type for step in steps.data] == ["tool_calls", "message_creation"]

        # Everybody else hears of it from the feed: each change once, numbered, with its moment.
        feed = await client.get("/events", cast_to=object)
        story = [
            (
                event["data"]["sequence"],
                event["type"],
                event["data"]["updated_at_ms"] - _start(feed),
            )
            for event in feed["data"]
        ]
        assert story == [
            (1, "thread.run.created", 0),
            (2, "thread.run.in_progress", 0),
            (3, "thread.run.requires_action", 0),
            (4, "thread.run.queued", 3000),
            (5, "thread.run.in_progress", 3000),
            (6, "thread.run.completed", 5000),
        ]

        # The program is told of the last one: the same event, signed for it alone.
        async with asyncio.timeout(30):
            while not posts:
                await asyncio.sleep(0.001)
        [post] = posts
        secret = Secret.parse(endpoint.signing_secret)
        verified = verify([secret], post.headers, post.body, now_ms=clock.now_ms())
        assert json.loads(post.body) == feed["data"][-1]
        assert verified.id == feed["data"][-1]["id"]

        # And that was all: a run that has ended goes nowhere any more.
        await client.close()
        await ctx.jobs.stop(0)
        await ctx.poster.close()
        receiver.close()
        ended = await _record(ctx, run.id)
        assert lifecycle.TRANSITIONS[ended.run.status] == frozenset()


@dataclass
class Request:
    headers: list[tuple[str, str]]
    body: bytes


async def _receiver(posts: list[Request]) -> tuple[asyncio.Server, str]:
    """Somebody's own web server: keeps what it gets and says 200."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = [tuple(line.split(": ", 1)) for line in lines]
        length = next(int(value) for name, value in headers if name.lower() == "content-length")
        posts.append(Request(headers, await reader.readexactly(length)))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    return server, f"http://127.0.0.1:{port}/hook"


def _start(feed: dict) -> int:
    return feed["data"][0]["data"]["created_at_ms"]


async def _record(ctx: Context, run_id: str) -> runs.RunRecord:
    record = await ctx.store.read(lambda tx: runs.find(tx, run_id))
    assert record is not None
    return record


async def _until(store: SQLiteStore, run_id: str, status: RunStatus) -> None:
    async with asyncio.timeout(30):
        while (await store.read(lambda tx: runs.find(tx, run_id))).run.status is not status:
            await asyncio.sleep(0)
