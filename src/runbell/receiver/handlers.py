"""Which functions are called for which events: the table that `on` fills."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import re
import threading
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from runbell.errors import ConfigurationError

__all__ = ["Handler", "Handlers", "Threads"]

Function = Callable[[Any], Awaitable[None] | None]
F = TypeVar("F", bound=Callable[[Any], Any])

MOST_TYPES: Final = 1_000
"""Types whose functions are remembered."""

_PATTERN: Final = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*(\.\*)?|\*")


@dataclass(frozen=True, slots=True)
class Handler:
    """A user's function.

    Attributes:
        name: by which the inbox remembers that it has succeeded while another one had not.
        is_async: it runs on the event loop.
    """

    name: str
    function: Function
    is_async: bool

    async def call(self, event: Any, threads: Threads | None) -> None:
        """Call it: an async function here, any other in a thread of `threads` (None for here)."""
        if self.is_async or threads is None:
            found = self.function(event)
        else:
            found = await threads.call(self.function, event)
        if inspect.isawaitable(found):
            await found


class Threads:
    """Where functions run that are not async. Whoever wants a thread asks for a `place` first.

    A thread can't be broken off: a function that hangs keeps its place. It does not keep the
    process, as one in a pool of `concurrent.futures` would: those are waited for at the exit.
    """

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    async def place(self) -> None:
        """Return when a thread is free. It is given back by `call`, which has to come next."""
        await self._free.acquire()

    async def call(self, function: Function, event: Any) -> Any:
        """What the function returns."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Any] = loop.create_future()
        # The context travels along, as with `asyncio.to_thread`: loggers and tracers use it.
        context = copy_context()

        def run() -> None:
            found, error = None, None
            try:
                found = context.run(function, event)
            except BaseException as raised:  # noqa: BLE001 - whoever waits gets it
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._settle, answer, found, error)

        try:
            threading.Thread(target=run, name="runbell-handler", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._free.release()
            raise
        return await answer

    def _settle(self, answer: asyncio.Future[Any], found: Any, error: BaseException | None) -> None:
        self._free.release()
        if answer.done():
            return
        if isinstance(error, StopIteration):
            # No future takes this one, and whoever waits for it would wait for ever.
            answer.set_exception(RuntimeError("the handler raised StopIteration"))
        elif error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found)


class Handlers:
    """Functions by the types that they are for. Filled before the first event comes."""

    def __init__(self) -> None:
        self._exact: dict[str, list[Handler]] = {}
        self._families: list[tuple[str, Handler]] = []
        self._names: set[str] = set()
        self._found: dict[str, list[Handler]] = {}

    def __len__(self) -> int:
        return len(self._names)

    def on(self, *types: str) -> Callable[[F], F]:
        """A decorator: call the function for events of these types.

        Args:
            types: an exact type, a family (`thread.run.*`), or `*` for everything, also for what
                nobody knew when this was written. A function is called once an event, whichever of
                its types fit.

        Raises:
            ConfigurationError: no type is given, or one that can't be one.
        """
        if not types or not all(map(_PATTERN.fullmatch, types)):
            raise ConfigurationError(
                f"no types of events: {types!r}; write 'response.completed', 'thread.run.*' or '*'"
            )

        def add(function: F) -> F:
            self._found.clear()
            handler = Handler(self._name(function), function, inspect.iscoroutinefunction(function))
            for kind in types:
                if kind.endswith("*"):
                    self._families.append((kind[:-1], handler))
                else:
                    self._exact.setdefault(kind, []).append(handler)
            return function

        return add

    def of(self, kind: str) -> list[Handler]:
        """The functions for events of one type, each once."""
        known = self._found.get(kind)
        if known is not None:
            return known
        found = [*self._exact.get(kind, ())]
        found += [handler for family, handler in self._families if kind.startswith(family)]
        functions = list({handler.name: handler for handler in found}.values())
        if len(self._found) < MOST_TYPES:  # senders can invent types
            self._found[kind] = functions
        return functions

    def _name(self, function: Any) -> str:
        plain = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
        name, number = plain, 1
        while name in self._names:
            number += 1
            name = f"{plain}#{number}"
        self._names.add(name)
        return name
