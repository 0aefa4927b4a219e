"""`runbell endpoints`: where webhooks go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from runbell.cli.client import ApiKey, BaseUrl, connect
from runbell.cli.tables import print_fields, print_table
from runbell.errors import ConfigurationError, RunbellError

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["EndpointId", "app", "every", "path_of"]

PAGE = 100

app = typer.Typer(help="Look after webhook endpoints.", no_args_is_help=True)

EndpointId = Annotated[
    str, typer.Argument(metavar="ENDPOINT", help="Its id, as `runbell endpoints list` shows it.")
]


@app.command()
def create(
    url: Annotated[str, typer.Argument(help="Where webhooks are POSTed: https.")],
    name: Annotated[str, typer.Option(help="What you call it.")] = "cli",
    types: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TYPE,…",
            help="Which events are pushed; may be given again. By default thread.run.*, all.",
        ),
    ] = None,
    rate_limit: Annotated[int, typer.Option(help="Attempts a second; 0 is no limit.")] = 0,
    assistant: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only runs of this assistant; may be given again."),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only runs with this metadata; may be given again."),
    ] = None,
    header: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Sent with each webhook; may be given again."),
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Register an endpoint, and print its signing secret, which is not shown again."""
    body = {
        "url": url,
        "name": name,
        "event_types": [
            each.strip()
            for given in types or ["thread.run.*"]
            for each in given.split(",")
            if each.strip()
        ],
        "rate_limit": rate_limit,
        "filters": {
            "assistant_ids": assistant or [],
            "metadata": _pairs("--metadata", metadata or ()),
        },
        "headers": _pairs("--header", header or ()),
    }
    with connect(base_url, api_key) as client:
        made = _post(client, "/webhook_endpoints", body)
    # Beside the secret, not with it: the output stays what a script wants.
    typer.echo(f"created {made['id']}", err=True)
    typer.echo(made["signing_secret"])


@app.command("list")
def list_endpoints(base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Show every endpoint: its id, name, state, rate limit, events and URL."""
    with connect(base_url, api_key) as client:
        found = every(client, "/webhook_endpoints", {})
    rows = [("ID", "NAME", "STATE", "RATE", "EVENTS", "URL")]
    for each in found:
        rate = "" if each["rate_limit"] is None else f"{each['rate_limit']}/s"
        events = ",".join(each["event_types"]).replace("thread.run.", "")
        rows.append((each["id"], each["name"], _state(each), rate, events, each["url"]))
    print_table(rows)
    for each in found:
        if each["disabled_reason"]:
            typer.echo(f"{each['id']} is disabled: {each['disabled_reason']}", err=True)


@app.command("test")
def send_test(
    endpoint: EndpointId,
    event_type: Annotated[
        str, typer.Option("--type", help="Of which event a sample is sent.")
    ] = "thread.run.completed",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Have the service send a sample. Ends with 0 if the endpoint answered with a success."""
    with connect(base_url, api_key) as client:
        sent = _post(client, f"{path_of(endpoint)}/test", {"event_type": event_type})
    status = sent["status_code"]
    typer.echo(f"{event_type} → {status}")
    if not 200 <= status < 300:
        raise typer.Exit(1)


@app.command()
def rotate(
    endpoint: EndpointId,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Sign with the old one too, for 24 hours.")
    ] = False,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Sign with a new secret from now on, and print it."""
    with connect(base_url, api_key) as client:
        body = {"keep_old_secret_active_for_24_hours": keep_old}
        made = _post(client, f"{path_of(endpoint)}/rotate_secret", body)
    typer.echo(made["signing_secret"])


@app.command()
def enable(endpoint: EndpointId, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Send to an endpoint again, first what waited for it."""
    _switch(endpoint, base_url, api_key, enabled=True)


@app.command()
def disable(endpoint: EndpointId, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Send nothing to an endpoint. What is owed to it waits; later events are not owed to it."""
    _switch(endpoint, base_url, api_key, enabled=False)


@app.command()
def delete(endpoint: EndpointId, base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Forget an endpoint, and what is owed to it."""
    with connect(base_url, api_key) as client:
        client.delete(path_of(endpoint), cast_to=object)
    typer.echo(f"deleted {endpoint}")


def path_of(endpoint_id: str) -> str:
    """The path of an endpoint."""
    return f"/webhook_endpoints/{quote(endpoint_id, safe='')}"


def every(
    client: OpenAI, path: str, query: dict[str, Any], limit: int | None = None
) -> list[dict[str, Any]]:
    """All items of a list, the newest first; the first `limit` where there are more.

    Raises:
        RunbellError: the service sent something that is no list.
    """
    found: list[dict[str, Any]] = []
    query = {**query, "limit": min(limit or PAGE, PAGE)}
    while True:
        page = client.get(path, cast_to=object, options={"params": query})
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise RunbellError(f"{client.base_url} sent something that is no list")
        found += page["data"]
        if not page.get("has_more") or (limit is not None and len(found) >= limit):
            return found[:limit]
        query["after"] = page["data"][-1]["id"]


def _switch(endpoint: str, base_url: str | None, api_key: str | None, *, enabled: bool) -> None:
    with connect(base_url, api_key) as client:
        found = _post(client, path_of(endpoint), {"enabled": enabled})
    fields = [("id", found["id"]), ("name", found["name"]), ("state", _state(found))]
    print_fields(fields)


def _post(client: OpenAI, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = client.post(path, body=body, cast_to=object)
    if not isinstance(answer, dict):
        raise RunbellError(f"{client.base_url} sent something that is no object")
    return answer


def _state(endpoint: dict[str, Any]) -> str:
    if not endpoint["enabled"]:
        return "disabled"
    return "failing" if endpoint["failing_since"] else "enabled"


def _pairs(option: str, given: Sequence[str]) -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    if not all(name and separator for name, separator, _ in pairs):
        # The value is not repeated: it may be a key.
        raise ConfigurationError(f"{option} takes NAME=VALUE")
    return {name: value for name, _, value in pairs}
