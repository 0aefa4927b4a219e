"""Runs of the Assistants API: whatever speaks it, Runbell, Azure or a gateway."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runbell.client.view import Stage, View, stamp
from runbell.errors import BadAnswer
from runbell.runs import ToolCall

__all__ = ["RunRef", "Runs", "stage_of"]

PENDING = frozenset({"queued", "in_progress", "cancelling"})
"""Every status that is neither one of these, nor `requires_action`, ends a wait, also one that
this version does not know."""

ENDS = ("completed_at", "failed_at", "cancelled_at")
"""Stamps of an end."""

LATEST = 100

COPIED = (
    "model",
    "instructions",
    "tools",
    "metadata",
    "temperature",
    "top_p",
    "max_prompt_tokens",
    "max_completion_tokens",
    "truncation_strategy",
    "tool_choice",
    "parallel_tool_calls",
    "response_format",
)
"""What a run has of the request that created it."""

RECOGNISED = ("assistant_id", "model", "instructions", "metadata")
"""What a run that does the same work has in common with the one before."""

OF_EVENTS = (
    "status",
    "required_action",
    "last_error",
    "incomplete_details",
    "status_reason",
    "usage",
    "metadata",
    "expires_at",
    "started_at",
    "cancelled_at",
    "failed_at",
    "completed_at",
)
"""What an event says anew about a run."""


@dataclass(frozen=True, slots=True)
class RunRef:
    """A run of which only the ids are known: takes the place of the SDK's object."""

    thread_id: str
    id: str


class Runs:
    """Runs, as `client.beta.threads.runs` knows them."""

    holds = True
    """Servers may know `Prefer: wait`."""

    def owns(self, item: object) -> bool:
        return isinstance(item, RunRef) or getattr(item, "object", None) == "thread.run"

    def view(self, item: Any) -> View:
        if isinstance(item, RunRef):
            return View(item.id, "unknown", "pending", item.thread_id)
        status = getattr(item, "status", None)
        if not isinstance(status, str):
            raise BadAnswer(f"this is no run: {str(item)[:100]!r}")
        error, details = (
            getattr(item, "last_error", None),
            getattr(item, "incomplete_details", None),
        )
        return View(
            id=item.id,
            status=status,
            stage=stage_of(status),
            thread_id=item.thread_id,
            created_at=stamp(item, "created_at"),
            started_at=stamp(item, "started_at"),
            expires_at=stamp(item, "expires_at"),
            ended_at=stamp(item, *ENDS),
            calls=_calls(item) if status == "requires_action" else (),
            code=error.code if error else (details.reason if details else None),
            message=error.message if error else getattr(item, "status_reason", None),
        )

    def retrieve(self, client: Any, item: Any, **options: Any) -> Any:
        runs = client.beta.threads.runs.with_raw_response
        return runs.retrieve(item.id, thread_id=item.thread_id, **options)

    def cancel(self, client: Any, item: Any, **options: Any) -> Any:
        return client.beta.threads.runs.cancel(item.id, thread_id=item.thread_id, **options)

    def submit(self, client: Any, item: Any, outputs: Mapping[str, str], **options: Any) -> Any:
        given = [{"tool_call_id": call, "output": output} for call, output in outputs.items()]
        return client.beta.threads.runs.submit_tool_outputs(
            item.id, thread_id=item.thread_id, tool_outputs=given, **options
        )

    def again(self, client: Any, item: Any, **options: Any) -> Any:
        fields = item.to_dict()
        same = {name: fields[name] for name in COPIED if fields.get(name) is not None}
        return client.beta.threads.runs.create(
            item.thread_id, assistant_id=item.assistant_id, **same, **options
        )

    def made_again(self, item: Any, found: Mapping[str, Any]) -> Any:
        """The run that `again` made for this one, among the latest of the thread, newest first."""
        newer = itertools.takewhile(lambda run: run.id != item.id, found.values())
        asked = item.to_dict()
        for run in newer if item.id in found else ():
            same = run.to_dict()
            if all((asked.get(name) or None) == (same.get(name) or None) for name in RECOGNISED):
                return run
        return None

    def kind_of(self, item: Any) -> Any:
        if isinstance(item, RunRef):
            return None
        tools = getattr(item, "tools", None) or ()
        names = {
            getattr(getattr(tool, "function", tool), "name", None) or tool.type for tool in tools
        }
        return (
            getattr(item, "assistant_id", None) or "",
            getattr(item, "model", None) or "",
            tuple(sorted(names)),
        )

    def schemas(self, item: Any) -> Mapping[str, Any]:
        tools = [each for each in getattr(item, "tools", None) or () if each.type == "function"]
        return {each.function.name: each.function.parameters for each in tools}

    def told(self, item: Any, event: Mapping[str, Any]) -> Any:
        data = event.get("data")
        if not isinstance(data, Mapping) or data.get("id") != item.id or "status" not in data:
            return None
        if data.get("truncated") or isinstance(item, RunRef):
            return None
        news = {name: data[name] for name in OF_EVENTS if name in data}
        return type(item).construct(**{**item.to_dict(), **news})

    def retrieve_many(self, client: Any, items: Sequence[Any], **options: Any) -> Any:
        # The SDK has no method for this route; the header is what its `with_raw_response` sends.
        headers = {**options.get("extra_headers", {}), "X-Stainless-Raw-Response": "true"}
        asked = {"params": {"ids": ",".join(item.id for item in items)}, "headers": headers}
        return client.get(
            "/runs", cast_to=object, options={**asked, "timeout": options.get("timeout")}
        )

    def retrieve_thread(self, client: Any, thread_id: str, **options: Any) -> Any:
        runs = client.beta.threads.runs.with_raw_response
        return runs.list(thread_id, limit=LATEST, order="desc", **options)

    def by_id(self, reply: Any) -> dict[str, Any] | None:
        if isinstance(reply, Mapping):  # of `retrieve_many`
            found = reply.get("data")
            if not isinstance(found, list):
                return None
            from openai.types.beta.threads import Run

            return {each["id"]: Run.construct(**each) for each in found}
        data = getattr(reply, "data", None)
        return None if data is None else {run.id: run for run in data}


def stage_of(status: str) -> Stage:
    """What a status means for whoever waits."""
    if status in PENDING:
        return "pending"
    if status == "requires_action":
        return "wants"
    return "completed" if status == "completed" else "ended"


def _calls(item: Any) -> tuple[ToolCall, ...]:
    action = getattr(item, "required_action", None)
    if action is None:
        return ()
    return tuple(
        ToolCall(call.id, call.function.name, call.function.arguments)
        for call in action.submit_tool_outputs.tool_calls
    )
