"""What a model is to the service: something that streams an answer to a conversation."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from runbell.runs import Usage
from runbell.storage.records import Message, RunConfig, RunStep

__all__ = [
    "Backend",
    "Finished",
    "ModelRequest",
    "Piece",
    "RemoteBackend",
    "TextDelta",
    "ToolCallDelta",
]


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One turn of a run.

    Attributes:
        config: what the run was asked to do; names the model.
        messages: the thread's messages, oldest first.
        steps: what this run did in earlier turns, in order: the messages that it made, which are
            among `messages` too, and its calls, each with its output.
        max_prompt_tokens: what is left of the run's limit; None without one.
        max_completion_tokens: likewise.
        run_id, thread_id, project_id: whose turn it is, for logs.
        expires_at_ms: when the run's time is over, in milliseconds since the epoch; None for never.
    """

    config: RunConfig
    messages: tuple[Message, ...]
    steps: tuple[RunStep, ...]
    max_prompt_tokens: int | None
    max_completion_tokens: int | None
    run_id: str = ""
    thread_id: str = ""
    project_id: str = ""
    expires_at_ms: int | None = None

    @property
    def ids(self) -> dict[str, str]:
        """Whose turn it is, as the fields of a log record."""
        named = {"run_id": self.run_id, "thread_id": self.thread_id, "project_id": self.project_id}
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """More of a function call: the parts with the same `index` make up one call."""

    index: int
    name: str = ""
    arguments: str = ""
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of the turn.

    Attributes:
        reason: a limit's name where that stopped the answer, else `stop`.
    """

    reason: Literal["stop", "max_completion_tokens", "max_prompt_tokens"]
    usage: Usage


Piece = TextDelta | ToolCallDelta | Finished


class Backend(Protocol):
    """Serves one or more models."""

    def models(self) -> tuple[str, ...]:
        """The names under which runs can ask for its models."""
        ...

    def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """The pieces of the answer as they come, the last one `Finished`.

        May be closed early, when the run was cancelled or has expired.

        Raises:
            ModelError: the model failed or refused; what it had said stays with the run.
        """
        ...


@runtime_checkable
class RemoteBackend(Backend, Protocol):
    """Serves models of another process, which may be away, and change what it has."""

    @property
    def rest(self) -> str | None:
        """The model that answers for every name that nobody else serves; None without one.

        `*` stands for the model of the very name that was asked for.
        """
        ...

    @property
    def heard(self) -> bool:
        """Which models it has is known. While it is not, it may have any."""
        ...

    def takes(self, running: int) -> bool:
        """One more run could be answered, where so many of its runs are under way."""
        ...

    def on_room(self, call: Callable[[], None]) -> None:
        """Have `call` called when it may take one more, other than because one has ended."""
        ...

    async def look_up(self) -> None:
        """Ask again which models there are, unless that was done a moment ago."""
        ...

    async def close(self) -> None:
        """Let go of its connections."""
        ...
