"""The service without its HTTP: real operations, jobs, executor and storage, in the test's time.

    async with embedded(path) as service:
        thread = await service.thread("Hello")
        run = await service.run(thread)
        await service.settle()
        service.backend.turn.say("Hi")
        await service.settle()
        assert await service.status(run) == "completed"

Nothing here sleeps: time moves when `advance` is called, and `settle` waits for work, not for time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from runbell.clock import Clock, VirtualClock
from runbell.runs import Run, RunEvent, RunStatus
from runbell.service.backends import Backends
from runbell.service.backends.echo import Echo
from runbell.service.changes import Changes
from runbell.service.delivery.lanes import Deliverer
from runbell.service.executor import Executor
from runbell.service.feeds import Feeds
from runbell.service.hints import Hints
from runbell.service.jobs import Jobs, Lanes
from runbell.service.jobs.embedded import EmbeddedJobs
from runbell.service.live import Live
from runbell.service.metrics import Metrics
from runbell.service.operations import assistants, runs, threads
from runbell.service.operations.access import DEFAULT_PROJECT, ensure_project
from runbell.service.operations.context import Context
from runbell.service.server import handlers
from runbell.service.settings import Settings
from runbell.service.vault import Vault
from runbell.service.wire.requests import (
    CreateAssistant,
    CreateMessage,
    CreateRun,
    CreateThread,
    ToolOutput,
)
from runbell.storage import events, holding
from runbell.storage import messages as message_rows
from runbell.storage import runs as run_rows
from runbell.storage import steps as step_rows
from runbell.storage.events import FeedRow
from runbell.storage.paging import Page
from runbell.storage.records import FunctionDefinition, FunctionTool, Message, RunStep
from runbell.storage.store import Store
from runbell.testing.backends import ScriptedBackend
from runbell.testing.databases import ObservedStore, migrated_sqlite, opened
from runbell.testing.posts import ScriptedPoster

__all__ = ["EmbeddedService", "Engine", "embedded", "embedded_engine", "on_a_service"]

QUIET_TURNS = 25
"""Turns of the event loop without a unit of work after which nothing is on its way any more."""

FEED_PAGE = 100


Engine = Callable[[ObservedStore, Clock, Lanes, Settings], Jobs]
"""Makes an engine for jobs."""


def embedded_engine(store: ObservedStore, clock: Clock, lanes: Lanes, settings: Settings) -> Jobs:
    """The engine of a single process."""
    return EmbeddedJobs(
        store,
        clock,
        lanes,
        concurrency=settings.max_concurrent_runs,
        cancel_grace=settings.cancel_grace,
        rng=random.Random(0),
    )


class EmbeddedService:
    """One service process without its sockets, made anew by `restart` on the same store.

    Attributes:
        clock: moves when `advance` is called, and at no other time.
        store: counts what goes through it, and can be away.
        backend: serves the model `scripted`; `echo` is served too.
        poster: takes what is sent to webhook endpoints, and answers as the test says.
        project: the id of the one project.
    """

    def __init__(
        self,
        store: Store,
        clock: VirtualClock,
        settings: Settings,
        backend: ScriptedBackend,
        engine: Engine | None = None,
    ) -> None:
        self.engine = engine or embedded_engine
        self.store = ObservedStore(store)
        self.clock = clock
        self.settings = settings
        self.backend = backend
        self.project = ""
        self.assistant = ""
        self.poster = ScriptedPoster()
        self.vault = Vault(bytes(32))
        self.build()

    def build(self) -> None:
        """Put the parts together on what the store has, as a process does before it serves."""
        metrics = Metrics()
        backends = Backends([self.backend, Echo(self.clock)], self.clock, metrics)
        self.jobs = self.engine(self.store, self.clock, backends, self.settings)
        changes = Changes()
        self.ctx = Context(
            self.settings,
            self.clock,
            self.store,
            self.jobs,
            changes,
            Feeds(self.store, changes),
            Live(),
            Hints(self.clock),
            backends,
            self.poster,
            self.vault,
            metrics,
        )
        self.executor = Executor(self.ctx, random.Random(0))
        self.deliverer = Deliverer(self.ctx, random.Random(0))

    # The process.

    async def prepare(self) -> None:
        """Make what every test needs: a project, and an assistant of the model `scripted`."""
        self.project = (await ensure_project(self.store, self.clock, DEFAULT_PROJECT)).id
        tools = tuple(FunctionTool(FunctionDefinition(name)) for name in ("f", "g-2"))
        created = await assistants.create(
            self.ctx, self.project, CreateAssistant(model="scripted", tools=tools)
        )
        self.assistant = created.id

    def start(self) -> None:
        """Begin to hand out jobs."""
        self.jobs.start(handlers(self.executor, self.deliverer))

    async def crash(self) -> None:
        """Lose everything that is not in the store, as a killed process does."""
        for turn in self.backend.turns:
            turn.stubborn = False
        # A killed process says no last words either.
        away, self.store.away = self.store.away, True
        try:
            await self.jobs.stop(0)
            await self.deliverer.close()
        finally:
            self.store.away = away
        await self.store.drain()

    async def restart(self) -> None:
        """Begin again with what the store has."""
        await self.crash()
        self.build()
        self.start()

    # Time.

    async def settle(self) -> None:
        """Return when nothing happens any more until the test moves time or ends a turn."""
        quiet = 0
        while quiet < QUIET_TURNS:
            seen = self.store.calls
            if self.store.under_way or not quiet:
                await self.store.drain()
            await asyncio.sleep(0)
            # Anew behind every unit: one that ends in the last of these turns sets off more.
            busy = self.store.under_way or self.store.calls != seen
            quiet = 0 if busy else quiet + 1

    async def advance(self, seconds: float) -> None:
        """Let this much time pass: at each moment for which somebody waits, all of it happens."""
        await self.settle()
        while (wake := self.clock.next_wake()) is not None and wake <= seconds:
            seconds -= wake
            self.clock.advance(wake)
            await self.settle()
        self.clock.advance(seconds)
        await self.settle()

    async def account(self) -> str:
        """Where everything stands, for whoever has to find out why a test failed."""
        told = [f"{event['data']['id']} {event['type']}" for event in (await self.feed())[-6:]]
        turns = [f"over={turn.over} stopped={turn.stopped}" for turn in self.backend.turns[-3:]]
        tasks = sorted(task.get_name() for task in asyncio.all_tasks())
        return (
            f"at {self.clock.monotonic():g} s, next wake in {self.clock.next_wake()} s; "
            f"units {self.store.calls}, under way {self.store.under_way}\n"
            f"last events: {told}\nlast turns: {turns}\ntasks: {tasks}"
        )

    # What clients do.

    async def thread(self, *texts: str) -> str:
        """A thread with these messages of the user: its id."""
        said = tuple(CreateMessage(role="user", content=text) for text in texts)
        created = await threads.create(self.ctx, self.project, CreateThread(messages=said))
        return created.id

    async def run(self, thread_id: str, label: str = "", **fields: Any) -> str:
        """Create a run: its id.

        Args:
            label: its instructions, by which the test knows the model's turns.
            fields: more of the request.
        """
        request = CreateRun(assistant_id=self.assistant, instructions=label, **fields)
        record = await runs.create(self.ctx, self.project, thread_id, request)
        return record.run.id

    async def submit(self, run_id: str, outputs: dict[str, str]) -> None:
        """Give a run the outputs of its calls, by call id."""
        run = await self.find(run_id)
        given = [ToolOutput(call, output) for call, output in outputs.items()]
        await runs.submit_tool_outputs(self.ctx, self.project, run.thread_id, run_id, given)

    async def cancel(self, run_id: str) -> None:
        """Cancel a run."""
        run = await self.find(run_id)
        await runs.cancel(self.ctx, self.project, run.thread_id, run_id)

    # What is there.

    async def find(self, run_id: str) -> Run:
        """A run, as it is stored."""
        record = await self.store.read(lambda tx: run_rows.find(tx, run_id))
        assert record is not None, f"{run_id} is not there"
        return record.run

    async def status(self, run_id: str) -> RunStatus:
        """A run's status."""
        return (await self.find(run_id)).status

    async def holder(self, thread_id: str) -> str | None:
        """The id of the run that holds a thread."""
        return await self.store.read(lambda tx: holding.active(tx, thread_id))

    async def messages(self, thread_id: str) -> list[Message]:
        """A thread's messages, the oldest first; at most 100."""
        page = Page(limit=100, order="asc")
        found, more = await self.store.scan(
            lambda tx: message_rows.page(tx, self.project, thread_id, page)
        )
        assert not more
        return found

    async def steps(self, run_id: str) -> list[RunStep]:
        """A run's steps, in order."""
        return await self.store.read(lambda tx: step_rows.of_run(tx, run_id))

    async def feed(self) -> list[RunEvent]:
        """All events, in the order of the feed, read page by page."""
        found: list[RunEvent] = []
        after, more = None, True
        while more:
            rows, more = await self._feed_behind(after)
            assert after not in [row[0] for row in rows], "a page begins behind its cursor"
            found += [json.loads(body) for _, _, body in rows]
            after = rows[-1][0] if rows else None
        return found

    async def _feed_behind(self, after: str | None) -> tuple[list[FeedRow], bool]:
        return await self.store.scan(
            lambda tx: events.page(tx, self.project, after=after, types=None, limit=FEED_PAGE)
        )

    async def history(self, run_id: str) -> list[str]:
        """The types of a run's events in order, without `thread.run.`."""
        return [
            event["type"].removeprefix("thread.run.")
            for event in await self.feed()
            if event["data"]["id"] == run_id
        ]


