"""How a request becomes a call of an operation, and what comes of it an answer.

A route is data: its method and path, the types of its body and its query, and a function of a
`Call`. Everything that all routes have in common happens here, once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from runbell.service.operations.context import Context
from runbell.service.wire.pages import check_no_query
from runbell.service.wire.requests import Request

__all__ = ["Call", "RawJson", "Route", "no_query"]

Body = TypeVar("Body")
Query = TypeVar("Query")


@dataclass(frozen=True, slots=True)
class RawJson:
    """An answer that is JSON already."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Call(Generic[Body, Query]):
    """One request, decoded and let in.

    Attributes:
        project: the id of the project that the caller's key opens; every operation stays in it.
        path: the parameters of the path.
    """

    ctx: Context
    project: str
    path: dict[str, str]
    body: Body
    query: Query


def no_query(params: Sequence[tuple[str, str]]) -> None:
    """The query of a route that has none."""
    check_no_query(params)


@dataclass(frozen=True, slots=True)
class Route:
    """One method on one path.

    Attributes:
        path: with parameters in braces.
        handle: gives the object to answer with.
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
