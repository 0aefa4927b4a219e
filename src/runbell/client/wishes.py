"""What the flow of a wait yields: what it wants next, and nothing about how that is done."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from runbell.client.deeds import Deed
from runbell.client.tools import Tool
from runbell.runs import ToolCall

__all__ = ["Do", "Flow", "Look", "UseTools", "Wish"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Look:
    """Ask how it stands, at this moment (monotonic seconds) or when there is news: an `Answer`."""

    at: float


@dataclass(frozen=True, slots=True)
class Do:
    """One request with an effect, at a moment; the reply is what the provider gave."""

    deed: Deed
    at: float


@dataclass(frozen=True, slots=True)
class UseTools:
    """Call functions that are not called yet, together, and wait for all.

    The reply is a dict of outputs by call id, of those that are finished `until` then.
    """

    calls: tuple[ToolCall, ...]
    tools: Mapping[str, Tool]
    until: float


Wish = Look | Do | UseTools
Flow = Generator[Wish, Any, T]
