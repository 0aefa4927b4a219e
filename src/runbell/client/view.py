"""What a wait sees: any provider's object in the words that the flow needs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from runbell.client.quota import Quota
from runbell.runs import ToolCall

__all__ = ["Answer", "Stage", "View", "name_of", "stamp"]

Stage = Literal["pending", "wants", "completed", "ended"]
"""`wants`: it waits for tool outputs; `ended`: in any other way than `completed`."""


def name_of(item_id: str, thread_id: str | None) -> str:
    """What sentences call it: `run_x of thread_y`."""
    return item_id if thread_id is None else f"{item_id} of {thread_id}"


def stamp(item: Any, *names: str) -> float | None:
    """The first of these attributes that is a time, in seconds since the epoch. Gateways leave
    some out, or send null."""
    for name in names:
        value = getattr(item, name, None)
        if isinstance(value, int | float):
            return value
    return None


@dataclass(frozen=True, slots=True)
class View:
    """One moment of a run, or of whatever else is waited for. Stamps are seconds since the epoch.

    Attributes:
        status: as the server calls it.
        stage: what that means for whoever waits.
        calls: the tool calls whose outputs it wants.
        code, message: why it ended, where it says so.
    """

    id: str
    status: str
    stage: Stage
    thread_id: str | None = None
    created_at: float | None = None
    started_at: float | None = None
    expires_at: float | None = None
    ended_at: float | None = None
    calls: tuple[ToolCall, ...] = ()
    code: str | None = None
    message: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.stage in ("completed", "ended")

    @property
    def name(self) -> str:
        """For sentences."""
        return name_of(self.id, self.thread_id)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered about one run.

    Attributes:
        item: the SDK's object.
        hint: the seconds of `openai-poll-after-ms`, None without.
        held: the server applied `Prefer: wait` (`Preference-Applied`), and that was a pause.
        holds: the server is known to hold such a request: the next one need not wait for a policy.
        pushed: an event said so, nobody was asked.
        server_time: the `Date` of the answer, in seconds since the epoch, None without.
        quota: what it says about its limit; None where it says nothing.
    """

    item: Any
    hint: float | None = None
    held: bool = False
    holds: bool = False
    pushed: bool = False
    server_time: float | None = None
    quota: Quota | None = None

    def about(self, item: Any) -> Answer:
        """The same, of one of the objects that it was about. One of many waits for its policy, so
        that the next request is about several again."""
        return replace(self, item=item, holds=False)
