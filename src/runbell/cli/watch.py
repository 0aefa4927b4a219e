"""`runbell watch`: all active runs of a service, as they go."""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runbell.cli.client import ApiKey, BaseUrl, connect
from runbell.client.diagnosis import shown
from runbell.errors import ConfigurationError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["watch"]

ACTIVE = "queued,in_progress,requires_action,cancelling"
PAGE = 100

Row = dict[str, Any]


def watch(
    every: Annotated[
        float, typer.Option(min=0.2, metavar="SECONDS", help="How often to look.")
    ] = 2.0,
    once: Annotated[bool, typer.Option(help="Print what is active now, and end.")] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Show every run that has not ended; in a pipe, a line for each change.

    Needs a service that has GET /v1/runs, such as Runbell's. Ctrl-C ends it.
    """
    with connect(base_url, api_key) as client:
        if once:
            for row in _active(client)[0]:
                typer.echo(_line(row))
        elif sys.stdout.isatty():
            _screen(client, every)
        else:
            _lines(client, every)


def _lines(client: OpenAI, every: float) -> None:
    known: dict[str, str] = {}
    while True:
        rows = {row["id"]: row for row in _active(client)[0]}
        for run_id, row in rows.items():
            if known.get(run_id) != row["status"]:
                typer.echo(_line(row))
        for run_id in known.keys() - rows.keys():
            typer.echo(f"{run_id} has ended")
        known = {run_id: row["status"] for run_id, row in rows.items()}
        sys.stdout.flush()
        time.sleep(every)


def _screen(client: OpenAI, every: float) -> None:
    from rich.live import Live
    from rich.table import Table

    with Live(auto_refresh=False) as live:
        while True:
            height = max(5, live.console.height - 6)
            rows, more = _active(client, most=max(height, 10 * PAGE))
            count = f"more than {len(rows)}" if more else str(len(rows))
            table = Table(title=f"{count} active runs", expand=False)
            for column in ("run", "status", "age", "expires in", "assistant", "thread"):
                table.add_column(column)
            now = time.time()
            for row in rows[:height]:
                table.add_row(*_cells(row, now))
            live.update(table, refresh=True)
            time.sleep(every)


def _active(client: OpenAI, most: float = math.inf) -> tuple[list[Row], bool]:
    """The runs that have not ended, newest first, and whether there are more than these.

    Args:
        most: runs after which no more are asked for. A run that is missing has ended only where
            all were asked for.

    Raises:
        ConfigurationError: the service has no such list.
    """
    from openai import NotFoundError

    found: dict[str, Row] = {}
    after: dict[str, str] = {}
    while True:
        try:
            page: Any = client.get(
                "/runs",
                cast_to=object,
                options={"params": {"status": ACTIVE, "limit": PAGE, **after}},
            )
        except NotFoundError as error:
            raise ConfigurationError(
                f"{shown(client.base_url)} has no list of runs across threads; "
                "Runbell's service has"
            ) from error
        found |= {row["id"]: row for row in page["data"]}
        more = bool(page["has_more"] and page["data"])
        if not more or len(found) >= most:
            return list(found.values()), more
        after = {"after": page["last_id"]}


def _line(row: Row) -> str:
    return "  ".join((*_cells(row, time.time())[:3], row["thread_id"]))


def _cells(row: Row, now: float) -> tuple[str, ...]:
    expires_at = row.get("expires_at")
    return (
        row["id"],
        row["status"],
        f"{max(0.0, now - row['created_at']):.0f} s",
        "" if expires_at is None else f"{max(0.0, expires_at - now):.0f} s",
        row["assistant_id"],
        row["thread_id"],
    )
