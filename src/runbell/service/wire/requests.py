"""What the API's requests may say: one type for each body, with every limit of its fields.

None means that a field was absent; an explicit null means the same. The objects that the API
closes refuse unknown fields; the others ignore them. The types hold the rules that types can
express; `check` of a request holds the others, and refuses what Runbell does not have.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from runbell.service.wire import refusals
from runbell.service.wire.annotations import NEVER, OURS, UNSUPPORTED, about, rule
from runbell.storage.records import (
    FUNCTION_NAME,
    JSON_SCHEMA_FIELDS,
    ContentPart,
    FunctionTool,
    ImageFile,
    ImageFilePart,
    ImageUrl,
    ImageUrlPart,
    JsonSchemaFormat,
    NamedToolChoice,
    ReasoningEffort,
    ResponseFormat,
    TextPart,
    TextValue,
    Tool,
    ToolChoice,
    TruncationStrategy,
)
from runbell.storage.records import ToolResources as ToolResourcesDocument

__all__ = [
    "AssistantFields",
    "CreateAssistant",
    "CreateMessage",
    "CreateRun",
    "CreateThread",
    "CreateThreadAndRun",
    "ModifyAssistant",
    "ModifyMessage",
    "ModifyRun",
    "ModifyThread",
    "Request",
    "RunOptions",
    "SubmitToolOutputs",
    "ToolOutput",
    "ToolResources",
    "content_parts",
    "tool_resources_document",
]

MAX_TEXT = 256_000
"""Characters of one text: instructions, or a part of a message."""

MAX_EXPIRES_AFTER = 30 * 86_400
"""Seconds that a run may live at most."""

ASSISTANT_ID = "^asst_[A-Za-z0-9_-]{1,64}$"
# Blanks by their numbers: Python and JavaScript do not mean the same by `\s`.
URI = r"^[A-Za-z][A-Za-z0-9+.-]*:[^\x00-\x20\x7f-\xa0]"

# Limits that several requests share.
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Model = Annotated[str, Meta(min_length=1, max_length=256)]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]],
    Meta(max_length=16),
]
Tools = Annotated[tuple[Tool, ...], Meta(max_length=128)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
# The schema sets no maximum; a limit keeps numbers within what databases and models can hold.
TokenLimit = Annotated[int, Meta(ge=256, le=2**31 - 1)]
FileIds = Annotated[list[str], Meta(max_length=20)]
VectorStoreIds = Annotated[list[str], Meta(max_length=1)]
Detail = Literal["auto", "low", "high"]
# Ids that the service gave out are short; whatever is longer is none of them.
Id = Annotated[str, Meta(max_length=256)]


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A body. All bodies are objects that the API closes."""

    def check(self) -> None:
        """Apply the rules that types cannot express.

        Raises:
            RequestRefused: (400) one of them is broken.
        """


# What several requests contain.


class CodeInterpreterResources(Struct, frozen=True, omit_defaults=True):
    file_ids: FileIds | None = None


class FileSearchResources(Struct, frozen=True, omit_defaults=True):
    vector_store_ids: VectorStoreIds | None = None
    vector_stores: Annotated[list[Any] | None, UNSUPPORTED, rule(maxItems=0)] = None


class ToolResources(Struct, frozen=True, omit_defaults=True):
    """Resources by tool. They are kept for the exports of those who move in, and not used."""

    code_interpreter: CodeInterpreterResources | None = None
    file_search: FileSearchResources | None = None


class TextObject(Struct, frozen=True):
    """A text in the shape of an answer."""

    value: Text


class RequestTextPart(Struct, frozen=True, tag_field="type", tag="text"):
    """Text; in the shape of an answer too, since programs send messages back that they read."""

    text: Text | TextObject


class RequestImageUrl(Struct, frozen=True):
    url: Annotated[str, rule(pattern=URI)]
    detail: Detail | None = None


class RequestImageUrlPart(Struct, frozen=True, tag_field="type", tag="image_url"):
    image_url: RequestImageUrl


class RequestImageFile(Struct, frozen=True):
    file_id: str
    detail: Detail | None = None


class RequestImageFilePart(Struct, frozen=True, tag_field="type", tag="image_file"):
    """An image from OpenAI's files, which are not here: send it as `image_url`."""

    image_file: Annotated[RequestImageFile, UNSUPPORTED, NEVER]


class RequestTruncationStrategy(TruncationStrategy, frozen=True, kw_only=True):
    """Which of the thread's messages the model is told: `last_messages` is how many at the most."""

    type: Literal["auto", "last_messages"]


RequestPart = RequestTextPart | RequestImageUrlPart | RequestImageFilePart
Content = Text | Annotated[tuple[RequestPart, ...], Meta(min_length=1, max_length=1_000)]


# Assistants.


