"""`python -m runbell.testing.faulty --kill-at POINT[:HIT] -- COMMAND …`: a command that dies there.

    python -m runbell.testing.faulty --kill-at storage.group.executed:3 -- serve --port 0

runs `runbell serve --port 0` in this process and kills it, with SIGKILL, when the fault point is
reached for the third time. With `--on-signal` it begins to count when it gets SIGUSR1, so that what
a start itself reaches is passed over. Only this entry arms points: no setting and no variable of a
production process can.
"""

from __future__ import annotations

import argparse
import runpy
import signal
import sys
from collections.abc import Sequence

from runbell import faults
from runbell.testing.faults import Kill

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Arm what the arguments say, then be `runbell` with the rest of them."""
    parser = argparse.ArgumentParser(
        prog="python -m runbell.testing.faulty",
        description="Run a command of runbell and kill it at a fault point.",
        epilog="points: " + "; ".join(f"{name}: {what}" for name, what in faults.POINTS.items()),
    )
    parser.add_argument("--kill-at", required=True, metavar="POINT[:HIT]", help="where to die")
    parser.add_argument("--on-signal", action="store_true", help="count from SIGUSR1 on")
    parser.add_argument("command", nargs="+", help="the command of runbell, behind `--`")
    given = parser.parse_args(arguments)
    try:
        kill = Kill.parse(given.kill_at)
    except ValueError as error:
        parser.error(f"--kill-at {given.kill_at}: {error}")
    if given.on_signal:
        signal.signal(signal.SIGUSR1, lambda *_: kill.arm())
    else:
        kill.arm()
    sys.argv = ["runbell", *given.command]
    # The module as `python -m runbell` runs it: this room stands below the command line's.
    runpy.run_module("runbell", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
