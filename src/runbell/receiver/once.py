"""Side effects of the user's own that are to happen once, remembered beside the events."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from types import TracebackType
from typing import Final

from sqlalchemy import bindparam, delete, null, update

from runbell.clock import Clock
from runbell.errors import ConfigurationError, Conflict, RunbellError, StorageUnavailable
from runbell.receiver import schema
from runbell.storage.statements import Statement, insert_row, select_row
from runbell.storage.store import Store, Transaction

__all__ = ["InProgress", "Once"]

LONGEST_KEY: Final = 512

_PAUSES: Final = (0.05, 0.2, 1.0, 3.0, 5.0)
"""Seconds between tries to write that it has happened, while the inbox can't be written."""

_o = schema.once.c
TAKE = Statement("inbox_once.take", "It is about to happen.", insert_row(schema.once))
FIND = Statement(
    "inbox_once.find",
    "Whether it has happened.",
    select_row(schema.once).where(_o.key == bindparam("what")),
    locks=True,
)
RETAKE = Statement(
    "inbox_once.retake",
    "It is about to happen again: who was about to do it is gone.",
    update(schema.once)
    .values(claim=bindparam("holder"), until_ms=bindparam("until"))
    .where(_o.key == bindparam("what")),
)
DONE = Statement(
    "inbox_once.done",
    "It has happened.",
    update(schema.once)
    .values(claim=null(), done_at_ms=bindparam("now_ms"))
    .where(_o.key == bindparam("what"), _o.claim == bindparam("holder")),
)
UNDO = Statement(
    "inbox_once.undo",
    "It has not happened.",
    delete(schema.once).where(_o.key == bindparam("what"), _o.claim == bindparam("holder")),
)


class InProgress(RunbellError):
    """Somebody else is doing it at this moment: an event that ends with this is tried again.

    That is no failed attempt, so that an event whose process died in the block outlasts its lease.

    Attributes:
        until_ms: when it is done again, if whoever is doing it is gone.
    """

    def __init__(self, until_ms: int) -> None:
        super().__init__("another handler is doing this at the moment")
        self.until_ms = until_ms


class Once:
    """A block whose effect is to happen once, for handlers of either kind.

        async with receiver.once(f"mail:{event.id}") as first:
            if first:
                await send_mail()

    Inside, `first` says whether it has to be done. A block that ends with an error has not done
    it. When the process dies inside of the block, nobody knows: after `lease_ms` it is done again.
    Where even that must not be, hand the key on to whoever has the effect, for them to go by.

    Raises:
        InProgress: another handler is inside of the block with this key.
    """

    def __init__(
        self,
        key: str,
        store: Store,
        clock: Clock,
        lease_ms: int,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        if not 0 < len(key) <= LONGEST_KEY:
            raise ValueError(f"the key of a side effect has 1 to {LONGEST_KEY} characters")
        self._key = key
        self._store = store
        self._clock = clock
        self._lease_ms = lease_ms
        self._loop = loop
        self._holder = secrets.token_hex(8)
        self._first = False

    async def __aenter__(self) -> bool:
        taking = asyncio.ensure_future(self._store.write(self._take))
        try:
            self._first = await asyncio.shield(taking)
        except asyncio.CancelledError:
            # It may be taken all the same, and nobody would give it back.
            await asyncio.shield(asyncio.ensure_future(self._give_back(taking)))
            raise
        return self._first

    async def _give_back(self, taking: asyncio.Future[bool]) -> None:
        # Not before it is there: units of work may be executed beside each other.
        await asyncio.gather(taking, return_exceptions=True)
        await self._end(done=False)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._first:
            # Whatever ends the task: this is written, or the effect would happen again.
            await asyncio.shield(asyncio.ensure_future(self._end(done=error is None)))

    def __enter__(self) -> bool:
        if _is_on(self._loop):
            # It would wait for what only this very thread can do, and all of the process with it.
            raise ConfigurationError("in an async function, write `async with receiver.once(…)`")
        return asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.__aexit__(kind, error, trace), self._loop).result()

    async def _end(self, *, done: bool) -> None:
        statement = DONE if done else UNDO
        params: dict[str, object] = {"what": self._key, "holder": self._holder}
        if done:
            params["now_ms"] = self._clock.now_ms()
        for pause in _PAUSES:
            try:
                await self._store.write(lambda tx: tx.execute(statement, params))
            except StorageUnavailable:
                # What has happened cannot be taken back: it has to be written.
                await self._clock.sleep(pause)
            else:
                return
        await self._store.write(lambda tx: tx.execute(statement, params))

    async def _take(self, tx: Transaction) -> bool:
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self._lease_ms
        taken = {"key": self._key, "claim": self._holder, "until_ms": until_ms, "done_at_ms": None}
        while True:
            with contextlib.suppress(Conflict):
                await tx.execute(TAKE, taken)
                return True
            row = await tx.fetch_one(FIND, {"what": self._key})
            if row is not None:
                break
            # Whoever had it has given it back between the two.
        _, _, held_until_ms, done_at_ms = row
        if done_at_ms is not None:
            return False
        if held_until_ms > now_ms:
            raise InProgress(held_until_ms)
        await tx.execute(RETAKE, {"what": self._key, "holder": self._holder, "until": until_ms})
        return True


def _is_on(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False