class AssistantFields(Request, frozen=True, kw_only=True):
    """What the creation and the modification of an assistant have in common."""

    name: Annotated[str, Meta(max_length=256)] | None = None
    description: Annotated[str, Meta(max_length=512)] | None = None
    instructions: Text | None = None
    reasoning_effort: ReasoningEffort | None = None
    tools: Tools | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    response_format: ResponseFormat | None = None

    def check(self) -> None:
        _check_tools(self.tools)
        _check_tool_resources(self.tool_resources)
        _check_response_format(self.response_format)


class CreateAssistant(AssistantFields, frozen=True, kw_only=True):
    model: Model
    id: Annotated[
        Annotated[str, rule(pattern=ASSISTANT_ID)] | None,
        OURS,
        about("The id that the assistant has already, for those who move in; a taken one is a 409"),
    ] = None

    def check(self) -> None:
        if self.id is not None:
            _check_pattern("id", self.id, ASSISTANT_ID)
        super().check()


class ModifyAssistant(AssistantFields, frozen=True, kw_only=True):
    model: Model | None = None


# Messages.


class CreateMessage(Request, frozen=True, kw_only=True):
    role: Literal["user", "assistant"]
    content: Content
    attachments: Annotated[list[Any] | None, UNSUPPORTED, rule(maxItems=0)] = None
    metadata: Metadata | None = None

    def check(self) -> None:
        _check_message(self, "")


class ModifyMessage(Request, frozen=True, kw_only=True):
    metadata: Metadata | None = None


Messages = Annotated[tuple[CreateMessage, ...], Meta(max_length=1_000)]


# Threads.


class CreateThread(Request, frozen=True, kw_only=True):
    messages: Messages | None = None
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None

    def check(self) -> None:
        _check_thread(self, "")


class ModifyThread(Request, frozen=True, kw_only=True):
    tool_resources: ToolResources | None = None
    metadata: Metadata | None = None

    def check(self) -> None:
        _check_tool_resources(self.tool_resources)


# Runs.


def _needs(tag: str, field: str, kind: str) -> Meta:
    """An object whose `type` is `tag` has to have the field, as `RunOptions.check` wants it."""
    return rule(
        **{
            "if": {"required": ["type"], "properties": {"type": {"const": tag}}, "type": "object"},
            "then": {"required": [field], "properties": {field: {"type": kind}}},
        }
    )


class RunOptions(Request, frozen=True, kw_only=True):
    """What both ways to create a run have in common. What is null is taken from the assistant.

    Tools may be as many as on an assistant: whoever passes an assistant's tools must be able to.
    """

    assistant_id: Id
    model: Model | None = None
    instructions: Text | None = None
    tools: Tools | None = None
    metadata: Metadata | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    stream: bool | None = None
    max_prompt_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    truncation_strategy: Annotated[
        RequestTruncationStrategy | None, _needs("last_messages", "last_messages", "integer")
    ] = None
    tool_choice: Annotated[ToolChoice | None, _needs("function", "function", "object")] = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    expires_after: Annotated[
        Annotated[float, Meta(ge=0.001, le=MAX_EXPIRES_AFTER)] | None,
        OURS,
        about(
            "Seconds from its creation until the run expires; else the service's `--run-expiry`."
        ),
    ] = None
    on_active_run: Annotated[
        Literal["reject", "enqueue"] | None,
        OURS,
        about(
            "What to do while the thread has an active run: refuse with a 400, or wait its turn; "
            "`additional_messages` are added when it has come."
        ),
    ] = "reject"

    def check(self) -> None:
        _check_tools(self.tools)
        _check_response_format(self.response_format)
        strategy = self.truncation_strategy
        if strategy and strategy.type == "last_messages" and strategy.last_messages is None:
            raise refusals.missing_parameter("truncation_strategy.last_messages")
        choice = self.tool_choice
        if (
            isinstance(choice, NamedToolChoice)
            and choice.type == "function"
            and not choice.function
        ):
            raise refusals.missing_parameter("tool_choice.function")


class CreateRun(RunOptions, frozen=True, kw_only=True):
    reasoning_effort: ReasoningEffort | None = None
    additional_instructions: Text | None = None
    additional_messages: Messages | None = None

    def check(self) -> None:
        super().check()
        for index, message in enumerate(self.additional_messages or ()):
            _check_message(message, f"additional_messages[{index}].")


class CreateThreadAndRun(RunOptions, frozen=True, kw_only=True):
    thread: CreateThread | None = None
    tool_resources: ToolResources | None = None

    def check(self) -> None:
        super().check()
        _check_tool_resources(self.tool_resources)
        if self.thread is not None:
            _check_thread(self.thread, "thread.")


class ModifyRun(Request, frozen=True, kw_only=True):
    metadata: Metadata | None = None


