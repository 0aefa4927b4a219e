"""What errors say of a database that cannot be reached: which one it is, and no secret."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from runbell.errors import StorageUnavailable
from runbell.storage.postgresql import connect
from runbell.storage.urls import place
from runbell.testing.postgresql import server

ENVIRONMENT = {"PGHOST": "db9", "PGPORT": "6000", "PGDATABASE": "there"}


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("postgresql://u:s3cret@db1:6432/runs?sslmode=require", "'runs' at db1:6432"),
        ("postgresql://u:s3cret@db1:1,db2/runs", "'runs' at db1:1, db2:6000"),
        ("postgresql://u:s3c@ret@[::1]/my%20runs", "'my runs' at [::1]:6000"),
        ("postgresql:///runs?host=/run/pg&port=7&password=s3cret", "'runs' at /run/pg:7"),
        ("postgresql://u:s3cret@%2Frun%2Fpg/runs", "'runs' at /run/pg:6000"),
        ("postgres:///?user=u&password=s3cret&dbname=runs", "'runs' at db9:6000"),
        ("postgresql://u:s3cret@", "'there' at db9:6000"),
        # A password that was not escaped looks like a port, a name or an option.
        ("postgresql://u:12/s3cret@db1/runs", ""),
        ("postgresql://u:12?s3cret@db1/runs", ""),
        ("postgresql://u:12#s3cret@db1/runs", ""),
    ],
)
def test_a_database_is_named_by_its_host_port_and_name(
    url: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever these are written, and by nothing else of its URL."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert place(url) == named


def test_a_server_that_refuses_is_named() -> None:
    """One that is not there, a database that is not, and one that lets nobody in."""

    async def refused(url: str) -> str:
        with pytest.raises(StorageUnavailable) as raised:
            await connect(url)
        return str(raised.value)

    async def story() -> None:
        nobody = await refused("postgresql://u:s3cret@127.0.0.1:1/runs")
        assert nobody.startswith("the database 'runs' at 127.0.0.1:1 cannot be used now: ")
        assert "s3cret" not in nobody
        unknown = await refused(server().url("no_such_name"))
        assert "'no_such_name' at /" in unknown
        assert "does not exist" in unknown
        admin = await asyncpg.connect(server().url())
        await admin.execute("CREATE ROLE guest LOGIN")
        await admin.execute("CREATE DATABASE closed")
        await admin.execute("REVOKE CONNECT ON DATABASE closed FROM public")
        closed = await refused(server().url("closed").replace("runbell@", "guest@"))
        assert closed.startswith("the database 'closed' at /")
        assert "permission denied" in closed
        await admin.close()

    asyncio.run(story())
