"""`runbell check`: does the database keep the rules that the service relies on?"""

from __future__ import annotations

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
    with 1 and a list of what is not.
    """
    from runbell.clock import SystemClock
    from runbell.storage import check as checking
    from runbell.storage.backup import damage
    from runbell.storage.lock import InstallationLock
    from runbell.storage.migrate import require_current
    from runbell.storage.sqlite import read_only

    path = sqlite_path(Settings.load({"database": database}).database)
    require_current(path)
    broken = damage(path)
    if broken:
        _show_damage(broken)
        raise typer.Exit(1)
    served = InstallationLock(path).is_held()
    now_ms = SystemClock().now_ms()
    report = read_only(path, lambda tx: checking.check(tx, now_ms=now_ms if served else None))
    _show(report)
    if report.problems:
        raise typer.Exit(1)


def _show_damage(problems: list[str]) -> None:
    typer.echo("the file is damaged; SQLite says:")
    for problem in problems:
        typer.echo(f"  {problem}")
    typer.echo("restore a backup; nothing else was looked at")


def _show(report: Report) -> None:
    for rule, found in report.problems.items():
        typer.echo(f"{rule}: {found.count}")
        for example in found.examples:
            typer.echo(f"  {example}")
        if found.count > len(found.examples):
            typer.echo(f"  … and {found.count - len(found.examples)} more")
    looked = ", ".join(f"{count} {table}" for table, count in report.looked_at.items())
    total = sum(found.count for found in report.problems.values())
    problems = f"{total} problem{'' if total == 1 else 's'}"
    typer.echo(f"checked {looked}: {problems if total else 'everything is in order'}")
