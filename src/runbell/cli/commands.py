"""Every command by its name.

The modules that are imported here are cheap, and keep it so: what a command needs (the `openai`
SDK, the web server, the database) is imported by its function, when it is called.
"""

from __future__ import annotations

from typing import Annotated

import typer

from runbell import __version__
from runbell.cli import (
    assistants,
    backup,
    check,
    copy,
    deliveries,
    demo,
    doctor,
    endpoints,
    inbox,
    jobs,
    keys,
    listen,
    plan,
    reencrypt,
    serve,
    trigger,
    wait,
    watch,
)

__all__ = ["app"]

app = typer.Typer(
    help="Know the moment an asynchronous run finishes.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    # Only this joins the lines of a docstring's paragraphs.
    rich_markup_mode="markdown",
    # A traceback of ours is for a bug report: whole, plain, and without the values of variables.
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"runbell {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


app.command("serve", cls=serve.ServeCommand)(serve.serve)
app.command("worker", cls=serve.ServeCommand)(serve.worker)
app.command("migrate")(serve.migrate)
app.add_typer(keys.app, name="keys")
app.add_typer(assistants.app, name="assistants")
app.add_typer(endpoints.app, name="endpoints")
app.add_typer(deliveries.app, name="deliveries")
app.add_typer(jobs.app, name="jobs")
app.add_typer(inbox.app, name="inbox")
app.command("backup")(backup.backup)
app.command("check")(check.check)
app.command("copy")(copy.copy)
app.command("reencrypt")(reencrypt.reencrypt)
app.command("listen")(listen.listen)
app.command("trigger")(trigger.trigger)
app.command("demo")(demo.demo)
app.command("wait")(wait.wait)
app.command("watch")(watch.watch)
app.command("plan")(plan.plan)
app.command("doctor")(doctor.doctor)
