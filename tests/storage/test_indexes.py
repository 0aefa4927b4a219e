"""Every statement finds its rows by an index: what is read grows with what is asked for alone."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from runbell.storage import (
    assistants,
    deadlines,
    deliveries,
    endpoints,
    events,
    history,
    holding,
    idempotency,
    key_checks,
    messages,
    owed,
    probes,
    projects,
    runs,
    steps,
    threads,
    workable,
)
from runbell.storage.paging import PagedList
from runbell.storage.statements import Statement
from runbell.testing.databases import migrated_sqlite

MODULES = (
    assistants,
    deadlines,
    deliveries,
    endpoints,
    events,
    history,
    holding,
    idempotency,
    key_checks,
    messages,
    owed,
    probes,
    projects,
    runs,
    steps,
    threads,
    workable,
)

WHOLE_TABLES = {"api_keys.list", "projects.list", "webhook_endpoints.some_sealed"}
"""These read everything, in tables that have a few rows, for the command line and the start."""

WHOLE_THREADS = {
    *("runs.live", "runs.list_live.asc", "runs.list_live.desc"),
    *("deliveries.list_run.asc", "deliveries.list_run.desc"),
}
"""These read live runs, or one run's deliveries, of which there are few, and sort them."""


def statements(module: ModuleType) -> Iterator[Statement]:
    """Every statement of a module, those inside of lists too."""
    for value in vars(module).values():
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Statement):
                yield each
            elif isinstance(each, PagedList):
                yield each._cursor
                yield from each._pages.values()


EVERY = [each for module in MODULES for each in statements(module)]


def number(name: str, seen: dict[str, int] = {}) -> str:  # noqa: B006 - counts over all calls
    seen[name] = seen.get(name, 0) + 1
    return f"{name} {seen[name]}"


every_statement = pytest.mark.parametrize("each", EVERY, ids=[number(s.name) for s in EVERY])


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    path: Path = migrated_sqlite(tmp_path_factory.mktemp("plans") / "runbell.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        yield connection


def plan(database: sqlite3.Connection, statement: Statement) -> list[str]:
    """The steps in which SQLite executes a statement."""
    params = dict.fromkeys(re.findall(r":(\w+)", statement.sqlite))
    rows = database.execute(f"EXPLAIN QUERY PLAN {statement.sqlite}", params)
    return [row[3] for row in rows]


FIRST_FEW = {
    "idempotency_keys.prune": ("LIST SUBQUERY 1", "SCAN idempotency_keys"),
    "runs.latest": ("SCAN runs",),
}
"""These read a table from one of its ends, as many rows as they are told."""


@every_statement
def test_a_statement_searches_and_does_not_sort(
    database: sqlite3.Connection, each: Statement
) -> None:
    """No table is read from its beginning, and no result is put in order after it was read; a
    partial index may be read from its beginning, since it holds no more than what is wanted."""
    if each.name in WHOLE_TABLES:
        return
    for step in plan(database, each):
        if each.name in WHOLE_THREADS and "TEMP B-TREE" in step:
            continue
        if step in FIRST_FEW.get(each.name, ()):
            continue
        assert "TEMP B-TREE" not in step, step
        assert step.startswith(("SEARCH", "CORRELATED SCALAR SUBQUERY")) or re.match(
            r"SCAN (\w+) USING .*INDEX ix_\1_", step
        ), step


@pytest.mark.parametrize(
    ("statement", "index"),
    [
        (holding.ACTIVE, "uq_runs_active_thread (thread_id=?)"),
        (deadlines.EXPIRING, "ix_runs_live_expiry"),
        (workable.READY, "ix_runs_workable (status=? AND position>?)"),
        (workable.IN_PROGRESS, "ix_runs_workable (status=? AND position>?)"),
        (deadlines.CANCELLING, "ix_runs_cancelling"),
        (holding.NEXT_WAITING, "ix_runs_waiting (thread_id=?)"),
        (holding.WAITING, "ix_runs_waiting (thread_id=?)"),
        (runs.MANY, "(id=?)"),
        (endpoints.LISTENING, "ix_webhook_endpoints_listening (project_id=?)"),
        (
            deliveries.FAILED_SINCE,
            "ix_deliveries_unsettled (endpoint_id=? AND status=? AND position>?)",
        ),
        (
            deliveries.PENDING_BEHIND,
            "ix_deliveries_unsettled (endpoint_id=? AND status=? AND position>?)",
        ),
        *(
            (
                each,
                "deliveries_unsettled (endpoint_id=? AND status=? AND position>? AND position<?)",
            )
            for each in (deliveries.GIVE_UP_OLD, deliveries.BEGIN_ANEW)
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_asked_for_is_found_by_its_own_index(
    database: sqlite3.Connection, statement: Statement, index: str
) -> None:
    """Mostly partial ones, which hold live runs alone: a million runs that have ended, in this
    project or on this thread, cost nothing."""
    (step,) = plan(database, statement)
    assert index in step


@pytest.mark.parametrize("statement", [owed.NEW, owed.RETRIES, owed.NEXT_DUE])
def test_what_is_due_is_found_by_what_is_owed(
    database: sqlite3.Connection, statement: Statement
) -> None:
    """By a partial index of pending deliveries: what was delivered long ago costs nothing."""
    steps = [step for step in plan(database, statement) if "deliveries" in step]
    assert len(steps) == 1
    assert "ix_deliveries_due (endpoint_id=? AND next_at_ms" in steps[0]


def test_every_index_is_used(database: sqlite3.Connection) -> None:
    """An index that no statement uses costs each write something, for nothing."""
    used = " ".join(step for each in EVERY for step in plan(database, each))
    indexes = database.execute(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND name LIKE 'ix_%'"
    )
    assert [name for (name,) in indexes if not re.search(rf"\b{name}\b", used)] == []


def test_what_a_run_did_is_found_by_the_run(database: sqlite3.Connection) -> None:
    """Not by its thread, which may have had thousands of runs."""
    for statement in steps.PAGES._pages.values():
        (step,) = plan(database, statement)
        assert "run_id=?" in step
