"""A service in a process of its own, for a program that needs one for a while.

with ServedProcess() as service:
    client = OpenAI(base_url=service.base_url, api_key=service.api_key)
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import IO, Self
from urllib.parse import quote

from runbell.errors import RunbellError

__all__ = ["ServedProcess"]

LISTENING = re.compile(r"^runbell: listening on (http://\S+)$")
START_SECONDS = 60.0
STOP_SECONDS = 30.0
"""How long to wait for a graceful end; the service promises 5 seconds."""


class ServedProcess:
    """`runbell serve` on a free loopback port, with a database and a key that only it has.

    Args:
        options: more of its options.
        program: what Python runs; anything that takes the arguments of `runbell`.

    Entering starts the process and waits until it listens; leaving ends it and removes its
    database. The settings of the environment (`RUNBELL_…`) do not reach it.

    Attributes:
        base_url: for a client, for example `http://127.0.0.1:40123/v1`.
        api_key: for a client.
        pid: the process.

    Raises:
        RunbellError: the service did not start; the message holds what it wrote to stderr. Or, on
            leaving without another exception, it did not end gracefully.
    """

    def __init__(self, *options: str, program: Sequence[str] = ("-m", "runbell")) -> None:
        self.api_key = f"sk-{secrets.token_urlsafe(24)}"
        self.base_url = ""
        self._options = options
        self._program = program

    def __enter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="runbell-")
        try:
            self._start(Path(self._directory.name))
        except BaseException:
            self._directory.cleanup()
            raise
        try:
            self.base_url = self._wait_until_listening()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        problem = self._end()
        if problem and kind is None:
            raise RunbellError(problem)

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self, directory: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RUNBELL_")}
        environment["RUNBELL_API_KEY"] = self.api_key
        self._stderr_path = directory / "stderr.txt"
        with self._stderr_path.open("wb") as stderr:
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [
                    *(sys.executable, *self._program, "serve", "--port", "0"),
                    *("--database", f"sqlite:///{quote(str(directory))}/runbell.db"),
                    *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                text=True,
                # Ctrl-C is for us: we end the service, once, when we are done with it.
                start_new_session=True,
            )

    def _wait_until_listening(self) -> str:
        assert self._process.stdout is not None
        lines: SimpleQueue[str | None] = SimpleQueue()
        # The thread reads on until the process ends, which a full pipe would block.
        threading.Thread(target=_read, args=(self._process.stdout, lines), daemon=True).start()
        try:
            while (line := lines.get(timeout=START_SECONDS)) is not None:
                if match := LISTENING.match(line.strip()):
                    return match[1]
        except Empty:
            problem = f"the service did not listen within {START_SECONDS:.0f} s"
        else:
            problem = f"the service ended with exit code {self._process.wait()} at its start"
        raise RunbellError(problem + self._stderr())

    def _end(self) -> str:
        """End the process and remove what it kept; what was wrong with its end, or nothing."""
        try:
            self._process.terminate()
            status = self._process.wait(STOP_SECONDS)
            return f"the service ended with exit code {status}{self._stderr()}" if status else ""
        except subprocess.TimeoutExpired:
            return f"the service did not end within {STOP_SECONDS:.0f} s{self._stderr()}"
        finally:
            self._process.kill()
            self._process.wait()
            self._directory.cleanup()

    def _stderr(self) -> str:
        text = self._stderr_path.read_text(errors="replace").strip()
        return f":\n{text}" if text else ""


def _read(stdout: IO[str], lines: SimpleQueue[str | None]) -> None:
    with stdout:
        for line in stdout:
            lines.put(line)
    lines.put(None)
