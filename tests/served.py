"""A real `runbell serve` in a process of its own, for every test that talks to one.

    with Served(tmp_path) as served:
        client = served.client()
        ...

Leaving the block ends the process with SIGTERM and asserts that it ended as it should. A test that
wants it to end otherwise calls `kill`; `restart` starts it again on the same database. The command
can be another one that takes the same arguments, such as one that arms a fault point first.
"""

from __future__ import annotations

import http.client
import json as jsonlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self, TypeVar

from openai import (
    AsyncAzureOpenAI,
    AsyncOpenAI,
    AzureOpenAI,
    DefaultAsyncHttpxClient,
    DefaultHttpxClient,
    OpenAI,
)

from tests.forking import Forked, can_fork, spawn

__all__ = ["AZURE_API_VERSION", "Answer", "Api", "Served", "eventually"]

T = TypeVar("T")

AZURE_API_VERSION = "2024-05-01-preview"

START_LIMIT_S = 60.0
"""A start on a busy machine; a process that ends instead is reported at once."""

REQUEST_LIMIT_S = 60.0
"""A service that does not answer at all fails a test with a clear message, before its own limit."""

STOP_LIMIT_S = 30.0
"""Six times what the service promises, for busy machines."""

STREAMED = "text/event-stream"
"""Answers of this kind are looked at by whoever asked for them, event by event."""

RUNBELL = (sys.executable, "-m", "runbell")

_LISTENING = re.compile(r"^runbell: listening on (http://\S+)/v1$", re.MULTILINE)
_KEY = re.compile(r"\bsk-[A-Za-z0-9_-]{16,}")


