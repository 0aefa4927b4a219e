"""`runbell assistants`: move assistants in, with the ids that programs know them by, and out.

The file is what OpenAI's list endpoint gave, in any of the ways in which people keep that: a list
object, several pages one after another, a bare array, one assistant, or JSON lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from runbell.cli.client import ApiKey, BaseUrl, connect, sentence
from runbell.errors import ConfigurationError, RunbellError

if TYPE_CHECKING:
    from openai import APIStatusError, OpenAI

__all__ = ["AssistantFile", "Entry", "app", "parse"]

READ_ONLY = ("object", "created_at")
"""Fields of an assistant that a service answers and does not accept."""

OF_THIS_ASSISTANT = (400, 404, 409, 413, 422)
"""Statuses that say something about one assistant, so that the next may well succeed."""

PAGE = 100

Existing = Literal["fail", "skip", "update"]

app = typer.Typer(help="Move assistants in and out, with their ids.", no_args_is_help=True)


@dataclass(frozen=True)
class Entry:
    """One assistant of a file: the line where it stands, its age, and the fields to send."""

    line: int
    created_at: int | None
    fields: dict[str, Any]

    def __str__(self) -> str:
        place = f"line {self.line}"
        return f"{self.fields['id']} ({place})" if "id" in self.fields else place


@dataclass(frozen=True)
class AssistantFile:
    """A whole file, oldest first; not `complete` if its last page says that there are more."""

    entries: tuple[Entry, ...]
    complete: bool


@app.command("import")
def import_assistants(
    file: Annotated[
        typer.FileBinaryRead,
        typer.Argument(
            metavar="FILE", help="A list object, an array, or JSON lines; '-' reads stdin."
        ),
    ],
    existing: Annotated[
        Existing, typer.Option(help="What to do with an assistant whose id is taken.")
    ] = "fail",
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Create the assistants of FILE, with the ids that they have there.

    Nothing is sent unless the whole file can be read. An assistant that the service refuses does
    not stop the others; the exit code is then 1. `--existing update` sets the fields that the file
    has, and leaves the others of the assistant as they are.
    """
    content = parse(_decode(file.read()))
    if not content.complete:
        typer.echo("the file is one page of several: its list says has_more", err=True)
    done: Counter[str] = Counter()
    try:
        with connect(base_url, api_key) as client:
            for entry in content.entries:
                done[_import_one(client, entry, existing)] += 1
    finally:
        # Also when the service went away: what is done is done.
        typer.echo(_summary(len(content.entries), done))
    if done["failed"]:
        raise typer.Exit(1)


@app.command("export")
def export_assistants(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")
    ] = None,
    base_url: BaseUrl = None,
    api_key: ApiKey = None,
) -> None:
    """Write all assistants, oldest first, as a list object that `import` reads."""
    with connect(base_url, api_key) as client:
        assistants = list(_all_assistants(client))
    document = {
        "object": "list",
        "data": assistants,
        "first_id": assistants[0]["id"] if assistants else None,
        "last_id": assistants[-1]["id"] if assistants else None,
        "has_more": False,
    }
    # Keys stay in the service's order: models read the properties of a function in theirs.
    text = json.dumps(document, ensure_ascii=False, indent=2) + "\n"
    if output is None:
        typer.get_binary_stream("stdout").write(text.encode())
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {output}: {error.strerror}") from error


def parse(text: str) -> AssistantFile:
    """Read every assistant of a file, or none.

    Raises:
        ConfigurationError: the text is not JSON, or holds something that is not an assistant; the
            message names the line.
    """
    entries: list[Entry] = []
    complete = True
    for start, document in _documents(text):
        items = document
        if isinstance(document, dict):
            is_list = document.get("object") == "list" or "data" in document
            items = document.get("data") if is_list else [document]
            complete = not (is_list and document.get("has_more"))
        if not isinstance(items, list):
            raise _unreadable(_line(text, start), "this is neither an assistant nor a list of them")
        position = start
        for item in items:
            position = _position(text, item, position)
            entries.append(_entry(_line(text, position), item))
    return AssistantFile(_oldest_first(entries), complete)


def _oldest_first(entries: list[Entry]) -> tuple[Entry, ...]:
    """In the order in which to create them, so that lists here have the order that they had."""
    if any(entry.created_at is None for entry in entries):
        return tuple(entries)
    if entries and (entries[0].created_at or 0) > (entries[-1].created_at or 0):
        # Newest first, as lists are by default: so are those of the same second.
        entries.reverse()
    return tuple(sorted(entries, key=lambda entry: entry.created_at or 0))


