"""What the API answers: one type for each object, and how it is made from what is kept.

Every field of the schema stands in every answer, null where there is nothing. Fields and values
that are ours come last. Stamps are whole seconds since the epoch.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Struct

from runbell.errors import ErrorCode, RequestRefused
from runbell.runs import Run, RunStatus, ToolCall
from runbell.service.wire.annotations import OURS, about
from runbell.storage import records
from runbell.storage.records import Metadata, ReasoningEffort, ResponseFormat, Tool, ToolChoice
from runbell.storage.runs import RunRecord

__all__ = [
    "AssistantObject",
    "DeletedObject",
    "ErrorBody",
    "ErrorDetails",
    "FunctionCall",
    "IncompleteDetails",
    "LastErrorObject",
    "ListPage",
    "MessageObject",
    "ModelObject",
    "RequiredAction",
    "RequiredToolCall",
    "RequiredToolCalls",
    "RunObject",
    "RunStepObject",
    "RunsById",
    "ThreadObject",
    "UsageObject",
    "assistant_object",
    "encode",
    "error_body",
    "message_object",
    "run_object",
    "seconds",
    "step_object",
    "thread_object",
]

Item = TypeVar("Item")

encode = msgspec.json.Encoder().encode
"""The bytes of an answer."""


def seconds(at_ms: int) -> int:
    """A stamp of a record, as the wire has it."""
    return at_ms // 1000


# Assistants and threads.


class AssistantObject(Struct, frozen=True, kw_only=True):
    """An assistant: a model with its instructions and tools."""

    id: str
    object: Literal["assistant"] = "assistant"
    created_at: int
    name: str | None
    description: str | None
    model: str
    instructions: str | None
    tools: tuple[Tool, ...]
    tool_resources: dict[str, Any]
    metadata: Metadata
    temperature: float
    top_p: float
    response_format: ResponseFormat
    reasoning_effort: Annotated[ReasoningEffort | None, OURS]


def assistant_object(record: records.Assistant) -> AssistantObject:
    config = record.config
    return AssistantObject(
        id=record.id,
        created_at=seconds(record.created_at_ms),
        name=config.name,
        description=config.description,
        model=config.model,
        instructions=config.instructions,
        tools=config.tools,
        tool_resources=config.tool_resources,
        metadata=config.metadata,
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        response_format=config.response_format,
        reasoning_effort=config.reasoning_effort,
    )


class ThreadObject(Struct, frozen=True, kw_only=True):
    """A thread: a conversation, to which messages and runs belong."""

    id: str
    object: Literal["thread"] = "thread"
    created_at: int
    tool_resources: dict[str, Any]
    metadata: Metadata


def thread_object(record: records.Thread) -> ThreadObject:
    return ThreadObject(
        id=record.id,
        created_at=seconds(record.created_at_ms),
        tool_resources=record.tool_resources,
        metadata=record.metadata,
    )


# Messages.


class IncompleteDetails(Struct, frozen=True):
    reason: str


class MessageObject(Struct, frozen=True, kw_only=True):
    """A message of a thread, said by the user or by an assistant in a run."""

    id: str
    object: Literal["thread.message"] = "thread.message"
    created_at: int
    thread_id: str
    status: Literal["in_progress", "incomplete", "completed"]
    incomplete_details: IncompleteDetails | None
    completed_at: int | None
    incomplete_at: int | None
    role: Literal["user", "assistant"]
    content: tuple[records.ContentPart, ...]
    assistant_id: str | None
    run_id: str | None
    attachments: tuple[()] = ()
    metadata: Metadata


def message_object(record: records.Message) -> MessageObject:
    reason = record.incomplete_reason
    return MessageObject(
        id=record.id,
        created_at=seconds(record.created_at_ms),
        thread_id=record.thread_id,
        status=record.status,
        incomplete_details=None if reason is None else IncompleteDetails(reason),
        completed_at=_seconds(record.completed_at_ms),
        incomplete_at=_seconds(record.incomplete_at_ms),
        role=record.role,
        content=record.content,
        assistant_id=record.assistant_id,
        run_id=record.run_id,
        metadata=record.metadata,
    )


# Runs.


class UsageObject(Struct, frozen=True, kw_only=True):
    """Tokens used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class LastErrorObject(Struct, frozen=True, kw_only=True):
    code: ErrorCode
    message: str


