"""What drivers do: each deed is one request to the server, one call of a function, or one look
into the journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runbell.runs import ToolCall

if TYPE_CHECKING:
    from runbell.client.providers.base import Provider
    from runbell.client.tools import Tool

__all__ = [
    "Again",
    "Cancel",
    "Deed",
    "FindAgain",
    "Order",
    "Retrieve",
    "RetrieveMany",
    "RetrieveThread",
    "Submit",
    "UseTool",
]


@dataclass(frozen=True, slots=True)
class Retrieve:
    """Ask how one run stands; `hold`: seconds for `Prefer: wait`, None to send none."""

    item: Any
    hold: int | None = None


@dataclass(frozen=True, slots=True)
class RetrieveMany:
    """Ask how several runs stand, in one request: an `Answer` whose item is a dict of objects by
    id, or None where the server does not know such requests."""

    items: Sequence[Any]
    hold: int | None = None


@dataclass(frozen=True, slots=True)
class RetrieveThread:
    """Ask for the latest runs of one thread, likewise."""

    thread_id: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Hand in the outputs of all calls, by call id."""

    item: Any
    outputs: dict[str, str]


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ask the server to end the run."""

    item: Any


@dataclass(frozen=True, slots=True)
class Again:
    """Begin the same work anew; the same `key` may be sent twice and has one effect."""

    item: Any
    key: str


@dataclass(frozen=True, slots=True)
class FindAgain:
    """Look for what an `Again` made whose answer was lost: the object, or None."""

    item: Any


@dataclass(frozen=True, slots=True)
class UseTool:
    """Find the output of a call in the journal, or call the function and write its output down.

    Attributes:
        limit: seconds that the function may take.
        forget_errors: an error is not written down: the call may be made again.
        context: of whoever waits.
        tell: takes the record of what came of it.
    """

    run_id: str
    call: ToolCall
    tool: Tool
    limit: float | None
    forget_errors: bool
    context: Context | None
    tell: Callable[..., None]


Deed = Retrieve | RetrieveMany | RetrieveThread | Submit | Cancel | Again | FindAgain | UseTool


@dataclass(frozen=True, slots=True)
class Order:
    """A deed that is to be begun now, under a number, within `timeout` seconds; `provider` is None
    for a call of a tool."""

    number: int
    provider: Provider[Any] | None
    deed: Deed
    timeout: float
