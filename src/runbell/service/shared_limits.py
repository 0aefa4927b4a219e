"""How often may a key ask, of all processes on a database together: the same buckets, kept there.

A request costs one statement more, where its key has a limit. PostgreSQL's clock is everybody's,
and the table is not flushed to the disk: a crash of the database forgets what was counted.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from runbell.errors import StorageUnavailable
from runbell.service.limits import Headers, bucket_of, headers_of
from runbell.service.operations.access import Caller
from runbell.storage.postgresql import WAIT_SECONDS, PostgresqlStore

__all__ = ["SharedLimits"]

TAKE = """
WITH moment AS MATERIALIZED (SELECT extract(epoch FROM clock_timestamp())::float8 AS now)
INSERT INTO runbell_limits AS kept (key_id, full_at)
SELECT $1, now + $2::float8 FROM moment
ON CONFLICT (key_id) DO UPDATE
SET full_at = CASE WHEN kept.full_at > excluded.full_at + 2 * $3::float8 THEN excluded.full_at
              ELSE greatest(kept.full_at, excluded.full_at - $2::float8) + $2::float8 END
WHERE greatest(kept.full_at - (excluded.full_at - $2::float8), 0) + $2::float8 <= $3::float8 + 1e-6
   OR kept.full_at > excluded.full_at + 2 * $3::float8
RETURNING full_at - $2::float8, (SELECT now FROM moment)
"""
"""What `TokenBucket.take` does, in one step; no row where there is no token. `$2` is the bucket's
interval, `$3` that times its capacity. The state before, and the moment.

No bucket is full later than in `$3` seconds. Where one says twice that, the clock was set back: it
is counted anew, rather than refused until the clock is where it was. Anything nearer may be that
somebody has waited here for another who has counted since."""

LOOK = """
SELECT full_at, extract(epoch FROM clock_timestamp())::float8 FROM runbell_limits WHERE key_id = $1
"""


class SharedLimits:
    """Counts the requests of every key that has a limit, at any process.

    One at a time: who asks for work and says that it is alive uses the same few connections, and
    must not stand behind a flood of requests, nor behind a key whose row somebody holds.

    Args:
        rpm: requests a minute of a key that has no limit of its own; 0 is no limit.
    """

    def __init__(self, store: PostgresqlStore, rpm: int) -> None:
        self._store = store
        self._rpm = rpm
        self._turns = asyncio.Lock()

    async def count(self, caller: Caller) -> Headers:
        """Count a request; headers for its answer, none where the key has no limit.

        Raises:
            RequestRefused: (429) the key has asked too often; carries the same headers.
            StorageUnavailable: it can't be counted now.
        """
        rpm = self._rpm if caller.rpm is None else caller.rpm
        if rpm == 0:
            return []
        bucket = bucket_of(rpm)
        span = bucket.capacity * bucket.interval
        async with self._turn():
            rows = await self._store.fetch(TAKE, caller.key_id, bucket.interval, span)
            while not rows:
                # It may be gone by then, and the next try is the first of a new bucket.
                rows = await self._store.fetch(LOOK, caller.key_id) or await self._store.fetch(
                    TAKE, caller.key_id, bucket.interval, span
                )
        full_at, now = rows[0]
        return headers_of(caller, rpm, bucket.take(full_at, now))

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turns.acquire()
        except TimeoutError as error:
            words = f"requests of keys that have a limit wait for longer than {WAIT_SECONDS:g} s"
            raise StorageUnavailable(words) from error
        try:
            yield
        finally:
            self._turns.release()
