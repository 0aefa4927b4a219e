"""Commands of `runbell` in processes that are forked from one which has imported everything.

    process = spawn([sys.executable, "-m", "runbell", "serve"], stdout=…, stderr=…, cwd=…, env=…)

A start of the command imports for more than a second, and the tests start hundreds. So every worker
has one process, made by `python -m tests.forking`, that imports once and then waits to be told what
to be; what it forks is what `python -m MODULE` would have been from there on. It has no threads, no
open database and no event loop, and ends when the worker does. What a user's own start does is
tested elsewhere, with `subprocess`.
"""

from __future__ import annotations

import array
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import BinaryIO, NoReturn

__all__ = ["Forked", "can_fork", "spawn"]

IMPORTED = (
    "alembic.config",
    "alembic.command",
    "encodings.idna",
    "runbell.cli.keys",
    "runbell.cli.serve",
    "runbell.cli.served",
    "runbell.service.app",
    "runbell.service.databases",
    "runbell.service.openapi",
    "runbell.service.postgresql",
    "runbell.service.server",
    "runbell.storage.migrate",
    "runbell.testing.faulty",
    "sqlalchemy.dialects.sqlite",
    "typer._adapters",
)
"""What a service has imported when it listens; the modules behind these come with them."""

LONGEST = 1 << 20
"""Bytes of one request: a command line and an environment."""


class Forked:
    """A process that was forked; as much of `subprocess.Popen` as the tests use."""

    def __init__(self, pid: int, command: Sequence[str]) -> None:
        self.pid = pid
        self.args = list(command)
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for the signal that ended it; None while it runs."""
        if self.returncode is None:
            # Until this has told its end it stays a zombie: its id is nobody else's.
            self.returncode = _parent().ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, when it has ended.

        Raises:
            subprocess.TimeoutExpired: it runs for longer than `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.001
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                assert timeout is not None
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash does."""
        self.send_signal(signal.SIGKILL)


def can_fork(command: Sequence[str]) -> bool:
    """Whether this is a module, executed by the interpreter of the tests."""
    return tuple(command[:2]) == (sys.executable, "-m")


def spawn(
    command: Sequence[str],
    *,
    stdout: BinaryIO,
    stderr: BinaryIO,
    cwd: Path,
    env: Mapping[str, str],
) -> Forked:
    """Start a command for which `can_fork` is true. Its stdin is empty."""
    wanted = {"module": command[2], "args": list(command[3:]), "cwd": str(cwd), "env": dict(env)}
    pid = _parent().ask(wanted, stdout.fileno(), stderr.fileno())
    assert pid is not None
    return Forked(pid, command)


class _Parent:
    """This worker's end of the process that forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[1],
            )

    def ask(self, wanted: Mapping[str, object], *files: int) -> int | None:
        """Send one request, with files that the new process is to have; the answer."""
        with self._lock:
            packet = json.dumps(wanted).encode()
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
            self._socket.sendmsg([packet], rights if files else [])
            answer = self._socket.recv(LONGEST)
        assert answer, f"the process that forks ended with {self._process.wait()}"
        found: int | None = json.loads(answer)
        return found


@cache
def _parent() -> _Parent:
    return _Parent()


# The process that forks.


def _serve(ours: socket.socket) -> None:
    """Answer requests until the worker is gone."""
    size = array.array("i").itemsize
    while True:
        packet, rights, _, _ = ours.recvmsg(LONGEST, socket.CMSG_SPACE(2 * size))
        if not packet:
            return
        wanted = json.loads(packet)
        files = array.array("i")
        for _, _, data in rights:
            files.frombytes(data)
        if "poll" in wanted:
            pid, status = os.waitpid(wanted["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                ours.close()
                _become(wanted, *files)
            for number in files:
                os.close(number)
        ours.send(json.dumps(answer).encode())


def _become(wanted: dict[str, object], stdout: int, stderr: int) -> NoReturn:
    """Be `python -m MODULE …`, to its end."""
    code = 1
    try:
        for theirs, standard in ((stdout, 1), (stderr, 2)):
            os.dup2(theirs, standard)
            os.close(theirs)
        os.chdir(str(wanted["cwd"]))
        os.environ.clear()
        os.environ.update(wanted["env"])  # type: ignore[call-overload]
        sys.argv = [str(wanted["module"]), *wanted["args"]]  # type: ignore[misc]
        sys.path[0] = str(wanted["cwd"])
        runpy.run_module(str(wanted["module"]), run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as ending:
        code = _exit_code(ending)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    finally:
        # What an interpreter does at its end, without what the parent was given to do at its own.
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _exit_code(ending: SystemExit) -> int:
    if ending.code is None or isinstance(ending.code, int):
        return ending.code or 0
    print(ending.code, file=sys.stderr)
    return 1


def main() -> None:
    """Import, then fork for whoever has the other end of the socket."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a thread would be missing in what is forked"
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as ours:
        _serve(ours)


if __name__ == "__main__":
    main()
