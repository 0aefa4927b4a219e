"""The page that shows the document to a reader: plain HTML, without a script.

It loads nothing, from here or from elsewhere: one file that can be saved and read anywhere. It
shows what the document says and knows nothing else, so it needs no change when routes do.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from typing import Any

from runbell.service.openapi.document import STREAM_EVENTS
from runbell.service.openapi.kinds import kind
from runbell.service.wire.annotations import EXTENSION, UNSUPPORTED_MARK

__all__ = ["CONTENT_POLICY", "page"]

Json = Mapping[str, Any]

_STYLE = resources.files(__package__).joinpath("page.css").read_text()
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

CONTENT_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""What the page may do: show itself, in this one style."""

_METHODS = ("get", "post", "delete")
_MORE = ("everywhere", "errors", "schemas")


def page(document: Json) -> str:
    """The page for a document."""
    info = document["info"]
    title = escape(info["title"])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{title} API</title><link rel="icon" href="data:,">'
        f"<style>{_STYLE}</style></head>\n<body>"
        '<a class="skip" href="#main">To the contents</a><div class="layout">'
        f'{_navigation(document)}\n<main id="main"><h1>{title} API '
        f"<small>{escape(info['version'])}</small></h1>{_text(info['description'])}"
        '<p><a href="openapi.json">openapi.json</a> is this document for programs.</p>'
        f"{_everywhere(document)}{_operations(document)}{_errors(document)}{_schemas(document)}"
        "</main></div></body></html>\n"
    )


def _navigation(document: Json) -> str:
    groups = []
    for tag in document["tags"]:
        links = "".join(
            f'<li><a href="#{operation["operationId"]}">{escape(operation["summary"])}'
            f"{_mark(operation)}</a></li>"
            for _, _, operation in _of_tag(document, tag["name"])
        )
        groups.append(f'<div class="group">{escape(tag["name"])}</div><ul>{links}</ul>')
    more = "".join(f'<li><a href="#{place}">{place}</a></li>' for place in _MORE)
    contents = f'{"".join(groups)}<div class="group">more</div><ul class="more">{more}</ul>'
    # Twice, since a list that is folded on a phone cannot be unfolded by a style on a desk.
    return (
        f'<nav aria-label="Contents"><div class="desk">{contents}</div>'
        f'<details class="phone"><summary>Contents</summary>{contents}</details></nav>'
    )


def _everywhere(document: Json) -> str:
    """What holds for every operation."""
    components = document["components"]
    ways = {
        "http": "<code>Authorization: Bearer KEY</code>",
        "apiKey": "<code>{name}: KEY</code>",
    }
    keys = [
        _row(ways[scheme["type"]].format(**scheme), _inline(scheme["description"]))
        for scheme in components["securitySchemes"].values()
    ]
    where = [
        _row(f"<code>{escape(server['url'])}</code>", _inline(server["description"]))
        for server in document["servers"]
    ]
    parameters = [_parameter(each) for each in components["parameters"].values()]
    headers = [_header(name, each) for name, each in components["headers"].items()]
    return (
        '<section id="everywhere"><h2>Everywhere</h2>'
        + "".join(
            _list(title, rows)
            for title, rows in (
                ("A request carries one key, in either way", keys),
                ("Paths begin with", where),
                ("Parameters of many requests", parameters),
                ("Headers of every answer", headers),
            )
        )
        + "</section>"
    )


# Operations.


