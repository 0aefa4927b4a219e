"""What has to come of everything that can happen to runs: a model without a database or a clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from runbell.runs import RunStatus

__all__ = ["CANCEL_GRACE_MS", "LOST_WORKERS", "House", "HouseRun", "HouseThread"]

S = RunStatus

CANCEL_GRACE_MS = 10_000
LOST_WORKERS = 6
"""So many workers in a row may be lost before the run fails."""


@dataclass(eq=False)
class HouseRun:
    """What one run has to be; `began` when its turn has come, `answered` when it has said so."""

    label: str
    thread: HouseThread
    expires_at_ms: int
    id: str = ""
    status: S = S.QUEUED
    waits: bool = False
    began: bool = False
    answered: bool = False
    lost: int = 0
    forced_end_ms: int = 0

    @property
    def live(self) -> bool:
        return not self.status.is_terminal

    @property
    def executed(self) -> bool:
        """A worker holds it."""
        return self.status is S.IN_PROGRESS

    @property
    def deadline_ms(self) -> int:
        if self.status is S.CANCELLING:
            return min(self.expires_at_ms, self.forced_end_ms)
        return self.expires_at_ms

    def begin(self) -> None:
        self.status, self.waits, self.began, self.lost = S.IN_PROGRESS, False, True, 0

    def end(self, status: S, now_ms: int) -> None:
        """The run ends; whoever waits longest is next, unless its own time is over."""
        self.status = status
        if self.waits:
            self.waits = False
            return
        for following in self.thread.runs:
            if following.live and following.waits:
                if following.expires_at_ms > now_ms:
                    following.begin()
                    return
                following.end(S.EXPIRED, now_ms)


@dataclass(eq=False)
class HouseThread:
    """What one thread has to hold; `added` counts the messages that came between runs."""

    id: str
    runs: list[HouseRun] = field(default_factory=list)
    added: int = 0
    deleted: bool = False

    @property
    def active(self) -> HouseRun | None:
        found = [run for run in self.runs if run.live and not run.waits]
        assert len(found) <= 1, "the model itself is wrong"
        return found[0] if found else None

    @property
    def user_messages(self) -> int:
        return 1 + self.added + sum(run.began for run in self.runs)


@dataclass
class House:
    """All threads, those that were deleted too: their events stay."""

    threads: list[HouseThread] = field(default_factory=list)

    @property
    def there(self) -> list[HouseThread]:
        return [thread for thread in self.threads if not thread.deleted]

    @property
    def all_runs(self) -> list[HouseRun]:
        return [run for thread in self.threads for run in thread.runs]

    def runs(self, statuses: Iterable[S] = S) -> list[HouseRun]:
        """The runs of threads that are there, with one of these statuses."""
        wanted = set(statuses)
        return [run for thread in self.there for run in thread.runs if run.status in wanted]

    @property
    def executed(self) -> list[HouseRun]:
        return [run for run in self.runs() if run.executed]

    def pass_time(self, now_ms: int) -> None:
        """It is `now_ms`: everything ends whose time is over, in the order of the deadlines."""
        while due := [run for run in self.runs() if run.live and run.deadline_ms <= now_ms]:
            first = min(due, key=lambda run: run.deadline_ms)
            expired = first.expires_at_ms <= first.deadline_ms
            first.end(S.EXPIRED if expired else S.CANCELLED, first.deadline_ms)

    def lose_workers(self, held: list[HouseRun], now_ms: int) -> None:
        """The process died and came back: what its workers held is taken over, a few times."""
        self.pass_time(now_ms)
        for run in held:
            if run.executed:
                run.lost += 1
                if run.lost == LOST_WORKERS:
                    run.end(S.FAILED, now_ms)
