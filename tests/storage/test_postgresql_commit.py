"""A commit whose answer was lost: the server is asked what became of it, and the caller told."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from runbell.errors import OutcomeUnknown, StorageUnavailable
from runbell.service.app import _unavailable as unavailable_answer
from runbell.storage import idempotency, postgresql, projects
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.records import Project
from runbell.storage.store import Transaction
from runbell.testing.postgresql import database, emptied

COMMIT = b"Q\x00\x00\x00\x0bCOMMIT\x00"


class Wire:
    """Between a store and its server: cuts the connection at the next commit that it sees.

    Attributes:
        before: cut it so that the server does not hear of the commit; else, so that its answer is
            lost.
        gone: afterwards let nobody in.
    """

    def __init__(self, socket: str, *, before: bool, gone: bool = False) -> None:
        self.socket = socket
        self.before = before
        self.gone = gone
        self.cut = False
        self._serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)
        with contextlib.closing(writer):
            if not (self.cut and self.gone):
                from_server, to_server = await asyncio.open_unix_connection(self.socket)
                with contextlib.closing(to_server):
                    await self._serve(reader, writer, from_server, to_server)

    async def _serve(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
    ) -> None:
        back = asyncio.create_task(_pass_on(from_server, writer))
        try:
            while data := await reader.read(65_536):
                if COMMIT not in data or self.cut:
                    to_server.write(data)
                    continue
                self.cut = True
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
                if not self.before:
                    to_server.write(data)
                    await from_server.read(65_536)
                break
        finally:
            back.cancel()
            await asyncio.gather(back, return_exceptions=True)

    async def end(self) -> None:
        """Return when every connection has ended."""
        while self._serving:
            await asyncio.wait(self._serving)
            # Its transports are closed in the next turn.
            await asyncio.sleep(0)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def cut(*, before: bool, gone: bool = False) -> AsyncIterator[tuple[PostgresqlStore, str]]:
    """A store whose first commit is cut off, and the URL of its database, without the wire."""
    url = await database()
    parts = urlsplit(url)
    wire = Wire(f"{parse_qs(parts.query)['host'][0]}/.s.PGSQL.5432", before=before, gone=gone)
    server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    store = await PostgresqlStore.open(
        f"postgresql://runbell@127.0.0.1:{port}{parts.path}?sslmode=disable"
    )
    try:
        yield store, url
        assert wire.cut
    finally:
        await store.close()
        server.close()
        await wire.end()
        await emptied(url)


async def there(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        return int(await connection.fetchval("SELECT count(*) FROM projects"))
    finally:
        await connection.close()


async def add(store: PostgresqlStore, followed: list[str]) -> str:
    async def work(tx: Transaction) -> str:
        await projects.insert(tx, Project("proj_1", "mine", 1))
        tx.after_commit(lambda: followed.append("it"))
        return "stored"

    return await store.write(work)


def test_a_commit_whose_answer_was_lost_has_happened() -> None:
    """The caller is told so, and what follows a commit follows."""

    async def story() -> None:
        async with cut(before=False) as (store, url):
            followed: list[str] = []
            assert await add(store, followed) == "stored"
            assert followed == ["it"]
            assert await there(url) == 1

    asyncio.run(story())


def test_a_deletion_whose_answer_was_lost_has_happened() -> None:
    """Also of a unit that does nothing else; it is told how many rows there were."""

    async def story() -> None:
        async with cut(before=False) as (store, url):
            connection = await asyncpg.connect(url)
            await connection.execute("INSERT INTO projects VALUES ('p', 'mine', 1)")
            await connection.execute(
                "INSERT INTO idempotency_keys (project_id, key, digest, created_at_ms) "
                "SELECT 'p', number, '', 1 FROM generate_series(1, 3) AS numbers (number)"
            )
            gone = await store.write(lambda tx: idempotency.prune(tx, before_ms=2, limit=10))
            left = await connection.fetchval("SELECT count(*) FROM idempotency_keys")
            await connection.close()
            assert (gone, left) == (3, 0)

    asyncio.run(story())


def test_a_commit_that_never_arrived_has_not_happened() -> None:
    """Nothing was changed, as the error says; a repetition works."""

    async def story() -> None:
        async with cut(before=True) as (store, url):
            followed: list[str] = []
            with pytest.raises(StorageUnavailable) as caught:
                await add(store, followed)
            assert not isinstance(caught.value, OutcomeUnknown)
            assert (followed, await there(url)) == ([], 0)
            assert await add(store, followed) == "stored"

    asyncio.run(story())


@pytest.mark.parametrize("before", [True, False])
def test_where_nobody_can_be_asked_nothing_is_claimed(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have happened or not, and the error says that."""

    async def story() -> None:
        async with cut(before=before, gone=True) as (store, url):
            monkeypatch.setattr(postgresql, "WAIT_SECONDS", 0.1)
            with pytest.raises(OutcomeUnknown, match="happened or not"):
                await add(store, [])
            assert await there(url) == (0 if before else 1)

    asyncio.run(story())


def test_a_number_that_the_server_has_not_given_yet_says_nothing() -> None:
    """It has taken over from the one that gave it; asked later, it would speak of another's."""

    async def story() -> None:
        url = await database()
        store = await PostgresqlStore.open(url)
        began = store._loop.time()
        with pytest.raises(OutcomeUnknown, match="happened or not"):
            await store._was_committed("99999999999")
        assert store._loop.time() - began < postgresql.WAIT_SECONDS
        await store.close()
        await emptied(url)

    asyncio.run(story())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system has other options")
def test_a_host_that_is_gone_without_a_word_is_noticed() -> None:
    """In seconds, by the system, also where an answer is waited for."""

    async def story() -> None:
        async with cut(before=False) as (store, _):
            await add(store, [])
            transport = store._connections._free[0]._transport  # type: ignore[attr-defined]
            line = transport.get_extra_info("socket")
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= 10

    asyncio.run(story())


@pytest.mark.parametrize(("key", "again"), [(None, "false"), ("once", None)])
def test_a_client_is_not_made_to_do_it_twice(key: str | None, again: str | None) -> None:
    """The SDK repeats a 503 by itself: here only where that happens once."""
    headers = [(b"idempotency-key", key.encode())] if key else []
    refused = unavailable_answer(OutcomeUnknown("lost"), {"method": "POST", "headers": headers})
    assert refused.status == 503
    assert "may have happened or not" in refused.message
    assert refused.headers.get("x-should-retry") == again
