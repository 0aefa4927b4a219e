"""`runbell demo`: a service of its own, five runs through the stock `openai` SDK, how they went,
and how soon their ends were known by polling and by webhook.

Each run is a `Story`: what happens, and how it has to end. A story that ends otherwise makes the
command fail, so the demo is also the quickest way to see that an installation works.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import textwrap
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from runbell.cli.hooks import Hooks
from runbell.cli.served import ServedProcess
from runbell.errors import RunbellError
from runbell.webhooks import Secret

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.beta.threads import Run
    from rich.console import Console

__all__ = ["demo"]

MODEL = "echo"
QUESTION = "What is 2+2?"
POLL_MS = 100
LIMIT_SECONDS = 20.0
Histories = dict[str, list[tuple[str, int]]]
"""The statuses of runs by id, each with its moment, in milliseconds since the epoch."""

FULL_WIDTH = 100
"""Columns of the table where nobody says how many there are."""


def add(a: float, b: float) -> float:
    """The function that the second run needs."""
    return a + b


ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "number"}, "b": {"type": "number"}},
            "required": ["a", "b"],
        },
    },
}


class Stage:
    """Where one story plays: a client, and the run that it is about."""

    def __init__(self, client: AsyncOpenAI) -> None:
        self.client = client
        self.run: Run | None = None
        self.known_ms = 0.0

    async def begin(self, message: str, *, tools: Any = (), extra: Any = None) -> Run:
        """Assistant, thread, message, run: as every program for the Assistants API does it."""
        beta = self.client.beta
        assistant = await beta.assistants.create(model=MODEL, tools=tools)
        thread = await beta.threads.create()
        await beta.threads.messages.create(thread.id, role="user", content=message)
        self.run = await beta.threads.runs.create(
            thread_id=thread.id, assistant_id=assistant.id, extra_body=extra
        )
        return self.run

    async def settle(self, run: Run) -> Run:
        """Wait as programs do today: with the SDK's own polling."""
        run = await self.client.beta.threads.runs.poll(
            run.id, thread_id=run.thread_id, poll_interval_ms=POLL_MS
        )
        self.known_ms = time.time() * 1000
        return run

    async def answer(self, run: Run) -> str:
        """The text of the message that the run wrote."""
        page = await self.client.beta.threads.messages.list(run.thread_id, run_id=run.id)
        parts = [part for message in page.data for part in message.content]
        return "".join(part.text.value for part in parts if part.type == "text")


@dataclass(frozen=True)
class Story:
    """One run: what happens (`play` returns the outcome in words), and how it has to end."""

    name: str
    play: Callable[[Stage], Awaitable[str]]
    statuses: tuple[str, ...]
    outcome: str


async def _answers(stage: Stage) -> str:
    run = await stage.settle(await stage.begin(QUESTION))
    return f"{MODEL} answered: {await stage.answer(run)}"


async def _needs_a_tool(stage: Stage) -> str:
    message = f'{QUESTION}\ncall add {{"a": 2, "b": 2}}'
    run = await stage.settle(await stage.begin(message, tools=[ADD]))
    if run.required_action is None:
        return "no tool was called"
    calls = run.required_action.submit_tool_outputs.tool_calls
    run = await stage.client.beta.threads.runs.submit_tool_outputs(
        run.id,
        thread_id=run.thread_id,
        tool_outputs=[
            {"tool_call_id": call.id, "output": str(add(**json.loads(call.function.arguments)))}
            for call in calls
        ],
    )
    run = await stage.settle(run)
    return f"add(2, 2) was called; {MODEL} answered: {await stage.answer(run)}"


async def _fails(stage: Stage) -> str:
    run = await stage.settle(await stage.begin("fail rate_limit_exceeded Asked to fail."))
    error = run.last_error
    return f"last_error {error.code}: {error.message}" if error else "no last_error"


async def _expires(stage: Stage) -> str:
    run = await stage.settle(await stage.begin("sleep 60", extra={"expires_after": 1}))
    return _reason(run)


async def _is_cancelled(stage: Stage) -> str:
    runs = stage.client.beta.threads.runs
    run = await stage.begin("sleep 60")
    while run.status == "queued":
        await asyncio.sleep(POLL_MS / 1000)
        run = await runs.retrieve(run.id, thread_id=run.thread_id)
    run = await stage.settle(await runs.cancel(run.id, thread_id=run.thread_id))
    return _reason(run)


def _reason(run: Run) -> str:
    return str((run.model_extra or {}).get("status_reason"))


