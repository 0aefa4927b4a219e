"""A private server: made, started and ended with the process that wants it."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest

from runbell.errors import ConfigurationError, MissingExtra
from runbell.storage import private_postgresql
from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.testing.postgresql import FORGETFUL
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

    server = PrivatePostgresql(folder, FORGETFUL)
    server.start()
    pid = server.pid
    asyncio.run(use(server.url(), "CREATE TABLE kept AS SELECT 7 AS number"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_postgresql, "STOP_SECONDS", 0.1)
        with pytest.raises(ConfigurationError, match=rf"is in use \(process {pid}\)"):
            PrivatePostgresql(folder, FORGETFUL).start()
    server.stop()
    server.stop()
    assert not psutil.pid_exists(pid)
    server.start()
    try:
        assert asyncio.run(use(server.url(), "SELECT number FROM kept")) == 7
    finally:
        server.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can promise it")
def test_it_ends_with_the_process_that_started_it(folder: Path) -> None:
    """Also where that is killed."""
    program = (
        "import sys, time; from pathlib import Path\n"
        "from runbell.storage.private_postgresql import PrivatePostgresql\n"
        "server = PrivatePostgresql(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    eventually(lambda: not _runs(pid), "the server has ended")


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
