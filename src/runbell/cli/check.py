"""`runbell check`: does the database keep the rules that the service relies on?"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from runbell.cli.keys import Database
from runbell.service.settings import Settings, sqlite_path

if TYPE_CHECKING:
    from runbell.storage.report import Report

__all__ = ["check"]


def check(database: Database = None) -> None:
    """Verify the database: every job can be derived, every event has its transition and is owed.

    Reads only, also beside a running service. Ends with 0 where everything is as it should be, else
    with 1 and a list of what is not; on PostgreSQL, a job that is held is such a thing.
    """
    url = Settings.load({"database": database}).database
    report = _check_file(sqlite_path(url)) if url.startswith("sqlite:") else _check_shared(url)
    _show(report)
    if report.problems:
        raise typer.Exit(1)


def _check_shared(url: str) -> Report:
    from runbell.service.databases import named_server

    async def check_it() -> Report:
        with named_server(url, beside=True, create=False) as (server, _):
            from runbell.service.checking import check_postgresql

            return await check_postgresql(server)

    return asyncio.run(check_it())


def _check_file(path: Path) -> Report:
    from runbell.clock import SystemClock
    from runbell.storage import check as checking
    from runbell.storage.backup import damage
    from runbell.storage.lock import InstallationLock
    from runbell.storage.migrate import require_current
    from runbell.storage.sqlite import read_only

    require_current(path)
    broken = damage(path)
    if broken:
        _show_damage(path, broken)
        raise typer.Exit(1)
    served = InstallationLock(path).is_held()
    now_ms = SystemClock().now_ms()
    return read_only(path, lambda tx: checking.check(tx, now_ms=now_ms if served else None))


def _show_damage(path: Path, problems: list[str]) -> None:
    typer.echo(f"{path} is damaged; SQLite says:")
    for problem in problems:
        typer.echo(f"  {problem}")
    typer.echo("nothing else was looked at; restore a backup: see docs/operations.md")


def _show(report: Report) -> None:
    for subject, broken in report.by_subject().items():
        typer.echo(subject)
        for rule, detail in broken:
            typer.echo(f"  {rule}{f': {detail}' if detail else ''}")
    for rule, found in report.problems.items():
        if found.count > len(found.examples):
            typer.echo(f"… and {found.count - len(found.examples)} more: {rule}")
    looked = ", ".join(_counted(count, table) for table, count in report.looked_at.items())
    total = sum(found.count for found in report.problems.values())
    problems = _counted(total, "problems")
    typer.echo(f"checked {looked}: {problems if total else 'everything is in order'}")
    if total:
        typer.echo("nothing was changed; what to do now is in docs/operations.md, under Check")


def _counted(count: int, names: str) -> str:
    if count == 1:
        names = re.sub(r"s\b", "", re.sub(r"ies\b", "ys", names), count=1)
    return f"{count} {names}"
