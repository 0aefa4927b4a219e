"""`runbell plan`: what polling and webhooks cost you."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from runbell.cli.tables import print_fields, print_table
from runbell.errors import ConfigurationError, InvalidSetting

if TYPE_CHECKING:
    from runbell.planner import Plan, Trace

__all__ = ["plan"]

Progress = Callable[[float], None]


def plan(
    runs_per_month: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBER",
            help="How many runs there are, as 100000, 100,000 or 100k. Default: as many as the "
            "history has.",
            show_default=False,
        ),
    ] = None,
    durations: Annotated[
        str | None,
        typer.Option(
            metavar="CSV|lognormal:…",
            help="How long runs take, in seconds: a CSV with a column duration_s (and perhaps key: "
            "the kind of run), - for one that comes by standard input, or "
            "lognormal:median=6,p95=25.",
            show_default=False,
        ),
    ] = None,
    from_database: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|URL",
            help="How long they took: the database of a run service, as runbell.db, "
            "sqlite:///runbell.db or postgresql://USER@HOST/DATABASE.",
        ),
    ] = None,
    from_journal: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="How long they took: the journal of a waiter."),
    ] = None,
    unit: Annotated[
        Literal["s", "ms"] | None,
        typer.Option(help="Of the durations: seconds, or milliseconds.", show_default=False),
    ] = None,
    rpm: Annotated[
        str, typer.Option(metavar="NUMBER", help="Calls a minute that are allowed; 0: any.")
    ] = "500",
    price_per_call: Annotated[
        float, typer.Option(metavar="DOLLARS", help="Status calls are rarely billed.")
    ] = 0.0,
    webhook_monthly: Annotated[
        str, typer.Option(metavar="DOLLARS", help="What a public endpoint costs a month.")
    ] = "35",
    latency: Annotated[
        float, typer.Option(metavar="SECONDS", help="From a request to its answer.")
    ] = 0.15,
    webhook_loss: Annotated[
        float, typer.Option(metavar="SHARE", help="Webhooks that never arrive: 0.001 is 0.1 %.")
    ] = 0.001,
    peak: Annotated[
        float, typer.Option(metavar="TIMES", help="The busiest minute of a day, times the mean.")
    ] = 3.0,
    holds: Annotated[
        bool, typer.Option("--holds", help="The service holds requests, as Runbell's does.")
    ] = False,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with tables and charts.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the charts as a picture.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Say what polling and webhooks cost you: calls, quota, money, delay, and the break-even.

    For example: runbell plan --durations lognormal:median=6,p95=25 --runs-per-month 100000
    """
    from runbell.planner import Workload
    from runbell.planner import plan as planned
    from runbell.planner.words import amount

    _require_names(report, png)
    runs = None if runs_per_month is None else amount("--runs-per-month", runs_per_month)
    calls, monthly = amount("--rpm", rpm), amount("--webhook-monthly", webhook_monthly)
    with _progress() as step:
        trace = _trace(durations, from_database, from_journal, unit, step("reading"))
        load = Workload(
            trace,
            runs_per_month=runs,
            rpm=calls or None,
            price_per_call=price_per_call,
            webhook_monthly=monthly,
            latency=latency,
            webhook_loss=webhook_loss,
            peak=peak,
            holds=holds or from_database is not None,
        )
        found = planned(load, step("playing"))
    _write(found, report, png)
    if json_:
        typer.echo(json.dumps(found.to_dict(), ensure_ascii=False))
    else:
        _show(found)


def _require_names(report: Path | None, png: Path | None) -> None:
    """Refuse names of files that would not be what they say, before anything is computed."""
    for option, path in (("--report", report), ("--png", png)):
        if path is not None and (not path.name or path.is_dir()):
            raise InvalidSetting(f"{option} names no file: {str(path)!r}")
    if png is not None and png.suffix.lower() != ".png":
        raise InvalidSetting(f"--png {png}: a PNG is written, so call it {png.stem}.png")
    if report is not None and report.suffix.lower() not in (".html", ".htm"):
        raise InvalidSetting(f"--report {report}: a page is written, so call it {report.stem}.html")


def _trace(
    durations: str | None,
    database: str | None,
    journal: str | None,
    unit: Literal["s", "ms"] | None,
    progress: Progress,
) -> Trace:
    from runbell.planner import sources

    given = [each for each in (durations, database, journal) if each is not None]
    if len(given) != 1:
        raise InvalidSetting(
            "say how long your runs take, in one way: --durations runs.csv, "
            "--durations lognormal:median=6,p95=25, --from-database or --from-journal"
        )
    if durations is not None:
        return sources.parse(durations, unit, progress)
    if unit is not None:
        raise InvalidSetting("--unit is for --durations: a history knows its own")
    if database is not None:
        return sources.from_database(database, progress)
    assert journal is not None
    return sources.from_journal(journal)


@contextmanager
def _progress() -> Iterator[Callable[[str], Progress]]:
    """Bars on stderr, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:

        def step(name: str) -> Progress:
            task = bars.add_task(name, total=1.0)
            return lambda share: bars.update(task, completed=share)

        yield step


def _write(found: Plan, report: Path | None, png: Path | None) -> None:
    if report is None and png is None:
        return
    from runbell.planner import report as reporting

    try:
        if report is not None:
            with report.open("w", encoding="utf-8") as file:
                file.write(reporting.page(found))
        if png is not None:
            with png.open("wb") as picture:
                picture.write(reporting.picture(found))
    except OSError as error:
        raise ConfigurationError(f"the report can't be written: {error}") from error


def _show(found: Plan) -> None:
    from runbell.planner import tables

    print_fields(tables.summary(found))
    typer.echo()
    print_table(tables.policies(found))
    for note in tables.notes(found):
        typer.echo(f"  {note}")
    typer.echo("\nFrom where on a webhook with a backstop is better:\n")
    print_table(tables.breaks(found))
    typer.echo("\n" + "\n".join(f"  {formula}" for formula in found.formulas))
    typer.echo(f"\n{found.recommendation}")
