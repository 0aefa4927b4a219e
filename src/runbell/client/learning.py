"""What a waiter has learned of how long runs take, and what it makes of what it sees."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from runbell.client.journal import Journal, Stretch
from runbell.errors import RunbellError
from runbell.pacing import Advised, Backoff
from runbell.pacing.foresight import Foresight
from runbell.pacing.policies import SeenRun
from runbell.pacing.watching import ForesightPolicy

if TYPE_CHECKING:
    from runbell.client.view import View
    from runbell.pacing.survival import Curve

__all__ = ["Learned", "Learning", "Seen", "stretch_of"]

log = logging.getLogger("runbell")

FEW = 8
"""Runs of a kind below which a server's advice, which may rest on many, is better than a guess; and
of all kinds below which nothing is known of a new one."""

FIRST_START, FIRST_GROWTH = 2.0, 0.7
"""Of a run of which nothing at all is known, no look is later than √price · (2 + 0.7 · elapsed)
seconds after the one before: at the default price 1 s, and a third of the elapsed time. What is
foreseen from nothing leaves short runs alone for seconds, which is cheap in the mean and dear for
who tries a thing out. Of a few numbers these cost the least in the mean of logarithms over
log-normal runs with medians from half a second to five minutes."""

FRESH_SECONDS = 2.0
"""A run that is this old, by stamps of whole seconds, may have been created just now."""

CUT_SHORT = frozenset({"cancelled", "expired"})
"""Endings that say only that it would have taken longer."""


class Seen(NamedTuple):
    """How a wait, or a part of it, saw its run: seconds since it began.

    Attributes:
        age: how old the run was then; None where nobody knows.
        waiting: when it was last seen `queued`, None for never.
        running: when it was first seen to go on, None for never.
        pending: when it was last seen not to be over.
        over: when it was seen to be over; None where nobody looks any more.
        first: nothing was submitted to it, so that its stamps are about this part.
    """

    age: float | None
    waiting: float | None
    running: float | None
    pending: float
    over: float | None
    first: bool


class Learned:
    """The waiter's default policy: Foresight, as soon as it is known what the run is.

    A run that may be old is looked at first. Where few runs of its kind were seen, what the server
    advises is followed. Whatever goes wrong in what learns, the wait goes on without it.
    """

    __slots__ = ("_foresight", "_hint", "_kind", "_plan")

    def __init__(self, foresight: Foresight) -> None:
        self._foresight = foresight
        self._kind: Any = None
        self._plan: ForesightPolicy | None = None
        self._hint: float | None = None

    def __repr__(self) -> str:
        return "Learned()"

    def know(self, kind: Any, age: float) -> None:
        """Be told of which kind the run is, and how many seconds old it was when the part began."""
        try:
            self._plan = self._foresight.policy(kind, age=age)
            self._kind = kind
        except Exception:  # it is not worth a wait
            log.exception("nothing is foreseen of a run of the kind %r", kind)

    def saw(self, run: SeenRun, hint: float | None) -> None:
        """Be told the last answer, and the server's advice."""
        self._hint = hint if hint is not None and 0 <= hint < math.inf else None
        if self._plan is not None:
            self._plan.saw(run)

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        if self._plan is None:
            return Backoff().next_delay(elapsed, polls)
        try:
            runs = self._foresight.runs(self._kind)
            if polls and self._hint is not None and runs < FEW:
                return max(self._hint, Advised.STRETCH * elapsed)
            delay = self._plan.next_delay(elapsed, polls)
            if delay is not None and runs == 0 and self._foresight.seen < FEW:
                soon = FIRST_START + FIRST_GROWTH * elapsed
                return min(delay, math.sqrt(self._foresight.price) * soon)
            return delay
        except Exception:  # it is not worth a wait
            log.exception("nothing is foreseen of a run of the kind %r", self._kind)
            self._plan = None
            return Backoff().next_delay(elapsed, polls)


