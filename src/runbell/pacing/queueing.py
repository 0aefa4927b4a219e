"""How long do runs wait for their start, and when to look at one that waits."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from runbell.pacing.durations import Observation
from runbell.pacing.schedule import Schedule, best_checks

__all__ = ["Queueing"]

_NEGLIGIBLE = 0.25
"""Seconds. A queue as short as this is not told from none."""

_MOMENTS = 64
_SUPPORT = 8


class Queueing(NamedTuple):
    """The latest waits of runs of one kind.

    Attributes:
        waits: in seconds, ascending.
    """

    waits: Sequence[float]

    @classmethod
    def of(cls, seen: Iterable[Observation]) -> Queueing | None:
        """From the waits seen; None where they are negligible."""
        waits = array("f", sorted(observation.middle for observation in seen))
        return cls(waits) if waits and waits[-1] > _NEGLIGIBLE else None

    @property
    def usual(self) -> bool:
        """Whether it is to be expected that a run waits."""
        return self.waits[len(self.waits) // 2] > _NEGLIGIBLE

    def starts(self, waited: float) -> list[tuple[float, float]]:
        """When a run starts that is still waiting after `waited` seconds: moments and weights.

        The waits that were longer; and, with the weight of one run, one that is longer than all
        of them and twice as long as what it waited already, for what was never seen.
        """
        longer = [wait for wait in self.waits if wait > waited]
        step = max(1, len(longer) // _SUPPORT)
        chosen = longer[step // 2 :: step]
        total = len(longer) + 1.0
        each = len(longer) / total / len(chosen) if chosen else 0.0
        return [(wait, each) for wait in chosen] + [
            (max(1.5 * self.waits[-1], 2 * waited), 1 / total)
        ]

    def next_check(self, running: Schedule, waited: float) -> float:
        """When to look next at a run that was waiting `waited` seconds after its creation.

        The same dynamic programme as for a run that is going on, on a few moments: what is looked
        for is the end, of a run that starts at one of a few moments.

        Args:
            running: the checks of a run counted from its start.
            waited: seconds; 0 before the first look.

        Returns:
            Seconds after the run's creation.
        """
        starts = self.starts(waited)
        curve = running.curve
        latest = starts[-2][0] if len(starts) > 1 else starts[-1][0]
        span = max(latest - waited, 0.0) + curve.times[-1] / 10
        first = min(running.latency, span / _MOMENTS)
        growth = (span / first) ** (1 / (_MOMENTS - 1))
        times = [0.0, *(first * growth**step for step in range(_MOMENTS))]
        alive = [
            sum(weight * curve.alive(waited + time - start) for start, weight in starts)
            for time in times
        ]
        following = best_checks(times, alive, running.price, running.latency, running.latency / 2)
        return float(waited + times[following[0]])
