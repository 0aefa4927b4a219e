"""What can be agreed: for a waiter, and for a single wait."""

from __future__ import annotations

import contextvars
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from runbell.client.providers import Provider
from runbell.client.records import Hook
from runbell.client.tools import Tools, toolbox
from runbell.clock import Clock
from runbell.errors import ConfigurationError
from runbell.pacing import Foresight, Pacer, PolicySource
from runbell.runs import EventSource

__all__ = ["WaitOptions", "WaiterOptions", "agreed", "refuse_unknown"]


class WaitOptions(TypedDict, total=False):
    """What can be agreed for a waiter, and otherwise for a single wait. Times are in seconds.

    Attributes:
        tools: functions that the model may call: callables, or a dict by name.
        timeout: for the whole wait, every request in it; None for a little after the run's
            `expires_at`, or a day for what has none.
        policy: when to look, or a function that makes a policy for a run.
        hold: let servers that can hold a request until the run is settled; then `policy` says only
            what happens between such requests.
        cancel_on_timeout: cancel the run when the time is over; else it goes on.
        tool_timeout: for each call of a function; None for as long as the run lives.
        on_tool_error: `"output"` tells the model what a function raised; `"raise"` raises it.
        max_errors: how many requests in a row may fail.
        restart_on: statuses and error codes after which the same work is begun anew.
        max_restarts: how often.
        hooks: are called with a frozen record of whatever happens, in the thread or the loop that
            all waits depend on: they have to be quick, and can't wait for a run themselves.
    """

    tools: Tools | None
    timeout: float | None
    policy: PolicySource | None
    hold: bool
    cancel_on_timeout: bool
    tool_timeout: float | None
    on_tool_error: Literal["output", "raise"]
    max_errors: int
    restart_on: Iterable[str]
    max_restarts: int
    hooks: Sequence[Hook]


class WaiterOptions(WaitOptions, total=False):
    """What can be agreed for a waiter.

    Attributes:
        calls_per_minute: the budget of all its waits; None for what the server allows.
        journal: a SQLite file in which outputs of tool calls survive a crash, and what was learned
            of how long runs take.
        foresight: what learns that, for another price of a call than a quarter of a second.
        events: somebody who tells of status changes; polling is a backstop then.
        providers: adapters of one's own, which are asked before those that are built in.
        pacer: decides which wait the next call is spent on; takes the place of calls_per_minute.
        clock, rng: where time and chance come from.
    """

    calls_per_minute: float | None
    journal: str | Path | None
    foresight: Foresight
    events: EventSource | None
    providers: Sequence[Provider[Any]]
    pacer: Pacer | None
    clock: Clock
    rng: random.Random


def refuse_unknown(options: Mapping[str, Any], known: type[WaitOptions]) -> None:
    """Raise TypeError for an option that there is not."""
    unknown = set(options) - set(known.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")


def agreed(options: WaitOptions) -> dict[str, Any]:
    """The terms of a wait that these options say, and the policy.

    Raises:
        ConfigurationError: an option is wrong.
        ToolMismatch: a tool is no function, or two have one name.
        TypeError: there is no such option.
    """
    refuse_unknown(options, WaitOptions)
    timeout, max_errors = options.get("timeout"), options.get("max_errors", 10)
    on_tool_error = options.get("on_tool_error", "output")
    if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
        raise ConfigurationError(f"timeout has to be seconds above 0, not {timeout!r}")
    if max_errors < 1:
        raise ConfigurationError(f"max_errors has to be at least 1, not {max_errors}")
    if on_tool_error not in ("output", "raise"):
        raise ConfigurationError(f"on_tool_error is 'output' or 'raise', not {on_tool_error!r}")
    tools = toolbox(options.get("tools"))
    restart_on = options.get("restart_on") or ()
    if isinstance(restart_on, str):  # its letters are no statuses
        restart_on = (restart_on,)
    restart_on = frozenset(restart_on)
    return {
        "policy": options.get("policy"),
        "timeout": timeout,
        "tools": tools,
        "raise_tool_errors": on_tool_error == "raise",
        "hold": options.get("hold", True),
        "tool_timeout": options.get("tool_timeout"),
        "max_errors": max_errors,
        "restart_on": restart_on,
        "max_restarts": options.get("max_restarts", 3) if restart_on else 0,
        "cancel_on_timeout": options.get("cancel_on_timeout", False),
        "hooks": tuple(options.get("hooks") or ()),
        "context": contextvars.copy_context() if tools else None,
    }
