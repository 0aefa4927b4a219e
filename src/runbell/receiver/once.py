"""Side effects of the user's own that are to happen once, remembered beside the events."""

from __future__ import annotations

import asyncio
import secrets
from types import TracebackType
from typing import Final

from sqlalchemy import bindparam, delete, null, update

from runbell.clock import Clock
from runbell.errors import Conflict, RunbellError
from runbell.receiver import schema
from runbell.storage.statements import Statement, insert_row, select_row
from runbell.storage.store import Store, Transaction

__all__ = ["InProgress", "Once"]

LONGEST_KEY: Final = 512

_o = schema.once.c
TAKE = Statement("inbox_once.take", "It is about to happen.", insert_row(schema.once))
FIND = Statement(
    "inbox_once.find",
    "Whether it has happened.",
    select_row(schema.once).where(_o.key == bindparam("what")),
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
    """Somebody else is doing it at this moment: an event that ends with this is tried again."""


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
        self._first = await self._store.write(self._take)
        return self._first

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._first:
            # Whatever ends the task: this is written, or the effect would happen again.
            await asyncio.shield(asyncio.ensure_future(self._end(error is None)))

    def __enter__(self) -> bool:
        return asyncio.run_coroutine_threadsafe(self.__aenter__(), self._loop).result()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self.__aexit__(kind, error, trace), self._loop).result()

    async def _end(self, done: bool) -> None:
        statement = DONE if done else UNDO
        params: dict[str, object] = {"what": self._key, "holder": self._holder}
        if done:
            params["now_ms"] = self._clock.now_ms()
        await self._store.write(lambda tx: tx.execute(statement, params))

    async def _take(self, tx: Transaction) -> bool:
        now_ms = self._clock.now_ms()
        until_ms = now_ms + self._lease_ms
        try:
            await tx.execute(
                TAKE,
                {
                    "key": self._key,
                    "claim": self._holder,
                    "until_ms": until_ms,
                    "done_at_ms": None,
                },
            )
        except Conflict:
            row = await tx.fetch_one(FIND, {"what": self._key})
            if row is None:
                raise
            _, _, held_until_ms, done_at_ms = row
            if done_at_ms is not None:
                return False
            if held_until_ms > now_ms:
                raise InProgress("another handler is doing this at the moment") from None
            await tx.execute(RETAKE, {"what": self._key, "holder": self._holder, "until": until_ms})
        return True
