"""Waiters: what programs call. Everything else is in the flow."""

from __future__ import annotations

import asyncio
import queue
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar, Unpack, cast

from runbell.client import tasks, threads
from runbell.client.diagnosis import explain
from runbell.client.fleet import Fleet
from runbell.client.flow import cancelling, waiting
from runbell.client.hands import Hands
from runbell.client.journal import Journal
from runbell.client.learning import Learning
from runbell.client.mail import Join, Leave, Mail
from runbell.client.options import WaiterOptions, WaitOptions, agreed, refuse_unknown
from runbell.client.providers import Provider, provider_of
from runbell.client.server import Server
from runbell.client.tools import Tool, check
from runbell.client.updates import End, Update, Updates
from runbell.client.wait import Done, Terms, Wait
from runbell.clock import Clock, SystemClock
from runbell.errors import ConfigurationError
from runbell.pacing import Backstop, Foresight, Pacer, PolicySource, WorthPacer

__all__ = ["AsyncWaiter", "Waiter"]

T = TypeVar("T")


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
        refuse_unknown(given, WaiterOptions)
        ours = {name: given[name] for name in WaitOptions.__annotations__ if name in given}
        self._defaults = cast(WaitOptions, ours)
        agreed(self._defaults)  # what is wrong is said at once

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
        shared = agreed({**self._defaults, **options}) | more
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
                    clock=self._clock,
                    learning=self._learning,
                    rng=self._rng,
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
        updates = Updates(put)
        hooks = options.get("hooks", self._defaults.get("hooks"))
        options["hooks"] = [*(hooks or ()), updates.hook]
        # A held request would show nothing but the end.
        return self._waits([run], updates.done, options, hold=False)

    def _leave(self, waits: Sequence[Wait]) -> None:
        for wait in waits:
            if wait.flow is not None:
                self._post(Leave(wait))


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
            while not isinstance(update := await news.get(), End):
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
            while not isinstance(update := news.get(), End):
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
