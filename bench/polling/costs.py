"""What deciding costs a processor."""

from __future__ import annotations

import random
import time

from bench.polling.rules import LATENCY
from runbell.pacing.foresight import Foresight

__all__ = ["cost"]


def cost(kinds: int, runs: int, bounds: bool) -> float:
    """Processor seconds for a decision, with all learning and reckoning that belongs to it.

    Args:
        kinds: of runs, which come in turn.
        bounds: of each run only the looks before and after its end are known, as to a waiter; else
            the moment.
    """
    known, rng, decisions = Foresight(), random.Random(1), 0
    began = time.process_time()
    for run in range(runs):
        key = ("kind", run % kinds)
        seconds, policy = rng.lognormvariate(1.5, 0.4), known.policy(key)
        elapsed, polls, pending = 0.0, 0, 0.0
        while True:
            delay = policy.next_delay(elapsed, polls)
            assert delay is not None
            elapsed, polls, decisions = elapsed + delay + LATENCY, polls + 1, decisions + 1
            if elapsed - LATENCY / 2 >= seconds:
                break
            pending = elapsed
        known.observe(key, (pending, elapsed) if bounds else seconds)
    return (time.process_time() - began) / decisions
