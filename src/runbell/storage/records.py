"""What is kept: one immutable record for each kind of row, and the JSON documents inside them.

The documents (tools, content parts, response formats) have the shape that they have on the wire,
so that they are stored, sent and read back without translation. Times are milliseconds since the
epoch (`…_ms`); the wire's whole seconds are made from them where an answer is built.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

__all__ = [
    "FUNCTION_NAME",
    "JSON_SCHEMA_FIELDS",
    "ApiKey",
    "Assistant",
    "AssistantConfig",
    "CodeInterpreterTool",
    "ContentPart",
    "FileSearchOverrides",
    "FileSearchRanking",
    "FileSearchTool",
    "FunctionDefinition",
    "FunctionTool",
    "ImageFilePart",
    "ImageUrlPart",
    "JsonObjectFormat",
    "JsonSchemaFormat",
    "KeyOrigin",
    "Message",
    "NamedFunction",
    "NamedToolChoice",
    "Project",
    "ReasoningEffort",
    "RefusalPart",
    "ResponseFormat",
    "RunConfig",
    "RunStep",
    "StepUsage",
    "TextFormat",
    "TextPart",
    "TextValue",
    "Thread",
    "Tool",
    "ToolChoice",
    "ToolResources",
    "ToolStepCall",
    "TruncationStrategy",
]

Metadata = dict[str, str]
ToolResources = dict[str, Any]
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


FUNCTION_NAME = "^[a-zA-Z0-9_-]{1,64}$"
_FunctionName = Annotated[str, Meta(extra_json_schema={"pattern": FUNCTION_NAME})]


# Tools: what an assistant or a run may call.


class FunctionDefinition(Struct, frozen=True, omit_defaults=True):
    name: _FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionTool(Struct, frozen=True, tag_field="type", tag="function"):
    function: FunctionDefinition


class CodeInterpreterTool(Struct, frozen=True, tag_field="type", tag="code_interpreter"):
    pass


class FileSearchRanking(Struct, frozen=True, omit_defaults=True):
    score_threshold: Annotated[float, Meta(ge=0, le=1)]
    ranker: Literal["auto", "default_2024_08_21"] | None = None


class FileSearchOverrides(Struct, frozen=True, omit_defaults=True):
    max_num_results: Annotated[int, Meta(ge=1, le=50)] | None = None
    ranking_options: FileSearchRanking | None = None


class FileSearchTool(Struct, frozen=True, tag_field="type", tag="file_search", omit_defaults=True):
    file_search: FileSearchOverrides | None = None


Tool = FunctionTool | CodeInterpreterTool | FileSearchTool


class NamedFunction(Struct, frozen=True):
    name: str


class NamedToolChoice(Struct, frozen=True, omit_defaults=True):
    type: Literal["function", "code_interpreter", "file_search"]
    function: NamedFunction | None = None


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice


# Response formats and truncation.


class TextFormat(Struct, frozen=True, tag_field="type", tag="text"):
    pass


class JsonObjectFormat(Struct, frozen=True, tag_field="type", tag="json_object"):
    pass


JSON_SCHEMA_FIELDS = {"description": "string", "schema": "object", "strict": "boolean"}
"""What a `json_schema` may say beside its name, with the kind of JSON value."""

_JsonSchema = Annotated[
    dict[str, Any],
    Meta(
        extra_json_schema={
            "required": ["name"],
            "properties": {
                "name": {"type": "string", "pattern": FUNCTION_NAME},
                **{name: {"type": [kind, "null"]} for name, kind in JSON_SCHEMA_FIELDS.items()},
            },
        }
    ),
]


class JsonSchemaFormat(Struct, frozen=True, tag_field="type", tag="json_schema"):
    json_schema: _JsonSchema


ResponseFormat = Literal["auto"] | TextFormat | JsonObjectFormat | JsonSchemaFormat


class TruncationStrategy(Struct, frozen=True):
    type: Literal["auto", "last_messages"] = "auto"
    last_messages: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None


# Content of a message.


class TextValue(Struct, frozen=True):
    value: str
    annotations: tuple[dict[str, Any], ...] = ()


class TextPart(Struct, frozen=True, tag_field="type", tag="text"):
    text: TextValue


class ImageUrl(Struct, frozen=True):
    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageUrlPart(Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: ImageUrl


class ImageFile(Struct, frozen=True):
    file_id: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImageFilePart(Struct, frozen=True, tag_field="type", tag="image_file"):
    image_file: ImageFile


class RefusalPart(Struct, frozen=True, tag_field="type", tag="refusal"):
    refusal: str


ContentPart = TextPart | ImageUrlPart | ImageFilePart | RefusalPart


# Rows.


class Project(Struct, frozen=True):
    id: str
    name: str
    created_at_ms: int


KeyOrigin = Literal["serve", "keys"]
"""Made by the first start of the service, or by `runbell keys create`."""


class ApiKey(Struct, frozen=True):
    """A key's row. The key itself is not kept: `digest` is its SHA-256.

    Attributes:
        rpm: requests a minute that it may make; 0 is no limit, None is the service's.
    """

    id: str
    project_id: str
    digest: str
    hint: str
    origin: KeyOrigin
    created_at_ms: int
    revoked_at_ms: int | None = None
    rpm: int | None = None


class AssistantConfig(Struct, frozen=True):
    """Everything that the maker of an assistant chose."""

    model: str
    name: str | None = None
    description: str | None = None
    instructions: str | None = None
    tools: tuple[Tool, ...] = ()
    tool_resources: ToolResources = {}
    metadata: Metadata = {}
    temperature: float | None = None
    top_p: float | None = None
    response_format: ResponseFormat = "auto"
    reasoning_effort: ReasoningEffort | None = None


class Assistant(Struct, frozen=True):
    project_id: str
    id: str
    created_at_ms: int
    config: AssistantConfig


class Thread(Struct, frozen=True):
    project_id: str
    id: str
    created_at_ms: int
    tool_resources: ToolResources = {}
    metadata: Metadata = {}


class Message(Struct, frozen=True):
    project_id: str
    thread_id: str
    id: str
    created_at_ms: int
    role: Literal["user", "assistant"]
    content: tuple[ContentPart, ...]
    status: Literal["in_progress", "incomplete", "completed"] = "completed"
    incomplete_reason: str | None = None
    completed_at_ms: int | None = None
    incomplete_at_ms: int | None = None
    assistant_id: str | None = None
    run_id: str | None = None
    metadata: Metadata = {}


class RunConfig(Struct, frozen=True):
    """What a run was asked to do: settled when it is created, never changed."""

    model: str
    instructions: str = ""
    tools: tuple[Tool, ...] = ()
    temperature: float | None = None
    top_p: float | None = None
    max_prompt_tokens: int | None = None
    max_completion_tokens: int | None = None
    truncation_strategy: TruncationStrategy = TruncationStrategy()
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat = "auto"
    reasoning_effort: ReasoningEffort | None = None


class ToolStepCall(Struct, frozen=True):
    """One function call of a `tool_calls` step; `output` is None until it was submitted."""

    id: str
    name: str
    arguments: str
    output: str | None = None


class StepUsage(Struct, frozen=True):
    completion_tokens: int
    prompt_tokens: int
    total_tokens: int


class RunStep(Struct, frozen=True):
    """One step of a run: a message that it made, or the calls that it asked for."""

    project_id: str
    thread_id: str
    run_id: str
    assistant_id: str
    id: str
    created_at_ms: int
    status: Literal["in_progress", "cancelled", "failed", "completed", "expired"]
    message_id: str | None = None
    tool_calls: tuple[ToolStepCall, ...] = ()
    error_code: str | None = None
    error_message: str | None = None
    ended_at_ms: int | None = None
    usage: StepUsage | None = None
    metadata: Metadata = {}

    @property
    def type(self) -> Literal["message_creation", "tool_calls"]:
        return "message_creation" if self.message_id is not None else "tool_calls"
