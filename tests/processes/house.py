"""Several processes on one PostgreSQL database, and a look into that."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from runbell.runs import RunStatus
from runbell.storage.check import check
from runbell.storage.postgresql import PostgresqlStore
from runbell.testing.histories import check_histories
from runbell.testing.postgresql import database
from tests.served import RUNBELL, Served

__all__ = ["House", "several"]

ENV = {
    "RUNBELL_ALLOW_PRIVATE_WEBHOOKS": "true",
    "RUNBELL_WEBHOOK_RETRIES": "0.1 0.1 0.1 0.1 0.1 0.1",
}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


class House:
    """Processes that are all alike, and the database that they share.

    Attributes:
        served: the processes; `served[0]` is whom clients talk to, unless they say otherwise.
        assistant: of the model `echo`.
    """

    def __init__(self, url: str, served: list[Served]) -> None:
        self.url = url
        self.served = served
        self._loop = asyncio.new_event_loop()
        self._connection: asyncpg.Connection | None = None
        self.api = served[0].api()
        made = self.api.post("/v1/assistants", {"model": "echo", "tools": TOOLS}).ok()
        self.assistant = made["id"]

    def run(self, text: str, at: int = 0, **fields: Any) -> Any:
        """A new run on a new thread with this message, created by one of the processes."""
        thread = {"messages": [{"role": "user", "content": text}]}
        body = {"assistant_id": self.assistant, "thread": thread, **fields}
        return self.served[at].api().post("/v1/threads/runs", body).ok()

    def rows(self, query: str) -> list[Any]:
        """What the database says."""

        async def look() -> list[Any]:
            if self._connection is None or self._connection.is_closed():
                self._connection = await asyncpg.connect(self.url)
            return [tuple(row) for row in await self._connection.fetch(query)]

        return self._loop.run_until_complete(look())

    def close(self) -> None:
        """Look no more."""
        if self._connection is not None:
            self._connection.terminate()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    def holds(self, what: str) -> bool:
        """One of these, `waits` or `streams`, is held by the first process."""
        page = self.api.get("/metrics").body.decode()
        return f"runbell_{what}_held 1.0" in page

    def ended(self) -> int:
        """Runs that have ended."""
        names = ", ".join(f"'{status}'" for status in RunStatus if status.is_terminal)
        return int(self.rows(f"SELECT count(*) FROM runs WHERE status IN ({names})")[0][0])

    def events(self) -> list[Any]:
        """The whole feed, page by page."""
        found: list[Any] = []
        more = True
        while more:
            after = f"&after={found[-1]['id']}" if found else ""
            page = self.api.get(f"/v1/events?limit=100{after}").ok()
            found += page["data"]
            more = page["has_more"]
        return found

    def check(self) -> dict[str, list[Any]]:
        """Every row is as the rules want it, and so is the feed; the events of each run."""

        async def look() -> Any:
            store = await PostgresqlStore.open(self.url)
            try:
                return (await store.scan(check)).problems
            finally:
                await store.close()

        assert asyncio.run(look()) == {}
        return check_histories(self.events(), ended=True)


@contextmanager
def several(
    directory: Path,
    count: int = 2,
    url: str | None = None,
    *,
    command: Sequence[str] = RUNBELL,
) -> Iterator[House]:
    """So many services on one database of their own; by default on the tests' server.

    Args:
        command: what each of them is started with.
    """
    url = url or asyncio.run(database())
    env = {**ENV, "RUNBELL_ENCRYPTION_KEY": "A" * 43 + "="}
    key = f"sk-test-{secrets.token_hex(16)}"
    with ExitStack() as stack:
        served = []
        for number in range(count):
            own = directory / str(number)
            own.mkdir()
            served.append(
                stack.enter_context(Served(own, env=env, key=key, database=url, command=command))
            )
        house = House(url, served)
        stack.callback(house.close)
        yield house
