"""An answer, held against the document: its status, its headers, and every field of its body.

Objects are taken as closed here, although a client has to expect new fields: what the service
answers and the document does not know is a mistake of one of them.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from runbell.service.openapi.document import STREAM_EVENTS, document
from tests.served import Answer

__all__ = ["conforms", "frames", "matches", "operation_of"]

NO_API = ("/", "/docs", "/healthz", "/readyz", "/metrics")
"""What operators and browsers ask for; it has no place in the document."""

UNDOCUMENTED = {"date", "content-type", "content-length", "transfer-encoding", "connection"}
"""Headers of every HTTP answer."""

OF_STREAMS = {"cache-control", "x-accel-buffering"}


def conforms(answer: Answer) -> None:
    """Assert that the document describes this answer; where it has no such path, an error."""
    if answer.path.partition("?")[0] in NO_API:
        return
    operation = operation_of(answer.method, answer.path)
    if operation is None:
        assert answer.status in (401, 404, 405, 429), answer
        response = document()["components"]["responses"][str(answer.status)]
    else:
        assert str(answer.status) in operation["responses"], answer
        response = resolved(operation["responses"][str(answer.status)])
    _headers(answer, response)
    if "content" not in response:
        assert answer.body == b"", answer
        return
    kind = answer.headers["content-type"].partition(";")[0]
    item = response["content"][kind]
    if kind == "text/event-stream":
        _stream(answer, item)
    else:
        matches(answer.json(), item["schema"])


def operation_of(method: str, path: str) -> dict[str, Any] | None:
    """The operation that a request is of."""
    path = re.sub(r"^/openai(/v1)?/", "/v1/", path.partition("?")[0])
    for pattern, item in _paths():
        if pattern.fullmatch(path):
            found: dict[str, Any] | None = item.get(method.lower())
            return found
    return None


def resolved(item: dict[str, Any]) -> dict[str, Any]:
    """What a reference stands for."""
    found: Any = item
    if "$ref" in item:
        found = document()
        for name in item["$ref"].removeprefix("#/").split("/"):
            found = found[name]
    return dict(found)


def matches(value: Any, schema: dict[str, Any]) -> None:
    """Assert that a value is of a schema of the document."""
    error = jsonschema.exceptions.best_match(_validator(json.dumps(schema)).iter_errors(value))
    assert error is None, f"{error.json_path}: {error.message[:500]}"


@cache
def _validator(schema: str) -> Any:
    root = {**json.loads(schema), "components": {"schemas": _closed()}}
    return jsonschema.Draft202012Validator(root)


@cache
def _paths() -> list[tuple[re.Pattern[str], dict[str, Any]]]:
    found = []
    # A fixed word goes before a parameter: /threads/runs is not the thread "runs".
    for path in sorted(document()["paths"], key=lambda path: path.replace("{", "\x7f")):
        pattern = path.replace("{model}", "(.+)")
        found.append((re.compile(re.sub(r"{\w+}", "([^/]+)", pattern)), document()["paths"][path]))
    return found


@cache
def _closed() -> dict[str, Any]:
    schemas: dict[str, Any] = copy.deepcopy(document()["components"]["schemas"])
    for schema in schemas.values():
        if "properties" in schema:
            schema["additionalProperties"] = False
    return schemas


def _headers(answer: Answer, response: dict[str, Any]) -> None:
    described = {name: resolved(header) for name, header in response["headers"].items()}
    for name, header in described.items():
        if name in answer.headers:
            value: Any = answer.headers[name]
            if header["schema"].get("type") == "integer":
                value = int(value)
            matches(value, header["schema"])
        else:
            assert not header["required"], f"{name} is not there: {answer}"
    unknown = set(answer.headers) - set(described) - UNDOCUMENTED
    if answer.headers.get("content-type", "").startswith("text/event-stream"):
        unknown -= OF_STREAMS
    assert not unknown, f"undocumented: {unknown}"


def _stream(answer: Answer, item: dict[str, Any]) -> None:
    events = item[STREAM_EVENTS]
    for name, data in frames(answer.body.decode()):
        if (name, data) != ("done", "[DONE]"):
            matches(json.loads(data), events[name])


def frames(text: str) -> Iterator[tuple[str, str]]:
    """The names and data of the events of a stream."""
    for block in text.split("\n\n"):
        fields = dict(
            line.split(": ", 1) for line in block.split("\n") if line[:1] not in ("", ":")
        )
        # An id alone is where a feed begins.
        if set(fields) - {"id"}:
            yield fields["event"], fields["data"]
