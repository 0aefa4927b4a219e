"""Names looked up: in threads, so many at a time, and nobody behind somebody else's.

A project that registers names whose servers do not answer waits for them itself: it has a few
places of its own, and shares no lookup with another project.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Final

from runbell.clock import Clock

__all__ = ["AddressInfo", "Lookup", "Lookups"]

LOOKUPS: Final = 256
"""At the same time: one whose servers do not answer takes long, and must not delay the others."""

LOOKUPS_EACH: Final = 16
"""Of one project: it may have hundreds of names whose servers do not answer."""

KEPT_SECONDS: Final = 10.0
"""How long an address that was found is gone by."""

KEPT_LOOKUPS: Final = 4_096

AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Lookup = Callable[[str, int], Sequence[AddressInfo]]
"""What `socket.getaddrinfo` does: the addresses of a name; OSError where there are none."""

_Key = tuple[str, str, int]
"""A project, a name, a port."""


class Lookups:
    """The lookups of a process, by project."""

    def __init__(self, lookup: Lookup, clock: Clock) -> None:
        self._lookup = lookup
        self._clock = clock
        self._places = asyncio.Semaphore(LOOKUPS)
        self._shares: dict[str, asyncio.Semaphore] = {}
        self._under_way: dict[_Key, asyncio.Task[Sequence[AddressInfo]]] = {}
        self._kept: OrderedDict[_Key, tuple[float, Sequence[AddressInfo]]] = OrderedDict()

    async def find(self, project: str, host: str, port: int) -> Sequence[AddressInfo]:
        """The addresses of a name. Whoever asks while the project's lookup of it is under way
        waits for that one; it goes on when they give up, for those who come next.

        Raises:
            OSError: as the lookup does.
        """
        key = (project, host, port)
        until, infos = self._kept.get(key, (0.0, ()))
        if self._clock.monotonic() < until:
            return infos
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._find(key), name="lookup")
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def close(self) -> None:
        """Wait for nothing any more."""
        for task in self._under_way.values():
            task.cancel()

    def _ended(self, key: _Key, task: asyncio.Task[Sequence[AddressInfo]]) -> None:
        del self._under_way[key]
        if not any(project == key[0] for project, _, _ in self._under_way):
            self._shares.pop(key[0], None)
        # Asked for in any case: nobody may wait for it any more.
        if not task.cancelled() and task.exception() is None:
            self._kept[key] = (self._clock.monotonic() + KEPT_SECONDS, task.result())
            self._kept.move_to_end(key)
            if len(self._kept) > KEPT_LOOKUPS:
                self._kept.popitem(last=False)

    async def _find(self, key: _Key) -> Sequence[AddressInfo]:
        project, host, port = key
        share = self._shares.setdefault(project, asyncio.Semaphore(LOOKUPS_EACH))
        async with share, self._places:
            return await self._in_a_thread(host, port)

    async def _in_a_thread(self, host: str, port: int) -> Sequence[AddressInfo]:
        """What the lookup says, from a thread of its own.

        The threads of an executor would be waited for when the process ends, for as long as the
        servers of a name do not answer.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Sequence[AddressInfo]] = loop.create_future()

        def look() -> None:
            outcome: Sequence[AddressInfo] | Exception
            try:
                outcome = self._lookup(host, port)
            except Exception as error:  # noqa: BLE001 - raised where it is waited for
                outcome = error
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(_tell, found, outcome)

        try:
            threading.Thread(target=look, name="runbell-lookup", daemon=True).start()
        except RuntimeError:
            raise OSError("no thread for a lookup") from None
        return await found


def _tell(
    found: asyncio.Future[Sequence[AddressInfo]], outcome: Sequence[AddressInfo] | Exception
) -> None:
    if found.done():
        return
    if isinstance(outcome, Exception):
        found.set_exception(outcome)
    else:
        found.set_result(outcome)
