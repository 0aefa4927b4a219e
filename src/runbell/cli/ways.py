"""Four ways to learn that a run has ended, on the same mix of runs, at the same time: the loop of
the tutorials, and the waiter by polling, by long poll and by webhook.

Each way has its own copy of the mix and its own client, whose status requests are counted. When a
run has really ended stands in the service's feed of events, which none of the ways looks at.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from runbell.cli.served import ServedProcess
from runbell.errors import RunbellError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.beta.threads import Run
    from rich.console import Console

    from runbell.receiver import Receiver

__all__ = ["GIVE_UP_SECONDS", "MIX", "TUTORIAL", "WAYS", "Compared", "Scene", "compare", "show"]

GIVE_UP_SECONDS = 10.0
"""After which the tutorial's loop gives up here; in the tutorials it is 60 s."""

LIMIT_SECONDS = 90.0
FAILURES = frozenset({"failed", "expired", "cancelled", "incomplete"})


@dataclass(frozen=True)
class Scene:
    """One run of the mix.

    Attributes:
        message: what drives the model `echo`.
        status: how the run ends where somebody calls the functions that it asks for.
        extra: fields of the run.
        cancel_after: seconds after which somebody else cancels it.
    """

    message: str
    status: str
    extra: Mapping[str, Any] | None = None
    cancel_after: float | None = None


MIX = (
    Scene("sleep 0.3", "completed"),
    Scene("sleep 0.9", "completed"),
    Scene("sleep 1.7", "completed"),
    Scene("sleep 3.2", "completed"),
    Scene('sleep 0.4\ncall multiply {"a": 6, "b": 7}', "completed"),
    Scene("sleep 0.6\nfail rate_limit_exceeded Asked to fail.", "failed"),
    Scene("sleep 0.8\nincomplete", "incomplete"),
    Scene("sleep 60", "expired", extra={"expires_after": 2}),
    Scene("sleep 60", "cancelled", cancel_after=1.1),
)

