"""How long runs take: by kind, what a policy is judged by, and what it has learned from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runbell.errors import InvalidSetting

__all__ = ["SECONDS_A_MONTH", "Floats", "Trace", "lasting"]

Floats = NDArray[np.float64]

SECONDS_A_MONTH = 30 * 86_400

MOST_KINDS = 40
"""The kinds that come less often than the first so many are taken together."""

OTHERS = "(others)"

LEAST_DRAWS = 50_000
"""Fewer durations are drawn several times each, with other noise."""

HISTORY = 200
"""Runs of a kind from which a waiter has learned that has been at it for a while."""

SHORTEST = 0.001
"""Seconds. Stamps in whole seconds make runs that took none."""

SUSPICIOUS = 600.0
"""Seconds. A run expires after ten minutes unless somebody says otherwise: a median beyond it is
one in milliseconds, or has to be confirmed."""

LONGEST = 7 * 86_400.0

_Z95 = 1.6448536269514722
_SPREAD_OF_ONE = 0.1


@dataclass(frozen=True, eq=False)
class Trace:
    """Durations of runs, in seconds, from their creation to their end.

    Attributes:
        kinds: the durations of each kind of run, in the order in which they were seen.
        source: where they come from, in words.
        exact: they are a distribution; others are a sample of one, and are smoothed.
        left_out: runs that say nothing about durations: cancelled, expired, not ended.
        runs_per_month: as the history tells it; None where it does not.
    """

    kinds: Mapping[str, Floats]
    source: str
    exact: bool = False
    left_out: int = 0
    runs_per_month: float | None = None

    def __post_init__(self) -> None:
        if not sum(map(len, self.kinds.values())):
            raise InvalidSetting(f"{self.source} holds no durations")
        kinds = {}
        for kind, raw in self.kinds.items():
            values = np.asarray(raw, dtype=np.float64)
            wrong = values[~(values >= 0) | (values > LONGEST)]
            if len(wrong):
                raise InvalidSetting(
                    f"{self.source}: {wrong[0]:g} is no duration: 0 to {LONGEST:g} s make sense"
                )
            kinds[kind] = np.maximum(values, SHORTEST)
        object.__setattr__(self, "kinds", _most_frequent(kinds))

    @classmethod
    def of(cls, seconds: Iterable[float], *, exact: bool = False) -> Trace:
        """From the durations of runs of one kind.

        Raises:
            InvalidSetting: there are none, or one is negative, no number or longer than a week.
        """
        values = np.fromiter(seconds, dtype=np.float64)
        return cls({"runs": values}, f"{len(values):,} durations", exact)

    @classmethod
    def lognormal(cls, median: float, p95: float) -> Trace:
        """The log-normal distribution with this median and this 95th percentile, in seconds.

        Raises:
            InvalidSetting: they are not 0 < median < p95.
        """
        if not (0 < median < p95 < math.inf):
            raise InvalidSetting(
                f"lognormal:median={median:g},p95={p95:g} is no distribution: 0 < median < p95"
            )
        deviation = math.log(p95 / median) / _Z95
        normal = _normal_quantiles(LEAST_DRAWS)
        kinds = {"lognormal": np.minimum(median * np.exp(deviation * normal), LONGEST)}
        return cls(kinds, f"lognormal, median {median:g} s, p95 {p95:g} s", exact=True)

    @property
    def count(self) -> int:
        """How many durations."""
        return sum(map(len, self.kinds.values()))

    def median(self) -> float:
        """In seconds."""
        return float(np.median(np.concatenate(list(self.kinds.values()))))

    def require_seconds(self) -> None:
        """Refuse what is probably in milliseconds.

        Raises:
            InvalidSetting: half of the runs take longer than ten minutes.
        """
        median = self.median()
        if median > SUSPICIOUS:
            raise InvalidSetting(
                f"{self.source}: half of the runs take longer than {median:,.0f} s "
                f"({median / 3600:.1f} hours), and a run expires after 10 minutes unless you say "
                "otherwise: are these milliseconds? Say --unit ms, or --unit s if they are seconds"
            )

    def draws(self, seed: int = 1) -> dict[str, Floats]:
        """By kind, what policies are judged by: every duration counts the same.

        The kernel is Gaussian in the logarithm, of Silverman's width 0.9·min(deviation,
        IQR/1.34)·n^-0.2, scaled so that the mean stays what it is. Raw rows would praise a policy
        that knows them by heart, and stamps in whole seconds one that looks every second.
        """
        if self.exact:
            return dict(self.kinds)
        copies = math.ceil(LEAST_DRAWS / self.count)
        rng = np.random.default_rng(seed)
        return {kind: _smoothed(raw, copies, rng) for kind, raw in self.kinds.items()}

    def history(self, seed: int = 2) -> dict[str, Floats]:
        """By kind, what a waiter has seen that learned from these runs: the latest of them."""
        if not self.exact:
            return {kind: raw[-HISTORY:] for kind, raw in self.kinds.items()}
        rng = np.random.default_rng(seed)
        return {kind: rng.choice(raw, HISTORY) for kind, raw in self.kinds.items()}


def lasting(draws: Mapping[str, Floats], count: int) -> Floats:
    """That many durations that stand for all: the middles of equal shares, ascending."""
    everything = np.concatenate(list(draws.values()))
    middles: Floats = np.quantile(everything, (np.arange(count) + 0.5) / count)
    return middles


def _most_frequent(kinds: Mapping[str, Floats]) -> dict[str, Floats]:
    """Without kinds that have no runs, and the rare ones taken together."""
    order = sorted((kind for kind in kinds if len(kinds[kind])), key=lambda kind: -len(kinds[kind]))
    kept = {kind: kinds[kind] for kind in order[:MOST_KINDS]}
    if len(order) > MOST_KINDS:
        rare = [kept.pop(order[MOST_KINDS - 1]), *(kinds[kind] for kind in order[MOST_KINDS:])]
        kept[OTHERS] = np.concatenate(rare)
    return kept


def _smoothed(raw: Floats, copies: int, rng: np.random.Generator) -> Floats:
    logs = np.log(raw)
    drawn = np.repeat(logs, copies)
    drawn += _width(logs) * rng.standard_normal(len(drawn))
    np.exp(drawn, out=drawn)
    drawn *= raw.mean() / drawn.mean()
    np.minimum(drawn, LONGEST, out=drawn)
    return drawn


def _width(logs: Floats) -> float:
    if len(logs) == 1:
        return _SPREAD_OF_ONE
    high, low = np.percentile(logs, [75, 25])
    deviation = float(logs.std(ddof=1))
    narrow = min(deviation, float(high - low) / 1.34) or deviation
    return float(0.9 * narrow * len(logs) ** -0.2)


def _normal_quantiles(count: int) -> Floats:
    """The middles of equal shares of the standard normal distribution, ascending."""
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    return np.array([inverse((place + 0.5) / count) for place in range(count)])
