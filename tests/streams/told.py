"""What a stream has to be, whatever happened: what the SDK knows, and what is stored in the end."""

from __future__ import annotations

import json
from typing import Any

from runbell.service.wire.objects import encode, message_object, run_object, step_object
from runbell.storage import runs as run_rows
from runbell.testing.embedded import EmbeddedService
from tests.protocol.wire import inspect_streamed
from tests.web import Streamed

__all__ = ["put_together", "told_is_stored"]

ENDS = ("completed", "incomplete", "failed", "cancelled", "expired")


def put_together(events: list[Streamed]) -> dict[str, Any]:
    """Every message and step by id, from its creation and its deltas, held against its end.

    Also holds each event against the SDK's types.
    """
    built: dict[str, Any] = {}
    ended: set[str] = set()
    assert events[-1] == ("done", "[DONE]")
    for name, data in events[:-1]:
        inspect_streamed(name, data)
        kind, _, what = name.rpartition(".")
        if kind in ("thread", "thread.run"):
            continue
        assert data["id"] not in ended, f"{name} of something that has ended"
        if what == "created":
            assert data["id"] not in built, f"{data['id']} is created twice"
            built[data["id"]] = json.loads(json.dumps(data))
        elif what == "in_progress":
            assert built[data["id"]] == data
        elif what == "delta":
            grow = _grow_message if kind == "thread.message" else _grow_step
            grow(built[data["id"]], data["delta"])
        else:
            assert what in ENDS, name
            ended.add(data["id"])
            if data["id"] in built:
                _same(built[data["id"]], data)
            built[data["id"]] = data
    return built


def _grow_message(message: Any, delta: Any) -> None:
    for part in delta["content"]:
        assert part["type"] == "text"
        if part["index"] == len(message["content"]):
            message["content"].append({"type": "text", "text": {"value": "", "annotations": []}})
        message["content"][part["index"]]["text"]["value"] += part["text"]["value"]


def _grow_step(step: Any, delta: Any) -> None:
    calls = step["step_details"]["tool_calls"]
    for part in delta["step_details"]["tool_calls"]:
        if part["index"] == len(calls):
            function = {"name": "", "arguments": "", "output": None}
            calls.append({"id": part["id"], "type": part["type"], "function": function})
        function = calls[part["index"]]["function"]
        function["name"] += part["function"].get("name", "")
        function["arguments"] += part["function"]["arguments"]


def _same(built: Any, ended: Any) -> None:
    """What was put together is what its last event has."""
    for place in ("id", "created_at", "run_id", "thread_id"):
        assert built[place] == ended[place], place
    if ended["object"] == "thread.message":
        if ended["content"] != [{"type": "text", "text": {"value": "", "annotations": []}}]:
            assert built["content"] == ended["content"]
    else:
        assert built["step_details"] == ended["step_details"]


async def told_is_stored(service: EmbeddedService, *streams: list[Streamed]) -> None:
    """Hold the streams of one run, in order, against what is kept: the same ids and values."""
    told: dict[str, Any] = {}
    for events in streams:
        told |= put_together(events)
    run = streams[-1][-2][1]
    record = await service.store.read(lambda tx: run_rows.find(tx, run["id"]))
    assert record is not None
    assert run == _wire(run_object(record))
    stored = {step.id: _wire(step_object(step)) for step in await service.steps(run["id"])}
    for message in await service.messages(run["thread_id"]):
        if message.run_id == run["id"]:
            stored[message.id] = _wire(message_object(message))
    assert set(told) == set(stored)
    for key, value in stored.items():
        if value["object"] == "thread.run.step" and value["status"] == "in_progress":
            assert told[key]["step_details"] == value["step_details"], "calls that wait for outputs"
        else:
            assert told[key] == value


def _wire(item: Any) -> Any:
    return json.loads(encode(item))
