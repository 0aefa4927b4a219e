"""Every setting, route, command and event is documented, and no document promises another."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import NotRequired, get_origin, get_type_hints

import pytest
import typer
from prometheus_client.parser import text_string_to_metric_families

from runbell.cli.commands import app
from runbell.receiver import Options
from runbell.receiver.desk import Load
from runbell.receiver.numbers import REASONS, Numbers
from runbell.runs import EVENT_TYPES, RunEventData
from runbell.runs.run import RunStatus
from runbell.service.metrics import Backlog, Due, Metrics
from runbell.service.routes import ROUTES
from runbell.service.settings import Settings, environment_name
from tests.deploy.commands import parse

DOCS = Path(__file__).parent.parent / "docs"
PAGES = [
    *sorted(DOCS.glob("*.md")),
    DOCS.parent / "README.md",
    DOCS.parent / "deploy" / "README.md",
]


def text(name: str) -> str:
    return (DOCS / name).read_text()


def test_the_table_of_settings_is_what_the_settings_are():
    rows = []
    for item in dataclasses.fields(Settings):
        option = f"`--{item.name.replace('_', '-')}`" if item.metadata["option"] else ""
        default = f"`{item.default}`" if item.default not in (None, ()) else ""
        cells = (option, f"`{environment_name(item.name)}`", default, item.metadata["help"])
        rows.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    table = [
        line for line in text("running.md").splitlines() if "`RUNBELL_" in line and line[0] == "|"
    ]
    assert table == rows


def test_which_settings_are_no_options_of_a_service_or_a_worker_is_said():
    """The table has all; the words in front of it say whose each is."""
    words = text("running.md").partition("## Settings")[2].partition("|---")[0]
    serve, worker = (
        typer.main.get_command(app).commands[name].params for name in ("serve", "worker")
    )
    options = [{each.opts[0] for each in params} for params in (serve, worker)]
    said = words.partition("which has all others but")
    assert set(re.findall(r"`(--[a-z-]+)`", said[0])) == options[1] - options[0]
    assert set(re.findall(r"`(--[a-z-]+)`", said[2])) == options[0] - options[1]


def test_every_route_is_documented_and_none_that_is_not_there():
    documented = set()
    for line in text("api.md").splitlines():
        if line.startswith("| `") and "/v1/" in line:
            cells = re.findall(r"`([^`]+)`", line.split("|")[1])
            *methods, path = cells
            documented |= {(method, path) for method in methods}
    assert documented == {(r.method, r.path.replace(":path", "")) for r in ROUTES}


def test_every_command_is_documented_and_none_that_is_not_there():
    def commands(group, prefix):
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from commands(command, f"{prefix} {name}")
            else:
                yield f"{prefix} {name}"

    documented = re.findall(r"^\| `(runbell [a-z ]*[a-z])", text("running.md"), re.MULTILINE)
    assert sorted(documented) == sorted(commands(typer.main.get_command(app), "runbell"))


def test_the_schema_of_events_names_what_events_have():
    schema = json.loads(text("event.schema.json"))
    assert schema["properties"]["type"]["enum"] == list(EVENT_TYPES)
    data = schema["properties"]["data"]
    assert set(data["properties"]) == set(RunEventData.__annotations__)
    hints = get_type_hints(RunEventData, include_extras=True)
    assert set(data["required"]) == {
        n for n, h in hints.items() if get_origin(h) is not NotRequired
    }
    assert set(data["properties"]["status"]["enum"]) == set(RunStatus)


def test_every_event_type_is_explained():
    explained = text("events.md")
    for name in EVENT_TYPES:
        assert f"`{name}`" in explained or f"`{name.removeprefix('thread.run.')}`" in explained


def test_links_between_documents_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def commands_in(page: str) -> list[str]:
    """Every `runbell …` that a page tells to run, one line each."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page, re.MULTILINE | re.DOTALL)
    lines = re.sub(r"\\\n", " ", "".join(blocks)).splitlines()
    told = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
    return [
        command.strip()
        for line in told
        for part in re.split(r"&&|\||;", line)
        for command in re.findall(r"^\s*(?:\S*/)?runbell (.*)", part)
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_that_a_page_tells_can_be_run(page: Path) -> None:
    """It is parsed as when it is run: commands, options and what they take."""
    for command in commands_in(page.read_text()):
        parse(shlex.split(command, comments=True))


def test_the_pages_tell_commands():
    assert len([each for page in PAGES for each in commands_in(page.read_text())]) > 30


def test_the_receivers_options_are_documented():
    rows = [
        f"| `{item.name}` | `{item.default}` | {item.metadata['help']} |"
        for item in dataclasses.fields(Options)
    ]
    section = text("receiving.md").partition("## Options")[2].partition("\n## ")[0]
    assert [line for line in section.splitlines() if line.startswith("| `")] == rows


def test_the_receivers_numbers_and_reasons_are_documented():
    page = Numbers().page("", Load(0, None, 0), 0).body.decode()
    there = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(page)
    }
    table = [line for line in text("receiving.md").splitlines() if line.startswith("| `runbell_")]
    assert {re.findall(r"`(runbell_\w+)", line)[0] for line in table} == there
    answers = text("receiving.md").partition("### Retries")[2].partition("\n### ")[0]
    # Whoever has left is told nothing.
    assert set(REASONS) - {"cut_off"} == set(re.findall(r"`([a-z_]+)`", answers))


def test_every_number_is_documented_and_none_that_is_not_there():
    numbers = Metrics()
    numbers.answered("GET", "/v1/models", 200, 0.1)
    page = numbers.page("", Backlog({"queued": 0}, {"run": Due(0, 0.0)})).body.decode()
    there = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in text_string_to_metric_families(page)
        if family.name.startswith("runbell_")
    }
    table = [line for line in text("operations.md").splitlines() if line.startswith("| `runbell_")]
    documented = {
        name for line in table for name in re.findall(r"`(runbell_\w+)", line.split("|")[1])
    }
    assert documented == there
