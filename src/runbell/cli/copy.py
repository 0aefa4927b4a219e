"""`runbell copy`: an installation moves into another database."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from runbell.service.settings import Settings, location

if TYPE_CHECKING:
    from runbell.service.copying import Copied

__all__ = ["copy"]


def copy(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="The database that there is, as a URL.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Another one, without a row; also as a URL.")
    ],
) -> None:
    """Copy everything from SOURCE into TARGET, as from sqlite:///runbell.db into postgresql://….

    No service may run on either. TARGET gets all or nothing: what it then holds was read again, and
    every table has as many rows as in SOURCE, with the same checksum. SOURCE is not changed.
    """
    settings = Settings.load({"database": source})
    Settings.load({"database": target})
    from runbell.service.copying import move

    try:
        copied = asyncio.run(move(settings, target))
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was copied", err=True)
        raise typer.Exit(130) from None
    _show(copied, location(target))


def _show(copied: Copied, target: str) -> None:
    width = max(len(name) for name in copied.tables)
    for name, content in copied.tables.items():
        if content.rows:
            typer.echo(f"{name.ljust(width)}  {content.rows:>10}  {content.checksum[:16]}")
    rows = sum(content.rows for content in copied.tables.values())
    jobs = "" if copied.jobs is None else f"; {copied.jobs} jobs are to go on"
    typer.echo(f"{target}: {rows} rows, verified{jobs}")
    replaced = sum(content.replaced for content in copied.tables.values())
    if replaced:
        typer.echo(f"{replaced} rows held the character 0, which is U+FFFD there", err=True)
    if copied.tables["webhook_endpoints"].rows:
        typer.echo(
            "signing secrets stay encrypted: start its services with the same key "
            "(--key-file or RUNBELL_ENCRYPTION_KEY)",
            err=True,
        )