def _documents(text: str) -> Iterator[tuple[int, Any]]:
    """The JSON values that stand one after another in a text, and where each begins."""
    decoder = json.JSONDecoder(parse_constant=_refuse_constant)
    end = _skip_space(text, 0)
    while end < len(text):
        start = end
        try:
            document, end = decoder.raw_decode(text, start)
        except json.JSONDecodeError as error:
            # A text that breaks off does so where it ends, not in an empty line behind that.
            line = _line(text, min(error.pos, len(text.rstrip())))
            raise _unreadable(line, f"not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise _unreadable(_line(text, start), f"not JSON that can be sent: {error}") from error
        yield start, document
        end = _skip_space(text, end)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _entry(line: int, item: Any) -> Entry:
    if not isinstance(item, dict) or item.get("object", "assistant") != "assistant":
        kind = item.get("object") if isinstance(item, dict) else type(item).__name__
        raise _unreadable(line, f"an assistant must stand here, not {kind!r}")
    fields = {
        name: value for name, value in item.items() if value is not None and name not in READ_ONLY
    }
    if not isinstance(fields.get("id", ""), str):
        raise _unreadable(line, "the id of an assistant must be a string")
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise _unreadable(line, "half of a surrogate pair is no text that can be sent") from error
    created_at = item.get("created_at")
    return Entry(line, created_at if isinstance(created_at, int) else None, fields)


def _position(text: str, item: Any, after: int) -> int:
    """Where an assistant's id stands: the JSON decoder does not tell where a value began."""
    if not isinstance(item, dict) or not isinstance(item.get("id"), str):
        return after
    found = re.compile(rf'"id"\s*:\s*{re.escape(json.dumps(item["id"]))}').search(text, after)
    return found.start() if found else after


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1


def _unreadable(line: int, problem: str) -> ConfigurationError:
    return ConfigurationError(f"line {line}: {problem}; nothing was imported")


def _decode(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _unreadable(line, "not UTF-8 text") from error


def _import_one(client: OpenAI, entry: Entry, existing: Existing) -> str:
    """Send one assistant, and say in one word what became of it."""
    from openai import APIStatusError

    try:
        try:
            created = client.post("/assistants", body=entry.fields, cast_to=object)
        except APIStatusError as error:
            if error.status_code != 409 or existing == "fail":
                raise
            return "skipped" if existing == "skip" else _update(client, entry)
    except APIStatusError as error:
        if error.status_code not in OF_THIS_ASSISTANT:
            raise
        typer.echo(f"{entry}: {_advice(error)}", err=True)
        return "failed"
    if "id" not in entry.fields and isinstance(created, dict):
        typer.echo(f"{entry}: has no id; it is {created.get('id')} now")
    return "imported"


def _update(client: OpenAI, entry: Entry) -> str:
    fields = {name: value for name, value in entry.fields.items() if name != "id"}
    client.post(f"/assistants/{quote(entry.fields['id'], safe='')}", body=fields, cast_to=object)
    return "updated"


def _advice(error: APIStatusError) -> str:
    if error.status_code == 409:
        return f"{sentence(error)} --existing skip keeps it, --existing update overwrites it."
    return sentence(error)


def _summary(total: int, done: Counter[str]) -> str:
    done["not sent"] = total - done.total()
    words = ("imported", "updated", "skipped", "failed", "not sent")
    parts = [f"{done[word]} {word}" for word in words if done[word]]
    return f"{total} {'assistant' if total == 1 else 'assistants'}: {', '.join(parts) or 'done'}"


def _all_assistants(client: OpenAI) -> Iterator[dict[str, Any]]:
    """Every assistant as the service wrote it, so that nothing is lost in a type of the SDK."""
    query: dict[str, Any] = {"order": "asc", "limit": PAGE}
    while True:
        page = client.get("/assistants", cast_to=object, options={"params": query})
        if not isinstance(page, dict) or not isinstance(page.get("data"), list):
            raise RunbellError(f"{client.base_url} sent something that is no list of assistants")
        yield from page["data"]
        if not page.get("has_more"):
            return
        query["after"] = page["data"][-1]["id"]
