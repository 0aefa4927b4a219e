"""Calls relative to the optimum at equal delay: how much is lost by having to learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bench.polling.optimum import Frontier
from bench.polling.rules import LATENCY, Outcome, learned
from bench.polling.truth import Draws
from runbell.pacing.foresight import Foresight
from runbell.pacing.survival import ignorance

__all__ = ["PRICES", "cold", "ratio", "taught", "trained"]

PRICES = np.geomspace(3e-4, 60, 15)
CALLS = (1.5, 15.0)


def ratio(polled: Callable[[float], Outcome], best: Frontier) -> float:
    """The mean, over the prices that give 1.5 to 15 calls a run, of the calls relative to the
    optimum's at the same mean delay; not a number where no price does."""
    found = []
    for price in PRICES:
        result = polled(float(price))
        if CALLS[0] <= result.calls <= CALLS[1]:
            found.append(result.calls / best.calls_at(result.mean))
    return float(np.mean(found)) if found else float("nan")


def taught(kinds: dict[str, Draws], runs: int, price: float, seed: int = 5) -> Foresight:
    """One that has seen so many runs of each kind, in turn."""
    rng = np.random.default_rng(seed)
    known = Foresight(price, LATENCY)
    lessons = {key: rng.choice(draws, runs) for key, draws in kinds.items()}
    for turn in range(runs):
        for key, lesson in lessons.items():
            known.observe(key, float(lesson[turn]))
    return known


def trained(
    kinds: dict[str, Draws], best: dict[str, Frontier], runs: int, repeats: int
) -> dict[str, float]:
    """The ratio of each kind, after so many runs of each; the mean of several lessons."""
    ratios: dict[str, list[float]] = {key: [] for key in kinds}
    for seed in range(repeats):
        known = {float(price): taught(kinds, runs, float(price), seed) for price in PRICES}
        for key in kinds:
            ratios[key].append(_of_kind(key, kinds[key], known, best[key]))
    return {
        key: float(np.nanmean(values)) if not np.all(np.isnan(values)) else float("nan")
        for key, values in ratios.items()
    }


def cold(draws: Draws, best: Frontier, off: float = 1.0) -> float:
    """The ratio of one that knows nothing, and whose prior is wrong by a factor."""
    prior = ignorance(8.0 * off)
    return ratio(lambda price: learned(Foresight(price, LATENCY, prior=prior), "new", draws), best)


def _of_kind(key: str, draws: Draws, known: dict[float, Foresight], best: Frontier) -> float:
    return ratio(lambda price: learned(known[price], key, draws), best)
