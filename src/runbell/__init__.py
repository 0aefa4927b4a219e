"""Runbell: know the moment an asynchronous run finishes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runbell.client.endings import raise_for_status
    from runbell.client.providers import Provider, RunRef
    from runbell.client.updates import Update
    from runbell.client.waiter import AsyncWaiter, Waiter
    from runbell.errors import (
        ActionRequired,
        RunbellError,
        RunCancelled,
        RunError,
        RunExpired,
        RunFailed,
        RunIncomplete,
        ToolMismatch,
        WaitTimeout,
    )

__all__ = [
    "ActionRequired",
    "AsyncWaiter",
    "Provider",
    "RunCancelled",
    "RunError",
    "RunExpired",
    "RunFailed",
    "RunIncomplete",
    "RunRef",
    "RunbellError",
    "ToolMismatch",
    "Update",
    "WaitTimeout",
    "Waiter",
    "__version__",
    "raise_for_status",
]

__version__ = "0.1.0"

_ERRORS = (
    "ActionRequired",
    "RunCancelled",
    "RunError",
    "RunExpired",
    "RunFailed",
    "RunIncomplete",
    "RunbellError",
    "ToolMismatch",
    "WaitTimeout",
)
_HOME = {
    **dict.fromkeys(_ERRORS, "runbell.errors"),
    "Update": "runbell.client.updates",
    **dict.fromkeys(("AsyncWaiter", "Waiter"), "runbell.client.waiter"),
    **dict.fromkeys(("Provider", "RunRef"), "runbell.client.providers"),
    "raise_for_status": "runbell.client.endings",
}


def __getattr__(name: str) -> Any:
    # A service or a command line that waits for nothing does not load what waits.
    if name not in _HOME:
        raise AttributeError(f"module 'runbell' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
