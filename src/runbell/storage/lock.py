"""One service an installation: a lock on a file beside the database.

The database itself stays free, so that backups and `runbell keys` work beside a running service.
The kernel lets go of the lock when its process ends, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from runbell.errors import ConfigurationError

__all__ = ["InstallationLock"]


class InstallationLock:
    """Held by the process that may serve, and migrate, a SQLite file."""

    def __init__(self, database: Path) -> None:
        # By its real name: a symbolic link must not open a second door to the same file.
        database = database.resolve()
        self.path = database.with_name(database.name + ".lock")
        self._fd: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False where another process has it. Harmless where it is held already.

        Raises:
            ConfigurationError: the folder of the database cannot be written.
        """
        if self._fd is not None:
            return True
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write beside the database ({error.strerror}): {self.path}; "
                "name a file in a folder that exists and can be written with --database"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        os.ftruncate(fd, 0)
        os.write(fd, f"{os.getpid()}\n".encode())
        self._fd = fd
        return True

    def holder(self) -> str:
        """The process id that the holder has written, for messages."""
        try:
            return self.path.read_text().strip() or "unknown"
        except OSError:
            return "unknown"

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    @contextlib.contextmanager
    def held(self) -> Iterator[bool]:
        """Hold the lock for a while: whether it could be had."""
        had = self._fd is not None
        try:
            yield self.acquire()
        finally:
            if not had:
                self.release()