class ToolOutput(Struct, frozen=True):
    """The output of one call. OpenAI's schema requires no id, but nothing works without."""

    tool_call_id: Id
    output: str | None = None


class SubmitToolOutputs(Request, frozen=True, kw_only=True):
    tool_outputs: Annotated[tuple[ToolOutput, ...], Meta(max_length=1_024)]
    stream: bool | None = None


# From a request to what is kept.


def content_parts(content: str | tuple[RequestPart, ...]) -> tuple[ContentPart, ...]:
    """A message's content, as it is kept and answered: always a list of parts."""
    if isinstance(content, str):
        return (TextPart(text=TextValue(value=content)),)
    return tuple(_content_part(part) for part in content)


def tool_resources_document(resources: ToolResources | None) -> ToolResourcesDocument:
    """Tool resources, as they are kept and answered: always an object."""
    document: ToolResourcesDocument = msgspec.to_builtins(resources or ToolResources())
    return document


def _content_part(part: RequestPart) -> ContentPart:
    match part:
        case RequestTextPart(text=str(value)) | RequestTextPart(text=TextObject(value=value)):
            return TextPart(text=TextValue(value=value))
        case RequestImageUrlPart(image_url=image):
            return ImageUrlPart(image_url=ImageUrl(url=image.url, detail=image.detail or "auto"))
        case RequestImageFilePart(image_file=file):
            return ImageFilePart(
                image_file=ImageFile(file_id=file.file_id, detail=file.detail or "auto")
            )
    raise AssertionError(part)


# The rules that types cannot express.


def _check_pattern(path: str, value: str, pattern: str) -> None:
    # fullmatch, since `$` alone would let a line feed at the end pass.
    if not re.fullmatch(pattern, value):
        raise refusals.pattern_mismatch(path, pattern)


def _check_tools(tools: tuple[Tool, ...] | None) -> None:
    names: set[str] = set()
    for index, tool in enumerate(tools or ()):
        if not isinstance(tool, FunctionTool):
            continue
        path = f"tools[{index}].function.name"
        name = tool.function.name
        _check_pattern(path, name, FUNCTION_NAME)
        if name in names:
            raise refusals.invalid_value(
                path, f"function names must be unique, but '{name}' stands for two functions"
            )
        names.add(name)


def _check_tool_resources(resources: ToolResources | None, prefix: str = "") -> None:
    if resources and resources.file_search and resources.file_search.vector_stores:
        raise refusals.unsupported(
            f"{prefix}tool_resources.file_search.vector_stores",
            "Vector stores cannot be created here: leave it out.",
        )


def _check_response_format(response_format: ResponseFormat | None) -> None:
    """A schema is kept as the client wrote it, so it is looked at instead of decoded."""
    if not isinstance(response_format, JsonSchemaFormat):
        return
    path = "response_format.json_schema"
    document = response_format.json_schema
    name = document.get("name")
    if name is None:
        raise refusals.missing_parameter(f"{path}.name")
    if not isinstance(name, str):
        raise refusals.invalid_type(f"{path}.name", ["string"], refusals.kind_of(name))
    _check_pattern(f"{path}.name", name, FUNCTION_NAME)
    for field, kind in JSON_SCHEMA_FIELDS.items():
        value = document.get(field)
        if value is not None and refusals.kind_of(value) != kind:
            raise refusals.invalid_type(f"{path}.{field}", [kind], refusals.kind_of(value))


def _check_thread(thread: CreateThread, prefix: str) -> None:
    _check_tool_resources(thread.tool_resources, prefix)
    for index, message in enumerate(thread.messages or ()):
        _check_message(message, f"{prefix}messages[{index}].")


def _text_length(part: RequestPart) -> int:
    if not isinstance(part, RequestTextPart):
        return 0
    return len(part.text if isinstance(part.text, str) else part.text.value)


def _check_message(message: CreateMessage, prefix: str) -> None:
    if message.attachments:
        raise refusals.unsupported(
            f"{prefix}attachments",
            "Files are not supported: leave it out, or put the file's text into the message.",
        )
    if isinstance(message.content, str):
        return
    length = sum(_text_length(part) for part in message.content)
    if length > MAX_TEXT:
        raise refusals.too_long(f"{prefix}content", "string", MAX_TEXT, length)
    for index, part in enumerate(message.content):
        path = f"{prefix}content[{index}]"
        if isinstance(part, RequestImageFilePart):
            raise refusals.unsupported(
                f"{path}.image_file",
                "Files are not supported: send the image as an 'image_url' part.",
            )
        if isinstance(part, RequestImageUrlPart) and not re.match(URI, part.image_url.url):
            raise refusals.invalid_value(
                f"{path}.image_url.url",
                "Expected a valid URL, but got a value with an invalid format",
            )
