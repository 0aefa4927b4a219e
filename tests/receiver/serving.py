"""A receiver behind uvicorn, as a process of its own: `python -m tests.receiver.serving`.

It writes a line to a file for each event that a handler begins and ends, and dies where it is told.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from runbell.receiver import Receiver
from runbell.testing.faults import Kill
from runbell.webhooks import headers_for
from tests.receiver.house import SECRET

__all__ = ["Served", "serve"]

LIMIT_S = 60.0


def serve(argv: list[str] | None = None) -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--inbox", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--kill-at")
    parser.add_argument("--plain", action="store_true", help="without FastAPI")
    parser.add_argument("--body-timeout", type=float, default=10.0)
    given = parser.parse_args(argv)
    receiver = Receiver(
        [SECRET],
        given.inbox,
        lease=1.0,
        retry_start=0.05,
        poll=0.05,
        body_timeout=given.body_timeout,
    )

    @receiver.on("*")
    async def handler(event: Any) -> None:
        with given.log.open("a") as log:
            log.write(f"{event.id} {event.attempt}\n")

    app: Any = receiver.asgi()
    if not given.plain:
        from fastapi import FastAPI

        app = FastAPI(lifespan=receiver.lifespan)
        app.include_router(receiver.fastapi_router("/hooks"))
    if given.kill_at:
        Kill.parse(given.kill_at).arm()
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=given.fd)])


class Served:
    """The process, and how it is talked to.

    Args:
        folder: for its log, and for its inbox, unless `url` names another one.
    """

    def __init__(self, folder: Path, url: str | None = None) -> None:
        self.inbox = folder / "inbox.db"
        self._url = url or f"sqlite:///{self.inbox}"
        self.log = folder / "handled.log"
        self.log.touch()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        """Start it; connections wait at the socket until it listens, also those of somebody who
        was killed before they were taken."""
        fd = self._listener.fileno()
        self.process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "tests.receiver.serving", "--fd", str(fd)),
                *("--inbox", self._url, "--log", str(self.log), *arguments),
            ],
            pass_fds=[fd],
            stderr=subprocess.PIPE,
            cwd=Path(__file__).parents[2],
        )

    def push(self, event_id: str, body: bytes) -> int | None:
        """POST a webhook; its status, None where the process was killed before it answered."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)
        try:
            headers = headers_for([SECRET], event_id, int(time.time()), body)
            connection.request("POST", "/hooks", body, headers)
            if not self._says_something(connection.sock):
                return None
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _says_something(self, connection: socket.socket) -> bool:
        """Wait for the first of an answer, or for the end of the process."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            ended = self.has_ended
            if select.select([connection], [], [], 0 if ended else 0.01)[0]:
                return True
            if ended:
                return False
        raise AssertionError("it neither answers nor ends")

    @property
    def has_ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def wait_dead(self) -> bytes:
        """Return what it said, when it was killed."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=LIMIT_S)
        assert self.process.returncode == -signal.SIGKILL, said
        return said

    @property
    def handled(self) -> list[str]:
        return [line.split()[0] for line in self.log.read_text().splitlines()]

    def stop(self) -> bytes:
        """End it; what it said."""
        if self.process is None or self.process.poll() is not None:
            return b""
        self.process.terminate()
        try:
            _, said = self.process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return said

    def __enter__(self) -> Served:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.stop()
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.communicate()
        self._listener.close()


@contextlib.contextmanager
def limited() -> Iterator[Any]:
    """A deadline: call what is yielded until it fails."""
    deadline = time.monotonic() + LIMIT_S

    def rest(what: str) -> None:
        assert time.monotonic() < deadline, what
        time.sleep(0.01)

    yield rest


if __name__ == "__main__":
    serve()
