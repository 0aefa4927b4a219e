"""How each deed is done with an SDK client, written once for clients of both kinds.

What a synchronous client returns is a value, what an asynchronous one returns is awaited. Under the
threads driver nothing here ever suspends, so a coroutine runs to its end when it is sent None.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, Protocol

from runbell.client.deeds import (
    Again,
    Cancel,
    Deed,
    FindAgain,
    Order,
    Retrieve,
    RetrieveMany,
    RetrieveThread,
    Submit,
    UseTool,
)
from runbell.client.journal import Journal
from runbell.client.quota import quota_in
from runbell.client.tools import BadArguments, Tool, error_output, output_of
from runbell.client.trouble import date_seconds
from runbell.client.view import Answer
from runbell.errors import BadAnswer, ConfigurationError, RunbellError

__all__ = ["CallFunction", "Contained", "Hands", "OutOfTime", "ToolOutcome", "contained"]

log = logging.getLogger("runbell")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 1.0
"""Seconds between looks for the output of a call that somebody else is at."""


class CallFunction(Protocol):
    """How a driver calls somebody's function, which may take its time.

    Raises:
        OutOfTime: it took longer than the deed's limit. A `TimeoutError` of any other kind is what
            the function raised itself.
    """

    async def __call__(self, deed: UseTool, arguments: dict[str, Any], entry: Entry) -> Any: ...


class OutOfTime(TimeoutError):
    """Somebody's function took longer than the seconds that it was given."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"it took longer than {seconds:g} s")


class Contained(RunbellError):
    """Takes the place of what would end more than the call that raised it: its `__cause__`."""


def contained(error: BaseException) -> Exception:
    """An error that can be passed on: what is meant for threads, tasks and generators is wrapped.

    A function may raise `SystemExit`, `CancelledError` or `StopIteration`; a wait that is never
    told of it would wait for ever.
    """
    if isinstance(error, Exception) and not isinstance(error, StopIteration | StopAsyncIteration):
        return error
    found = Contained(f"{type(error).__name__}: {error}")
    found.__cause__ = error
    return found


def words_of(error: Exception) -> str:
    """What a function raised, for the model."""
    shown = error.__cause__ if isinstance(error, Contained) else error
    return f"{type(shown).__name__}: {shown}"


class ToolOutcome:
    """What came of a call of a tool.

    Attributes:
        error: in words, None if nothing went wrong.
        raised: what the function raised, if it did.
    """

    __slots__ = ("error", "output", "raised", "recorded", "seconds")

    def __init__(
        self,
        output: str,
        seconds: float = 0.0,
        error: str | None = None,
        raised: Exception | None = None,
        recorded: bool = False,
    ) -> None:
        self.output = output
        self.seconds = seconds
        self.error = error
        self.raised = raised
        self.recorded = recorded


class Entry:
    """What the journal has about one call, or nothing where there is no journal.

    A function in a thread can't be stopped: it may outlive its waiter, and the event loop. So what
    it gives is written down in that thread, before anybody else hears of it (`gave`).
    """

    def __init__(self, journal: Journal | None, deed: UseTool) -> None:
        self._journal = journal
        self._deed = deed
        self._left = False
        self.in_a_thread = False

    def read(self) -> str | None:
        """The output that was written down."""
        if self._journal is None:
            return None
        return self._journal.output(self._deed.run_id, self._deed.call.id)

    def claim(self) -> bool:
        """Whether the call is ours to make."""
        if self._journal is None:
            return True
        run_id, call = self._deed.run_id, self._deed.call
        claim = self._journal.begin(run_id, call.id, call.name, time.time())
        if claim == "again":
            log.warning("%s of %s was begun before and has no output", call.id, run_id)
        return claim != "held"

    def write(self, outcome: ToolOutcome | None) -> bool:
        """Write down what came of it; None where nothing did. The first time counts.

        Returns:
            False where the call is somebody else's by now.
        """
        if self._journal is None:
            return True
        kept = outcome is not None and not (outcome.raised and self._deed.forget_errors)
        run_id, call_id = self._deed.run_id, self._deed.call.id
        try:
            ours = self._journal.finish(
                run_id, call_id, outcome.output if outcome and kept else None
            )
        except RunbellError as error:  # an output is still worth more than an error
            log.error("%s of %s: its output was not kept: %s", call_id, run_id, error)
            return True
        return ours or not kept

    def gave(self, result: Any, error: Exception | None) -> None:
        """Take what the function gave, in its thread."""
        if self._journal is None:
            return
        if inspect.isawaitable(result):  # that is not in a thread
            self.in_a_thread = False
            if self._left:
                self.write(None)
            return
        self.write(_outcome_of(result, error))

    def leave(self) -> None:
        """Whoever waits for the output is gone; what is in a thread goes on."""
        self._left = True
        if not self.in_a_thread:
            self.write(None)


