"""How a request becomes a call of an operation, and what comes of it an answer.

A route is data: its method and path, the types of its body and its query, and a function of a
`Call`. Everything that all routes have in common happens in the app, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from runbell.service.operations.context import Context
from runbell.service.wire.objects import encode
from runbell.service.wire.pages import check_no_query
from runbell.service.wire.requests import Request

__all__ = ["Answer", "Call", "ClientLeft", "EventStream", "Route", "answer", "no_query"]

Body = TypeVar("Body")
Query = TypeVar("Query")
Seen = TypeVar("Seen")


class ClientLeft(Exception):
    """Nobody is there any more to be answered."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, encoded."""

    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer that goes on: server-sent events, until `frames` ends or the client leaves.

    Attributes:
        close: ends `frames`, from wherever that waits; may be called several times.
    """

    frames: AsyncIterator[bytes]
    close: Callable[[], None]


def answer(result: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer that an object makes."""
    return Answer(200, encode(result), headers or {})


@dataclass(frozen=True, slots=True)
class Call(Generic[Body, Query]):
    """One request, decoded and let in.

    Attributes:
        project: the id of the project that the caller's key opens; every operation stays in it.
        path: the parameters of the path.
        headers: names in lower case.
        left: returns when the client has gone away.
    """

    ctx: Context
    project: str
    path: dict[str, str]
    body: Body
    query: Query
    headers: Sequence[tuple[bytes, bytes]]
    left: Callable[[], Awaitable[None]]

    def header(self, name: bytes) -> str | None:
        """The value of a header."""
        for given, value in self.headers:
            if given == name:
                return value.decode("latin-1")
        return None

    async def wait_until(
        self,
        keys: Sequence[str],
        look: Callable[[], Awaitable[Seen]],
        enough: Callable[[Seen], bool],
        seconds: float,
    ) -> Seen:
        """Look until it is enough, each time that one of `keys` has changed.

        Args:
            keys: ids of runs or of projects.
            seconds: how long at the most; what was seen then is returned.

        Raises:
            ClientLeft: there is nobody to wait for any more.
        """
        seen = await look()
        if enough(seen):
            return seen
        with self.ctx.changes.watch(keys) as watch:
            timer = asyncio.ensure_future(self.ctx.clock.sleep(seconds))
            left = asyncio.ensure_future(self.left())
            changed = None
            try:
                while True:
                    seen = await look()
                    if enough(seen) or timer.done() or self.ctx.changes.closed:
                        return seen
                    changed = asyncio.ensure_future(watch.changed())
                    await asyncio.wait((changed, timer, left), return_when=asyncio.FIRST_COMPLETED)
                    if left.done():
                        raise ClientLeft
            finally:
                for task in (changed, timer, left):
                    if task is not None:
                        task.cancel()


def no_query(params: Sequence[tuple[str, str]]) -> None:
    """The query of a route that has none."""
    check_no_query(params)


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        path: with parameters in braces.
        handle: gives the object to answer with, an `Answer`, or an `EventStream`.
        summary: what it does, in a few words.
        body: the type of the request's body; None where it has none.
        query: decodes the query; refuses what it does not know.
    """

    method: str
    path: str
    handle: Callable[[Call[Any, Any]], Awaitable[Any]]
    summary: str
    body: type[Request] | None = None
    query: Callable[[Sequence[tuple[str, str]]], Any] = field(default=no_query)
