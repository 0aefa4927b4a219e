"""The command line: one file a command, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import TextIO

from runbell.errors import InvalidSetting, MissingExtra, RunbellError

__all__ = ["main"]

EXTRA_OF_PACKAGE = {
    "typer": "cli",
    "fastapi": "receiver",
    "rich": "cli",
    "matplotlib": "planner",
    "numpy": "planner",
    "aiohttp": "serve",
    "alembic": "serve",
    "asyncpg": "postgresql",
    "pgqueuer": "postgresql",
    "cryptography": "serve",
    "msgspec": "serve",
    "prometheus_client": "serve",
    "sqlalchemy": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
}
"""Which extra installs a package that a command may find missing."""

WRONG_ARGUMENTS = 2
"""The exit code for arguments, and for settings, that make no sense."""

INTERRUPTED = 130
"""What a shell expects of a command that Ctrl-C has ended: 128, and the signal's number."""


def main() -> None:
    """Run the command that the arguments name, and end the process.

    The exit code is 0 when the command did what it says, 1 when it could not, 2 when the arguments
    or the settings are wrong, 130 when it was interrupted. Errors of ours are one sentence on
    stderr: a traceback means a defect of Runbell.
    """
    for stream in (sys.stdout, sys.stderr):
        _never_fail_to_print(stream)
    try:
        # Late, so that a base install, which has no Typer, can say what is missing.
        from runbell.cli.commands import app

        app(prog_name="runbell")
    except InvalidSetting as error:
        sys.stderr.write(f"runbell: {error}\n")
        sys.exit(WRONG_ARGUMENTS)
    except RunbellError as error:
        sys.exit(f"runbell: {error}")
    except ModuleNotFoundError as error:
        extra = EXTRA_OF_PACKAGE.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        sys.exit(f"runbell: {MissingExtra('this command', extra)}")
    except KeyboardInterrupt:
        # While something is imported; where a command runs already, Typer ends it in this way.
        sys.exit(INTERRUPTED)


def _never_fail_to_print(stream: TextIO) -> None:
    """Let a terminal that has no `→` show `?`, rather than end the command."""
    reconfigure = getattr(stream, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")
