"""Deliveries as they are kept: checked against their events, and gone with them, not before."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from runbell.service import retention
from runbell.storage.check import check
from runbell.storage.report import Report
from runbell.storage.sqlite import read_only
from runbell.testing.embedded import EmbeddedService, embedded, on_a_service
from runbell.testing.posts import answered
from tests.delivery.house import DAY, jump, register, run_once, seen, update


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database with an endpoint that is well, one that is not, and one that has gone."""
    path = tmp_path_factory.mktemp("check") / "runbell.db"

    async def story() -> None:
        async with embedded(path, webhook_retries="3600") as service:
            await register(service, "well")
            await register(service, "ill", event_types=("thread.run.completed",))
            service.poster.answer = lambda post: answered(500 if "ill" in post.url else 200)
            service.clock.advance(1)
            await run_once(service)
            await service.advance(4_000)
            await run_once(service)

    asyncio.run(story())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        found = {row[0] for row in connection.execute("SELECT status FROM deliveries")}
    assert found == {"pending", "succeeded", "failed"}
    return path.read_bytes()


def problems(path: Path) -> dict[str, int]:
    async def work(tx: Any) -> Report:
        return await check(tx)

    report = read_only(path, work)
    assert report.looked_at["deliveries"] > 0
    return {rule: found.count for rule, found in report.problems.items()}


ONE = "position = (SELECT position FROM deliveries WHERE status = 'succeeded' LIMIT 1)"
PLANTED = {
    "lost": (
        {"an event that was not owed to an endpoint that wants it"},
        f"DELETE FROM deliveries WHERE {ONE}",
    ),
    "without an event": (
        {"a delivery without an event", "an event that was not owed to an endpoint that wants it"},
        f"UPDATE deliveries SET id = 'evt_x' WHERE {ONE}",
    ),
    "another run": (
        {"a delivery that says something else than its event"},
        f"UPDATE deliveries SET run_id = 'run_x' WHERE {ONE}",
    ),
    "another project": (
        {"a delivery to another project"},
        "UPDATE webhook_endpoints SET project_id = 'proj_x'",
    ),
    "no such status": (
        {"a delivery whose status there is not", "a delivery that ended otherwise"},
        f"UPDATE deliveries SET status = 'lost' WHERE {ONE}",
    ),
    "pending for ever": (
        {"a delivery that is pending without a time, or has one without being pending"},
        "UPDATE deliveries SET next_at_ms = NULL WHERE status = 'pending'",
    ),
    "settled at no time": (
        {"a delivery that has ended without a time, or has one without having ended"},
        f"UPDATE deliveries SET settled_at_ms = NULL WHERE {ONE}",
    ),
    "an attempt that is missing": (
        {"a delivery that has not the attempts that it counts"},
        "DELETE FROM attempts WHERE position = (SELECT max(position) FROM attempts)",
    ),
    "a success that was none": (
        {"a delivery that ended otherwise than its last attempt"},
        "UPDATE deliveries SET status = 'succeeded' WHERE status = 'failed'",
    ),
}


@pytest.mark.parametrize("planted", ["nothing", *PLANTED])
def test_what_is_planted_is_found_and_nothing_else(
    tmp_path: Path, lived_in: bytes, planted: str
) -> None:
    path = tmp_path / "runbell.db"
    path.write_bytes(lived_in)
    rules, statement = PLANTED.get(planted, (set(), "SELECT 1"))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(statement)
        connection.commit()
    found = set(problems(path))
    assert len(found) == len(rules)
    for rule in rules:
        assert any(each.startswith(rule) for each in found), (rule, found)


async def removed(service: EmbeddedService) -> int:
    """How many rows retention removes now."""
    removing = asyncio.create_task(retention.remove_old(service.ctx))
    while not removing.done():
        await service.advance(0.05)
    return removing.result()


@on_a_service(retain_days=1)
async def test_a_run_stays_as_long_as_its_events_are_owed(service: EmbeddedService) -> None:
    """Their bytes would be gone; once the endpoint has them, or is disabled, all goes together."""
    endpoint, _ = await register(service, "slow")
    done, _ = await register(service, "done")
    service.poster.answer = lambda post: answered(500 if "slow" in post.url else 200)
    await run_once(service)
    await jump(service, 2 * DAY)
    assert await removed(service) == 0
    assert len(await seen(service, done)) == 3
    await update(service, endpoint, enabled=False)
    assert await removed(service) > 0
    assert await seen(service, endpoint) == await seen(service, done) == []
    report = await service.store.scan(check)
    assert [report.looked_at[table] for table in ("runs", "events", "deliveries")] == [0, 0, 0]


@on_a_service(retain_days=1)
async def test_what_was_delivered_goes_with_its_run(service: EmbeddedService) -> None:
    """Young ones stay."""
    endpoint, _ = await register(service)
    await run_once(service)
    await jump(service, 2 * DAY)
    young = await run_once(service)
    assert await removed(service) > 0
    assert {delivery.run_id for delivery, _ in await seen(service, endpoint)} == {young}
    report = await service.store.scan(check)
    assert report.problems == {}
