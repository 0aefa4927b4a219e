"""The document is valid, whole, and says nothing that the decoders do not do."""

import json
import re

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from runbell.errors import RequestRefused
from runbell.service.openapi.document import document
from runbell.service.openapi.examples import examples
from runbell.service.routes import ROUTES
from runbell.service.wire.annotations import EXTENSION, UNSUPPORTED_MARK
from runbell.service.wire.decode import decode
from runbell.service.wire.parameters import API_VERSION
from tests.openapi.conformance import frames, matches

OPERATIONS = {
    (method.upper(), path): operation
    for path, item in document()["paths"].items()
    for method, operation in item.items()
    if method != "parameters"
}
BY_ROUTE = [(route, OPERATIONS[route.method, route.path.replace(":path", "")]) for route in ROUTES]


def name_of(value):
    return getattr(value, "operation", "") or None


def test_the_document_is_valid():
    assert list(OpenAPIV31SpecValidator(document()).iter_errors()) == []


def test_it_has_every_route_and_nothing_else():
    assert set(OPERATIONS) == {(route.method, route.path.replace(":path", "")) for route in ROUTES}


def test_every_operation_has_a_name_of_its_own_and_says_what_it_does():
    names = [operation["operationId"] for operation in OPERATIONS.values()]
    assert len(set(names)) == len(ROUTES)
    assert set(names) == set(examples())
    for operation in OPERATIONS.values():
        assert re.fullmatch("[a-z]+[A-Za-z]+", operation["operationId"])
        assert operation["summary"]
        assert len(operation["tags"]) == 1


def test_every_schema_is_used():
    text = json.dumps(document())
    for name in document()["components"]["schemas"]:
        assert f'"#/components/schemas/{name}"' in text, name


# Examples.


def every_example():
    for (method, path), operation in OPERATIONS.items():
        contents = [("answer", operation["responses"]["200"]["content"])]
        if "requestBody" in operation:
            contents.append(("request", operation["requestBody"]["content"]))
        for which, content in contents:
            for media, item in content.items():
                several = item.get("examples")
                values = [each["value"] for each in several.values()] if several else []
                for value in values or [item["example"]]:
                    yield pytest.param(item, media, value, id=f"{method} {path} {which} {media}")


@pytest.mark.parametrize(("item", "media", "value"), list(every_example()))
def test_an_example_is_of_its_schema(item, media, value):
    if media == "text/event-stream":
        told = list(frames(value))
        assert told
        for name, data in told:
            if name != "done":
                matches(json.loads(data), item["x-runbell-events"][name])
    else:
        matches(value, item["schema"])


@pytest.mark.parametrize(
    "route", [route for route in ROUTES if route.body is not None], ids=name_of
)
def test_an_example_of_a_request_is_decoded(route):
    decode(json.dumps(examples()[route.operation].body).encode(), route.body)


@pytest.mark.parametrize("status", document()["components"]["responses"])
def test_an_example_of_an_error_is_of_its_schema(status):
    (item,) = document()["components"]["responses"][status]["content"].values()
    matches(item["example"], item["schema"])


# Parameters.

VALUES = {
    "limit": "5",
    "order": "asc",
    "after": "x",
    "before": "x",
    "run_id": "x",
    "include": "step_details.tool_calls[*].file_search.results[*].content",
    "types": "thread.run.*",
    "ids": "run_1,run_2",
    "status": "failed",
    "created_before": "17",
    "created_after": "17",
    "api-version": "2024-05-01-preview",
}


def accepts(route, name, value):
    try:
        route.query([(name, value)])
    except RequestRefused:
        return False
    return True


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_route_decodes_the_parameters_that_it_names_and_no_others(route):
    named = {each.name for each in route.parameters if each.place == "query"}
    assert named <= set(VALUES)
    decoded = {name for name, value in VALUES.items() if accepts(route, name, value)}
    assert decoded == named | {API_VERSION.name}


@pytest.mark.parametrize("route", ROUTES, ids=name_of)
def test_a_route_takes_what_its_parameters_allow_and_nothing_else(route):
    """At the edges of each parameter's schema."""
    for parameter in route.parameters:
        if parameter.place != "query":
            continue
        schema = next(
            each["schema"]
            for each in OPERATIONS[route.method, route.path]["parameters"]
            if each.get("name") == parameter.name
        )
        for value, valid in edges(schema):
            assert accepts(route, parameter.name, value) == valid, (parameter.name, value)


