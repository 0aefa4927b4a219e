"""`runbell deliveries`: what became of each event at an endpoint, and sending it again."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from runbell.cli.client import ApiKey, BaseUrl, connect
from runbell.cli.endpoints import EndpointId, every, path_of
from runbell.cli.tables import print_fields, print_table, time_of
from runbell.errors import RunbellError

__all__ = ["app"]

HEADING = ("ID", "EVENT", "RUN", "STATUS", "TRIES", "LAST", "HAPPENED", "NEXT")

app = typer.Typer(help="See what became of each webhook, and send it again.", no_args_is_help=True)

DeliveryId = Annotated[
    str, typer.Argument(metavar="DELIVERY", help="Its id, which is the event's: evt_….")
]
Status = Literal["pending", "succeeded", "failed"]


@app.command("list")
def list_deliveries(
    endpoint: EndpointId,
    status: Annotated[Status | None, typer.Option(help="Only those in this status.")] = None,
    run: Annotated[str | None, typer.Option(metavar="RUN_ID", help="Only events of it.")] = None,
    since: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="Only events later than this time.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at the most.")] = 20,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Show the deliveries to an endpoint, the newest first."""
    query = {"status": status, "run_id": run, "created_after": since}
    given = {name: value for name, value in query.items() if value is not None}
    with connect(base_url, api_key) as client:
        found = every(client, f"{path_of(endpoint)}/deliveries", given, limit)
    print_table([HEADING, *map(_row, found)])


@app.command()
def show(
    endpoint: EndpointId,
    delivery: DeliveryId,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Show one delivery, and what came of each attempt."""
    with connect(base_url, api_key) as client:
        _show(client.get(_path(endpoint, delivery), cast_to=object))


@app.command()
def resend(
    endpoint: EndpointId,
    delivery: DeliveryId,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Send one again, whatever became of it, with the same id."""
    with connect(base_url, api_key) as client:
        _show(client.post(f"{_path(endpoint, delivery)}/resend", cast_to=object))


@app.command()
def recover(
    endpoint: EndpointId,
    since: Annotated[
        int | None,
        typer.Option(metavar="SECONDS", help="Only events since this time; else of 7 days."),
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Send again everything that has failed within 7 days, with the same ids."""
    body = {} if since is None else {"since": since}
    with connect(base_url, api_key) as client:
        answer = client.post(f"{path_of(endpoint)}/recover", body=body, cast_to=object)
    count = _fields(answer)["recovered"]
    typer.echo(f"{count} {'delivery is' if count == 1 else 'deliveries are'} sent again")


def _path(endpoint: str, delivery: str) -> str:
    return f"{path_of(endpoint)}/deliveries/{quote(delivery, safe='')}"


def _fields(answer: object) -> dict[str, Any]:
    if not isinstance(answer, dict):
        raise RunbellError("the service sent something that is no object")
    return answer


def _show(answer: object) -> None:
    delivery = _fields(answer)
    print_fields(
        [
            ("id", delivery["id"]),
            ("endpoint", delivery["webhook_endpoint_id"]),
            ("event", delivery["event_type"]),
            ("run", delivery["run_id"]),
            ("status", delivery["status"]),
            ("happened", time_of(delivery["created_at_ms"])),
            ("next attempt", time_of(delivery["next_attempt_at_ms"])),
            ("settled", time_of(delivery["settled_at_ms"])),
        ]
    )
    for each in delivery["attempts"]:
        said = each["error"] or str(each["status_code"])
        typer.echo(
            f"attempt {each['number']}  {time_of(each['at_ms'])}  {each['duration_ms']} ms  {said}"
        )
        if each["response"]:
            # As Python writes it: an endpoint's answer must not play tricks on a terminal.
            typer.echo(f"  answered {each['response']!r}")


def _row(delivery: dict[str, Any]) -> tuple[str, ...]:
    return (
        delivery["id"],
        delivery["event_type"].removeprefix("thread.run."),
        delivery["run_id"],
        delivery["status"],
        str(delivery["attempt_count"]),
        _last(delivery),
        time_of(delivery["created_at_ms"]),
        time_of(delivery["next_attempt_at_ms"]),
    )


def _last(delivery: dict[str, Any]) -> str:
    if not delivery["attempts"]:
        return ""
    status = delivery["attempts"][-1]["status_code"]
    return "none" if status is None else str(status)