MULTIPLY = {
    "type": "function",
    "function": {
        "name": "multiply",
        "description": "Multiply two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


def multiply(a: float, b: float) -> float:
    """The function that one run of the mix needs."""
    return a * b


TUTORIAL = "the tutorial's loop"
WAYS: Mapping[str, Callable[[Receiver], dict[str, Any] | None]] = {
    TUTORIAL: lambda _: None,
    "waiter by polling": lambda _: {"hold": False},
    "waiter by long poll": lambda _: {},
    "waiter by webhook": lambda receiver: {"hold": False, "events": receiver},
}
"""The ways by name, each with the options of its waiter, where it has one."""


@dataclass(frozen=True)
class Known:
    """That a run has ended: how, and when that was known, in milliseconds since the epoch."""

    status: str
    at_ms: float


Watch = Callable[["Run"], Awaitable[Known | None]]
"""Waits for a run; None where it gave up."""


@dataclass(frozen=True)
class Compared:
    """How one way did.

    Attributes:
        calls: status requests that it has made for all runs of the mix.
        known: how each run of the mix ended, as this way saw it; None where it gave up.
        delays_ms: from a run's end until this way knew of it, for those that it saw end.
    """

    name: str
    calls: int
    known: tuple[str | None, ...]
    delays_ms: tuple[float, ...]

    @property
    def problem(self) -> str:
        """What is not as it should be; the tutorial's loop is known to miss endings."""
        wanted = tuple(scene.status for scene in MIX)
        if self.name == TUTORIAL or self.known == wanted:
            return ""
        return f"it saw the runs end as {self.known}, not as {wanted}"


class Calls:
    """Counts status requests."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, request: Any) -> None:
        """A request is made."""
        self.count += request.method == "GET"


def _client(service: ServedProcess, calls: Calls) -> AsyncOpenAI:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    async def add(request: Any) -> None:
        calls.add(request)

    # Without the environment, whose proxy would not find our loopback.
    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [add]}, trust_env=False)
    return AsyncOpenAI(base_url=service.base_url, api_key=service.api_key, http_client=http_client)


async def compare(service: ServedProcess) -> list[Compared]:
    """Play the mix once for each way, all at the same time.

    Raises:
        RunbellError: something did not come to its end.
    """
    async with _Stage(service) as stage:
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                return await stage.play()
        except TimeoutError:
            raise RunbellError(
                f"the four ways were not through after {LIMIT_SECONDS:.0f} s"
            ) from None


class _Stage:
    """The service, a receiver that it pushes to, and a client for whatever is not counted."""

    def __init__(self, service: ServedProcess) -> None:
        self._service = service

    async def __aenter__(self) -> _Stage:
        self._open = contextlib.AsyncExitStack()
        self._client = await self._open.enter_async_context(_client(self._service, Calls()))
        listener = self._open.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/hooks"
        # The SDK's types know OpenAI's own events alone.
        types: Any = ["thread.run.*"]
        endpoint = await self._client.webhooks.create(name="demo", url=url, event_types=types)
        folder = self._open.enter_context(tempfile.TemporaryDirectory(prefix="runbell-"))
        self._receiver = await self._open.enter_async_context(
            _listening(endpoint.signing_secret, Path(folder), listener)
        )
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._open.__aexit__(*error)

    async def play(self) -> list[Compared]:
        """Have all ways wait for the mix, and hold what they saw against the feed."""
        tools: Any = [MULTIPLY]
        assistant = await self._client.beta.assistants.create(model="echo", tools=tools)
        ready = asyncio.Barrier(len(WAYS))
        seen = await asyncio.gather(
            *(self._way(each(self._receiver), assistant.id, ready) for each in WAYS.values())
        )
        ended_ms = await self._ended()
        return [
            Compared(
                name,
                calls,
                tuple(known.status if known else None for _, known in runs),
                tuple(max(0.0, known.at_ms - ended_ms[run]) for run, known in runs if known),
            )
            for name, (calls, runs) in zip(WAYS, seen, strict=True)
        ]

    async def _way(
        self, options: dict[str, Any] | None, assistant: str, ready: asyncio.Barrier
    ) -> tuple[int, list[tuple[str, Known | None]]]:
        """Status requests, and each run's id with how it was seen to end."""
        calls = Calls()
        way = self._by_the_tutorial(calls) if options is None else self._waiter(calls, options)
        async with way as watch:
            # What is made once, such as connections and imports, is no delay of a run.
            await ready.wait()
            calls.count = 0
            runs = await asyncio.gather(*(self._begin(scene, assistant) for scene in MIX))
            known = await asyncio.gather(*map(watch, runs))
        return calls.count, [(run.id, each) for run, each in zip(runs, known, strict=True)]

    async def _begin(self, scene: Scene, assistant: str) -> Run:
        beta = self._client.beta
        message: Any = {"role": "user", "content": scene.message}
        run = await beta.threads.create_and_run(
            assistant_id=assistant,
            thread={"messages": [message]},
            extra_body={**(scene.extra or {})},
        )
        if scene.cancel_after is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(scene.cancel_after, self._cancel, run)
        return run

    def _cancel(self, run: Run) -> None:
        cancelling = self._client.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)
        self._cancelling = asyncio.ensure_future(cancelling)

    @contextlib.asynccontextmanager
    async def _waiter(self, calls: Calls, options: dict[str, Any]) -> AsyncIterator[Watch]:
        from runbell import AsyncWaiter

        async with (
            _client(self._service, calls) as client,
            AsyncWaiter(client, tools=[multiply], **options) as waiter,
        ):
            await client.models.list()

            async def watch(run: Run) -> Known:
                ended = await waiter.wait(run)
                return Known(ended.status, time.time() * 1000)

            yield watch

    @contextlib.asynccontextmanager
    async def _by_the_tutorial(self, calls: Calls) -> AsyncIterator[Watch]:
        from openai import DefaultHttpxClient, OpenAI

        loop = asyncio.get_running_loop()
        http_client = DefaultHttpxClient(event_hooks={"request": [calls.add]}, trust_env=False)
        with (
            OpenAI(
                base_url=self._service.base_url,
                api_key=self._service.api_key,
                http_client=http_client,
            ) as client,
            ThreadPoolExecutor(len(MIX)) as threads,
        ):
            client.models.list()

            async def watch(run: Run) -> Known | None:
                return await loop.run_in_executor(threads, _tutorial, client, run)

            yield watch

    async def _ended(self) -> dict[str, float]:
        """When each run ended, in milliseconds since the epoch, by the feed of events."""
        moments: dict[str, float] = {}
        query: dict[str, Any] = {"limit": 100}
        while True:
            page: Any = await self._client.get("/events", cast_to=object, options={"params": query})
            # The last event of a run is its end, or the state in which it was left.
            moments |= {each["data"]["id"]: each["data"]["updated_at_ms"] for each in page["data"]}
            if not page["has_more"]:
                return moments
            query["after"] = page["last_id"]


def _tutorial(client: Any, run: Run) -> Known | None:
    """The loop as it stands in the tutorials (`examples/tutorial_loop.py`), with its own limit."""
    delay = 0.5
    elapsed = 0.0
    while True:
        run = client.beta.threads.runs.retrieve(thread_id=run.thread_id, run_id=run.id)
        if run.status in ("completed", "failed", "cancelled", "expired"):
            return Known(run.status, time.time() * 1000)
        if elapsed >= GIVE_UP_SECONDS:
            return None
        time.sleep(delay)
        elapsed += delay
        delay = min(delay * 1.5, 5)


@contextlib.asynccontextmanager
async def _listening(secret: str, folder: Path, listener: socket.socket) -> AsyncIterator[Receiver]:
    """A receiver that listens, with an inbox of its own."""
    import uvicorn

    from runbell.receiver import Receiver

    class Server(uvicorn.Server):
        """uvicorn, without its signal handlers: the demo is ended as a whole."""

        @contextlib.contextmanager
        def capture_signals(self) -> Any:
            yield

    receiver = Receiver([secret], f"sqlite:///{folder / 'inbox.db'}")
    config = uvicorn.Config(
        receiver.asgi(), log_config=None, access_log=False, timeout_graceful_shutdown=1
    )
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        if serving.done():
            serving.result()
            raise RunbellError("the receiver of webhooks did not start")
        await asyncio.sleep(0.001)  # uvicorn has no event
    try:
        yield receiver
    finally:
        server.should_exit = True
        await serving


def show(console: Console, compared: Sequence[Compared]) -> None:
    """A table, one line a way."""
    from rich import box
    from rich.table import Table

    terminal = console.is_terminal
    table = Table(box=box.ROUNDED if terminal else None, pad_edge=terminal)
    table.add_column("Way to wait")
    for name in ("calls a run", "mean delay", "worst delay", "failures seen", "endings seen"):
        table.add_column(name, justify="right")
    failures = sum(scene.status in FAILURES for scene in MIX)
    for each in compared:
        table.add_row(
            each.name,
            f"{each.calls / len(MIX):.2f}",
            f"{fmean(each.delays_ms):.0f} ms" if each.delays_ms else "-",
            f"{max(each.delays_ms):.0f} ms" if each.delays_ms else "-",
            f"{_caught(each, FAILURES)} of {failures}",
            f"{_caught(each, FAILURES | {'completed'})} of {len(MIX)}",
        )
    console.print(table)
    console.print()


def _caught(compared: Compared, statuses: frozenset[str]) -> int:
    """Of the runs that ended in one of these statuses, how many this way has seen end so."""
    pairs = zip(MIX, compared.known, strict=True)
    return sum(scene.status in statuses and known == scene.status for scene, known in pairs)
