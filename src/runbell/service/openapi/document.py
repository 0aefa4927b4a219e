"""The OpenAPI document: from the table of routes, and the types that they name."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import msgspec

from runbell import __version__
from runbell.service.openapi.examples import IDS, REFUSALS, Example, examples
from runbell.service.openapi.schemas import Schema, Schemas
from runbell.service.routes import ROUTES, Route
from runbell.service.wire.annotations import EXTENSION, UNSUPPORTED_MARK
from runbell.service.wire.objects import ErrorBody, encode, error_body
from runbell.service.wire.parameters import (
    AFTER,
    API_VERSION,
    IDEMPOTENCY_KEY,
    IF_NONE_MATCH,
    PROCESSING_MS,
    RATE_LIMITS,
    REPLAYED,
    REQUEST_ID,
    RETRY_AFTER,
    RETRY_AFTER_MS,
    SHOULD_RETRY,
    Header,
    Parameter,
)

__all__ = ["STREAM_EVENTS", "document"]

STREAM_EVENTS = "x-runbell-events"
"""Of a stream: its events, with the schemas of their data."""

_SHARED = (API_VERSION, IDEMPOTENCY_KEY)
"""Parameters that many operations have: described once."""

_JSON = "application/json"
_EVENT_STREAM = "text/event-stream"
_ALWAYS = (REQUEST_ID, PROCESSING_MS, *RATE_LIMITS)

_ABOUT = f"""\
Runs that are accepted at once and finish later: the Assistants API v2 as OpenAI's service spoke
it, and what Runbell adds to it, marked `{EXTENSION}`.

Stock SDKs work by their `base_url` alone. What is not supported is refused with a 400 that names
it; `{UNSUPPORTED_MARK}` marks fields that are known and always refused. A field of a request that
is null is absent. Unknown fields are refused where `additionalProperties` is false, unknown
parameters of a query everywhere.
"""

_ERRORS: dict[int, tuple[str, tuple[Header, ...]]] = {
    400: ("The request is wrong, or is not possible now.", ()),
    401: ("There is no key, or none that opens anything.", ()),
    404: ("It is not there, or it is another project's.", ()),
    405: (
        "The path has no such method.",
        (Header("allow", str, "The methods that it has.", "GET, POST", always=True),),
    ),
    408: ("The request's body did not arrive in time.", ()),
    409: ("It contradicts what is there already.", (SHOULD_RETRY,)),
    413: ("The request's body is larger than the service's `--max-body`.", ()),
    415: ("The request's body is compressed.", ()),
    424: ("Somebody else, who has to be asked for this, gave no answer.", ()),
    429: ("The key's limit of requests is reached.", (RETRY_AFTER, RETRY_AFTER_MS)),
    500: ("Something is broken here; the log knows it by the request's id.", ()),
    503: (
        "The database can't be used; nothing was changed, if it says nothing else.",
        (RETRY_AFTER, replace(SHOULD_RETRY, always=False)),
    ),
}
"""Error answers by status: what it means, and its headers."""

_EVERYWHERE = (400, 401, 429, 500, 503)
_WITH_A_BODY = (408, 413, 415)


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of all routes; made when it is first asked for."""
    return _Document(ROUTES).build()