STORIES = (
    Story(
        "is answered",
        _answers,
        ("queued", "in_progress", "completed"),
        f"{MODEL} answered: {QUESTION}",
    ),
    Story(
        "needs a tool",
        _needs_a_tool,
        ("queued", "in_progress", "requires_action", "queued", "in_progress", "completed"),
        f"add(2, 2) was called; {MODEL} answered: 4",
    ),
    Story(
        "fails",
        _fails,
        ("queued", "in_progress", "failed"),
        "last_error rate_limit_exceeded: Asked to fail.",
    ),
    Story(
        "expires",
        _expires,
        ("queued", "in_progress", "expired"),
        "Not finished 1 s after its creation; it was in_progress.",
    ),
    Story(
        "is cancelled",
        _is_cancelled,
        ("queued", "in_progress", "cancelling", "cancelled"),
        "Cancelled on request",
    ),
)


@dataclass(frozen=True)
class Told:
    """How a story went: its statuses with milliseconds since creation, and what they cost.

    Attributes:
        calls: status requests that polling has made.
        posts: webhooks that came.
        polled_ms: milliseconds from the run's end until polling knew of it.
        pushed_ms: likewise until its webhook had come; None where none came.
    """

    story: Story
    statuses: tuple[tuple[str, int], ...]
    calls: int
    outcome: str
    posts: int
    polled_ms: float
    pushed_ms: float | None

    @property
    def problem(self) -> str:
        """What is not as the story has it; empty when everything is."""
        went = tuple(status for status, _ in self.statuses)
        if went != self.story.statuses:
            return f"it went {' → '.join(went) or 'nowhere'}, not {' → '.join(self.story.statuses)}"
        if not self.outcome.startswith(self.story.outcome):
            return f"it says {self.outcome!r}, not {self.story.outcome!r}"
        if self.pushed_ms is None or self.posts < len(self.story.statuses):
            return f"{self.posts} webhooks came, not {len(self.story.statuses)}"
        return ""


def demo() -> None:
    """Start a service, await five runs with the stock openai SDK, and show how each went.

    The same runs' events go to a webhook endpoint, and a second table compares: how soon was the
    end of each run known, and how many calls did it take?

    Needs no model and no key: the service keeps everything in a temporary file, and the model
    `echo`, which is built in, answers with what it was asked. The exit code is 0 when every run
    ended as it should.
    """
    # Ended from outside, the demo still ends its service: as on Ctrl-C, which asyncio handles well.
    for ending in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(ending, lambda *_: signal.raise_signal(signal.SIGINT))

    began = time.monotonic()
    console = _console()
    # The receiver is on loopback, which is no place for webhooks otherwise.
    with ServedProcess("--allow-private-webhooks") as service:
        _introduce(service)
        told = asyncio.run(_tell(service))
    _show(console, told)
    _compare(console, told)
    wrong = [f"  {each.story.name}: {each.problem}" for each in told if each.problem]
    if wrong:
        raise RunbellError("\n".join(["the demo did not go as it should. The run that", *wrong]))
    typer.echo(f"All {len(told)} runs ended as they should, in {time.monotonic() - began:.1f} s.")


def _introduce(service: ServedProcess) -> None:
    import openai

    lines = (
        f"Service: runbell serve on {service.base_url}, with a temporary SQLite file.",
        f"Client:  the stock openai SDK {openai.__version__}; given base_url and a key, no more.",
        f"Model:   {MODEL}, built in. It answers with the text that it was sent, so the answer to",
        f'         "{QUESTION}" is "{QUESTION}"; lines such as "sleep 60" make it do things.',
        "Webhook: an endpoint on loopback, registered with client.webhooks.create, gets the events",
        "         of the same runs, and verifies each signature.",
    )
    typer.echo("\n".join(lines))