def edges(schema):
    if schema.get("$ref", "").endswith("/RunStatus"):
        schema = document()["components"]["schemas"]["RunStatus"]
    match schema:
        case {"type": "array", "items": items}:
            yield from edges(items)
            if "maxItems" in schema:
                yield ",".join(map(str, range(schema["maxItems"]))), True
                yield ",".join(map(str, range(schema["maxItems"] + 1))), False
        case {"enum": values}:
            yield from ((value, True) for value in values)
            yield "another", False
        case {"type": "integer", "minimum": least, "maximum": most}:
            yield from ((str(least), True), (str(most), True))
            yield from ((str(least - 1), False), (str(most + 1), False), ("x", False))
        case {"type": "string", "minLength": 1}:
            yield from (("x", True), ("", False))
        case {"type": "string", "pattern": _}:
            yield from (("x", True), (" ", False))
        case _:
            raise AssertionError(schema)


# What is ours.


def marked(mark):
    """Everything that carries a mark, by its place."""
    found = set()
    for operation in OPERATIONS.values():
        name = operation["operationId"]
        if mark in operation:
            found.add(name)
        found |= {
            f"{name}?{each['name']}" for each in operation.get("parameters", []) if mark in each
        }
    for name, schema in document()["components"]["schemas"].items():
        for field, item in schema.get("properties", {}).items():
            if mark in item:
                found.add(f"{name}.{field}")
    return found


def test_what_is_ours_is_marked():
    of_runs = {"status_reason", "cancelling_at", "incomplete_at", "expired_at", "reasoning_effort"}
    assert marked(EXTENSION) == {
        "listEvents",
        "listEvents?types",
        "listEvents?Last-Event-ID",
        "findRuns",
        "getRun?Prefer",
        "getRun?If-None-Match",
        *(
            f"findRuns?{name}"
            for name in ("status", "created_before", "created_after", "ids", "Prefer")
        ),
        "CreateAssistant.id",
        "AssistantObject.reasoning_effort",
        *(f"RunObject.{name}" for name in of_runs),
        *(
            f"{request}.{name}"
            for request in ("CreateRun", "CreateThreadAndRun")
            for name in ("expires_after", "on_active_run")
        ),
        *("getDelivery", "listDeliveries", "resendDelivery", "recoverDeliveries"),
        *(
            f"listDeliveries?{name}"
            for name in ("status", "run_id", "created_before", "created_after")
        ),
        *(
            f"{request}.{name}"
            for request in ("CreateEndpoint", "UpdateEndpoint")
            for name in ("enabled", "rate_limit", "filters", "headers", "metadata")
        ),
        *(
            f"{answer}.{name}"
            for answer in ("EndpointObject", "EndpointWithSecretObject")
            for name in (
                *("enabled", "disabled_reason", "failing_since", "rate_limit"),
                *("filters", "headers", "metadata"),
            )
        ),
    }


def test_what_is_always_refused_is_marked():
    assert marked(UNSUPPORTED_MARK) == {
        "CreateMessage.attachments",
        "FileSearchResources.vector_stores",
        "RequestImageFilePart.image_file",
    }


# Details that are easily lost between the types and the document.


def test_limits_that_the_decoder_checks_outside_its_types_are_there():
    schemas = document()["components"]["schemas"]
    assert schemas["CreateAssistant"]["properties"]["id"]["pattern"].startswith("^asst_")
    assert schemas["FunctionDefinition"]["properties"]["name"]["pattern"]
    assert schemas["RequestImageUrl"]["properties"]["url"]["pattern"]
    fields = schemas["JsonSchemaFormat"]["properties"]["json_schema"]
    assert fields["required"] == ["name"]
    assert set(fields["properties"]) == {"name", "description", "schema", "strict"}
    run = schemas["CreateRun"]["properties"]
    assert run["truncation_strategy"]["then"]["required"] == ["last_messages"]
    assert run["tool_choice"]["then"]["required"] == ["function"]


def test_bodies_are_closed_and_answers_are_whole():
    schemas = document()["components"]["schemas"]
    for route, operation in BY_ROUTE:
        if route.body is not None:
            assert schemas[route.body.__name__]["additionalProperties"] is False
        assert "200" in operation["responses"]
    run = schemas["RunObject"]
    assert set(run["required"]) == set(run["properties"])
    assert "default" not in json.dumps(run["properties"])


def test_a_stream_is_described_where_there_is_one():
    streamed = {
        operation["operationId"]
        for operation in OPERATIONS.values()
        if "text/event-stream" in operation["responses"]["200"]["content"]
    }
    assert streamed == {
        "createRun",
        "createThreadAndRun",
        "submitToolOutputsToRun",
        "listEvents",
    }
