"""`runbell jobs`: jobs that failed too often and were kept aside, and a new try of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from runbell.cli.keys import Database
from runbell.cli.tables import print_table, time_of
from runbell.errors import ConfigurationError, InvalidSetting
from runbell.service.settings import Settings

if TYPE_CHECKING:
    from runbell.storage.store import Store

__all__ = ["app"]

T = TypeVar("T")

app = typer.Typer(help="Jobs that were kept aside, on PostgreSQL.", no_args_is_help=True)


@app.command("list")
def list_jobs(database: Database = None) -> None:
    """Show every job that is held: its id, what it is about, since when, and what it failed with.

    A job is held when it has failed twenty times. Nobody waits for it; a run that nothing else ends
    expires.
    """
    from runbell.service.jobs.held import held_jobs

    held = _with_store(database, lambda store: store.scan(held_jobs))
    rows = [(str(job.id), str(job.kind), job.key, time_of(job.since_ms), job.why) for job in held]
    print_table([("ID", "KIND", "OF", "SINCE", "WHY"), *rows])


@app.command()
def release(
    job_ids: Annotated[
        list[int] | None, typer.Argument(metavar="ID…", help="As `runbell jobs list` shows them.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every job that is held.")] = False,
    database: Database = None,
) -> None:
    """Have jobs that are held tried again, now that what they failed with was mended."""
    from runbell.service.jobs.held import held_jobs
    from runbell.service.jobs.held import release as release_jobs

    if bool(job_ids) == every:
        raise InvalidSetting("name jobs by their ids, or all of them with --all")

    async def work(store: Store) -> int:
        chosen = job_ids or [job.id for job in await store.scan(held_jobs)]
        return await store.write(lambda tx: release_jobs(tx, chosen))

    count = _with_store(database, work)
    if job_ids and count < len(set(job_ids)):
        raise ConfigurationError(
            f"{count} of these {len(set(job_ids))} jobs were held and are tried again: "
            "see runbell jobs list"
        )
    typer.echo(f"{count} jobs are tried again")


def _with_store(database: str | None, work: Callable[[Store], Awaitable[T]]) -> T:
    settings = Settings.load({"database": database})
    if settings.database.startswith("sqlite:"):
        raise ConfigurationError(
            "a SQLite database holds no jobs: its service finds them in the tables, again and again"
        )

    async def run() -> T:
        from runbell.service.databases import open_store

        async with open_store(settings, create=False) as store:
            return await work(store)

    return asyncio.run(run())
