"""`runbell demo`: a service of its own, five runs through the stock `openai` SDK and how they went;
then how soon the ends of runs are known, and for how many calls, in four ways of waiting.

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
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from runbell.cli import ways
from runbell.cli.served import ServedProcess
from runbell.errors import RunbellError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.beta.threads import Run
    from rich.console import Console

__all__ = ["demo"]

MODEL = "echo"
QUESTION = "What is 2+2?"
POLL_MS = 100
LIMIT_SECONDS = 60.0
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
        return await self.client.beta.threads.runs.poll(
            run.id, thread_id=run.thread_id, poll_interval_ms=POLL_MS
        )

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
    run = await stage.settle(await stage.begin("sleep 60", extra={"expires_after": 3}))
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
        "Not finished 3 s after its creation; it was in_progress.",
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
    """

    story: Story
    statuses: tuple[tuple[str, int], ...]
    calls: int
    outcome: str

    @property
    def problem(self) -> str:
        """What is not as the story has it; empty when everything is."""
        went = tuple(status for status, _ in self.statuses)
        if went != self.story.statuses:
            return f"it went {' → '.join(went) or 'nowhere'}, not {' → '.join(self.story.statuses)}"
        if not self.outcome.startswith(self.story.outcome):
            return f"it says {self.outcome!r}, not {self.story.outcome!r}"
        return ""


def demo() -> None:
    """Start a service, await five runs with the stock openai SDK, and show how each went.

    Then nine runs of every kind are waited for in four ways: by the loop that tutorials have, and
    by Runbell's waiter with polling, with long polls, and with webhooks. A second table compares:
    how soon was the end of each known, for how many calls, and what was missed?

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
    with ServedProcess("--allow-private-webhooks") as service, asyncio.Runner() as runner:
        runner.get_loop()  # made before anybody is told that Ctrl-C may come
        _introduce(service)
        told = runner.run(_tell(service))
        _show(console, told)
        _complain(
            f"the run that {each.story.name}: {each.problem}" for each in told if each.problem
        )
        _explain()
        compared = runner.run(ways.compare(service))
    ways.show(console, compared)
    _complain(f"{each.name}: {each.problem}" for each in compared if each.problem)
    typer.echo(
        "All runs ended as they should, and only the tutorials' loop missed some. "
        f"It took {time.monotonic() - began:.1f} s."
    )


def _complain(problems: Iterable[str]) -> None:
    """End the demo where something is wrong."""
    wrong = "".join(f"\n  {problem}" for problem in problems)
    if wrong:
        raise RunbellError(f"the demo did not go as it should:{wrong}")


def _introduce(service: ServedProcess) -> None:
    import openai

    lines = (
        f"Service: runbell serve on {service.base_url}, with a temporary SQLite file.",
        f"Client:  the stock openai SDK {openai.__version__}; given base_url and a key, no more.",
        f"Model:   {MODEL}, built in. It answers with the text that it was sent, so the answer to",
        f'         "{QUESTION}" is "{QUESTION}"; lines such as "sleep 60" make it do things.',
    )
    typer.echo("\n".join(lines))


def _explain() -> None:
    mix = len(ways.MIX)
    lines = (
        f"Now {mix} runs of every kind, waited for in four ways at the same time. The loop of the",
        "tutorials sleeps 0.5 s, then 1.5 times as long each time, up to 5 s, and gives up after",
        f"{ways.GIVE_UP_SECONDS:g} s (there: 60 s), so this takes a moment. The waiter that polls",
        "asks about all runs at once, and has to guess how long they take: it learns only from",
        "these. Webhooks go to a receiver on loopback, which verifies and stores them.",
    )
    typer.echo("\n".join(lines))
    typer.echo()


async def _tell(service: ServedProcess) -> list[Told]:
    """Play all stories at once, and read from the feed of events how each went."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    calls: Counter[str] = Counter()

    async def count(request: Any) -> None:
        if request.method == "GET":
            calls[request.url.path.rpartition("/")[2]] += 1

    # Without the environment, whose proxy would not find our loopback.
    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [count]}, trust_env=False)
    async with AsyncOpenAI(
        base_url=service.base_url, api_key=service.api_key, http_client=http_client
    ) as client:
        stages = [Stage(client) for _ in STORIES]
        outcomes = await asyncio.gather(*map(_play, STORIES, stages))
        histories = await _histories(client)
    return [
        _told(story, stage, histories, calls, outcome)
        for story, stage, outcome in zip(STORIES, stages, outcomes, strict=True)
    ]


def _told(
    story: Story,
    stage: Stage,
    histories: Histories,
    calls: Counter[str],
    outcome: str,
) -> Told:
    run_id = stage.run.id if stage.run else ""
    history = histories.get(run_id, [])
    began_ms = history[0][1] if history else 0
    return Told(
        story,
        tuple((status, at_ms - began_ms) for status, at_ms in history),
        calls[run_id],
        outcome,
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


def _life(statuses: tuple[tuple[str, int], ...], width: int) -> str:
    """`queued 0 ms → in_progress 3 ms → …`, in lines that break at an arrow only."""
    # textwrap takes a no-break space for a letter.
    life = " → ".join(f"{status}\u00a0{since}\u00a0ms" for status, since in statuses)
    return "\n".join(textwrap.wrap(life, width)).replace("\u00a0", " ")
