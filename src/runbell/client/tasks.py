"""The asynchronous driver: a task for the fleet, and one for each deed."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any

from runbell.client.deeds import Order, UseTool
from runbell.client.fleet import Fleet
from runbell.client.hands import Entry, Hands, contained, in_time
from runbell.client.mail import Landed, Leave, Mail, Told
from runbell.clock import Clock
from runbell.errors import RunbellError

__all__ = ["Tasks", "call_function", "in_a_thread"]


class Tasks:
    """Plays a fleet on the running event loop, for as long as anybody waits.

    Args:
        fleet: makes the fleet, given what takes events.
    """

    def __init__(
        self, fleet: Callable[[Callable[[dict[str, Any]], None]], Fleet], hands: Hands, clock: Clock
    ) -> None:
        self._fleet = fleet(self._deliver)
        self._hands = hands
        self._clock = clock
        self._mail: list[Mail] = []
        self._news = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._deeds: set[asyncio.Task[None]] = set()
        self._closed = False

    def post(self, mail: Mail) -> None:
        """Tell the fleet something; begins to play it if it does not play.

        Raises:
            RunbellError: the waiter was closed.
        """
        if self._closed:
            if isinstance(mail, Leave):  # whoever leaves has heard of the end, or does not care
                return
            raise RunbellError("the waiter was closed")
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._loop is not loop:
            self._abandon(RunbellError("the event loop of this wait has ended"))
            self._deeds = set()
            self._loop, self._news = loop, asyncio.Event()
            # Of no wait's context: the one that happens to come first would be kept alive.
            self._task = loop.create_task(self._play(), context=contextvars.Context())
        self._put(mail)

    async def close(self) -> None:
        """Stop: waits that are open end with an error, tools that are at work are cancelled."""
        self._closed = True
        task, self._task = self._task, None
        if self._loop is asyncio.get_running_loop():
            under_way = list(self._deeds)
            if task is not None:
                under_way.append(task)
            for each in under_way:
                each.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
        # A task that is cancelled before its first step has no end of its own.
        self._abandon(RunbellError("the waiter was closed"))

    def _abandon(self, problem: BaseException, mail: Sequence[Mail] = ()) -> None:
        """End every wait, those included that no fleet has heard of yet."""
        unread, self._mail = self._mail, []
        self._fleet.abandon(problem, [*mail, *unread])

    def _put(self, mail: Mail) -> None:
        self._mail.append(mail)
        self._news.set()

    def _deliver(self, event: dict[str, Any]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._put, Told(event))

    async def _play(self) -> None:
        problem: BaseException = RunbellError("the waiter was closed")
        loop, mail = asyncio.get_running_loop(), list[Mail]()
        try:
            while True:
                self._news.clear()
                mail, self._mail = self._mail, []
                turn = self._fleet.turn(mail)
                for order in turn.orders:
                    self._begin(order)
                if self._fleet.is_idle and not self._mail:
                    return
                await self._rest(turn.until)
        except Exception as error:
            problem = error
            raise
        finally:
            # Not where another loop has taken over meanwhile.
            if self._loop is loop:
                for deed in list(self._deeds):
                    deed.cancel()
                self._abandon(problem, mail)

    async def _rest(self, until: float | None) -> None:
        """Return when there is mail, or at this moment."""
        if self._news.is_set():
            return
        if until is None:
            await self._news.wait()
            return
        waits = [
            asyncio.ensure_future(self._news.wait()),
            asyncio.ensure_future(self._clock.sleep(until - self._clock.monotonic())),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waits:
                each.cancel()

    def _begin(self, order: Order) -> None:
        task = asyncio.get_running_loop().create_task(self._carry_out(order))
        self._deeds.add(task)
        task.add_done_callback(self._deeds.discard)

    async def _carry_out(self, order: Order) -> None:
        try:
            # The client's own limit is one for each read, which a slow answer can stretch.
            async with asyncio.timeout(None if isinstance(order.deed, UseTool) else order.timeout):
                value = await self._hands.perform(order)
        except BaseException as error:
            if _has_to_end(error):
                raise
            self._put(Landed(order.number, error=contained(error)))
        else:
            self._put(Landed(order.number, value))


async def call_function(deed: UseTool, arguments: dict[str, Any], entry: Entry) -> Any:
    """Call a tool: an asynchronous one here, another in a thread, both in a copy of the context of
    whoever waits.

    Raises:
        OutOfTime: it took longer than its limit. A function in a thread can't be stopped: it
            goes on, and nobody hears of it.
    """
    context = deed.context.copy() if deed.context else contextvars.copy_context()

    async def call() -> Any:
        try:
            if deed.tool.is_async:
                return await deed.tool.function(**arguments)
            entry.in_a_thread = True
            result = await in_a_thread(_work, deed, arguments, entry, context)
            return await result if inspect.isawaitable(result) else result
        except BaseException as error:
            if _has_to_end(error):
                raise
            found = contained(error)
            raise found from found.__cause__

    try:
        async with in_time(deed.limit):
            return await asyncio.get_running_loop().create_task(call(), context=context.copy())
    except asyncio.CancelledError as error:
        if _has_to_end(error):
            raise
        found = contained(error)
        raise found from found.__cause__


def _work(deed: UseTool, arguments: dict[str, Any], entry: Entry, context: Context) -> Any:
    """Call a function in this thread; what it gives is written down before anybody hears of it."""
    try:
        result = context.run(deed.tool.function, **arguments)
    except BaseException as error:
        entry.gave(None, contained(error))
        raise
    entry.gave(result, None)
    return result


def _has_to_end(error: BaseException) -> bool:
    """Whether an error is not of what the task does, but meant for the task itself."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | GeneratorExit)


async def in_a_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a blocking function in a thread that does not keep the process from ending."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def settle() -> None:
        value, error = outcome.get()
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def work() -> None:
        try:
            outcome.put((function(*arguments), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            outcome.put((None, contained(error)))
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle)

    threading.Thread(target=work, name="runbell-call", daemon=True).start()
    return await done
