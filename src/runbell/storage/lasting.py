"""What a process does for as long as it lives: a step, again and again, whatever goes wrong."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from runbell.errors import StorageUnavailable
from runbell.pacing import RetryBackoff

__all__ = ["BACKOFF", "lasting"]

logger = logging.getLogger(__name__)

BACKOFF = RetryBackoff(start=0.05, cap=1.0)
"""From one failure to the next try."""


async def lasting(
    what: str, step: Callable[[], Awaitable[None]], rng: random.Random | None = None
) -> None:
    """Do a step again and again, until this is cancelled. Where it fails, the log says so, and it
    is done again a moment later: a task that ended silently would leave its process deaf, or mute.

    Args:
        what: the step, for the log.
        step: waits for something, each time.
    """
    rng = rng or random.Random()
    failures = 0
    while True:
        try:
            await step()
        except StorageUnavailable as error:
            failures += 1
            logger.warning("%s: %s", what, error)
        except Exception:
            failures += 1
            logger.exception("%s: it failed, and is tried again", what)
        else:
            failures = 0
            continue
        await asyncio.sleep(BACKOFF.delay(failures, rng))
