"""What durations are really like, for a benchmark: traces, smoothed; and made-up kinds."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draws", "held_out", "pooled", "traced"]

Draws = NDArray[np.float64]
"""Durations in seconds, ascending."""

COUNT = 100_000
TRACES = Path(__file__).parent.parent / "traces"


def traced(name: str) -> dict[str, Draws]:
    """The durations of a trace by kind: 100,000 drawn of each from its smoothed logarithms.

    The kernel is Gaussian, of Silverman's width 0.9·min(deviation, IQR/1.34)·n^-0.2. A policy
    judged by the few raw rows themselves would be praised for knowing them by heart.
    """
    rows = defaultdict(list)
    with (TRACES / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            rows[row["key"]].append(float(row["duration_s"]))
    rng = np.random.default_rng(1)
    return {key: _smoothed(np.log(values), rng) for key, values in rows.items()}


def _smoothed(logs: NDArray[np.float64], rng: np.random.Generator) -> Draws:
    high, low = np.percentile(logs, [75, 25])
    width = 0.9 * min(logs.std(ddof=1), (high - low) / 1.34) * len(logs) ** -0.2
    noise = rng.standard_normal(COUNT)
    return np.sort(np.exp(rng.choice(logs, COUNT) + width * noise))


def pooled(kinds: dict[str, Draws]) -> Draws:
    """What a run of a kind takes that nobody knows."""
    rng = np.random.default_rng(2)
    parts = [rng.choice(draws, COUNT // len(kinds)) for draws in kinds.values()]
    return np.sort(np.concatenate(parts))


def held_out() -> dict[str, Draws]:
    """Kinds of runs that nothing was tuned to: other medians, spikes, several modes, long tails."""
    rng = np.random.default_rng(9)

    def log_normal(median: float, sigma: float, share: float = 1.0) -> Draws:
        drawn: Draws = median * np.exp(sigma * rng.standard_normal(int(COUNT * share)))
        return drawn

    def either(*parts: Draws) -> Draws:
        return np.concatenate(parts)

    kinds = {
        "half a second": log_normal(0.5, 0.3),
        "narrow at 3 s": log_normal(3, 0.1),
        "narrow at 30 s": log_normal(30, 0.05),
        "middling at 30 s": log_normal(30, 0.3),
        "wide at 200 s": log_normal(200, 0.8),
        "very wide at 6 s": log_normal(6, 1.2),
        "two spikes": either(log_normal(0.9, 0.08, 0.5), log_normal(12, 0.1, 0.5)),
        "a spike in a hill": either(log_normal(4, 0.01, 0.7), log_normal(6, 0.7, 0.3)),
        "three modes": either(
            log_normal(1, 0.2, 0.34), log_normal(8, 0.15, 0.33), log_normal(70, 0.2, 0.33)
        ),
        "retries": either(
            log_normal(2, 0.1, 0.8), log_normal(7, 0.1, 0.15), log_normal(17, 0.1, 0.05)
        ),
        "time limit at 60 s": either(log_normal(5, 0.3, 0.95), log_normal(60, 0.002, 0.05)),
        "Pareto": 2 * (1 - rng.random(COUNT)) ** (-1 / 1.5),
        "uniform": rng.uniform(2, 10, COUNT),
        "exponential": rng.exponential(6, COUNT),
        "gamma": rng.gamma(3, 2, COUNT),
    }
    return {key: np.sort(np.clip(draws, 1e-3, 3600)) for key, draws in kinds.items()}