def _outcome_of(result: Any, error: Exception | None) -> ToolOutcome:
    try:
        if error is None:
            return ToolOutcome(output_of(result))
    except Exception as problem:  # noqa: BLE001 - of somebody's own objects
        error = problem
    return ToolOutcome(error_output(words_of(error)), raised=error)


class Hands:
    """Does deeds for one provider's objects.

    Args:
        client: the SDK's, of either kind.
        call: how functions are called.
        apart: how a blocking function is called beside an event loop; None where there is none.
    """

    def __init__(
        self,
        client: Any,
        call: CallFunction,
        journal: Journal | None = None,
        apart: Callable[..., Awaitable[Any]] | None = None,
    ) -> None:
        # Each call is counted once, and only our rules retry.
        plain = getattr(client, "with_options", None)
        self._client = client if plain is None else plain(max_retries=0)
        self._call = call
        self._journal = journal
        self._apart = apart

    async def perform(self, order: Order) -> Any:
        """Do what is ordered.

        Raises:
            Exception: whatever the SDK raises. A tool's errors are part of its outcome.
        """
        if isinstance(order.deed, UseTool):
            return await self._use_tool(order.deed)
        try:
            return await self._ask(order.provider, order.deed, {"timeout": order.timeout})
        except (json.JSONDecodeError, UnicodeDecodeError) as error:  # it was cut short, or no JSON
            raise BadAnswer(f"an answer could not be read: {error}") from error

    async def _ask(self, acts: Any, deed: Deed, options: dict[str, Any]) -> Any:
        match deed:
            case Retrieve(item, hold):
                return await self._answer(acts.retrieve(self._client, item, **_held(options, hold)))
            case RetrieveMany(items, hold):
                reply = acts.retrieve_many(self._client, items, **_held(options, hold))
                return _by_id(acts, await self._answer(reply))
            case RetrieveThread(thread_id):
                reply = acts.retrieve_thread(self._client, thread_id, **options)
                return _by_id(acts, await self._answer(reply))
            case Submit(item, outputs):
                key = f"runbell-{item.id}-" + "-".join(sorted(outputs))
                options["extra_headers"] = {"Idempotency-Key": key[:255]}
                return await _parsed(
                    await _done(acts.submit(self._client, item, outputs, **options))
                )
            case Again(item, key):
                options["extra_headers"] = {"Idempotency-Key": key}
                again = _able(acts, "again", item)
                return await _parsed(await _done(again(self._client, item, **options)))
            case FindAgain(item):
                reply = acts.retrieve_thread(self._client, item.thread_id, **options)
                found = _by_id(acts, await self._answer(reply)).item
                return acts.made_again(item, found) if found else None
            case Cancel(item):
                cancel = _able(acts, "cancel", item)
                return await _parsed(await _done(cancel(self._client, item, **options)))

    async def _answer(self, reply: Any) -> Answer:
        raw = await _done(reply)
        headers = getattr(raw, "headers", None)
        if headers is None or not hasattr(raw, "parse"):
            return Answer(raw)
        return Answer(
            await _parsed(raw),
            hint=_milliseconds(headers.get("openai-poll-after-ms")),
            held="wait" in (headers.get("preference-applied") or ""),
            server_time=date_seconds(headers.get("date")),
            quota=quota_in(headers),
        )

    async def _use_tool(self, deed: UseTool) -> ToolOutcome:
        entry = Entry(self._journal, deed)
        output = await self._claimed(entry)
        if output is not None:
            return ToolOutcome(output, recorded=True)
        try:
            outcome = await self._called(deed, deed.tool, entry)
        except BaseException:  # of whoever waits: what the function raises is an outcome
            entry.leave()
            raise
        while not await self._blocking(entry.write, outcome):
            # This process stood still for so long that somebody else makes the call now.
            if (output := await self._claimed(entry)) is not None:
                return ToolOutcome(output, recorded=True)
        return outcome

    async def _claimed(self, entry: Entry) -> str | None:
        """The output that was written down; None where the call is ours to make.

        Somebody else who is at it, perhaps in another process, is waited for.
        """
        pause = FIRST_PAUSE
        while True:
            output: str | None = await self._blocking(entry.read)
            if output is not None or await self._blocking(entry.claim):
                return output
            if self._apart is None:
                time.sleep(pause)  # noqa: ASYNC251 - in a thread of its own
            else:
                await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)

    async def _called(self, deed: UseTool, tool: Tool, entry: Entry) -> ToolOutcome:
        began = time.monotonic()
        raised: Exception | None = None
        try:
            result = await self._call(deed, tool.arguments(deed.call.arguments), entry)
            return ToolOutcome(output_of(result), time.monotonic() - began)
        except BadArguments as error:
            words = f"bad arguments: {error}"
        except OutOfTime as error:
            words = str(error)
            raised = error
        except Exception as error:  # noqa: BLE001 - anything that a user's function may raise
            words, raised = words_of(error), error
        return ToolOutcome(error_output(words), time.monotonic() - began, words, raised)

    async def _blocking(self, function: Callable[..., Any], *arguments: Any) -> Any:
        if self._apart is None:
            return function(*arguments)
        return await self._apart(function, *arguments)


