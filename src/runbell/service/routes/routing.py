"""How a request becomes a call of an operation, and what comes of it an answer.

A route is data: its method and path, the types of its body and its query, and a function of a
`Call`. Everything that all routes have in common happens in the app, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from runbell.service.operations.context import Context
from runbell.service.wire.objects import encode
from runbell.service.wire.pages import check_no_query
from runbell.service.wire.parameters import Header, Parameter
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
    content_type: str = "application/json"
    made: Any = None
    """What it was made of, for who tells of it."""


@dataclass(frozen=True, slots=True)
class EventStream:
    """An answer that goes on: server-sent events, until `frames` ends or the client leaves.

    Attributes:
        close: ends `frames`, from wherever that waits; may be called several times.
        run_id, thread_id: of the run that is streamed, if it is one run.
    """

    frames: AsyncGenerator[bytes, None]
    close: Callable[[], None]
    run_id: str | None = None
    thread_id: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def answer(result: Any, headers: Mapping[str, str] | None = None) -> Answer:
    """The answer that an object makes."""
    return Answer(200, encode(result), headers or {}, made=result)


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
        """The value of a header; where it stands several times, its values as one list."""
        values = [value.decode("latin-1") for given, value in self.headers if given == name]
        return ", ".join(values) if values else None

    async def wait_until(
        self,
        keys: Sequence[str],
        look: Callable[[], Awaitable[Seen]],
        enough: Callable[[Seen], bool],
        seconds: float,
        *,
        settled_alone: bool = False,
    ) -> Seen:
        """Look until it is enough, each time that one of `keys` has changed, and now and then.

        Nothing of what was seen is held while this waits: thousands do so at the same time.

        Args:
            keys: ids of runs or of projects.
            seconds: how long at the most; what was seen then is returned.
            settled_alone: nothing else can be enough than that a run settles.

        Raises:
            ClientLeft: there is nobody to wait for any more.
        """
        seen = await look()
        if enough(seen):
            return seen
        del seen
        clock = self.ctx.clock
        deadline = clock.monotonic() + seconds
        held = self.ctx.metrics.waits_held.track_inprogress()
        with self.ctx.changes.watch(keys, settled_alone=settled_alone) as watch, held:
            left = asyncio.ensure_future(self.left())
            left.add_done_callback(lambda _: watch.wake())
            try:
                while True:
                    seen = await look()
                    remaining = deadline - clock.monotonic()
                    if enough(seen) or remaining <= 0 or self.ctx.changes.closed:
                        return seen
                    del seen
                    await watch.changed(clock, min(remaining, self.ctx.changes.look_seconds))
                    if left.done():
                        raise ClientLeft
            finally:
                left.cancel()


def no_query(params: Sequence[tuple[str, str]]) -> None:
    """The query of a route that has none."""
    check_no_query(params)


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        path: with parameters in braces.
        handle: gives the object to answer with, an `Answer`, or an `EventStream`. That of a POST
            is executed inside a transaction where the request is to happen once: it awaits the
            store and nothing else, and what it does besides can be undone.
        summary: what it does, in a few words.
        body: the type of the request's body; None where it has none.
        query: decodes the query; refuses what it does not know.
        operation: its name for programs that are made from the OpenAPI document.
        answer: the type of its answer, or several.
        parameters: what its query and its headers may say; `query` decodes the former.
        headers: what its answer may say beside its body, and other answers do not.
        stream: the events that it may answer as a stream, with the types of their data.
        before: is awaited in front of `handle`, outside of any transaction: for what has to ask
            somebody else than the store. It may refuse the request.
        secret: its answer holds a secret: where it is kept, it is encrypted.
        repeats: it does something outside of the store, which can't be undone: a request that is
            to happen once is refused.
        refuses: statuses of its error answers that do not follow from the rest.
        about: what else there is to know.
        ours: OpenAI's API does not have it.
    """

    method: str
    path: str
    handle: Callable[[Call[Any, Any]], Awaitable[Any]]
    summary: str
    body: type[Request] | None = None
    query: Callable[[Sequence[tuple[str, str]]], Any] = field(default=no_query)
    operation: str = ""
    answer: Any = None
    parameters: tuple[Parameter, ...] = ()
    headers: tuple[Header, ...] = ()
    stream: Mapping[str, Any] | None = None
    before: Callable[[Call[Any, Any]], Awaitable[None]] | None = None
    secret: bool = False
    repeats: bool = False
    refuses: tuple[int, ...] = ()
    about: str = ""
    ours: bool = False
