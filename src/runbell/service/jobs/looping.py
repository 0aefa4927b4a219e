"""What every engine does for as long as it lives: a step, again and again, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

from runbell.errors import StorageUnavailable

__all__ = ["forever"]

logger = logging.getLogger(__name__)


async def forever(
    step: Callable[[], Awaitable[None]],
    pause: Callable[[int], Awaitable[None]],
    over: Callable[[], bool] = lambda: False,
) -> None:
    """Do a step again and again. Where it fails, the log says so, and it is done again.

    Args:
        step: waits for something, each time.
        pause: lets time pass after so many failures in a row.
        over: whether the step is not to be done any more; asked before each.
    """
    failures = 0
    while not over():
        try:
            await step()
            failures = 0
        except StorageUnavailable as error:
            failures += 1
            logger.warning("jobs wait for the database: %s", error)
            await pause(failures)
        except Exception:
            failures += 1
            logger.exception("handing out jobs failed; it is tried again")
            await pause(failures)
