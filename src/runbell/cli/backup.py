"""`runbell backup`: a copy of the database, beside a running service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runbell.cli.keys import Database
from runbell.service.settings import Settings, sqlite_path

__all__ = ["backup"]


def backup(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="The file to make; it must not be there yet.")
    ],
    database: Database = None,
) -> None:
    """Copy the database into FILE, also while the service runs; then verify the copy.

    A service starts on the copy as on any database. It holds everything that the database holds,
    conversations too, and only its owner can read it.
    """
    from runbell.storage.backup import back_up
    from runbell.storage.migrate import require_current

    source = sqlite_path(Settings.load({"database": database}).database)
    require_current(source)
    size = back_up(source, file)
    typer.echo(f"{file}: {size / 1e6:.1f} MB, verified")
