"""Waiters: what programs call. Everything else is in the flow."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, TypedDict, TypeVar, Unpack, cast

from runbell.client import tasks, threads
from runbell.client.diagnosis import explain
from runbell.client.fleet import Fleet, Join, Leave, Mail
from runbell.client.flow import cancelling, waiting
from runbell.client.hands import Hands
from runbell.client.journal import Journal
from runbell.client.learning import Learning
from runbell.client.providers import Provider, provider_of
from runbell.client.records import Hook, Polled, Record, Told
from runbell.client.server import Server
from runbell.client.tools import Tool, Tools, check, toolbox
from runbell.client.wait import Done, Terms, Wait
from runbell.clock import Clock, SystemClock
from runbell.errors import ConfigurationError
from runbell.pacing import Backstop, Foresight, Pacer, PolicySource, WorthPacer
from runbell.runs import EventSource

__all__ = ["AsyncWaiter", "Update", "WaitOptions", "Waiter", "WaiterOptions"]

T = TypeVar("T")


class WaitOptions(TypedDict, total=False):
    """What can be agreed for a waiter, and otherwise for a single wait. Times are in seconds.

    Attributes:
        tools: functions that the model may call: callables, or a dict by name.
        timeout: for the whole wait, every request in it; None for a little after the run's
            `expires_at`, or a day for what has none.
        policy: when to look, or a function that makes a policy for a run.
        hold: let servers that can hold a request until the run is settled; then `policy` says only
            what happens between such requests.
        cancel_on_timeout: cancel the run when the time is over; else it goes on.
        tool_timeout: for each call of a function; None for as long as the run lives.
        on_tool_error: `"output"` tells the model what a function raised; `"raise"` raises it.
        max_errors: how many requests in a row may fail.
        restart_on: statuses and error codes after which the same work is begun anew.
        max_restarts: how often.
        hooks: are called with a frozen record of whatever happens, in the thread or the loop that
            all waits depend on: they have to be quick, and can't wait for a run themselves.
    """

    tools: Tools | None
    timeout: float | None
    policy: PolicySource | None
    hold: bool
    cancel_on_timeout: bool
    tool_timeout: float | None
    on_tool_error: Literal["output", "raise"]
    max_errors: int
    restart_on: Iterable[str]
    max_restarts: int
    hooks: Sequence[Hook]


class WaiterOptions(WaitOptions, total=False):
    """What can be agreed for a waiter.

    Attributes:
        calls_per_minute: the budget of all its waits; None for what the server allows.
        journal: a SQLite file in which outputs of tool calls survive a crash, and what was learned
            of how long runs take.
        foresight: what learns that, for another price of a call than a quarter of a second.
        events: somebody who tells of status changes; polling is a backstop then.
        providers: adapters of one's own, which are asked before those that are built in.
        pacer: decides which wait the next call is spent on; takes the place of calls_per_minute.
        clock, rng: where time and chance come from.
    """

    calls_per_minute: float | None
    journal: str | Path | None
    foresight: Foresight
    events: EventSource | None
    providers: Sequence[Provider[Any]]
    pacer: Pacer | None
    clock: Clock
    rng: random.Random


@dataclass(frozen=True, slots=True)
class Update:
    """A change of the run's status, as `watch` tells it.

    Attributes:
        status: as the server calls it.
        previous: the status before; None for the first.
        elapsed: seconds since the watch began.
        run: the SDK's object.
    """

    status: str
    previous: str | None
    elapsed: float
    run: Any


class _Waiter:
    """What both waiters have: the terms of a wait, and the fleet that plays it."""

    _post: Callable[[Mail], None]

    def __init__(self, client: Any, **options: Unpack[WaiterOptions]) -> None:
        self.client = client
        self._clock: Clock = options.get("clock") or SystemClock()
        self._rng = options.get("rng") or random.Random()
        self._events = options.get("events")
        self._providers = tuple(options.get("providers") or ())
        journal = options.get("journal")
        self._journal = None if journal is None else Journal(journal)
        pacer, budget = options.get("pacer"), options.get("calls_per_minute")
        if pacer is None:  # an idle one is empty, and so as good as false
            pacer = WorthPacer(budget)
        self._pacer: Pacer = pacer
        self._learning = Learning(options.get("foresight") or Foresight(), self._journal)
        self._server = Server(_limit_of(client))
        given: dict[str, Any] = dict(options)
        unknown = set(given) - set(WaiterOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        ours = {name: given[name] for name in WaitOptions.__annotations__ if name in given}
        self._defaults = cast(WaitOptions, ours)
        self._shared(self._defaults)  # what is wrong is said at once

    def _takes_thread(self, tool: Tool) -> bool:
        """Whether a function blocks a thread while it is at work."""
        return True

    def _fleet(self, deliver: Any) -> Fleet:
        return Fleet(
            self._clock,
            self._pacer,
            self._server,
            self._events,
            deliver,
            lambda error, wait: explain(error, self.client, wait.name),
            self._takes_thread,
        )

    def _waits(self, items: Sequence[Any], done: Done, options: WaitOptions, **more: Any) -> Join:
        """Waits for these objects, ready to be played.

        Raises:
            ConfigurationError: an object is of no kind that is known, or an option is wrong.
        """
        shared = self._shared({**self._defaults, **options}) | more
        if more.get("answers_actions") is False:  # what is to be cancelled is not begun again
            shared["max_restarts"] = 0
        policy, tools = shared.pop("policy"), shared["tools"]
        terms: dict[int, Terms] = {}  # by provider: almost always one for all
        waits = []
        for item in items:
            provider: Any = provider_of(item, self._providers)
            if id(provider) not in terms:
                pushed = self._events is not None and hasattr(provider, "told")
                terms[id(provider)] = Terms(
                    provider=provider,
                    policy=policy or self._policy(provider, pushed),
                    pushed=pushed,
                    **shared,
                )
            if tools and hasattr(provider, "schemas"):
                check(tools, provider.schemas(item))
            waits.append(Wait(item, terms[id(provider)], done))
        return Join(waits, cancelling if more.get("answers_actions") is False else waiting)

    def _policy(self, provider: Provider[Any], pushed: bool) -> PolicySource:
        """When to look where nobody said."""
        if pushed:
            return Backstop()
        proposed: Any = getattr(provider, "policy", None)
        return self._learning.policy if proposed is None else cast(PolicySource, proposed())

    def _watched(self, run: Any, options: WaitOptions, put: Callable[[Any], None]) -> Join:
        """A wait that tells every change of the status, and its end."""
        updates = _Updates(put)
        hooks = options.get("hooks", self._defaults.get("hooks"))
        options["hooks"] = [*(hooks or ()), updates.hook]
        # A held request would show nothing but the end.
        return self._waits([run], updates.done, options, hold=False)

    def _leave(self, waits: Sequence[Wait]) -> None:
        for wait in waits:
            if wait.flow is not None:
                self._post(Leave(wait))

    def _shared(self, options: WaitOptions) -> dict[str, Any]:
        """The terms that do not depend on what is waited for, and the policy."""
        unknown = set(options) - set(WaitOptions.__annotations__)
        if unknown:
            raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
        timeout, max_errors = options.get("timeout"), options.get("max_errors", 10)
        on_tool_error = options.get("on_tool_error", "output")
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise ConfigurationError(f"timeout has to be seconds above 0, not {timeout!r}")
        if max_errors < 1:
            raise ConfigurationError(f"max_errors has to be at least 1, not {max_errors}")
        if on_tool_error not in ("output", "raise"):
            raise ConfigurationError(f"on_tool_error is 'output' or 'raise', not {on_tool_error!r}")
        tools = toolbox(options.get("tools"))
        restart_on = options.get("restart_on") or ()
        if isinstance(restart_on, str):  # its letters are no statuses
            restart_on = (restart_on,)
        restart_on = frozenset(restart_on)
        return {
            "policy": options.get("policy"),
            "clock": self._clock,
            "learning": self._learning,
            "rng": self._rng,
            "timeout": timeout,
            "tools": tools,
            "raise_tool_errors": on_tool_error == "raise",
            "hold": options.get("hold", True),
            "tool_timeout": options.get("tool_timeout"),
            "max_errors": max_errors,
            "restart_on": restart_on,
            "max_restarts": options.get("max_restarts", 3) if restart_on else 0,
            "cancel_on_timeout": options.get("cancel_on_timeout", False),
            "hooks": tuple(options.get("hooks") or ()),
            "context": contextvars.copy_context() if tools else None,
        }


def _limit_of(client: Any) -> float | None:
    """The seconds that a request of this client may take; None for any."""
    timeout = getattr(client, "timeout", None)
    limit = getattr(timeout, "read", timeout)
    return float(limit) if isinstance(limit, int | float) else None


def _refuse(client: Any, waiter: str, name: str, base: str) -> None:
    """Refuse a client of the SDK that is of the other kind."""
    for each in type(client).__mro__:
        if each.__name__ == base and each.__module__ == "openai._base_client":
            other = "Waiter" if waiter == "AsyncWaiter" else "AsyncWaiter"
            raise ConfigurationError(f"{waiter} can't use a client like {name}: take {other}")


class AsyncWaiter(_Waiter):
    """Waits for runs, and whatever else an asynchronous SDK client can retrieve.

    Args:
        client: `AsyncOpenAI`, `AsyncAzureOpenAI`, or what a provider of yours takes.
        options: see `WaiterOptions`.

    Raises:
        ConfigurationError: an option is wrong, or the journal can't be used.
    """

    def __init__(self, client: Any, **options: Unpack[WaiterOptions]) -> None:
        _refuse(client, "AsyncWaiter", "OpenAI", "SyncAPIClient")
        super().__init__(client, **options)
        hands = Hands(client, tasks.call_function, self._journal, tasks.in_a_thread)
        self._driver = tasks.Tasks(self._fleet, hands, self._clock)
        self._post = self._driver.post

    def _takes_thread(self, tool: Tool) -> bool:
        return not tool.is_async

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop waiting. Runs go on; the client stays open."""
        await self._driver.close()
        if self._journal is not None:
            self._journal.close()

    async def wait(self, run: T, **options: Unpack[WaitOptions]) -> T:
        """Wait until the run has ended: the run, in whatever status that is.

        Raises:
            WaitTimeout: it has not ended in time. It goes on.
            ActionRequired: it wants tool outputs for which there is no function.
            ToolMismatch: a function does not fit the tool that the model sees.
            openai.APIError: what the SDK raised, where trying again can't help or did not.
        """
        return (await self._all([run], options))[0]

    async def cancel(self, run: T, **options: Unpack[WaitOptions]) -> T:
        """Cancel the run and wait until it has ended, as `cancelled` or as what won the race."""
        return (await self._all([run], options, answers_actions=False))[0]

    async def wait_all(
        self, runs: Iterable[T], *, return_errors: bool = False, **options: Unpack[WaitOptions]
    ) -> list[T]:
        """Wait until all have ended: the runs, in the same order.

        Args:
            return_errors: what a wait raises takes the place of its run. Else the first error is
                raised, and nobody waits for the others any more; they go on.
        """
        return await self._all(list(runs), options, return_errors)

    async def as_completed(
        self, runs: Iterable[T], *, return_errors: bool = False, **options: Unpack[WaitOptions]
    ) -> AsyncIterator[T]:
        """Each run as soon as it has ended. `return_errors` as for `wait_all`."""
        async for _, run in self._ended(list(runs), options, return_errors):
            yield run

    async def watch(self, run: Any, **options: Unpack[WaitOptions]) -> AsyncIterator[Update]:
        """Every change of the status that is seen, the first status and the last included."""
        news: asyncio.Queue[Any] = asyncio.Queue()
        join = self._watched(run, options, news.put_nowait)
        self._driver.post(join)
        try:
            while not isinstance(update := await news.get(), _End):
                yield update
            if update.error is not None:
                raise update.error
        finally:
            self._leave(join.waits)

    async def _all(
        self, items: list[T], options: WaitOptions, return_errors: bool = False, **more: Any
    ) -> list[T]:
        results: list[Any] = [None] * len(items)
        async for place, run in self._ended(items, options, return_errors, **more):
            results[place] = run
        return results

    async def _ended(
        self, items: list[Any], options: WaitOptions, return_errors: bool, **more: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        """Places and results of the waits as they end."""
        news: asyncio.Queue[tuple[Wait, Any, Any]] = asyncio.Queue()
        join = self._waits(items, lambda *end: news.put_nowait(end), options, **more)
        waits = _Round(join.waits, return_errors)
        if waits:
            self._driver.post(join)
        try:
            while waits:
                yield waits.settle(*await news.get())
        finally:
            self._leave(waits.open)


class Waiter(_Waiter):
    """Waits for runs, and whatever else a synchronous SDK client can retrieve.

    It may be used from several threads at a time.

    Args:
        client: `OpenAI`, `AzureOpenAI`, or what a provider of yours takes.
        options: see `WaiterOptions`.

    Raises:
        ConfigurationError: an option is wrong, or the journal can't be used.
    """

    def __init__(self, client: Any, **options: Unpack[WaiterOptions]) -> None:
        _refuse(client, "Waiter", "AsyncOpenAI", "AsyncAPIClient")
        super().__init__(client, **options)
        hands = Hands(client, threads.call_function, self._journal)
        self._driver = threads.Threads(self._fleet, hands, threads.Mailbox(self._clock))
        self._post = self._driver.post

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop waiting. Runs go on; the client stays open."""
        self._driver.close()
        if self._journal is not None:
            self._journal.close()

    def wait(self, run: T, **options: Unpack[WaitOptions]) -> T:
        """Like `AsyncWaiter.wait`."""
        return self._all([run], options)[0]

    def cancel(self, run: T, **options: Unpack[WaitOptions]) -> T:
        """Like `AsyncWaiter.cancel`."""
        return self._all([run], options, answers_actions=False)[0]

    def wait_all(
        self, runs: Iterable[T], *, return_errors: bool = False, **options: Unpack[WaitOptions]
    ) -> list[T]:
        """Like `AsyncWaiter.wait_all`."""
        return self._all(list(runs), options, return_errors)

    def as_completed(
        self, runs: Iterable[T], *, return_errors: bool = False, **options: Unpack[WaitOptions]
    ) -> Iterator[T]:
        """Like `AsyncWaiter.as_completed`."""
        for _, run in self._ended(list(runs), options, return_errors):
            yield run

    def watch(self, run: Any, **options: Unpack[WaitOptions]) -> Iterator[Update]:
        """Like `AsyncWaiter.watch`."""
        news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        join = self._watched(run, options, news.put)
        self._driver.post(join)
        try:
            while not isinstance(update := news.get(), _End):
                yield update
            if update.error is not None:
                raise update.error
        finally:
            self._leave(join.waits)

    def _all(
        self, items: list[T], options: WaitOptions, return_errors: bool = False, **more: Any
    ) -> list[T]:
        results: list[Any] = [None] * len(items)
        for place, run in self._ended(items, options, return_errors, **more):
            results[place] = run
        return results

    def _ended(
        self, items: list[Any], options: WaitOptions, return_errors: bool, **more: Any
    ) -> Iterator[tuple[int, Any]]:
        """Places and results of the waits as they end."""
        news: queue.SimpleQueue[tuple[Wait, Any, Any]] = queue.SimpleQueue()
        join = self._waits(items, lambda *end: news.put(end), options, **more)
        waits = _Round(join.waits, return_errors)
        if waits:
            self._driver.post(join)
        try:
            while waits:
                yield waits.settle(*news.get())
        finally:
            self._leave(waits.open)


@dataclass(frozen=True, slots=True)
class _End:
    """A watch is over."""

    error: BaseException | None


class _Updates:
    """Passes changes of the status on, and the end, which shows at least one status.

    Args:
        put: takes each `Update`, and an `_End` after the last.
    """

    def __init__(self, put: Callable[[Any], None]) -> None:
        self._put = put
        self._told: str | None = None

    def hook(self, record: Record) -> None:
        if isinstance(record, Polled | Told) and record.status != record.previous:
            self._tell(record.status, record.elapsed, record.run)

    def done(self, wait: Wait, run: Any, error: BaseException | None) -> None:
        if error is None and wait.view.status != self._told:
            self._tell(wait.view.status, wait.now - wait.began, run)
        self._put(_End(error))

    def _tell(self, status: str, elapsed: float, run: Any) -> None:
        previous, self._told = self._told, status
        self._put(Update(status, previous, elapsed, run))


class _Round:
    """Waits that began together, and which of them have not ended.

    Args:
        return_errors: what a wait raises is a result; else it is raised.
    """

    def __init__(self, waits: Sequence[Wait], return_errors: bool) -> None:
        self._open = {wait: place for place, wait in enumerate(waits)}
        self._return_errors = return_errors

    def __bool__(self) -> bool:
        return bool(self._open)

    def settle(self, wait: Wait, value: Any, error: BaseException | None) -> tuple[int, Any]:
        """The place and the result of a wait that has ended."""
        place = self._open.pop(wait)
        if error is not None and not self._return_errors:
            raise error
        return place, value if error is None else error

    @property
    def open(self) -> list[Wait]:
        """Those that nobody will hear of any more, when whoever waits leaves."""
        return list(self._open)