class Learning:
    """Makes policies of what it is told.

    Args:
        foresight: what learns.
        journal: where it is kept, and where it is read from now.
    """

    def __init__(self, foresight: Foresight, journal: Journal | None = None) -> None:
        self.foresight = foresight
        self._journal = journal
        self._kinds: dict[Any, Any] = {}
        for stretch in _kept(journal) if journal is not None else ():
            # What somebody else has written there is not worth failing for.
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                self._learn(json.loads(stretch.key), stretch.queue, stretch.run)

    def policy(self, item: Any) -> Learned:
        """The default policy for a wait; it is told later what for."""
        return Learned(self.foresight)

    def kind(self, provider: Any, item: Any) -> Any:
        """What runs have in common that take about as long; None where that is not known yet."""
        kind_of: Callable[[Any], Any] | None = getattr(provider, "kind_of", None)
        kind = (type(provider).__name__,) if kind_of is None else kind_of(item)
        # The waits of a kind share it.
        if len(self._kinds) > 10_000:
            self._kinds.clear()
        return None if kind is None else self._kinds.setdefault(kind, kind)

    def curve(self, kind: Any) -> Curve | None:
        """How long runs of a kind take; None where that can't be said."""
        try:
            return self.foresight.schedule(kind).curve
        except Exception:  # it is not worth a wait
            log.exception("nothing is foreseen of a run of the kind %r", kind)
            return None

    def answered(self, seconds: float) -> None:
        """A look that nobody held was answered after so long."""
        try:
            self.foresight.answered(seconds)
        except Exception:  # it is not worth a wait
            log.exception("an answer's %r seconds taught nothing", seconds)

    def observe(self, kind: Any, seen: Seen, view: View, now: float) -> None:
        """Learn from a stretch of a run that is over, or that nobody looks at any more.

        Args:
            view: the run at that time.
            now: seconds since the epoch.
        """
        found = stretch_of(seen, view)
        if found is None:
            return
        queue, run = found
        try:
            self._learn(kind, queue, run)
        except Exception:  # it is not worth a wait
            log.exception("nothing is learned from a run of the kind %r", kind)
        if self._journal is not None:
            key = json.dumps(kind, ensure_ascii=False)
            self._journal.note(
                Stretch(key, queue, run, int(now * 1000), run_id=view.id, first=seen.first)
            )

    def _learn(
        self, kind: Any, queue: tuple[float, float] | None, run: tuple[float, float | None]
    ) -> None:
        low, high = run
        self.foresight.observe(
            kind, low if high is None else (low, high), ended=high is not None, queued=queue
        )


def _kept(journal: Journal) -> list[Stretch]:
    """What was written down; nothing where the table is somebody else's."""
    try:
        return journal.stretches()
    except RunbellError as error:
        log.warning("nothing is learned from the journal: %s", error)
        return []


Span = tuple[float, float]


def stretch_of(seen: Seen, view: View) -> tuple[Span | None, tuple[float, float | None]] | None:
    """How long a run waited for its start, and took from there on: bounds of both, in seconds.

    What was seen bounds it, and so do the run's stamps, which are whole seconds. A run that was
    never seen waiting is taken to have started at once, as most do, unless its stamps differ.

    Returns:
        None where that says nothing.
    """
    stamped_queue = _between(view.created_at, view.started_at) if seen.first else None
    stamped_run = _between(view.started_at, view.ended_at) if seen.first else None
    queue, run = stamped_queue, stamped_run
    if seen.age is not None:
        began = -seen.age
        start = began if seen.waiting is None else seen.waiting
        if seen.waiting is not None and seen.running is not None:
            start = (seen.waiting + seen.running) / 2
            queue = _narrowed((max(seen.waiting - began, 0.0), seen.running - began), queue)
        elif seen.waiting is None and stamped_queue is not None and stamped_queue[0] > 0:
            start = began + sum(stamped_queue) / 2
        over = math.inf if seen.over is None else max(seen.over - start, 0.0)
        run = _narrowed((min(max(seen.pending - start, 0.0), over), over), run)
    if run is None:
        return None
    if seen.over is None or view.status in CUT_SHORT or math.isinf(run[1]):
        return (queue, (run[0], None)) if run[0] > 0 else None
    return queue, run


def _between(first: float | None, then: float | None) -> Span | None:
    """The seconds between two stamps that were rounded down to whole seconds."""
    if first is None or then is None or then < first:
        return None
    return max(then - first - 1.0, 0.0), then - first + 1.0


def _narrowed(seen: Span, stamped: Span | None) -> Span:
    if stamped is None:
        return seen
    low, high = max(seen[0], stamped[0]), min(seen[1], stamped[1])
    return (low, high) if low <= high else stamped
