"""A private server: made, started and ended with the process that wants it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import psutil
import pytest

from runbell.errors import ConfigurationError, MissingExtra
from runbell.storage import private_postgresql
from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.testing.postgresql import FORGETFUL, server
from tests.served import eventually


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not pytest's own: where we are root, the server is somebody else, and has to get in."""
    with tempfile.TemporaryDirectory(prefix="runbell-test-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def test_what_was_committed_is_there_at_the_next_start(folder: Path) -> None:
    """On the same folder; and the server is gone when it was stopped."""

    async def use(url: str, statement: str) -> object:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close()

    own = PrivatePostgresql(folder, FORGETFUL)
    own.start()
    pid = own.pid
    asyncio.run(use(own.url(), "CREATE TABLE kept AS SELECT 7 AS number"))
    own.stop()
    own.stop()
    assert not psutil.pid_exists(pid)
    another = PrivatePostgresql(folder, FORGETFUL)
    assert another.url_of_running() is None
    own.start()
    try:
        # A command beside it is told where it is; who would run it is refused at once.
        assert another.url_of_running() == own.url()
        assert asyncio.run(use(own.url(), "SELECT number FROM kept")) == 7
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(private_postgresql.time, "sleep", _never)
            with pytest.raises(ConfigurationError, match=rf"is in use \(process {own.pid}\)"):
                another.start()
    finally:
        own.stop()


def _never(seconds: float) -> None:
    raise AssertionError("nobody waits")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can promise it")
def test_it_ends_with_the_process_that_started_it(folder: Path) -> None:
    """Also where that is killed; what stays of it in the folder for what is temporary is removed by
    the next one to start, and nothing of those who live."""
    alive = Path(parse_qs(urlsplit(server().url()).query)["host"][0])
    foreign = Path(tempfile.mkdtemp(prefix=private_postgresql.SOCKETS))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from runbell.storage.private_postgresql import PrivatePostgresql\n"
        "server = PrivatePostgresql(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, server._sockets, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        number, sockets = process.stdout.readline().split()
        pid = int(number)
        assert psutil.pid_exists(pid)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    eventually(lambda: not _runs(pid), "the server has ended")
    after = PrivatePostgresql(folder, FORGETFUL)
    after.start()
    after.stop()
    assert not Path(sockets).exists()
    assert (alive.exists(), foreign.exists()) == (True, True)
    foreign.rmdir()


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_server_that_does_not_start_says_why(folder: Path) -> None:
    """In its own words."""
    with pytest.raises(ConfigurationError, match="shared_buffers"):
        PrivatePostgresql(folder, {"shared_buffers": "nonsense"}).start()


def test_a_missing_wheel_is_an_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(private_postgresql, "PACKAGE", "not_installed_here")
    with pytest.raises(MissingExtra, match="embedded-postgresql"):
        PrivatePostgresql(folder).start()
