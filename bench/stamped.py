"""`stamped.py FILE COMMAND …`: `runbell COMMAND …`, which writes down when it has committed.

FILE gets a line for each group of changes: nanoseconds of the system's monotonic clock, which is
the same for every process, at the moment when the database's COMMIT has returned. Nobody in the
process knows of the change before that.
"""

from __future__ import annotations

import os
import runpy
import sys
import time

from runbell import faults


def main() -> None:
    _, file, *command = sys.argv
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def stamp(point: str) -> None:
        if point == "storage.group.committed":
            os.write(fd, b"%d\n" % time.monotonic_ns())

    faults.arm(stamp)
    sys.argv = ["runbell", *command]
    runpy.run_module("runbell", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
