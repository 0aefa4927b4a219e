"""`runbell serve`: the run service."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from runbell.service.settings import Settings, environment_name

__all__ = ["serve"]


def serve(**given: Any) -> None:
    """Serve the Assistants API: assistants, threads and runs, with every status change an event.

    Stops gracefully on SIGTERM or Ctrl-C. RUNBELL_API_KEY sets a key beside those made by
    `runbell keys create`.
    """
    settings = Settings.load(given)
    # Imported here: `runbell --help` needs no web server.
    from runbell.service.server import run

    run(settings, say=lambda line: print(line, flush=True))  # noqa: T201 - its output


def _option(item: dataclasses.Field[Any]) -> inspect.Parameter:
    kind = {"int": int, "float": float}.get(str(item.type), str)
    # The environment is read by Settings, so that every way to start a service has it.
    variable = f"({environment_name(item.name)}; default {item.default})"
    option = typer.Option(help=f"{item.metadata['help']} {variable}", show_default=False)
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, option],
    )


# Typer reads a command's options from its signature; ours are the settings, defined there alone.
serve.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [_option(item) for item in dataclasses.fields(Settings) if item.metadata["option"]]
)
serve.__annotations__ = {
    name: parameter.annotation for name, parameter in inspect.signature(serve).parameters.items()
}
