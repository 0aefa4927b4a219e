"""When to look again: what `openai-poll-after-ms` says, learned from how long runs took here.

The stock SDK keeps to that header, so it polls well with no change at the client. What is learned
is a few dozen durations a kind of run, in memory; a start reads them from the latest runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from runbell.clock import Clock
from runbell.pacing.foresight import Foresight, Key
from runbell.runs import Run, RunStatus
from runbell.service.changes import Moved
from runbell.storage import runs
from runbell.storage.runs import RunRecord
from runbell.storage.store import Store

__all__ = ["Hints"]

LEAST_MS, MOST_MS = 50, 60_000
"""Within these bounds, whatever was learned: the SDK keeps to the first hint that it is given."""

UNKNOWN_MS = 500
"""For a run of which too little is known: a guess would be wrong for whoever tries things out."""

ENOUGH_OF_A_KIND, ENOUGH_OF_ALL = 8, 64
"""Runs that have to be known before the hint follows what was learned of a kind, or of all."""

REMEMBERED_RUNS = 1_000
"""The latest runs, which a start learns from."""

WAITING = 64
"""Runs of a kind that have ended and are not learned from yet. Of more within a second the latest
tell enough."""

LEARNED_A_SECOND = 20
"""Kinds; each once. Working out anew what was learned of a kind takes the event loop some 3 ms."""

MOST_KINDS = 1_000
MOST_OPEN = 100_000
"""Runs whose beginnings are known at a time; beyond that the oldest is not learned from."""

_CUT_SHORT = frozenset({RunStatus.CANCELLING, RunStatus.CANCELLED, RunStatus.EXPIRED})
"""What ends so would have taken longer."""


@dataclass(slots=True)
class _Part:
    """The part of a run that goes on: from a start, or from tool outputs, until it is settled.

    Attributes:
        kind: of which kind the run is.
        sequence: of the run's latest event that is known here.
        queued_ms: since when it waits for its start; None where nobody here knows.
    """

    kind: Key
    sequence: int
    queued_ms: int | None
    started_ms: int | None = None


class _Ended(NamedTuple):
    """How long a part of a run took, in seconds."""

    ran: float
    queued: float | None
    whole: bool


class _Kind:
    """What is known of a kind beside what was learned.

    Attributes:
        runs: how many have ended.
        waiting: those that are not learned from yet, the latest last.
        learned_at: when the others were, on the monotonic clock.
    """

    __slots__ = ("learned_at", "runs", "waiting")

    def __init__(self) -> None:
        self.runs = 0
        self.waiting: deque[_Ended] = deque(maxlen=WAITING)
        self.learned_at = float("-inf")


class Hints:
    """Learns from the runs that move in this process, or elsewhere after they were queued or begun
    in it, and says when to look at one.

    A run that ends is noted, which costs nothing. Before a hint is given, what was noted of its
    kind is learned, in order; that is what takes time, so it is done once a second at the most.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known = Foresight(most=MOST_KINDS)
        self._parts: dict[str, _Part] = {}
        self._kinds: dict[Key, _Kind] = {}
        self._runs, self._second, self._learned = 0, 0, 0

    async def learn(self, store: Store) -> None:
        """Learn from the latest runs that are stored."""
        latest = await store.read(lambda tx: runs.latest(tx, REMEMBERED_RUNS))
        for record in reversed(latest):  # what happened last counts most
            run = record.run
            ended_ms, whole = _end_of_only_part(run)
            if ended_ms is not None and run.started_at_ms:
                part = _Part(_key(record), run.sequence, run.created_at_ms, run.started_at_ms)
                kind = self._note(part, run.started_at_ms, ended_ms, whole=whole)
                if len(kind.waiting) == WAITING:
                    self._learn(part.kind, kind)
        for key, kind in self._kinds.items():
            self._learn(key, kind)

    def moved(self, record: RunRecord) -> None:
        """A run has changed its status."""
        run = record.run
        if run.status is RunStatus.QUEUED:
            self._begin(run.id, _Part(_key(record), run.sequence, run.updated_at_ms))
            return
        if run.id not in self._parts:
            part = _begun_elsewhere(record)
            if part is None:
                return
            self._begin(run.id, part)
        self._go_on(run)

    def heard(self, run: Moved) -> None:
        """A run has changed its status in another process. Of what kind it is nobody tells: it is
        learned from where its part has begun here, and forgotten then."""
        part = self._parts.get(run.id)
        # What was told before the latest change here may be heard behind it.
        if part is not None and run.sequence > part.sequence:
            self._go_on(run)

    def _begin(self, run_id: str, part: _Part) -> None:
        self._parts[run_id] = part
        if len(self._parts) > MOST_OPEN:
            del self._parts[next(iter(self._parts))]

    def _go_on(self, run: Moved) -> None:
        part = self._parts[run.id]
        part.sequence = run.sequence
        if run.status is RunStatus.QUEUED:
            part.queued_ms, part.started_ms = run.updated_at_ms, None
            return
        if run.status is RunStatus.IN_PROGRESS:
            part.started_ms = run.updated_at_ms
            return
        del self._parts[run.id]
        if part.started_ms is None:
            return
        whole = run.status not in _CUT_SHORT
        kind = self._note(part, part.started_ms, run.updated_at_ms, whole=whole)
        if len(kind.waiting) == WAITING and self._may_learn(kind):  # nobody asks for a hint
            self._learn(part.kind, kind)

    def _note(self, part: _Part, started_ms: int, at_ms: int, *, whole: bool) -> _Kind:
        # The wall clock can be set back; nothing ever took less than no time.
        ran = max(at_ms - started_ms, 0) / 1000
        waited = part.queued_ms
        queued = None if waited is None else max(started_ms - waited, 0) / 1000
        key = part.kind
        kind = self._kinds[key] = self._kinds.pop(key) if key in self._kinds else _Kind()
        kind.waiting.append(_Ended(ran, queued, whole))
        kind.runs += 1
        self._runs += 1
        if len(self._kinds) > MOST_KINDS:
            del self._kinds[next(iter(self._kinds))]
        return kind

    def _may_learn(self, kind: _Kind) -> bool:
        now = self._clock.monotonic()
        if int(now) != self._second:
            self._second, self._learned = int(now), 0
        return now - kind.learned_at >= 1.0 and self._learned < LEARNED_A_SECOND

    def _learn(self, key: Key, kind: _Kind) -> None:
        for each in kind.waiting:
            self._known.observe(key, each.ran, ended=each.whole, queued=each.queued)
        self._learned += 1
        kind.waiting.clear()
        kind.learned_at = self._clock.monotonic()

    def poll_after_ms(self, record: RunRecord) -> int:
        """Milliseconds until it is worth looking at a run that has not ended."""
        key = _key(record)
        kind = self._kinds.get(key)
        if (kind is None or kind.runs < ENOUGH_OF_A_KIND) and self._runs < ENOUGH_OF_ALL:
            return UNKNOWN_MS
        if kind is not None and kind.waiting and self._may_learn(kind):
            self._learn(key, kind)
        run = record.run
        elapsed = 0.0
        if run.status is RunStatus.IN_PROGRESS:
            # Its row says since when, whoever executes it.
            elapsed = max(self._clock.now_ms() - run.updated_at_ms, 0) / 1000
        seconds = self._known.poll_after(key, elapsed)
        return max(LEAST_MS, min(round(seconds * 1000), MOST_MS))

    def soonest_ms(self, records: Iterable[RunRecord]) -> int | None:
        """Likewise for several runs; None where all have ended."""
        open_ones = (each for each in records if not each.run.status.is_terminal)
        return min(map(self.poll_after_ms, open_ones), default=None)


