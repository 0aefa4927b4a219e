"""The moments at which a policy looks, if the run is still going on; and what comes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bench.polling.truth import Draws
from runbell.client.learning import Learned
from runbell.pacing.foresight import Foresight

__all__ = ["LATENCY", "RULES", "Outcome", "Rule", "checks_of", "first_try", "learned", "outcome"]

LATENCY = 0.15
Floats = NDArray[np.float64]
NextDelay = Callable[[float, int], float | None]
Rule = Callable[[random.Random], NextDelay]
"""Makes the policy of one wait, as the waiter asks it: seconds until the next look."""


class Outcome(NamedTuple):
    """What a policy costs and brings.

    Attributes:
        calls: in the mean.
        delays: from a run's end until it is known, in seconds, of every run.
    """

    calls: float
    delays: Floats

    @property
    def mean(self) -> float:
        return float(self.delays.mean())

    def percentile(self, share: float) -> float:
        return float(np.percentile(self.delays, share))


def checks_of(next_delay: NextDelay, until: float) -> Floats:
    """The moments of a policy's checks, up to the first one after `until`.

    The first look may come at once; each is asked for when the answer to the one before is in.
    """
    checks: list[float] = []
    elapsed = 0.0
    while not checks or checks[-1] < until:
        delay = next_delay(elapsed, len(checks))
        assert delay is not None
        elapsed += delay + LATENCY
        checks.append(elapsed - LATENCY / 2)
    return np.array(checks)


def outcome(checks: Floats, draws: Draws) -> Outcome:
    """What comes of these checks for runs that take as long as `draws`."""
    which = np.searchsorted(checks, draws)
    return Outcome(float((which + 1).mean()), checks[which] - draws + LATENCY / 2)


def ruled(rule: Rule, draws: Draws, waits: int = 1) -> Outcome:
    """The same for a rule, over several waits where it depends on chance."""
    parts = [
        outcome(checks_of(rule(random.Random(seed)), float(draws[-1])), draws[seed::waits])
        for seed in range(waits)
    ]
    calls = sum(part.calls for part in parts) / waits
    return Outcome(calls, np.concatenate([part.delays for part in parts]))


def learned(known: Foresight, key: str, draws: Draws) -> Outcome:
    """The same for Foresight, as it is with what it knows."""
    return outcome(checks_of(known.policy(key).next_delay, float(draws[-1])), draws)


def first_try(known: Foresight, draws: Draws) -> Outcome:
    """The same for a waiter that was just installed, whose runs are of a kind never seen."""
    policy = Learned(known)
    policy.know("new", 0.0)
    return outcome(checks_of(policy.next_delay, float(draws[-1])), draws)


def _fixed(interval: float) -> Rule:
    return lambda rng: lambda elapsed, polls: interval if polls else 0.0


def _backoff(start: float, factor: float, cap: float, jitter: bool) -> Rule:
    def begun(rng: random.Random) -> NextDelay:
        def next_delay(elapsed: float, polls: int) -> float:
            if polls == 0:
                return 0.0
            delay = min(cap, start * factor ** min(polls - 1, 60))
            return rng.uniform(0, delay) if jitter else delay

        return next_delay

    return begun


RULES: dict[str, tuple[Rule, int]] = {
    "tight loop": (_fixed(0.0), 1),
    "fixed 1 s (openai SDK)": (_fixed(1.0), 1),
    "fixed 2 s": (_fixed(2.0), 1),
    "fixed 3 s": (_fixed(3.0), 1),
    "tutorial (0.5 s x 1.5, cap 5 s)": (_backoff(0.5, 1.5, 5.0, jitter=False), 1),
    "full jitter of it": (_backoff(0.5, 1.5, 5.0, jitter=True), 200),
    "google (to 1 s x 1.5, cap 20 s)": (_backoff(1.0, 1.5, 20.0, jitter=True), 200),
}
"""What people use, with the waits to take the mean of."""
