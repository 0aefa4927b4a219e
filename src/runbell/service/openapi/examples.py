"""One run's story, as requests and answers: the examples of the document.

The objects are made as the service makes them, from a run that went through its lifecycle; the
requests are those that make the model `echo` do what the story tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from runbell.errors import RequestRefused
from runbell.runs import Run, RunStatus, ToolCall, Usage, event_of, lifecycle
from runbell.service.operations import refusals as operation_refusals
from runbell.service.wire import objects, refusals, streams, webhooks
from runbell.service.wire.pages import page_of
from runbell.storage.deliveries import Attempt, Delivery
from runbell.storage.endpoints import Endpoint, Subscription
from runbell.storage.events import BEGINNING
from runbell.storage.records import (
    Assistant,
    AssistantConfig,
    FunctionDefinition,
    FunctionTool,
    Message,
    RunConfig,
    RunStep,
    StepUsage,
    TextPart,
    TextValue,
    Thread,
    ToolStepCall,
)
from runbell.storage.runs import RunRecord

__all__ = ["IDS", "REFUSALS", "Example", "examples"]

IDS = {
    "assistant_id": "asst_0VwF2mQaGkT7dXcR1sZyBn4J",
    "thread_id": "thread_0VwF2mTrKp3LhYq9DvNc6SxE",
    "message_id": "msg_0VwF2mTsU8eMzAoWf5Hj1KbG",
    "run_id": "run_0VwF2mXdC4tPiRy7LuQn9VaM",
    "step_id": "step_0VwF2mYjE6gSwBk2NxTo8ZcP",
    "model": "echo",
    "webhook_endpoint_id": "wh_0VwF2mNrQ5pKxHd8TvYs2JcB",
    "delivery_id": "evt_0VwF2nCsN7oAeJs1VfBw9HkX",
}
"""Values of the parameters of paths."""

_CALL = "call_0VwF2mYkH1iUyDm4PzVq3BeR"
_ANSWER = "msg_0VwF2nBoJ3kWaFo6RbXs5DgT"
_ANSWER_STEP = "step_0VwF2nBqL5mYcHq8TdZu7FiV"
_EVENT = IDS["delivery_id"]
_SECRET = "whsec_0VwF2nDtP8qCfKu3XgZy1IlM6OrQ9SvU2TwX5YzA7B4="  # noqa: S105 - nobody's
_START_MS = 1_795_247_763_120
_METADATA = {"customer": "c-1042"}
_FUNCTION = FunctionDefinition(
    name="get-weather",
    description="The weather in a city.",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
)
_SAID = 'call get-weather {"city": "Oslo"}'
_OUTPUT = "Sunny, 21 °C"


@dataclass(frozen=True, slots=True)
class Example:
    """A request and what it is answered.

    Attributes:
        body: of the request; None where it has none.
        answers: one for each type of the answer.
        stream: the end of the answer where it is a stream.
    """

    answers: tuple[Any, ...]
    body: Any = None
    stream: str | None = None


def _refusal(status: int, message: str, **fields: str) -> RequestRefused:
    return RequestRefused(status, message, **fields)  # type: ignore[arg-type]


REFUSALS: dict[int, RequestRefused] = {
    400: refusals.unknown_parameter("temprature"),
    401: _refusal(
        401,
        "You didn't provide an API key. Send it as 'Authorization: Bearer KEY' or 'api-key: KEY'.",
        code="invalid_api_key",
    ),
    404: operation_refusals.not_found("run", IDS["run_id"]),
    405: _refusal(405, "Not allowed to PUT here: use GET or POST.", code="method_not_supported"),
    408: _refusal(408, "The request's body did not arrive in time."),
    409: operation_refusals.id_taken(IDS["assistant_id"]),
    413: _refusal(
        413, "The request's body is larger than 8388608 bytes.", code="request_too_large"
    ),
    415: _refusal(415, "Compressed bodies are not supported: send it without Content-Encoding."),
    424: operation_refusals.unreachable("There was no connection: Connection refused."),
    429: _refusal(
        429,
        "Rate limit reached for API key sk-rb***4Q on requests per min (RPM): Limit 60, Used 60, "
        "Requested 1. Please try again in 640ms.",
        type="requests",
        code="rate_limit_exceeded",
    ),
    500: _refusal(
        500,
        "The server had an error while processing your request (request ID "
        "req_0a1b2c3d4e5f60718293a4b5c6d7e8f9).",
        type="server_error",
        code="server_error",
    ),
    503: _refusal(
        503,
        "The database cannot be used at the moment; nothing was changed. Please try again.",
        type="server_error",
        code="service_unavailable",
    ),
}
"""An error for each status. Tests compare those that are written out with real ones."""


@cache
def examples() -> dict[str, Example]:
    """The examples by the names of the operations."""
    story = _Story()
    return {
        **story.assistants(),
        **story.threads(),
        **story.runs(),
        **story.webhooks(),
        **story.others(),
    }


class _Story:
    """What is there at its end, and how the run looked on its way."""

    def __init__(self) -> None:
        tool = FunctionTool(_FUNCTION)
        asked = AssistantConfig(model="echo", name="Weather", tools=(tool,), metadata=_METADATA)
        assistant = Assistant("proj_1", IDS["assistant_id"], _START_MS, asked)
        self.assistant = objects.assistant_object(assistant)
        self.thread = objects.thread_object(
            Thread("proj_1", IDS["thread_id"], _START_MS, metadata=_METADATA)
        )
        self.history = _history()
        self.seen = [
            objects.run_object(RunRecord(run, RunConfig(model="echo", tools=(tool,))))
            for run in self.history
        ]
        self.question = objects.message_object(_message(IDS["message_id"], "user", _SAID))
        self.answer = objects.message_object(_message(_ANSWER, "assistant", _OUTPUT))
        self.steps = [objects.step_object(step) for step in _steps()]

    def assistants(self) -> dict[str, Example]:
        """Examples of what is done with assistants."""
        made = {
            "model": "echo",
            "name": "Weather",
            "tools": [{"type": "function", "function": msgspec.to_builtins(_FUNCTION)}],
            "metadata": _METADATA,
            "id": IDS["assistant_id"],
        }
        return {
            "listAssistants": Example((_page([self.assistant]),)),
            "createAssistant": Example((self.assistant,), made),
            "getAssistant": Example((self.assistant,)),
            "modifyAssistant": Example((self.assistant,), {"name": "Weather"}),
            "deleteAssistant": _deleted("assistant.deleted", IDS["assistant_id"]),
        }

    def threads(self) -> dict[str, Example]:
        """Examples of what is done with threads and messages."""
        said = {"role": "user", "content": _SAID}
        change = {"metadata": _METADATA}
        return {
            "createThread": Example((self.thread,), {"messages": [said], **change}),
            "getThread": Example((self.thread,)),
            "modifyThread": Example((self.thread,), change),
            "deleteThread": _deleted("thread.deleted", IDS["thread_id"]),
            "listMessages": Example((_page([self.answer, self.question]),)),
            "createMessage": Example((self.question,), {**said, **change}),
            "getMessage": Example((self.answer,)),
            "modifyMessage": Example((self.question,), change),
            "deleteMessage": _deleted("thread.message.deleted", IDS["message_id"]),
        }

    def runs(self) -> dict[str, Example]:
        """Examples of what is done with runs and their steps."""
        queued, _, wanting, resumed, _, completed = self.seen
        cancelled = objects.run_object(
            RunRecord(_cancelled(self.history[0]), RunConfig(model="echo"))
        )
        ours = {"expires_after": 120, "on_active_run": "enqueue"}
        ask = {"assistant_id": IDS["assistant_id"], "metadata": _METADATA}
        output = {"tool_call_id": _CALL, "output": _OUTPUT}
        by_id = objects.RunsById(
            data=[completed], missing=["run_gone"], first_id=completed.id, last_id=completed.id
        )
        thread = {"messages": [{"role": "user", "content": _SAID}]}
        end = self._stream()
        return {
            "listRuns": Example((_page([completed]),)),
            "findRuns": Example((_page([completed]), by_id)),
            "createRun": Example((queued,), {**ask, **ours}, end),
            "createThreadAndRun": Example((queued,), {**ask, "thread": thread}, end),
            "getRun": Example((wanting,)),
            "modifyRun": Example((completed,), {"metadata": _METADATA}),
            "cancelRun": Example((cancelled,)),
            "submitToolOutputsToRun": Example((resumed,), {"tool_outputs": [output]}, end),
            "listRunSteps": Example((_page(self.steps),)),
            "getRunStep": Example((self.steps[0],)),
        }

    def webhooks(self) -> dict[str, Example]:
        """Examples of what is done with endpoints and deliveries."""
        asked = {
            "name": "prod",
            "url": "https://example.com/hooks",
            "event_types": ["thread.run.completed", "thread.run.failed"],
        }
        ours = {"rate_limit": 50, "filters": {"assistant_ids": [IDS["assistant_id"]]}}
        endpoint = _endpoint()
        shown = webhooks.endpoint_object(endpoint, {})
        delivery = webhooks.delivery_object(*_delivery())
        tested = webhooks.EndpointTestObject(
            event_type="thread.run.completed", status_code=200, webhook_endpoint_id=endpoint.id
        )
        recovered = webhooks.RecoveryObject(webhook_endpoint_id=endpoint.id, recovered=12)
        return {
            "listWebhookEndpoints": Example((_page([shown]),)),
            "createWebhookEndpoint": Example(
                (webhooks.endpoint_with_secret(endpoint, {}, _SECRET),), {**asked, **ours}
            ),
            "getWebhookEndpoint": Example((shown,)),
            "updateWebhookEndpoint": Example((shown,), {"enabled": True, "rate_limit": 50}),
            "deleteWebhookEndpoint": _deleted("webhook_endpoint.deleted", endpoint.id),
            "rotateWebhookEndpointSecret": Example(
                (webhooks.endpoint_with_secret(endpoint, {}, _SECRET),),
                {"keep_old_secret_active_for_24_hours": True},
            ),
            "testWebhookEndpoint": Example((tested,), {"event_type": "thread.run.completed"}),
            "listWebhookEventTypes": Example((webhooks.EventTypesObject(),)),
            "listDeliveries": Example((_page([delivery]),)),
            "getDelivery": Example((delivery,)),
            "resendDelivery": Example((delivery,)),
            "recoverDeliveries": Example((recovered,), {"since": _START_MS // 1000}),
        }

    def others(self) -> dict[str, Example]:
        """Examples of models and events."""
        model = objects.ModelObject(id="echo", created=0, owned_by="runbell")
        event = event_of(self.history[-1], _EVENT)
        told = b"id: %b\nevent: %b\ndata: %b\n\n" % (
            _EVENT.encode(),
            event.type.encode(),
            event.body,
        )
        page = objects.ListPage(
            data=[msgspec.json.decode(event.body)], first_id=_EVENT, last_id=_EVENT, has_more=False
        )
        return {
            "listModels": Example((_page([model]),)),
            "retrieveModel": Example((model,)),
            "listEvents": Example((page,), stream=f": open\nid: {BEGINNING}\n\n{told.decode()}"),
        }

    def _stream(self) -> str:
        frames = [
            streams.frame("thread.message.delta", streams.message_delta(_ANSWER, "Sunny, ")),
            streams.frame("thread.message.delta", streams.message_delta(_ANSWER, "21 °C")),
            streams.frame("thread.message.completed", self.answer),
            streams.frame("thread.run.completed", self.seen[-1]),
            streams.DONE,
        ]
        return b"".join(frames).decode()


def _history() -> list[Run]:
    """A run that called a function: as it was after each transition."""
    call = ToolCall(_CALL, "get-weather", '{"city": "Oslo"}')
    run = Run(
        id=IDS["run_id"],
        project_id="proj_1",
        thread_id=IDS["thread_id"],
        assistant_id=IDS["assistant_id"],
        status=RunStatus.QUEUED,
        created_at_ms=_START_MS,
        expires_at_ms=_START_MS + 120_000,
        updated_at_ms=_START_MS,
        metadata=_METADATA,
    )
    history = [run]
    for after_ms, change in (
        (4, lifecycle.started()),
        (9, lifecycle.requires_action((call,), Usage(3, 3))),
        (1_480, lifecycle.resumed()),
        (1_483, lifecycle.started()),
        (1_490, lifecycle.completed(Usage(9, 3))),
    ):
        run = lifecycle.apply(run, change, now_ms=_START_MS + after_ms)
        history.append(run)
    return history


def _cancelled(run: Run) -> Run:
    return lifecycle.apply(run, lifecycle.cancel(run), now_ms=_START_MS + 800)


def _message(key: str, role: Any, text: str) -> Message:
    by_run = role == "assistant"
    return Message(
        project_id="proj_1",
        thread_id=IDS["thread_id"],
        id=key,
        created_at_ms=_START_MS,
        role=role,
        content=(TextPart(TextValue(text)),),
        completed_at_ms=_START_MS,
        assistant_id=IDS["assistant_id"] if by_run else None,
        run_id=IDS["run_id"] if by_run else None,
        metadata={} if by_run else _METADATA,
    )


def _steps() -> list[RunStep]:
    calls = RunStep(
        project_id="proj_1",
        thread_id=IDS["thread_id"],
        run_id=IDS["run_id"],
        assistant_id=IDS["assistant_id"],
        id=IDS["step_id"],
        created_at_ms=_START_MS,
        status="completed",
        tool_calls=(ToolStepCall(_CALL, "get-weather", '{"city": "Oslo"}', _OUTPUT),),
        ended_at_ms=_START_MS + 1_480,
        usage=StepUsage(3, 3, 6),
    )
    said = msgspec.structs.replace(
        calls, id=_ANSWER_STEP, message_id=_ANSWER, tool_calls=(), usage=StepUsage(3, 9, 12)
    )
    return [calls, said]


def _endpoint() -> Endpoint:
    return Endpoint(
        project_id="proj_1",
        id=IDS["webhook_endpoint_id"],
        created_at_ms=_START_MS,
        updated_at_ms=_START_MS,
        name="prod",
        url="https://example.com/hooks",
        subscription=Subscription(
            ("thread.run.completed", "thread.run.failed"), (IDS["assistant_id"],)
        ),
        secret=b"",
        secret_hint=_SECRET[-4:],
        rate_limit=50,
    )


def _delivery() -> tuple[Delivery, list[Attempt]]:
    at_ms = _START_MS + 1_493
    delivery = Delivery(
        position=1,
        endpoint_id=IDS["webhook_endpoint_id"],
        id=_EVENT,
        run_id=IDS["run_id"],
        type="thread.run.completed",
        created_at_ms=_START_MS + 1_490,
        status="succeeded",
        attempts=2,
        next_at_ms=None,
        settled_at_ms=at_ms + 5_040,
    )
    return delivery, [
        Attempt(1, at_ms, 12, 503, "It answered 503.", "Busy."),
        Attempt(2, at_ms + 5_031, 9, 200, None, "ok"),
    ]


def _page(items: Sequence[Any]) -> Any:
    return page_of((items, False), lambda item: item, id_of=lambda item: item.id)


def _deleted(kind: Any, key: str) -> Example:
    return Example((objects.DeletedObject(id=key, object=kind),))
