"""Between a fleet and its driver: what a fleet is told, and what it says to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from runbell.client.deeds import Order
from runbell.client.wait import Wait
from runbell.client.wishes import Flow

__all__ = ["Join", "Landed", "Leave", "Mail", "Told", "Turn"]


@dataclass(frozen=True, slots=True)
class Join:
    """Play these waits' flows."""

    waits: Sequence[Wait]
    play: Callable[[Wait], Flow[Any]]


@dataclass(frozen=True, slots=True)
class Leave:
    """Forget a wait: nobody waits any more."""

    wait: Wait


@dataclass(frozen=True, slots=True)
class Landed:
    """An order was carried out, or failed."""

    number: int
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """An event source delivered this."""

    event: dict[str, Any]


Mail = Join | Leave | Landed | Told


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do now: begin the orders, then wait for mail, or until a moment (None: for mail)."""

    orders: Sequence[Order]
    until: float | None