@contextlib.asynccontextmanager
async def embedded(
    path: Path, *, started: bool = True, clock: VirtualClock | None = None, **settings: Any
) -> AsyncIterator[EmbeddedService]:
    """A service on a new SQLite file at `path`.

    Args:
        started: hand out jobs at once; else the test calls `start`.
        settings: of `Settings`, where they are to differ from the defaults.
    """
    async with opened(migrated_sqlite(path), durable=False) as store:
        service = EmbeddedService(
            store, clock or VirtualClock(), Settings(**settings), ScriptedBackend()
        )
        await service.prepare()
        if started:
            service.start()
        try:
            yield service
        finally:
            await service.crash()


def on_a_service(
    **options: Any,
) -> Callable[[Callable[[EmbeddedService], Awaitable[None]]], Callable[[Path], None]]:
    """Make a test of an async function that is given a service; `options` are `embedded`'s.

    @on_a_service(started=False)
    async def test_what_it_promises(service): ...
    """

    def decorate(test: Callable[[EmbeddedService], Awaitable[None]]) -> Callable[[Path], None]:
        async def story(path: Path) -> None:
            async with embedded(path, **options) as service:
                try:
                    await test(service)
                except Exception as error:
                    error.add_note(await service.account())
                    raise

        # Not `functools.wraps`: pytest would look for a fixture of the wrapped signature's name.
        def run(tmp_path: Path) -> None:
            asyncio.run(story(tmp_path / "runbell.db"))

        run.__doc__ = test.__doc__
        run.__name__ = run.__qualname__ = getattr(test, "__name__", "test")
        run.__module__ = test.__module__
        return run

    return decorate
