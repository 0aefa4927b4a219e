"""The command line's own parser, for command lines that are written somewhere."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import typer

from runbell.cli.commands import app

__all__ = ["parse"]


@cache
def _group() -> Any:
    return typer.main.get_command(app)


def parse(words: Sequence[str]) -> str:
    """Have a command line parsed as when it is run, and nothing done; the name of its command.

    Raises:
        click.ClickException: it is none of ours.
    """
    command, name, rest = _group(), "runbell", list(words)
    parent = None
    while True:
        ctx = command.make_context(name, rest, parent=parent)
        if not hasattr(command, "resolve_command"):
            return name
        found, command, rest = command.resolve_command(ctx, [*ctx._protected_args, *ctx.args])
        name, parent = found or "", ctx