_BEGUN = 2
"""Events of a run that has begun for the first time."""

_ONE_PART = 3
"""Events of a run that was queued, in progress and then ended, or was to be cancelled."""


def _begun_elsewhere(record: RunRecord) -> _Part | None:
    """The part of a run of which nothing is known here but its row; None where that doesn't tell,
    or where the part was over before."""
    run = record.run
    if run.status is RunStatus.IN_PROGRESS:
        queued_ms = run.created_at_ms if run.sequence == _BEGUN else None
        return _Part(_key(record), run.sequence, queued_ms)
    ended_ms, _ = _end_of_only_part(run)
    was_over = run.cancelling_at_ms and run.status is not RunStatus.CANCELLING
    if ended_ms is None or was_over or not run.started_at_ms:
        return None
    return _Part(_key(record), run.sequence, run.created_at_ms, run.started_at_ms)


def _end_of_only_part(run: Run) -> tuple[int | None, bool]:
    """When a run was over that is stored, and whether it was not cut short; None where it goes on,
    or waited for tools: the row does not tell how long the parts of such a run took."""
    if run.cancelling_at_ms:
        # One event more: it was cancelled after that, or what won the race.
        ended = run.status is not RunStatus.CANCELLING
        return (run.cancelling_at_ms if run.sequence == _ONE_PART + ended else None), False
    if run.sequence != _ONE_PART:
        return None, False
    cut = run.expired_at_ms or run.cancelled_at_ms
    return run.completed_at_ms or run.failed_at_ms or run.incomplete_at_ms or cut, cut is None


def _key(record: RunRecord) -> Key:
    config = record.config
    names = tuple(each.function.name for each in config.tools if hasattr(each, "function"))
    return (record.run.assistant_id or "", config.model, names)
