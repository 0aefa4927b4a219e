"""Every setting of a receiver, in one place: its name, default and help."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Final

from runbell.errors import ConfigurationError

__all__ = ["LEAST_RETAIN_DAYS", "Options"]

LEAST_RETAIN_DAYS: Final = 11
"""Deduplication has to outlive what a sender may still send: recovery reaches 7 days back, and a
recovered delivery is tried for 3 more; a day for clocks and for whoever runs late."""

HIGH: Final = 2.0**53
"""More than any option means."""


def _option(default: Any, help: str, low: float) -> Any:  # noqa: A002
    return field(default=default, metadata={"help": help, "low": low})


@dataclass(frozen=True, slots=True)
class Options:
    """How a receiver behaves. Durations are seconds, sizes bytes."""

    tolerance: int = _option(300, "How far the sender's clock may be from ours.", 1)
    max_body: int = _option(1_048_576, "Largest body.", 1)
    body_timeout: float = _option(10.0, "Time within which a body has to arrive.", 0.001)
    max_bodies: int = _option(
        67_108_864,
        "Bodies that are held at a time, all together: while they are read, the first 64 KiB of "
        "each aside, and while they are stored. Further ones are a 503.",
        1,
    )
    concurrency: int = _option(64, "Events that are handled at a time.", 1)
    threads: int = _option(8, "Threads for handlers that are not async.", 1)
    handler_timeout: float = _option(
        600.0, "Time that a handler may take; longer is a failure.", 0.001
    )
    lease: float = _option(
        30.0,
        "Time after which an event is taken from a process that died; renewed while it lives.",
        0.05,
    )
    gap_wait: float = _option(
        2.0, "How long an event waits for one of its run that should have come before it.", 0.0
    )
    max_attempts: int = _option(10, "Times that an event is handled before it is a dead letter.", 1)
    retry_start: float = _option(1.0, "Time before the first retry; each further one doubles.", 0.0)
    retry_cap: float = _option(3_600.0, "Longest time between two tries.", 0.0)
    poll: float = _option(
        1.0, "How often to look for what another process stored or let go of.", 0.001
    )
    retain_days: float = _option(
        30.0, "Days that events are kept, and known as duplicates.", LEAST_RETAIN_DAYS
    )
    shutdown_grace: float = _option(10.0, "Time that handlers are given when it stops.", 0.0)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            kind = int if isinstance(item.default, int) else (int, float)
            low = item.metadata["low"]
            # Neither NaN nor an infinity is a number here.
            if isinstance(value, bool) or not isinstance(value, kind) or not low <= value < HIGH:
                whole = "a whole number, " if kind is int else ""
                raise ConfigurationError(
                    f"{item.name} is {value!r}: it has to be {whole}{low:g} or more"
                )
