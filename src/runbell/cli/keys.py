"""`runbell keys`: API keys, made and revoked in the database itself, beside a running service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from runbell.cli.tables import print_table, time_of
from runbell.errors import ConfigurationError, InvalidSetting
from runbell.service.settings import Settings, location, number

if TYPE_CHECKING:
    from runbell.storage.store import Store

__all__ = ["app"]

T = TypeVar("T")

app = typer.Typer(help="API keys and their projects.", no_args_is_help=True)

Database = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The service's database. (RUNBELL_DATABASE; default sqlite:///runbell.db)",
        show_default=False,
    ),
]


@app.command()
def create(
    database: Database = None,
    project: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Whose objects the key opens; made if there is none of this name."
        ),
    ] = "default",
    rpm: Annotated[
        int | None,
        typer.Option(
            parser=lambda text: number("rpm", text, int, 0, "--rpm"),
            metavar="NUMBER",
            help="Requests a minute that the key may make, instead of the service's --rpm; "
            "0 is no limit.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Make a key and print it: it cannot be shown again."""
    from runbell.clock import SystemClock
    from runbell.service.operations import access

    if not project.strip():
        raise InvalidSetting(f"project is {project!r}: a name is needed (--project)")

    async def work(store: Store) -> str:
        clock = SystemClock()
        owner = await access.ensure_project(store, clock, project)
        key, row = await access.create_key(store, clock, owner, "keys", rpm)
        # Beside the key, not with it: the output stays what a script wants.
        typer.echo(f"{row.id} for the project {owner.name!r} in {where}", err=True)
        return key

    where = location(Settings.load({"database": database}).database)
    typer.echo(_with_store(database, work, create=True))


@app.command("list")
def list_keys(database: Database = None) -> None:
    """Show every key: its id, project, beginning and end, limit of its own, and times."""
    from runbell.storage import projects

    async def work(store: Store) -> list[tuple[str, ...]]:
        names = {each.id: each.name for each in await store.read(projects.all_projects)}
        return [
            (
                key.id,
                names[key.project_id],
                key.hint,
                "" if key.rpm is None else str(key.rpm or "none"),
                time_of(key.created_at_ms),
                time_of(key.revoked_at_ms),
            )
            for key in await store.read(projects.list_keys)
        ]

    rows = [("ID", "PROJECT", "KEY", "RPM", "CREATED", "REVOKED"), *_with_store(database, work)]
    print_table(rows)


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="KEY_ID", help="As `runbell keys list` shows it.")
    ],
    database: Database = None,
) -> None:
    """Close a key: from now on the service refuses it."""
    from runbell.clock import SystemClock
    from runbell.storage import projects

    now_ms = SystemClock().now_ms()

    def work(store: Store) -> Awaitable[bool]:
        return store.write(lambda tx: projects.revoke_key(tx, key_id, now_ms))

    if not _with_store(database, work):
        # It may be the key itself, which is no id and nothing to repeat.
        raise ConfigurationError("no open key has this id: see runbell keys list")
    typer.echo(f"revoked {key_id}")


def _with_store(
    database: str | None, work: Callable[[Store], Awaitable[T]], *, create: bool = False
) -> T:
    settings = Settings.load({"database": database})

    async def run() -> T:
        from runbell.service.databases import open_store

        async with open_store(settings, create=create) as store:
            return await work(store)

    return asyncio.run(run())