class FunctionCall(Struct, frozen=True, kw_only=True):
    name: str
    arguments: str


class RequiredToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class RequiredToolCalls(Struct, frozen=True):
    tool_calls: tuple[RequiredToolCall, ...]


class RequiredAction(Struct, frozen=True, kw_only=True):
    type: Literal["submit_tool_outputs"] = "submit_tool_outputs"
    submit_tool_outputs: RequiredToolCalls


class RunObject(Struct, frozen=True, kw_only=True):
    """A run: one execution of an assistant on a thread."""

    id: str
    object: Literal["thread.run"] = "thread.run"
    created_at: int
    thread_id: str
    assistant_id: str
    status: RunStatus
    required_action: RequiredAction | None
    last_error: LastErrorObject | None
    expires_at: int | None
    started_at: int | None
    cancelled_at: int | None
    failed_at: int | None
    completed_at: int | None
    incomplete_details: IncompleteDetails | None
    model: str
    instructions: str
    tools: tuple[Tool, ...]
    metadata: Metadata
    usage: UsageObject | None
    temperature: float
    top_p: float
    max_prompt_tokens: int | None
    max_completion_tokens: int | None
    truncation_strategy: records.TruncationStrategy
    tool_choice: ToolChoice
    parallel_tool_calls: bool
    response_format: ResponseFormat
    reasoning_effort: Annotated[ReasoningEffort | None, OURS]
    status_reason: Annotated[
        str | None, OURS, about("Why the run ended, a sentence; null until it has.")
    ]
    cancelling_at: Annotated[int | None, OURS]
    incomplete_at: Annotated[int | None, OURS]
    expired_at: Annotated[int | None, OURS]


def run_object(record: RunRecord) -> RunObject:
    run, config = record.run, record.config
    error, reason = run.last_error, run.incomplete_reason
    return RunObject(
        id=run.id,
        created_at=run.created_at_ms // 1000,
        thread_id=run.thread_id,
        assistant_id=run.assistant_id,
        status=run.status,
        required_action=_required_action(run.tool_calls) if run.tool_calls else None,
        last_error=LastErrorObject(code=error.code, message=error.message) if error else None,
        expires_at=run.expires_at_ms // 1000,
        started_at=_seconds(run.started_at_ms),
        cancelled_at=_seconds(run.cancelled_at_ms),
        failed_at=_seconds(run.failed_at_ms),
        completed_at=_seconds(run.completed_at_ms),
        incomplete_details=IncompleteDetails(reason) if reason is not None else None,
        model=config.model,
        instructions=config.instructions,
        tools=config.tools,
        metadata=run.metadata,
        usage=_run_usage(run),
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=1.0 if config.top_p is None else config.top_p,
        max_prompt_tokens=config.max_prompt_tokens,
        max_completion_tokens=config.max_completion_tokens,
        truncation_strategy=config.truncation_strategy,
        tool_choice=config.tool_choice,
        parallel_tool_calls=config.parallel_tool_calls,
        response_format=config.response_format,
        reasoning_effort=config.reasoning_effort,
        status_reason=run.status_reason,
        cancelling_at=_seconds(run.cancelling_at_ms),
        incomplete_at=_seconds(run.incomplete_at_ms),
        expired_at=_seconds(run.expired_at_ms),
    )


def _required_action(calls: tuple[ToolCall, ...]) -> RequiredAction:
    return RequiredAction(
        submit_tool_outputs=RequiredToolCalls(
            tuple(
                RequiredToolCall(
                    id=call.id,
                    function=FunctionCall(name=call.name, arguments=call.arguments),
                )
                for call in calls
            )
        )
    )


def _run_usage(run: Run) -> UsageObject | None:
    """What a run has used is known when it has ended."""
    if not run.status.is_terminal:
        return None
    return UsageObject(
        prompt_tokens=run.usage.prompt_tokens,
        completion_tokens=run.usage.completion_tokens,
        total_tokens=run.usage.total_tokens,
    )


# Run steps.


class CreatedMessage(Struct, frozen=True):
    message_id: str