def _of_tag(document: Json, tag: str) -> Iterable[tuple[str, str, Json]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item and tag in item[method]["tags"]:
                yield path, method, item[method]


def _operations(document: Json) -> str:
    sections = []
    for tag in document["tags"]:
        articles = (
            _operation(document, path, method, operation)
            for path, method, operation in _of_tag(document, tag["name"])
        )
        sections.append(
            f"<section><h2>{escape(tag['name'])}</h2>{_text(tag['description'])}"
            f"{''.join(articles)}</section>"
        )
    return "".join(sections)


def _operation(document: Json, path: str, method: str, operation: Json) -> str:
    parameters = [*document["paths"][path]["parameters"], *operation.get("parameters", [])]
    rows = [_parameter(each) for each in parameters if "$ref" not in each]
    body = operation.get("requestBody")
    return (
        f'<article id="{operation["operationId"]}"><h3>{escape(operation["summary"])}'
        f'{_mark(operation)}</h3><div class="call"><span class="method {method}">'
        f"{method.upper()}</span><code>{escape(path)}</code></div>"
        f"{_text(operation.get('description', ''))}"
        f"{_list('Parameters', rows)}"
        f"{_request(document, body) if body else ''}"
        f"{_answers(document, operation)}</article>"
    )


def _parameter(parameter: Json) -> str:
    need = "required, " if parameter["required"] else ""
    name = f"<code>{escape(parameter['name'])}</code>{_mark(parameter)}"
    return _row(
        f'{name}<span class="need">{need}{parameter["in"]}</span>',
        f'<div class="type">{kind(parameter["schema"])}</div>{_text(parameter["description"])}',
    )


def _request(document: Json, body: Json) -> str:
    """A request's body, with its fields: they are what a caller looks for."""
    (item,) = body["content"].values()
    return f"{_content('Request', body['content'])}{_fields(_resolved(document, item['schema']))}"


def _header(name: str, header: Json) -> str:
    return _row(
        f"<code>{escape(name)}</code>{_mark(header)}",
        f'<div class="type">{kind(header["schema"])}</div>{_text(header["description"])}',
    )


def _answers(document: Json, operation: Json) -> str:
    done: Json = operation["responses"]["200"]
    headers = [
        _header(name, header) for name, header in done["headers"].items() if "$ref" not in header
    ]
    others = []
    for status, response in operation["responses"].items():
        if status == "200":
            continue
        target = "errors" if "$ref" in response else operation["operationId"]
        meaning = _resolved(document, response)["description"]
        others.append(f'<a href="#{target}" title="{escape(meaning)}">{status}</a>')
    return (
        f"{_content('Answer', done['content'])}"
        f"{_list('Headers of the answer', headers)}"
        f"<h4>Else</h4><p>{' · '.join(others)}</p>"
    )


def _content(title: str, content: Json) -> str:
    parts = []
    for media, item in content.items():
        parts.append(f"<h4>{title} · {escape(media)}</h4>")
        events = item.get(STREAM_EVENTS)
        if events is None:
            parts.append(f'<div class="type">{kind(item["schema"])}</div>')
        else:
            rows = (
                _row(f"<code>{escape(name)}</code>", f'<span class="type">{kind(schema)}</span>')
                for name, schema in events.items()
            )
            parts.append(
                f'{_text(item["schema"]["description"])}<details class="example">'
                f"<summary>Events</summary><dl>{''.join(rows)}</dl></details>"
            )
        parts += [_example(value) for value in _examples(item)]
    return "".join(parts)


def _examples(item: Json) -> list[Any]:
    several = item.get("examples")
    if several is not None:
        return [each["value"] for each in several.values()]
    return [item["example"]] if "example" in item else []


def _example(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    return (
        f'<details class="example"><summary>Example</summary><pre tabindex="0">{escape(text)}</pre>'
        "</details>"
    )


# Errors and schemas.


def _errors(document: Json) -> str:
    rows = []
    for status, response in document["components"]["responses"].items():
        (item,) = response["content"].values()
        sentence = item["example"]["error"]["message"]
        headers = ", ".join(
            f"<code>{escape(name)}</code>"
            for name, header in response["headers"].items()
            if "$ref" not in header
        )
        rows.append(
            _row(
                f"<code>{status}</code>",
                f'{_text(response["description"])}<p class="type">“{_inline(sentence)}”</p>'
                f"{f'<div class=type>With {headers}</div>' if headers else ''}",
            )
        )
    return (
        '<section id="errors"><h2>Errors</h2><p>Each has the body of <a href="#ErrorBody">'
        f"ErrorBody</a>.</p><dl>{''.join(rows)}</dl></section>"
    )


def _schemas(document: Json) -> str:
    return (
        '<section id="schemas"><h2>Schemas</h2>'
        + "".join(
            _schema(name, schema) for name, schema in document["components"]["schemas"].items()
        )
        + "</section>"
    )


def _schema(name: str, schema: Json) -> str:
    shape = _fields(schema) or f'<div class="type">{kind(schema)}</div>'
    return (
        f'<article id="{name}"><h3><code>{name}</code>{_mark(schema)}</h3>'
        f"{_text(schema.get('description', ''))}{shape}</article>"
    )


def _fields(schema: Json) -> str:
    fields = schema.get("properties", {})
    required = set(schema.get("required", ()))
    # Of an answer all are, which goes without saying.
    needed = required if required != set(fields) else ()
    closed = schema.get("additionalProperties") is False
    rows = "".join(
        _row(
            f"<code>{escape(field)}</code>{_mark(item)}"
            + ('<span class="need">required</span>' if field in needed else ""),
            f'<div class="type">{kind(item)}</div>{_text(item.get("description", ""))}',
        )
        for field, item in fields.items()
    )
    return f"<dl>{rows}</dl>{'<p>Other fields are refused.</p>' if closed else ''}" if rows else ""


# Words.


def _resolved(document: Json, item: Json) -> Json:
    found: Any = item
    if "$ref" in found:
        place = found["$ref"].removeprefix("#/").split("/")
        found = document
        for name in place:
            found = found[name]
    resolved: Json = found
    return resolved


def _mark(item: Json) -> str:
    if item.get(EXTENSION):
        return ' <span class="mark" title="An extension: OpenAI\'s API has it not">Runbell</span>'
    if item.get(UNSUPPORTED_MARK):
        return ' <span class="mark not">refused</span>'
    return ""


def _list(title: str, rows: Iterable[str]) -> str:
    inner = "".join(rows)
    return f"<h4>{title}</h4><dl>{inner}</dl>" if inner else ""


def _row(term: str, meaning: str) -> str:
    return f"<div><dt>{term}</dt><dd>{meaning}</dd></div>"


def _text(text: str) -> str:
    return "".join(f"<p>{_inline(part)}</p>" for part in text.split("\n\n") if part.strip())


def _inline(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text.strip()))
