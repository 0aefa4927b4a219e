"""How the service is fuzzed: requests from its document, and how their answers are judged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from runbell.service.openapi.document import document
from runbell.service.openapi.examples import IDS, examples
from runbell.service.wire.parameters import IDEMPOTENCY_KEY
from tests.openapi.conformance import conforms
from tests.served import Answer, Api, eventually

__all__ = ["Fuzzer"]

CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
    allow_header_conformance,
]

EXAMPLES = 6
"""Random requests for each operation and each mode, beside the systematic ones."""

MOST_EDGES = 250
"""Systematic requests for each operation."""

LIMIT_S = 60
"""Seconds within which every request is answered, a stream to its end."""

OTHER_REASONS: dict[str | None, tuple[str, ...]] = {
    "model_not_found": ("is not served here",),
    "unsupported_tool": ("is not supported",),
    # The document says so, but in a way that makers of requests do not all heed.
    "unsupported_parameter": ("image_file",),
    "invalid_value": (
        "function names must be unique",
        "it does not go with 'ids': leave one of the two out",
        "The tool_choice names",
    ),
    None: (
        "already has an active run",
        "Can't add messages",
        "Cannot cancel run",
        "do not accept tool outputs",
        "Expected tool outputs",
    ),
}
"""By code, what a 400 may say to a request that its schema allows."""


NOBODY = "http://127.0.0.1:9/hook"

_ENDPOINT = {"name": "fuzzed", "event_types": ["thread.run.*"]}


class Fuzzer:
    """Asks the service for everything that its document describes."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._world = World(api)
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {api.key}"
        self._schema = _schema()
        self.operations = {
            found.ok().definition.raw["operationId"]: found.ok()
            for found in self._schema.get_all_operations()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._session.close()

    def edges(self, name: str) -> Iterator[Any]:
        """Systematic requests: what lies at the limits of the schemas, and just beyond.

        Of the operations with the most of them, every second, third … one: they ask about the same
        fields in many combinations.
        """
        operation = self.operations[name]
        cases = list(
            self._schema.iter_coverage_cases(
                operation,
                generation_modes=list(GenerationMode),
                generation_config=self._schema.config.generation_for(operation=operation),
            )
        )
        return iter(cases[:: -(-len(cases) // MOST_EDGES)])

    def ask_at_random(self, name: str, mode: str) -> None:
        """Random requests, the same ones each time."""
        cases = self.operations[name].as_strategy(generation_mode=GenerationMode(mode))

        @settings(
            max_examples=EXAMPLES,
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def run(case: Any) -> None:
            self.ask(case)

        run()

    def ask(self, case: Any) -> None:
        """Send one request, and hold its answer against the document."""
        positive = case.meta.generation.mode is GenerationMode.POSITIVE
        if positive and case.path_parameters:
            there = self._world.ids(case.operation.definition.raw["operationId"])
            case.path_parameters = {key: there[key] for key in case.path_parameters}
        if positive and isinstance(case.body, dict) and isinstance(case.body.get("url"), str):
            # Names are looked up when an endpoint is registered; no test asks anybody's servers.
            case.body["url"] = NOBODY
        root = self._api.served.root
        response = case.call(base_url=root, session=self._session, timeout=LIMIT_S)
        case.validate_response(response, checks=CHECKS)
        if response.request.method == case.operation.method.upper():
            conforms(_answer(response))
        if positive and response.status_code == 400:
            error = response.json()["error"]
            reasons = OTHER_REASONS.get(error["code"], ())
            assert any(reason in error["message"] for reason in reasons), (
                f"the document allows it: {error}"
            )


class World:
    """A project in which there is something to ask for: ids for what a request names."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._ids: dict[str, str] = {}
        made = examples()["createAssistant"].body
        # One under the id that the examples name, and one that no random request changes.
        api.post("/v1/assistants", made).ok()
        self._own = api.post("/v1/assistants", {**made, "id": None}).ok()["id"]

    def ids(self, operation: str) -> dict[str, str]:
        """Ids that are there. What takes something away, or is in its own way, gets new ones."""
        if operation.startswith(("delete", "cancel", "submit")) or not self._ids:
            self._ids = self._make()
        if operation == "deleteAssistant":
            made = self._api.post("/v1/assistants", {"model": "echo"}).ok()
            return {**self._ids, "assistant_id": made["id"]}
        if operation in ("createRun", "createMessage"):
            return {**self._ids, "thread_id": self._api.post("/v1/threads").ok()["id"]}
        return self._ids

    def _make(self) -> dict[str, str]:
        endpoint = self._api.post("/v1/webhook_endpoints", {**_ENDPOINT, "url": NOBODY}).ok()
        ask = {**examples()["createThreadAndRun"].body, "assistant_id": self._own}
        run = self._api.post("/v1/threads/runs", ask).ok()
        thread = f"/v1/threads/{run['thread_id']}"
        steps = eventually(
            lambda: self._api.get(f"{thread}/runs/{run['id']}/steps").ok()["data"] or None,
            "it has a step",
        )
        (message,) = self._api.get(f"{thread}/messages").ok()["data"]
        path = f"/v1/webhook_endpoints/{endpoint['id']}/deliveries"
        (delivery, *_) = self._api.get(path).ok()["data"]
        return {
            "webhook_endpoint_id": endpoint["id"],
            "delivery_id": delivery["id"],
            "assistant_id": IDS["assistant_id"],
            "thread_id": run["thread_id"],
            "run_id": run["id"],
            "step_id": steps[0]["id"],
            "message_id": message["id"],
            "model": "echo",
        }


def _schema() -> Any:
    """The document, without the header that makes one answer of many requests."""
    shared = {"$ref": f"#/components/parameters/{IDEMPOTENCY_KEY.name}"}
    whole = json.loads(json.dumps(document()))
    for item in whole["paths"].values():
        for method, operation in item.items():
            if method != "parameters" and shared in operation.get("parameters", []):
                operation["parameters"].remove(shared)
    return schemathesis.openapi.from_dict(whole)


def _answer(response: Any) -> Answer:
    request = response.request
    headers = {name.lower(): ", ".join(values) for name, values in response.headers.items()}
    place = (str(request.method), str(request.path_url))
    return Answer(*place, response.status_code, headers, response.content)