class MessageCreation(Struct, frozen=True, kw_only=True, tag_field="type", tag="message_creation"):
    message_creation: CreatedMessage


class AnsweredCall(Struct, frozen=True, kw_only=True):
    name: str
    arguments: str
    output: str | None


class StepToolCall(Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: AnsweredCall


class StepToolCalls(Struct, frozen=True, kw_only=True, tag_field="type", tag="tool_calls"):
    tool_calls: tuple[StepToolCall, ...]


class RunStepObject(Struct, frozen=True, kw_only=True):
    """A step of a run: a message that it made, or the calls that it asked for."""

    id: str
    object: Literal["thread.run.step"] = "thread.run.step"
    created_at: int
    assistant_id: str
    thread_id: str
    run_id: str
    type: Literal["message_creation", "tool_calls"]
    status: Literal["in_progress", "cancelled", "failed", "completed", "expired"]
    step_details: MessageCreation | StepToolCalls
    last_error: LastErrorObject | None
    expired_at: int | None
    cancelled_at: int | None
    failed_at: int | None
    completed_at: int | None
    metadata: Metadata
    usage: UsageObject | None


def step_object(record: records.RunStep) -> RunStepObject:
    def ended(status: str) -> int | None:
        return _seconds(record.ended_at_ms) if record.status == status else None

    return RunStepObject(
        id=record.id,
        created_at=seconds(record.created_at_ms),
        assistant_id=record.assistant_id,
        thread_id=record.thread_id,
        run_id=record.run_id,
        type=record.type,
        status=record.status,
        step_details=_step_details(record),
        last_error=_step_error(record),
        expired_at=ended("expired"),
        cancelled_at=ended("cancelled"),
        failed_at=ended("failed"),
        completed_at=ended("completed"),
        metadata=record.metadata,
        usage=_step_usage(record),
    )


def _step_details(record: records.RunStep) -> MessageCreation | StepToolCalls:
    if record.message_id is not None:
        return MessageCreation(message_creation=CreatedMessage(record.message_id))
    return StepToolCalls(
        tool_calls=tuple(
            StepToolCall(
                id=call.id,
                function=AnsweredCall(name=call.name, arguments=call.arguments, output=call.output),
            )
            for call in record.tool_calls
        )
    )


def _step_error(record: records.RunStep) -> LastErrorObject | None:
    """A step knows one code less than a run: `invalid_prompt` is the run's alone."""
    if record.error_code is None:
        return None
    known: ErrorCode = (
        "rate_limit_exceeded" if record.error_code == "rate_limit_exceeded" else "server_error"
    )
    return LastErrorObject(code=known, message=record.error_message or "")


def _step_usage(record: records.RunStep) -> UsageObject | None:
    usage = record.usage
    if usage is None or record.status == "in_progress":
        return None
    return UsageObject(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    )


# Everything else that is answered.


class DeletedObject(Struct, frozen=True, kw_only=True):
    id: str
    object: Literal[
        "assistant.deleted",
        "thread.deleted",
        "thread.message.deleted",
        "webhook_endpoint.deleted",
    ]
    deleted: bool = True


class ModelObject(Struct, frozen=True, kw_only=True):
    """A model that is served. `created` is 0 where nobody knows when it was made."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    shutdown_date: str | None = None


class ListPage(Struct, Generic[Item], frozen=True, kw_only=True):
    """A page of a list. `last_id` is the `after` of the next one, where `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class RunsById(Struct, frozen=True, kw_only=True):
    """Runs by their ids (ours), and the ids that the project does not have."""

    object: Literal["list"] = "list"
    data: list[RunObject]
    missing: Annotated[list[str], about("Those of the ids that the project does not have.")]
    first_id: str | None
    last_id: str | None
    has_more: bool = False


class ErrorDetails(Struct, frozen=True, kw_only=True):
    """`param` is the path of the field that is wrong, as `tools[0].function.name`."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Struct, frozen=True):
    """What every refused request is answered with."""

    error: ErrorDetails


def error_body(refused: RequestRefused) -> ErrorBody:
    """What a refused request is answered with."""
    return ErrorBody(
        ErrorDetails(
            message=refused.message, type=refused.type, param=refused.param, code=refused.code
        )
    )


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1000
