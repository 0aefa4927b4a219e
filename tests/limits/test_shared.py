"""Limits that several processes count together, on a database whose clock is somebody else's."""

from __future__ import annotations

import asyncio

import pytest

from runbell.errors import RequestRefused
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
