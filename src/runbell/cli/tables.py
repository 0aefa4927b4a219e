"""How a command prints what it has found: aligned columns, or lines of `name: value`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import typer

__all__ = ["print_fields", "print_table", "time_of"]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows with their columns below each other; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def print_fields(fields: Sequence[tuple[str, str]]) -> None:
    """One field a line; those without a value are left out."""
    width = max(len(name) for name, _ in fields)
    for name, value in fields:
        if value:
            typer.echo(f"{name.ljust(width)}  {value}")


def time_of(at_ms: int | None) -> str:
    """A stamp in milliseconds, to the second, in UTC; nothing where there is none."""
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