class _Document:
    def __init__(self, routes: Sequence[Route]) -> None:
        self._routes = routes
        self._schemas = Schemas(_requests(routes), _answers(routes))

    def build(self) -> dict[str, Any]:
        return {
            "openapi": "3.1.0",
            "info": {
                "title": "Runbell",
                "summary": "A run service that speaks the Assistants API.",
                "description": _ABOUT,
                "version": __version__,
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "servers": [
                {"url": "/", "description": "This service: `/v1/…`."},
                {"url": "/openai", "description": "The same for Azure's clients: `/openai/…`."},
            ],
            "security": [{"bearer": []}, {"api-key": []}],
            "tags": _tags(self._routes),
            "paths": self._paths(),
            "components": {
                "schemas": self._schemas.components,
                "responses": {str(status): self._error(status) for status in _ERRORS},
                "parameters": {each.name: self._parameter(each) for each in _SHARED},
                "headers": {header.name: self._header(header) for header in _ALWAYS},
                "securitySchemes": {
                    "bearer": {"type": "http", "scheme": "bearer", "description": "As OpenAI's."},
                    "api-key": {
                        "type": "apiKey",
                        "in": "header",
                        "name": "api-key",
                        "description": "As Azure's.",
                    },
                },
            },
        }

    def _paths(self) -> dict[str, Any]:
        paths: dict[str, Any] = {}
        for route in sorted(self._routes, key=_place):
            path = _path(route)
            if path not in paths:
                named = [_path_parameter(name) for name in _named(route)]
                paths[path] = {"parameters": [*named, _shared(API_VERSION)]}
            paths[path][route.method.lower()] = self._operation(route)
        return paths

    def _operation(self, route: Route) -> dict[str, Any]:
        example = examples().get(route.operation, Example(()))
        operation: dict[str, Any] = {
            "operationId": route.operation,
            "summary": route.summary,
            "tags": [_tag(route)],
        }
        if route.about:
            operation["description"] = route.about
        if route.ours:
            operation[EXTENSION] = True
        parameters = [self._parameter(each) for each in route.parameters]
        if route.method == "POST":
            parameters.append(_shared(IDEMPOTENCY_KEY))
        if parameters:
            operation["parameters"] = parameters
        if route.body is not None:
            schema = self._schemas.of(route.body)
            operation["requestBody"] = {
                "required": "required" in self._schemas.components[route.body.__name__],
                "content": {_JSON: {"schema": schema, **_examples([example.body])}},
            }
        operation["responses"] = self._responses(route, example)
        return operation

    def _responses(self, route: Route, example: Example) -> dict[str, Any]:
        said = (*route.headers, REPLAYED) if route.method == "POST" else route.headers
        headers = {header.name: self._header(header) for header in said}
        content: dict[str, Any] = {
            _JSON: {
                "schema": self._schemas.of(*_several(route.answer)),
                **_examples(example.answers),
            }
        }
        if route.stream is not None:
            content[_EVENT_STREAM] = self._stream(route.stream, example)
        responses: dict[str, Any] = {
            "200": {"description": "Done.", "headers": {**_usual(), **headers}, "content": content}
        }
        if IF_NONE_MATCH in route.parameters:
            responses["304"] = {
                "description": "It is what you have.",
                "headers": {**_usual(), **headers},
            }
        for status in _refused(route):
            responses[str(status)] = {"$ref": f"#/components/responses/{status}"}
        return responses

    def _stream(self, events: Any, example: Example) -> dict[str, Any]:
        return {
            "schema": {
                "type": "string",
                "description": "Server-sent events: `event` is one of those listed, `data` its "
                "object as JSON, on one line.",
            },
            STREAM_EVENTS: {name: self._schemas.of(kind) for name, kind in events.items()},
            **_examples([example.stream]),
        }

    def _parameter(self, parameter: Parameter) -> dict[str, Any]:
        schema = self._schemas.of(parameter.type)
        if parameter.default is not None:
            schema["default"] = parameter.default
        about = parameter.about
        if parameter.commas:
            about += " Repeated, or separated by commas."
        found: dict[str, Any] = {
            "name": parameter.name,
            "in": parameter.place,
            "required": False,
            "description": about,
            "schema": schema,
        }
        if parameter.example is not None:
            found["example"] = parameter.example
        if parameter.ours:
            found[EXTENSION] = True
        return found

    def _header(self, header: Header) -> dict[str, Any]:
        found: dict[str, Any] = {
            "description": header.about,
            "required": header.always,
            "schema": self._schemas.of(header.type),
            "example": header.example,
        }
        if header.ours:
            found[EXTENSION] = True
        return found

    def _error(self, status: int) -> dict[str, Any]:
        meaning, headers = _ERRORS[status]
        return {
            "description": meaning,
            "headers": {**_usual(), **{header.name: self._header(header) for header in headers}},
            "content": {
                _JSON: {
                    "schema": self._schemas.of(ErrorBody),
                    **_examples([error_body(REFUSALS[status])]),
                }
            },
        }


# What the schemas are made of.


def _requests(routes: Iterable[Route]) -> list[Any]:
    bodies = [route.body for route in routes if route.body is not None]
    parameters = [each.type for route in routes for each in (*route.parameters, *_SHARED)]
    return [*bodies, *parameters]


def _answers(routes: Iterable[Route]) -> list[Any]:
    kinds: list[Any] = [ErrorBody]
    headers = [header for _, special in _ERRORS.values() for header in special]
    for route in routes:
        kinds += _several(route.answer)
        kinds += (route.stream or {}).values()
        headers += route.headers
    return [*kinds, *(header.type for header in (*headers, *_ALWAYS, REPLAYED))]


def _several(answer: Any) -> tuple[Any, ...]:
    return answer if isinstance(answer, tuple) else (answer,)


# What follows from a route.


def _path(route: Route) -> str:
    return re.sub(r":\w+}", "}", route.path)


def _named(route: Route) -> list[str]:
    return re.findall(r"{(\w+)", route.path)


def _place(route: Route) -> tuple[Any, ...]:
    """In the order of the tags, then of the paths; of one path, GET first."""
    tags = list(dict.fromkeys(_tag(each) for each in ROUTES))
    methods = ("GET", "POST", "DELETE")
    return tags.index(_tag(route)), route.path, methods.index(route.method)


def _tag(route: Route) -> str:
    return route.handle.__module__.rpartition(".")[2]


def _tags(routes: Sequence[Route]) -> list[dict[str, str]]:
    """A tag for each module of routes, which says itself what it is about."""
    tags: dict[str, str] = {}
    for route in routes:
        said = sys.modules[route.handle.__module__].__doc__ or ""
        tags[_tag(route)] = said.partition("\n")[0].removeprefix("Routes: ").capitalize()
    return [{"name": name, "description": about} for name, about in tags.items()]


def _refused(route: Route) -> list[int]:
    """The statuses of the errors that a route can be answered with."""
    found = {*_EVERYWHERE, *route.refuses}
    if _named(route) or AFTER in route.parameters:
        found.add(404)
    if route.body is not None:
        found.update(_WITH_A_BODY)
    if route.method == "POST":
        found.add(409)
    return sorted(found)


def _path_parameter(name: str) -> Schema:
    words = name.removesuffix("_id")
    about = "The model's name." if name == words else f"The {words}'s id."
    return {
        "name": name,
        "in": "path",
        "required": True,
        "description": about,
        "schema": {"type": "string", "minLength": 1},
        "example": IDS[name],
    }


def _shared(parameter: Parameter) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{parameter.name}"}


def _usual() -> dict[str, Any]:
    return {header.name: {"$ref": f"#/components/headers/{header.name}"} for header in _ALWAYS}


def _examples(values: Iterable[Any]) -> dict[str, Any]:
    # By way of JSON: only then are the values plain ones, with lists for tuples.
    found = [msgspec.json.decode(encode(value)) for value in values if value is not None]
    match found:
        case []:
            return {}
        case [only]:
            return {"example": only}
    return {"examples": {f"{number}": {"value": each} for number, each in enumerate(found, 1)}}