async def _tell(service: ServedProcess) -> list[Told]:
    """Play all stories at once, and read from the feed of events how each went."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    calls: Counter[str] = Counter()

    async def count(request: Any) -> None:
        if request.method == "GET":
            calls[request.url.path.rpartition("/")[2]] += 1

    # Without the environment, whose proxy would not find our loopback.
    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [count]}, trust_env=False)
    async with (
        AsyncOpenAI(
            base_url=service.base_url, api_key=service.api_key, http_client=http_client
        ) as client,
        Hooks() as hooks,
    ):
        await _register(client, hooks)
        stages = [Stage(client) for _ in STORIES]
        outcomes = await asyncio.gather(*map(_play, STORIES, stages))
        histories = await _histories(client)
        await _until_pushed(hooks, histories)
    if hooks.problems:
        raise RunbellError(hooks.problems[0])
    return [
        _told(story, stage, histories, hooks, calls, outcome)
        for story, stage, outcome in zip(STORIES, stages, outcomes, strict=True)
    ]


async def _register(client: AsyncOpenAI, hooks: Hooks) -> None:
    # The SDK's types know OpenAI's own events alone.
    types: Any = ["thread.run.*"]
    endpoint = await client.webhooks.create(name="demo", url=hooks.url, event_types=types)
    hooks.secret = Secret.parse(endpoint.signing_secret)


async def _until_pushed(hooks: Hooks, histories: Histories) -> None:
    """Wait for the webhooks of events that have happened; they are on their way."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while any(hooks.posts[run_id] < len(each) for run_id, each in histories.items()):
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(0.005)


def _told(
    story: Story,
    stage: Stage,
    histories: Histories,
    hooks: Hooks,
    calls: Counter[str],
    outcome: str,
) -> Told:
    run_id = stage.run.id if stage.run else ""
    history = histories.get(run_id, [])
    began_ms, ended_ms = (history[0][1], history[-1][1]) if history else (0, 0)
    pushed = hooks.known_ms.get(run_id)
    return Told(
        story,
        tuple((status, at_ms - began_ms) for status, at_ms in history),
        calls[run_id],
        outcome,
        hooks.posts[run_id],
        stage.known_ms - ended_ms,
        pushed[1] - ended_ms if pushed and history and pushed[0] == history[-1][0] else None,
    )


async def _play(story: Story, stage: Stage) -> str:
    from openai import OpenAIError

    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            return await story.play(stage)
    except TimeoutError:
        return f"not finished after {LIMIT_SECONDS:.0f} s"
    except OpenAIError as error:
        return str(error)


async def _histories(client: AsyncOpenAI) -> Histories:
    """Every run's statuses, each with its moment."""
    histories: Histories = defaultdict(list)
    query: dict[str, Any] = {"limit": 100}
    while True:
        page: Any = await client.get("/events", cast_to=object, options={"params": query})
        for event in page["data"]:
            run = event["data"]
            histories[run["id"]].append((run["status"], run["updated_at_ms"]))
        if not page["has_more"]:
            return histories
        query["after"] = page["last_id"]


def _console() -> Console:
    """What a table is printed with: plain, and of a fixed width, unless it is a terminal."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console()
    return Console(width=FULL_WIDTH, color_system=None, force_terminal=False)


def _show(console: Console, told: list[Told]) -> None:
    """A table: with colours and lines on a terminal, plain and aligned anywhere else."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    terminal = console.is_terminal
    statuses_width = 44 if console.width >= FULL_WIDTH else 24
    table = Table(box=box.ROUNDED if terminal else None, show_lines=terminal, pad_edge=terminal)
    table.add_column("Run that")
    table.add_column("Statuses since creation", no_wrap=True)
    table.add_column("Status calls", justify="right", max_width=6)
    table.add_column("Outcome")
    for each in told:
        # Text, since a message may hold what looks like markup.
        outcome = Text(each.outcome, style="red" if each.problem else "green")
        table.add_row(
            each.story.name, _life(each.statuses, statuses_width), str(each.calls), outcome
        )
    console.print()
    console.print(table)
    console.print()


def _compare(console: Console, told: list[Told]) -> None:
    """How soon the end of each run was known, and what it took, by polling and by webhook."""
    from rich import box
    from rich.table import Table

    terminal = console.is_terminal
    table = Table(box=box.ROUNDED if terminal else None, pad_edge=terminal)
    table.add_column("End known by")
    for name in ("polling: calls", "delay", "webhook: calls", "delay", "webhooks received"):
        table.add_column(name, justify="right")
    for each in told:
        pushed = "never" if each.pushed_ms is None else f"{max(0.0, each.pushed_ms):.0f} ms"
        polled = f"{max(0.0, each.polled_ms):.0f} ms"
        table.add_row(each.story.name, str(each.calls), polled, "0", pushed, str(each.posts))
    console.print(table)
    console.print()


def _life(statuses: tuple[tuple[str, int], ...], width: int) -> str:
    """`queued 0 ms → in_progress 3 ms → …`, in lines that break at an arrow only."""
    # textwrap takes a no-break space for a letter.
    life = " → ".join(f"{status}\u00a0{since}\u00a0ms" for status, since in statuses)
    return "\n".join(textwrap.wrap(life, width)).replace("\u00a0", " ")
