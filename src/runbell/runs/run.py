"""What is a run: one immutable value that says where it stands and how it came there."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from runbell.errors import ErrorCode

__all__ = ["LastError", "Run", "RunStatus", "ToolCall", "Usage"]


class RunStatus(StrEnum):
    """The statuses of a run, as the Assistants API names them."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    REQUIRES_ACTION = "requires_action"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"
    FAILED = "failed"
    COMPLETED = "completed"
    INCOMPLETE = "incomplete"
    EXPIRED = "expired"

    @property
    def is_terminal(self) -> bool:
        """Nothing happens any more to a run in this status."""
        return self in TERMINAL

    @property
    def is_settled(self) -> bool:
        """Whoever waits for the run has to look now: it ended, or it wants tool outputs."""
        return self in TERMINAL or self is RunStatus.REQUIRES_ACTION


TERMINAL = frozenset(
    {
        RunStatus.CANCELLED,
        RunStatus.FAILED,
        RunStatus.COMPLETED,
        RunStatus.INCOMPLETE,
        RunStatus.EXPIRED,
    }
)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called. `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class LastError:
    """Why a run failed."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens used."""

    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Run:
    """One run. The stamps (`…_at_ms`) are milliseconds since the epoch.

    Attributes:
        sequence: the number of its latest event; 1 is its creation.
        attempt: how often a worker has taken it up. A worker's writes name the attempt that they
            belong to, so those of a worker that lost the run change nothing.
        takeovers: how often in a row a worker was lost in the middle of its work.
        waits_turn: it is queued behind the thread's active run and may not start yet.
        updated_at_ms: the moment of its latest transition.
        usage: the tokens of all turns so far; the API shows them only when the run has ended.
    """

    id: str
    project_id: str
    thread_id: str
    assistant_id: str
    status: RunStatus
    created_at_ms: int
    expires_at_ms: int
    updated_at_ms: int
    sequence: int = 1
    attempt: int = 0
    takeovers: int = 0
    waits_turn: bool = False
    started_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    cancelled_at_ms: int | None = None
    failed_at_ms: int | None = None
    completed_at_ms: int | None = None
    incomplete_at_ms: int | None = None
    expired_at_ms: int | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    last_error: LastError | None = None
    incomplete_reason: str | None = None
    status_reason: str | None = None
    usage: Usage = NO_USAGE
    metadata: dict[str, str] = field(default_factory=dict)