def _by_id(provider: Any, answer: Answer) -> Answer:
    return replace(answer, item=provider.by_id(answer.item))


def _held(options: dict[str, Any], hold: int | None) -> dict[str, Any]:
    if hold is None:
        return options
    return {**options, "extra_headers": {"Prefer": f"wait={hold}"}}


def _able(provider: Any, method: str, item: Any) -> Callable[..., Any]:
    found: Callable[..., Any] | None = getattr(provider, method, None)
    if found is None:
        raise ConfigurationError(f"{type(provider).__name__} has no `{method}` for {item.id}")
    return found


async def _parsed(reply: Any) -> Any:
    if not (hasattr(reply, "parse") and hasattr(reply, "headers")):
        return reply
    try:
        return await _done(reply.parse())
    except ValueError as error:
        raise BadAnswer(f"an answer could not be read: {error}") from error


def _milliseconds(text: str | None) -> float | None:
    try:
        return None if text is None else max(float(text), 0.0) / 1000
    except ValueError:
        return None


async def _done(reply: Any) -> Any:
    """What a client of either kind gives."""
    return await reply if inspect.isawaitable(reply) else reply


def run_now(coroutine: Any) -> Any:
    """Run a coroutine that never suspends to its end: its result."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    coroutine.close()
    raise ConfigurationError("a synchronous waiter needs a synchronous client")


@contextlib.asynccontextmanager
async def in_time(limit: float | None) -> AsyncIterator[None]:
    """Cancel what takes longer than this many seconds.

    Raises:
        OutOfTime: it did. A `TimeoutError` from within stays what it is.
    """
    scope = asyncio.timeout(limit)
    try:
        async with scope:
            yield
    except TimeoutError as error:
        if limit is None or not scope.expired():
            raise
        raise OutOfTime(limit) from error


def run_async(function: Callable[..., Any], arguments: dict[str, Any], limit: float | None) -> Any:
    """Call an asynchronous function from a thread without an event loop.

    Raises:
        OutOfTime: it took longer than `limit` seconds.
    """

    async def call() -> Any:
        async with in_time(limit):
            return await function(**arguments)

    return asyncio.run(call())
