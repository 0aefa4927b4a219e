"""`runbell inbox`: what a receiver has stored, and having it handled again; also while it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from runbell.errors import ConfigurationError

if TYPE_CHECKING:
    from runbell.receiver.desk import Entry
    from runbell.storage.store import Store

__all__ = ["app"]

T = TypeVar("T")

STATES = ("waiting", "handled", "unhandled", "stale", "dead")

app = typer.Typer(help="Events that a receiver has stored.", no_args_is_help=True)

Location = Annotated[
    str,
    typer.Option(
        "--inbox",
        envvar="RUNBELL_INBOX",
        metavar="URL",
        help="The receiver's inbox.",
    ),
]
DEFAULT = "sqlite:///inbox.db"
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="How many, the newest first.")]


@app.command("list")
def list_events(
    inbox: Location = DEFAULT,
    state: Annotated[
        str | None,
        typer.Option(help=f"Only those that are {', '.join(STATES)}.", show_default=False),
    ] = None,
    limit: Limit = 50,
) -> None:
    """Show the newest events: what they are about, and how far they have come."""
    if state is not None and state not in STATES:
        raise typer.BadParameter(f"one of: {', '.join(STATES)}", param_hint="--state")
    _list(inbox, state, limit)


@app.command()
def dead(inbox: Location = DEFAULT, limit: Limit = 50) -> None:
    """Show the newest dead letters, and why they are dead."""
    for entry in _list(inbox, "dead", limit):
        typer.echo(f"{entry.id}: {_visible(entry.error or '')}")


@app.command()
def show(
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID", help="As `list` shows it.")],
    inbox: Location = DEFAULT,
) -> None:
    """Show one event, with its body and what else came under its id."""
    from runbell.receiver import desk

    async def work(store: Store) -> Any:
        found = await store.read(lambda tx: desk.entry(tx, event_id))
        return found, await store.read(lambda tx: desk.others(tx, event_id))

    found, others = _with_inbox(inbox, work)
    if found is None:
        raise ConfigurationError(f"the inbox has no event {event_id!r}: see runbell inbox list")
    entry, body = found
    for name, value in (
        ("id", entry.id),
        ("type", entry.type),
        ("about", entry.subject),
        ("sequence", entry.sequence),
        ("state", _state(entry)),
        ("attempts", entry.attempts),
        ("due", _time(entry.due_at_ms) if entry.state == "waiting" else None),
        ("received", _time(entry.received_at_ms)),
        ("ended", _time(entry.ended_at_ms)),
        ("origin", entry.origin),
        ("error", entry.error),
    ):
        if value not in (None, ""):
            typer.echo(f"{name + ':':10} {_visible(str(value))}")
    typer.echo(_visible(body.decode(errors="backslashreplace")))
    for other in others:
        typer.echo(f"another body under this id, not handled, {_time(other.received_at_ms)}:")
        typer.echo(_visible(other.body.decode(errors="backslashreplace")))


@app.command()
def replay(
    event_ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[EVENT_ID]…", help="Any, also handled ones.", show_default=False),
    ] = None,
    inbox: Location = DEFAULT,
    all_dead: Annotated[bool, typer.Option("--dead", help="Every dead letter.")] = False,
) -> None:
    """Have events handled once more, from their first attempt, whatever came after them."""
    from runbell.receiver import desk

    ids = event_ids or []
    if bool(ids) == all_dead:
        raise typer.BadParameter("name events, or --dead")

    async def work(store: Store) -> list[str]:
        now_ms = await store.read(desk.now)
        if all_dead:
            count = await store.write(lambda tx: desk.replay_dead(tx, now_ms))
            typer.echo(f"{count} dead letter{'' if count == 1 else 's'} to be handled again")
            return []
        refused = []
        for event_id in ids:
            done = await store.write(lambda tx: desk.replay(tx, event_id, now_ms))  # noqa: B023
            if done:
                typer.echo(f"{event_id} is to be handled again")
            else:
                refused.append(event_id)
        return refused

    refused = _with_inbox(inbox, work)
    if refused:
        raise ConfigurationError(
            f"not replayed: {', '.join(refused)}: there is no such event, it is none that can be "
            "read, or it is being handled now"
        )


def _list(inbox: str, state: str | None, limit: int) -> list[Entry]:
    from runbell.receiver import desk

    def work(store: Store) -> Awaitable[list[Entry]]:
        return store.read(lambda tx: desk.entries(tx, state=state, limit=limit))

    entries = _with_inbox(inbox, work)
    header = ("RECEIVED", "ID", "TYPE", "ABOUT", "SEQ", "STATE", "ATTEMPTS")
    rows = [header, *(_row(entry) for entry in entries)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())
    return entries


def _row(entry: Entry) -> tuple[str, ...]:
    return (
        _time(entry.received_at_ms),
        _visible(entry.id),
        _visible(entry.type or "?"),
        _visible(entry.subject or ""),
        "" if entry.sequence is None else str(entry.sequence),
        _state(entry),
        str(entry.attempts),
    )


def _state(entry: Entry) -> str:
    return "in handling" if entry.held else entry.state


def _with_inbox(inbox: str, work: Callable[[Store], Awaitable[T]]) -> T:
    from runbell.receiver.places import place_of

    async def run() -> T:
        async with place_of(inbox).open_existing() as store:
            return await work(store)

    return asyncio.run(run())


def _visible(text: str) -> str:
    """The text without what could play tricks on a terminal: whoever signs can write anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def _time(at_ms: int | None) -> str:
    if at_ms is None:
        return ""
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
