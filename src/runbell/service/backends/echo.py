"""`echo`: a model without a model, for trying things out, for tests and for measurements.

It answers with the text of the last user message, word for word. Lines in that message drive it:

    call NAME {"json": "arguments"}   call a function of the run; several lines are parallel calls
    sleep SECONDS                     take that long
    fail CODE message                 fail, with CODE as `last_error.code`
    incomplete                        stop here, as if the token limit were reached

A `call` of a function that the run does not have is plain text. Lines in front of the first call
act before the calls are made, those behind it after the outputs came; then the answer is the
outputs, one a line, in the order of the calls. `tool_choice` "none" makes no calls; "required", or
a named function, makes one (with `{}`) where no line asks for any; `parallel_tool_calls=false`
makes one call a turn. Tokens are words. Sampling parameters, `response_format` and images have no
effect: nothing is generated.
"""

from __future__ import annotations

import math
import re
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import cast, get_args

from runbell.clock import Clock
from runbell.errors import ErrorCode, ModelError
from runbell.runs import Usage
from runbell.service.backends.base import (
    Finished,
    ModelRequest,
    Piece,
    TextDelta,
    ToolCallDelta,
)
from runbell.storage.records import (
    FunctionTool,
    NamedToolChoice,
    RunConfig,
    TextPart,
    ToolStepCall,
)

__all__ = ["Echo"]

MAX_PIECES = 64
"""Into how many pieces an answer is cut at the most."""

_CALL = re.compile(r"call\s+([A-Za-z0-9_-]+)\s*(.*)")
_SLEEP = re.compile(r"sleep\s+([0-9]*\.?[0-9]+)\s*")
_FAIL = re.compile(r"fail\s+(\S+)\s*(.*)")
_WORDS = re.compile(r"\s*\S+\s*")


@dataclass(frozen=True, slots=True)
class _Script:
    """A user's message, read as what it makes echo do."""

    text: str
    before: tuple[str, ...]
    calls: tuple[tuple[str, str], ...]
    after: tuple[str, ...]


class Echo:
    """The backend of the model `echo`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def models(self) -> tuple[str, ...]:
        return ("echo",)

    async def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        prompt = _prompt_words(request)
        if request.max_prompt_tokens is not None and prompt > request.max_prompt_tokens:
            yield Finished("max_prompt_tokens", Usage())
            return
        script = _read(request)
        answered = [call for step in request.steps for call in step.tool_calls]
        if not answered:
            await self._obey(script.before)
        calls = script.calls[len(answered) :]
        if calls:
            if not request.config.parallel_tool_calls:
                calls = calls[:1]
            for index, (name, arguments) in enumerate(calls):
                yield ToolCallDelta(index, name, arguments)
            spoken = sum(_count(arguments) for _, arguments in calls)
            yield Finished("stop", Usage(prompt, spoken))
            return
        if answered:
            await self._obey(script.after)
        for piece in _say(script, answered, prompt, request.max_completion_tokens):
            yield piece

    async def _obey(self, lines: tuple[str, ...]) -> None:
        for line in lines:
            if sleep := _SLEEP.fullmatch(line):
                await self._clock.sleep(float(sleep[1]))
            elif fail := _FAIL.fullmatch(line):
                known = fail[1] in get_args(ErrorCode)
                code = cast(ErrorCode, fail[1]) if known else "server_error"
                raise ModelError(code, fail[2].strip() or "The message asked echo to fail.")


def _say(
    script: _Script, answered: list[ToolStepCall], prompt: int, limit: int | None
) -> Iterator[Piece]:
    lines = script.after if answered else script.before
    text = "\n".join(call.output or "" for call in answered) if answered else script.text
    cut = "incomplete" in (line.strip() for line in lines)
    if cut and not answered:
        text = re.split(r"^\s*incomplete\s*$", text, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    words = _WORDS.findall(text) or ([text] if text else [])
    if limit is not None and len(words) > limit:
        cut = True
        words = words[:limit]
    size = math.ceil(len(words) / MAX_PIECES) or 1
    for start in range(0, len(words), size):
        yield TextDelta("".join(words[start : start + size]))
    yield Finished("max_completion_tokens" if cut else "stop", Usage(prompt, len(words)))


def _read(request: ModelRequest) -> _Script:
    text = _last_user_text(request)
    config = request.config
    names = {tool.function.name for tool in config.tools if isinstance(tool, FunctionTool)}
    before: list[str] = []
    calls: list[tuple[str, str]] = []
    after: list[str] = []
    for line in map(str.strip, text.splitlines()):
        call = _CALL.fullmatch(line)
        if call is not None and call[1] in names and config.tool_choice != "none":
            calls.append((call[1], call[2].strip() or "{}"))
        else:
            (after if calls else before).append(line)
    if not calls:
        calls = [(name, "{}") for name in _required(config)]
    return _Script(text, tuple(before), tuple(calls), tuple(after))


def _required(config: RunConfig) -> Iterator[str]:
    """The function that has to be called although no line asks for it."""
    choice = config.tool_choice
    if isinstance(choice, NamedToolChoice):
        if choice.function:
            yield choice.function.name
    elif choice == "required":
        for tool in config.tools:
            if isinstance(tool, FunctionTool):
                yield tool.function.name
                return


def _last_user_text(request: ModelRequest) -> str:
    for message in reversed(request.messages):
        if message.role == "user":
            parts = (part.text.value for part in message.content if isinstance(part, TextPart))
            return "\n".join(parts)
    return ""


def _prompt_words(request: ModelRequest) -> int:
    said = sum(
        _count(part.text.value)
        for message in request.messages
        for part in message.content
        if isinstance(part, TextPart)
    )
    outputs = sum(_count(call.output or "") for s in request.steps for call in s.tool_calls)
    return _count(request.config.instructions) + said + outputs


def _count(text: str) -> int:
    return len(text.split())
