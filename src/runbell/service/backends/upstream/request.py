"""What a model server is asked: the body of a chat completion, in the words that it knows."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import msgspec

from runbell.service.backends.base import ModelRequest
from runbell.service.backends.upstream.failures import CallFailed
from runbell.service.backends.upstream.prompt import Prompt, functions
from runbell.storage.records import (
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedToolChoice,
    RunConfig,
)

__all__ = ["Dialect", "chat_body"]


@dataclass(frozen=True, slots=True)
class Dialect:
    """In which servers differ: words that some do not know.

    `max_tokens` is tried first although OpenAI has given it up: the servers that do not know it
    (OpenAI's, for reasoning models) say so, those that do not know `max_completion_tokens`
    (Ollama; llama.cpp before 2026) take no notice of it, and the limit would be lost.

    Attributes:
        limit: how the limit of an answer is called.
        usage: the server can be asked for the tokens used at the end of a stream.
        parallel: it can be told to call one function at a time.
    """

    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    usage: bool = True
    parallel: bool = True

    def adapted(self, body: dict[str, Any], failed: CallFailed) -> Dialect | None:
        """Another way to say it, where the server refused a word of `body`; else None."""
        if failed.status not in (400, 422) or failed.context:
            return None
        if "max_tokens" in body and re.search("max_(completion_)?tokens", failed.said):
            return replace(self, limit="max_completion_tokens")
        if "stream_options" in body and "stream_options" in failed.said:
            return replace(self, usage=False)
        if "parallel_tool_calls" in body and "parallel_tool_calls" in failed.said:
            return replace(self, parallel=False)
        return None


def chat_body(
    request: ModelRequest, model: str, prompt: Prompt, dialect: Dialect
) -> dict[str, Any]:
    """The body of the request. What the user did not set is left out: servers have defaults."""
    config = request.config
    body: dict[str, Any] = {"model": model, "messages": prompt.messages, "stream": True}
    if dialect.usage:
        body["stream_options"] = {"include_usage": True}
    if tools := list(functions(config)):
        body["tools"] = tools
        if (choice := _choice(config, first=not request.steps)) != "auto":
            body["tool_choice"] = choice
        if not config.parallel_tool_calls and dialect.parallel:
            body["parallel_tool_calls"] = False
    if isinstance(config.response_format, JsonObjectFormat | JsonSchemaFormat):
        body["response_format"] = msgspec.to_builtins(config.response_format)
    for name in ("temperature", "top_p", "reasoning_effort"):
        if (value := getattr(config, name)) is not None:
            body[name] = value
    if request.max_completion_tokens is not None:
        body[dialect.limit] = request.max_completion_tokens
    return body


def _choice(config: RunConfig, *, first: bool) -> Any:
    """Which function has to be called. Only in the first turn: else it would be called for ever."""
    choice = config.tool_choice
    if not first:
        return "auto"
    if isinstance(choice, NamedToolChoice):
        # A choice of functions that names none: any of them.
        return msgspec.to_builtins(choice) if choice.function is not None else "required"
    return choice
