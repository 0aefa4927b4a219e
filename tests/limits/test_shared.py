"""Limits that several processes count together, on a database whose clock is somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from runbell.errors import RequestRefused, StorageUnavailable
from runbell.service.operations.access import Caller
from runbell.service.shared_limits import SharedLimits
from runbell.testing.postgresql import opened_postgresql

AHEAD = "UPDATE runbell_limits SET full_at = full_at + $1::float8"


def test_a_clock_that_is_set_back_locks_no_key_out() -> None:
    """An hour ahead is no bucket's state; a minute may be, where a request has waited for it."""

    async def story() -> None:
        async with opened_postgresql() as store:
            limits = SharedLimits(store, 2)
            caller = Caller("p", "key_1", "", None)
            await limits.count(caller)
            await store.fetch(AHEAD, 60.0)
            with pytest.raises(RequestRefused):
                await limits.count(caller)
            await store.fetch(AHEAD, 3600.0)
            for _ in range(2):
                await limits.count(caller)
            with pytest.raises(RequestRefused):
                await limits.count(caller)

    asyncio.run(story())


def test_a_flood_takes_one_connection_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are for who asks for work; and nobody stands in line for ever."""

    class Store:
        def __init__(self) -> None:
            self.asked: list[asyncio.Future[list[tuple[float, float]]]] = []

        async def fetch(self, text: str, *args: object) -> list[tuple[float, float]]:
            self.asked.append(asyncio.get_running_loop().create_future())
            return await self.asked[-1]

    async def eventually(count: int) -> None:
        async with asyncio.timeout(60):
            while len(store.asked) < count:
                await asyncio.sleep(0)

    store = Store()
    monkeypatch.setattr("runbell.service.shared_limits.WAIT_SECONDS", 600.0)

    async def story() -> None:
        limits = SharedLimits(store, 60)  # type: ignore[arg-type]
        flood = [
            asyncio.create_task(limits.count(Caller("p", f"key_{n}", "", None))) for n in range(9)
        ]
        for turn in range(5):
            await eventually(turn + 1)
            assert len(store.asked) == turn + 1
            store.asked[turn].set_result([(0.0, 0.0)])
            await flood[turn]
        flood[5].cancel()  # whoever asked has gone, in the middle of it
        await eventually(7)
        store.asked[6].set_result([(0.0, 0.0)])
        await flood[6]
        monkeypatch.setattr("runbell.service.shared_limits.WAIT_SECONDS", 0.0)
        with pytest.raises(StorageUnavailable, match="have a limit"):
            await limits.count(Caller("p", "key_9", "", None))
        for each in flood:
            each.cancel()
        await asyncio.gather(*flood, return_exceptions=True)

    asyncio.run(story())
