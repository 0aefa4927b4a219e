"""`runbell` on a machine that is not as it should be: each SIGUSR1 sets its clock ahead by an hour,
and whoever waits for a connection to the database, or for a row, has little patience."""

import itertools
import signal
import time

from runbell.cli import main
from runbell.storage import postgresql

PATIENCE_S = 0.5
JUMP_S = 3600

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
    postgresql.WAIT_SECONDS = postgresql.ROW_SECONDS = PATIENCE_S
    main()
