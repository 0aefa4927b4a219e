"""`runbell serve`: the run service; `runbell worker`: more of what it does; `runbell migrate`."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from runbell.service import upstreams
from runbell.service.settings import Settings, environment_name

__all__ = ["ServeCommand", "migrate", "serve", "worker"]

Database = Annotated[
    str | None,
    typer.Option(metavar="URL", help="The service's database. (RUNBELL_DATABASE)"),
]

UPSTREAM = {
    option: option.lstrip("-").replace("-", "_")
    for option in ("--upstream", *(each.option for each in upstreams.OPTIONS))
}
"""The options whose order matters, and their parameters."""

UPSTREAM_PANEL = "Options of the --upstream before them"


class ServeCommand(TyperCommand):
    """The command, which keeps the order of the options that belong to an `--upstream`.

    The parser collects the values of each option by themselves; only it knows in which order the
    options stood.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, order = self.make_parser(ctx).parse_args(args=list(args))
        values = {name: iter(given.get(name, ())) for name in UPSTREAM.values()}
        options = {name: option for option, name in UPSTREAM.items()}
        words = [
            word
            for parameter in order
            if parameter.name in values
            for word in (options[parameter.name], next(values[parameter.name]))
        ]
        rest = super().parse_args(ctx, args)
        ctx.params |= dict.fromkeys(values) | {"upstream": words or None}
        return rest


def serve(**given: Any) -> None:
    """Serve the Assistants API: assistants, threads and runs, with every status change an event.

    Stops gracefully on SIGTERM or Ctrl-C. RUNBELL_API_KEY sets a key beside those made by
    `runbell keys create`.
    """
    settings = Settings.load({name: value for name, value in given.items() if value is not None})
    # Imported here: `runbell --help` needs no web server.
    from runbell.service.server import run

    run(settings, say=lambda line: print(line, flush=True))  # noqa: T201 - its output


def worker(**given: Any) -> None:
    """Execute runs and deliver webhooks beside `runbell serve`, on the same PostgreSQL database.

    Stops gracefully on SIGTERM or Ctrl-C; what it was doing goes on in another process.
    """
    settings = Settings.load({name: value for name, value in given.items() if value is not None})
    from runbell.service.server import work

    work(settings, say=lambda line: print(line, flush=True))  # noqa: T201 - its output


def migrate(database: Database = None) -> None:
    """Bring a database's schema up to date, as each start does too; of several, one does it."""
    from runbell.service.databases import open_store
    from runbell.service.settings import location
    from runbell.storage.migrate import HEAD

    settings = Settings.load({"database": database})

    async def open_once() -> None:
        async with open_store(settings):
            pass

    asyncio.run(open_once())
    typer.echo(f"{location(settings.database)} has schema {HEAD}")


OF_REQUESTS = frozenset({"port", "rpm", "max_body", "body_timeout", "retain_days"})
"""Settings that say nothing to a worker."""

OF_WORKERS = frozenset({"metrics_port"})
"""Settings that say nothing to who takes requests: its port has these pages too."""


def _options(*, requests: bool) -> Iterator[inspect.Parameter]:
    foreign = OF_WORKERS if requests else OF_REQUESTS
    for item in dataclasses.fields(Settings):
        if not item.metadata["option"] or item.name in foreign:
            continue
        yield _option(item)
        if item.name == "upstream":
            for belonging in upstreams.OPTIONS:
                default = (
                    f" (default {belonging.default:g})" if belonging.default is not None else ""
                )
                option = typer.Option(
                    help=f"{belonging.help}{default}",
                    metavar=belonging.metavar,
                    show_default=False,
                    rich_help_panel=UPSTREAM_PANEL,
                )
                yield _parameter(UPSTREAM[belonging.option], list[str], option)


def _option(item: dataclasses.Field[Any]) -> inspect.Parameter:
    if item.name == "upstream":
        help_ = f"{item.metadata['help']} ({environment_name(item.name)})"
        option = typer.Option(help=help_, metavar="URL", show_default=False)
        return _parameter(item.name, list[str], option)
    # The environment is read by Settings, so that every way to start a service has it; and so are
    # the numbers of the command line, so that what is wrong is said in the same words.
    default = f"; default {item.default}" if item.default is not None else ""
    variable = f"({environment_name(item.name)}{default})"
    if item.type == "bool":
        switch = typer.Option(help=f"{item.metadata['help']} {variable}", show_default=False)
        return _parameter(item.name, bool, switch)
    number = str(item.type).removesuffix(" | None") in ("int", "float")
    metavar = "NUMBER" if number else item.name.rpartition("_")[2].upper()
    option = typer.Option(
        help=f"{item.metadata['help']} {variable}", metavar=metavar, show_default=False
    )
    return _parameter(item.name, str, option)


def _parameter(name: str, kind: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


# Typer reads a command's options from its signature; ours are the settings, defined there alone.
for command in (serve, worker):
    signature = inspect.Signature(list(_options(requests=command is serve)))
    command.__signature__ = signature  # type: ignore[attr-defined]
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in signature.parameters.items()
    }
