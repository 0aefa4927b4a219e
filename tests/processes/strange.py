"""`runbell` on a machine that is not as it should be: each SIGUSR1 sets its clock ahead by an hour,
whoever waits for a connection to the database has little patience, and nobody looks by himself for
what he was not told."""

import itertools
import signal
import time

from runbell.cli import main
from runbell.service import retelling
from runbell.service.routes import events
from runbell.storage import postgresql

PATIENCE_S = 2.0
JUMP_S = 3600
NEVER_S = 86_400.0

real, jumps = time.time_ns, itertools.count()
ahead = next(jumps)


def now_ns() -> int:
    return real() + ahead * JUMP_S * 10**9


def jump(*_: object) -> None:
    global ahead
    ahead = next(jumps)


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, jump)
    time.time_ns, time.time = now_ns, lambda: now_ns() / 10**9
    postgresql.WAIT_SECONDS = PATIENCE_S
    retelling.LOOK_SECONDS = events.HEARTBEAT_SECONDS = NEVER_S
    main()