@dataclass(frozen=True)
class Answer:
    """One answer as it came over the wire. Header names are lower case."""

    method: str
    path: str
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return jsonlib.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error that this answer carries."""
        assert self.status >= 400, f"{self.method} {self.path} succeeded: {self.body!r}"
        error: dict[str, Any] = self.json()["error"]
        return error

    def ok(self) -> Any:
        """The JSON of an answer that has to be a success."""
        assert self.status == 200, f"{self.method} {self.path}: {self.status} {self.body!r}"
        return self.json()


Watch = Callable[[Answer], None]


def eventually(look: Callable[[], T | None], what: str, limit_s: float = 60.0) -> T:
    """The first result of `look` that is neither None nor False; fails after `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    pause = 0.002
    while True:
        seen = look()
        if seen is not None and seen is not False:
            return seen
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what}"
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)


class Api:
    """Plain HTTP with one key, for what an SDK cannot say. Paths begin with a slash."""

    def __init__(self, served: Served, key: str | None) -> None:
        self.served = served
        self.key = key

    def get(self, path: str, **options: Any) -> Answer:
        return self.served.request("GET", path, key=self.key, **options)

    def post(self, path: str, json: Any = None, **options: Any) -> Answer:
        return self.served.request("POST", path, json=json, key=self.key, **options)

    def delete(self, path: str, **options: Any) -> Answer:
        return self.served.request("DELETE", path, key=self.key, **options)


class Served:
    """One `runbell serve` on a free loopback port.

    Args:
        directory: for the database and the process's output; is not removed.
        args: more arguments, after `serve --port … --database …`.
        env: more environment; None as a value takes a variable away.
        command: what to start instead of `python -m runbell`.
        key: the value of RUNBELL_API_KEY; None starts without one.
        watch: is called with every answer that a client of this object gets, and may raise.
        as_users_do: start the interpreter anew, and have the first start make the database.
            Otherwise the process is forked from one that has imported everything, and finds a
            database with today's schema and no rows, which saves each start nearly two seconds.
        database: the URL of another one, which is there already.
    """

    def __init__(
        self,
        directory: Path,
        *,
        args: Sequence[str] = (),
        env: Mapping[str, str | None] | None = None,
        command: Sequence[str] = RUNBELL,
        key: str | None = "",
        watch: Watch | None = None,
        as_users_do: bool = False,
        database: str | None = None,
    ) -> None:
        self.directory = directory
        self._as_users_do = as_users_do
        self._makes_database = as_users_do or database is not None
        self.args = tuple(args)
        self.command = tuple(command)
        self.key = f"sk-test-{secrets.token_hex(16)}" if key == "" else key
        self.watch = watch
        self.database_path = directory / "runbell.db"
        self.database = database or f"sqlite:///{self.database_path}"
        self.root = ""
        self.starts = 0
        self._extra_env = dict(env or {})
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._clients = ExitStack()

    # The process.

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clients.close()
        if self._process is None:
            return
        if kind is None:
            self.stop()
        else:
            # Something failed already; what the process would add must not hide it.
            self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def port(self) -> int:
        return int(self.root.rpartition(":")[2])

    @property
    def base_url(self) -> str:
        return f"{self.root}/v1"

    def start(self, *, port: int = 0) -> Self:
        """Start the process and wait until it says that it listens."""
        assert self._process is None, "started already"
        self.starts += 1
        if self.starts == 1 and not self._makes_database and not self.database_path.exists():
            # Here, since pytest has to prepare the suites of this package before they are imported.
            from runbell.testing.databases import migrated_sqlite

            migrated_sqlite(self.database_path).chmod(0o600)
        serve = ["serve", "--port", str(port), "--database", self.database, *self.args]
        self._process = self._spawn([*self.command, *serve])
        self.root = eventually(self._listening, "the service listens", START_LIMIT_S)
        return self

    def stop(self, limit_s: float = STOP_LIMIT_S) -> None:
        """End the process with SIGTERM; it has to end with 0, and without a traceback."""
        process = self._taken()
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(
                f"SIGTERM did not end it in {limit_s:g} s:{self.output()}"
            ) from None
        assert code == 0, f"ended with {code}:{self.output()}"
        assert "Traceback" not in self.stderr(), self.output()

    def terminate(self) -> None:
        """Send SIGTERM, without waiting; `stop` then waits for the end."""
        assert self._process is not None, "not started"
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the process with SIGKILL, as a crash does."""
        process = self._taken()
        process.kill()
        process.wait()

    def wait_dead(self, limit_s: float = START_LIMIT_S) -> int:
        """Wait until the process ended by itself, at a fault point for example: its exit code."""
        assert self._process is not None, "not started"
        code = self._process.wait(limit_s)
        self._process = None
        return code

    def restart(self, *, same_port: bool = False) -> Self:
        """Start again on the same database; ends the process first if it still runs."""
        if self._process is not None:
            self.stop()
        return self.start(port=self.port if same_port else 0)

    def stdout(self) -> str:
        """What the latest process printed."""
        return self._file("stdout").read_text()

    def stderr(self) -> str:
        """What the latest process printed to stderr."""
        return self._file("stderr").read_text()

    def output(self) -> str:
        """Everything that the latest process printed, for the message of a failure."""
        return f"\n--- stdout\n{self.stdout()}\n--- stderr\n{self.stderr()}"

    # Talking to it.

    def client(
        self,
        key: str | None = None,
        *,
        base_url: str | None = None,
        max_retries: int = 0,
        watch: Watch | None = None,
    ) -> OpenAI:
        """A stock client; it is closed when this object is."""
        return self._clients.enter_context(
            OpenAI(
                base_url=base_url or self.base_url,
                api_key=key or self.key,
                max_retries=max_retries,
                timeout=REQUEST_LIMIT_S,
                http_client=self._http(watch),
            )
        )

    def async_client(
        self, key: str | None = None, *, base_url: str | None = None, watch: Watch | None = None
    ) -> AsyncOpenAI:
        """A stock client, to be used with `async with`."""
        return AsyncOpenAI(
            base_url=base_url or self.base_url,
            api_key=key or self.key,
            max_retries=0,
            timeout=REQUEST_LIMIT_S,
            http_client=self._async_http(watch),
        )

    def azure_client(self, key: str | None = None) -> AzureOpenAI:
        """Azure's client, which sends `api-key` and `?api-version=`; closed when this object is."""
        return self._clients.enter_context(
            AzureOpenAI(
                azure_endpoint=self.root,
                api_version=AZURE_API_VERSION,
                api_key=key or self.key,
                max_retries=0,
                timeout=REQUEST_LIMIT_S,
                http_client=self._http(None),
            )
        )

    def async_azure_client(self, key: str | None = None) -> AsyncAzureOpenAI:
        """Azure's client, to be used with `async with`."""
        return AsyncAzureOpenAI(
            azure_endpoint=self.root,
            api_version=AZURE_API_VERSION,
            api_key=key or self.key,
            max_retries=0,
            timeout=REQUEST_LIMIT_S,
            http_client=self._async_http(None),
        )

    def api(self, key: str | None = None) -> Api:
        """Plain HTTP with `key`, or with the service's own."""
        return Api(self, key or self.key)

    def request(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        key: str | None = None,
    ) -> Answer:
        """One request on a connection of its own. Without `key` it carries none."""
        sent = {"Authorization": f"Bearer {key}"} if key else {}
        if json is not None:
            body = jsonlib.dumps(json).encode()
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=REQUEST_LIMIT_S)
        try:
            connection.request(method, path, body=body, headers={**sent, **(headers or {})})
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = Answer(method, path, response.status, found, response.read())
        finally:
            connection.close()
        if not answer.headers.get("content-type", "").startswith(STREAMED):
            self._watched(answer)
        return answer

    # Its command line, beside it.

    def command_line(self, *args: str) -> str:
        """Run another command of `runbell` against this database; what it printed."""
        command = [*RUNBELL, *args, "--database", self.database]
        env = self._environment(with_key=False)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = spawn(command, stdout=out, stderr=err, cwd=self.directory, env=env).wait(60)
            printed, said = (_all_of(file) for file in (out, err))
        assert code == 0, f"{args}: {code}\n{printed}\n{said}"
        return printed

    def create_key(self, project: str) -> str:
        """Make a key of a project, and the project with it if it is not there yet."""
        printed = self.command_line("keys", "create", "--project", project)
        found = _KEY.search(printed)
        assert found, f"no key in {printed!r}"
        return found[0]

    # The rest is nobody else's business.

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes] | Forked:
        with self._file("stdout").open("wb") as out, self._file("stderr").open("wb") as err:
            if can_fork(command) and not self._as_users_do:
                env = self._environment(with_key=True)
                return spawn(command, stdout=out, stderr=err, cwd=self.directory, env=env)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.directory,
                env=self._environment(with_key=True),
            )

    def _environment(self, *, with_key: bool) -> dict[str, str]:
        # The settings of whoever runs the tests are not those of the tests.
        ours = ("RUNBELL_", "OPENAI_", "AZURE_OPENAI_")
        env: dict[str, str | None] = {
            name: value for name, value in os.environ.items() if not name.startswith(ours)
        }
        if with_key:
            env |= {"RUNBELL_API_KEY": self.key, **self._extra_env}
        return {name: value for name, value in env.items() if value is not None}

    def _file(self, stream: str) -> Path:
        return self.directory / f"{stream}-{self.starts}.txt"

    def _listening(self) -> str | None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            self._process = None
            raise AssertionError(f"ended with {code} instead of listening:{self.output()}")
        line = _LISTENING.search(self.stdout())
        return line[1] if line else None

    def _taken(self) -> subprocess.Popen[bytes] | Forked:
        assert self._process is not None, "not started"
        process, self._process = self._process, None
        return process

    def _watched(self, answer: Answer, also: Watch | None = None) -> None:
        for watch in (self.watch, also):
            if watch is not None:
                watch(answer)
        if self.key is not None:
            assert self.key.encode() not in answer.body, "an answer holds a key"

    def _http(self, watch: Watch | None) -> DefaultHttpxClient:
        def seen(response: Any) -> None:
            if _streams(response):
                return
            response.read()
            self._watched(_answer(response), watch)

        return DefaultHttpxClient(event_hooks={"response": [seen]})

    def _async_http(self, watch: Watch | None) -> DefaultAsyncHttpxClient:
        async def seen(response: Any) -> None:
            if _streams(response):
                return
            await response.aread()
            self._watched(_answer(response), watch)

        return DefaultAsyncHttpxClient(event_hooks={"response": [seen]})


def _streams(response: Any) -> bool:
    """It has to be read as it comes, by whoever asked for it."""
    return str(response.headers.get("content-type", "")).startswith(STREAMED)


def _all_of(file: BinaryIO) -> str:
    file.seek(0)
    return file.read().decode()


def _answer(response: Any) -> Answer:
    return Answer(
        method=response.request.method,
        path=response.request.url.raw_path.decode(),
        status=response.status_code,
        headers={name.lower(): value for name, value in response.headers.items()},
        body=response.content,
    )
