"""Who listens: verify → deduplicate → store → 200 → handle.

receiver   what a program holds: handlers, the endpoint, its life
door       who may come in: limits, signatures, the answer; `checks`: its pure part
arrivals   how an event gets into the inbox; `rows`: how it gets through it
order      in which order the events of one run are handled; `turns` asks the inbox for it
work       who handles: claims, retries, dead letters
inbox      the inbox as an `EventSource`, also of another process
places     where it is: a file, or a database (`postgresql`); `ports` says what both have to be
feed       fetching what was missed
once       side effects of the user's own
desk       what an operator asks of an inbox
aws        the same with AWS Lambda and SQS
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from runbell.errors import MissingExtra

if TYPE_CHECKING:
    from runbell.receiver.events import ReceivedEvent, ReceivedRunEvent
    from runbell.receiver.feed import CaughtUp
    from runbell.receiver.handlers import Handlers
    from runbell.receiver.inbox import Inbox
    from runbell.receiver.once import InProgress, Once
    from runbell.receiver.receiver import Receiver
    from runbell.receiver.settings import Options

__all__ = [
    "CaughtUp",
    "Handlers",
    "InProgress",
    "Inbox",
    "Once",
    "Options",
    "ReceivedEvent",
    "ReceivedRunEvent",
    "Receiver",
]

_PLACES = {
    "CaughtUp": "feed",
    "Handlers": "handlers",
    "InProgress": "once",
    "Inbox": "inbox",
    "Once": "once",
    "Options": "settings",
    "ReceivedEvent": "events",
    "ReceivedRunEvent": "events",
    "Receiver": "receiver",
}


def __getattr__(name: str) -> Any:
    # Late: on Lambda there is neither a database nor a server, and every import is a cold start's.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("runbell"):
            raise
        raise MissingExtra("the receiver", "receiver") from error
