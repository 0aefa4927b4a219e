"""When to look next: the polling policies, pure functions of elapsed time and of looks so far."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "Advised",
    "Backoff",
    "Backstop",
    "Fixed",
    "Jittered",
    "Policy",
    "PolicySource",
    "SeenRun",
    "SqrtElapsed",
    "begin",
]


@runtime_checkable
class Policy(Protocol):
    """A rule that says when to look next.

    It may have a second method, `saw(run: SeenRun, hint: float | None) -> None`. It is called
    before each question but the first, with the last answer and the seconds of its
    `openai-poll-after-ms` (None without), which is advice.
    """

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        """Seconds from now to the next look; None ends polling.

        Asked before every look, the first included.

        Args:
            elapsed: seconds since the wait, or its current part, began, on a monotonic clock. A
                new part begins when tool outputs were submitted or the run was restarted.
            polls: looks completed in this part. The answer to a submission or to a creation
                counts as one: a part that begins with it begins with a delay.
        """
        ...


class SeenRun(Protocol):
    """What a policy is told about the last answer. The stamps are seconds since the epoch."""

    @property
    def status(self) -> str: ...
    @property
    def created_at(self) -> float | None: ...
    @property
    def started_at(self) -> float | None: ...


PolicySource = Policy | Callable[[Any], Policy]
"""A policy for all waits, or a function that makes one of its own for each run."""


def begin(source: PolicySource, run: Any) -> Policy:
    """The policy for one part of one wait.

    A policy that listens (`saw`) has something of a run in mind, so each wait gets a copy.
    """
    if not isinstance(source, Policy):
        return source(run)
    return copy.copy(source) if hasattr(source, "saw") else source


@dataclass(frozen=True, slots=True)
class Backoff:
    """The tutorials' rule: at once, then `start` seconds, each delay `factor` times longer.

    Attributes:
        start: seconds before the second look.
        factor: by what each delay is longer than the one before.
        cap: the longest delay, in seconds.
        max_polls: looks after which polling ends; None for as many as it takes.
    """

    start: float = 0.5
    factor: float = 1.5
    cap: float = 5.0
    max_polls: int | None = None

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.factor >= 1 and self.cap >= self.start):
            raise ValueError("Backoff needs start > 0, factor >= 1 and cap >= start")

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        if self.max_polls is not None and polls >= self.max_polls:
            return None
        if polls == 0:
            return 0.0
        # The exponent is bounded because a float overflows long before patience does.
        grown = min((polls - 1) * math.log(self.factor), 700.0)
        return min(self.cap, self.start * math.exp(grown)) if grown else self.start


@dataclass(frozen=True, slots=True)
class Fixed:
    """At once, then every `interval` seconds."""

    interval: float = 1.0

    def __post_init__(self) -> None:
        if self.interval <= 0:
            raise ValueError("Fixed needs an interval > 0")

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        return 0.0 if polls == 0 else self.interval


@dataclass(frozen=True, slots=True)
class Jittered:
    """Another policy with a random part, so that many programs do not look at the same moment.

    Attributes:
        base: the policy whose delays are varied.
        spread: how much of each delay is drawn: 0.5 makes 2 s a delay of 1.5 to 2.5 s, and 2.0
            one of 0 to 4 s ("full jitter" with the same mean). At most 2.
        rng: where chance comes from.
    """

    base: Policy = field(default_factory=Backoff)
    spread: float = 0.5
    rng: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        if not 0 <= self.spread <= 2:
            raise ValueError("Jittered needs 0 <= spread <= 2")

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        delay = self.base.next_delay(elapsed, polls)
        return delay and delay * (1 + self.spread * (self.rng.random() - 0.5))


@dataclass(frozen=True, slots=True)
class SqrtElapsed:
    """Delays that grow with the square root of the elapsed time: `scale · √elapsed` seconds.

    With a hazard of 1/t, which is to know nothing about how long runs take, the best gap between
    looks is √(2λt), where λ is the price of a look in seconds of delay (Keller, "Optimum Checking
    Schedules for Systems Subject to Random Failure", 1974); `scale` is √(2λ).

    Attributes:
        scale: in √seconds; the default prices a look at a quarter of a second.
        floor: the shortest delay after the first look, in seconds.
        cap: the longest.
    """

    scale: float = 0.7
    floor: float = 0.2
    cap: float = 60.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and 0 < self.floor <= self.cap):
            raise ValueError("SqrtElapsed needs scale > 0 and 0 < floor <= cap")

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        if polls == 0:
            return 0.0
        return min(self.cap, max(self.floor, self.scale * math.sqrt(max(elapsed, 0.0))))


class Advised:
    """What the server advises, where it does; else another policy.

    A server may give the same advice for as long as a run takes. It is stretched to a twentieth
    of the elapsed time: to know of a run of ten minutes half a minute late costs little.

    Args:
        base: the policy where there is no advice.
    """

    STRETCH = 0.05

    def __init__(self, base: Policy | None = None) -> None:
        self.base: Policy = base or Backoff()
        self._hint: float | None = None

    def __repr__(self) -> str:
        return f"Advised({self.base!r})"

    def saw(self, run: SeenRun, hint: float | None) -> None:
        """Remember the advice of the last answer."""
        self._hint = hint if hint is not None and 0 <= hint < math.inf else None

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        delay = self.base.next_delay(elapsed, polls)
        if delay is None or polls == 0 or self._hint is None:
            return delay
        return max(self._hint, self.STRETCH * elapsed)


@dataclass(frozen=True, slots=True)
class Backstop:
    """For waits that are told of changes: look only where news may have been lost.

    The first look comes when nothing was heard for suspiciously long, the next ones at twice the
    time each.

    Attributes:
        silence: seconds without news after which to look: late in the time that runs take.
        cap: the longest delay, in seconds.
    """

    silence: float = 30.0
    cap: float = 300.0

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        return min(self.cap, self.silence * 2.0 ** min(polls, 64))
