"""How long runs take: by kind, what a policy is judged by, and what it has learned from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from runbell.errors import InvalidSetting

__all__ = [
    "OTHERS",
    "SECONDS_A_MONTH",
    "Floats",
    "Lesson",
    "Sample",
    "Trace",
    "Unit",
    "is_number",
    "lasting",
]

Floats = NDArray[np.float64]

Unit = Literal["s", "ms"]

SECONDS_A_MONTH = 30 * 86_400

MOST_KINDS = 40
"""The kinds that come less often than the first so many are taken together."""

OTHERS = "(others)"

LEAST_DRAWS = 50_000
"""Fewer durations are drawn several times each, with other noise."""

HISTORY = 200
"""Runs of a kind from which a waiter has learned that has been at it for a while."""

PARTS, FEW_KINDS = 5, 8
"""A kind with hardly more runs than a waiter learns from is judged part by part, by what is learned
from the other parts: in so many, or in two where there are more kinds than so."""

FEW = 100
"""Durations below which it is said that figures are rough."""

SHORTEST = 0.001
"""Seconds. What took less is counted as this: durations are looked at on a logarithmic scale."""

SUSPICIOUS, SUSPICIOUS_IF_WHOLE = 600.0, 60.0
"""Seconds. A run expires after ten minutes unless somebody says otherwise, and hardly anybody has
runs of minutes and counts them in whole seconds: medians beyond are in milliseconds, or have to be
confirmed."""

LONGEST = 7 * 86_400.0
LONGEST_P95 = 86_400.0

STEPS = (1.0, 0.1, 0.01)
"""Seconds to which durations may be rounded."""

WIDTHS = (1.0, 0.5, 0.25, 0.12, 0.06)
"""Kernel widths that are tried, in units of Silverman's rule of thumb."""

COMPARED = 300
"""Durations by which the width is chosen."""

_Z95 = 1.6448536269514722
_SPREAD_OF_ONE = 0.1


class Lesson(NamedTuple):
    """By kind, what a waiter has learned from, and other runs that it is judged by."""

    seen: Mapping[str, Floats]
    draws: Mapping[str, Floats]


class Sample(NamedTuple):
    """What policies are judged by.

    Attributes:
        draws: by kind, how long runs take; every duration of the trace counts the same.
        lessons: for policies that learn, which must not be judged by what they know by heart:
            their `draws` together stand for as many runs of each kind as those of all.
    """

    draws: Mapping[str, Floats]
    lessons: tuple[Lesson, ...]


@dataclass(frozen=True, eq=False)
class Trace:
    """Durations of runs, in seconds, from their creation to their end.

    Attributes:
        kinds: the durations of each kind of run. Their order says nothing.
        source: where they come from, in words.
        exact: they are a distribution; others are a sample of one, and are smoothed.
        left_out: runs that say nothing about durations: cancelled, expired, not ended.
        runs_per_month: as the history tells it; None where it does not.
        sure: they are seconds, however long.
        seen: what a waiter has learned from, by kind; None for a part of the durations.
        remarks: what was made of them, in sentences.

    Raises:
        InvalidSetting: there are none, or one is no duration, or they are not seconds.
    """

    kinds: Mapping[str, Floats]
    source: str
    exact: bool = False
    left_out: int = 0
    runs_per_month: float | None = None
    sure: bool = False
    seen: Mapping[str, Floats] | None = None
    remarks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        given, nothing = self._read(self.kinds), 0
        if not sum(map(len, given.values())):
            raise InvalidSetting(f"{self.source} holds no durations")
        if self.seen is not None:
            object.__setattr__(self, "seen", self._read(self.seen))
        kinds = {}
        for kind, values in given.items():
            nothing += int(np.count_nonzero(values == 0))
            kinds[kind] = np.maximum(values, SHORTEST)
        if nothing == sum(map(len, kinds.values())):
            raise InvalidSetting(f"{self.source}: all durations are 0")
        object.__setattr__(self, "remarks", (*self.remarks, *self._remarked(kinds, nothing)))
        object.__setattr__(self, "kinds", _most_frequent(kinds))
        if not self.sure:
            self._require_seconds()

    def _read(self, kinds: Mapping[str, Floats]) -> dict[str, Floats]:
        """The durations of each kind.

        Raises:
            InvalidSetting: these are none.
        """
        if not isinstance(kinds, Mapping):
            raise InvalidSetting(
                f"{self.source}: kinds and their durations are needed, as "
                f'{{"report": [1.5, 2.0]}}, not {type(kinds).__name__}; Trace.of takes durations'
            )
        found = {kind: _seconds(raw) for kind, raw in kinds.items()}
        for values in found.values():
            wrong = values[~(values >= 0) | (values > LONGEST)]
            if len(wrong):
                raise InvalidSetting(
                    f"{self.source}: {wrong[0]:g} is no duration: 0 to {LONGEST:g} s make sense"
                )
        return found

    def _remarked(self, kinds: Mapping[str, Floats], nothing: int) -> list[str]:
        count, found = sum(map(len, kinds.values())), []
        if nothing:
            found.append(f"{nothing:,} of {count:,} durations are 0, and count as {SHORTEST:g} s.")
        if len(kinds) > MOST_KINDS:
            found.append(f"The kinds that come least of {len(kinds):,} are taken together.")
        if not self.exact and count < FEW:
            found.append(
                f"{count:,} durations are few: what is planned may be wrong by a tenth, and p99 "
                "is a guess."
            )
        return found

    @classmethod
    def of(
        cls,
        durations: Iterable[float],
        *,
        exact: bool = False,
        unit: Unit | None = None,
        seen: Iterable[float] | None = None,
    ) -> Trace:
        """From the durations of runs of one kind.

        Args:
            exact: they are a distribution, and no sample of one.
            unit: of the durations; None for seconds that look like seconds.
            seen: durations from which a waiter has learned; None for a part of the others.

        Raises:
            InvalidSetting: there are none, or one is negative, no number or longer than a week, or
                they look like milliseconds.
        """
        scale = _scale(unit)
        values = scale * _seconds(durations)
        learned = None if seen is None else {"runs": scale * _seconds(seen)}
        source = f"{len(values):,} durations"
        return cls({"runs": values}, source, exact, sure=unit is not None, seen=learned)

    @classmethod
    def lognormal(cls, median: float, p95: float, *, unit: Unit | None = None) -> Trace:
        """The log-normal distribution with this median and this 95th percentile.

        Args:
            unit: of both; None for seconds that look like seconds.

        Raises:
            InvalidSetting: they are not 0 < median < p95 <= a day, or look like milliseconds.
        """
        scale = _scale(unit)
        for name, value in {"median": median, "p95": p95}.items():
            if not is_number(value):
                raise InvalidSetting(f"{name} is {value!r}: a number of seconds is needed")
        median, p95 = scale * median, scale * p95
        name = f"lognormal:median={median:g},p95={p95:g}"
        if not (SHORTEST <= median < p95 <= LONGEST_P95):
            raise InvalidSetting(
                f"{name} is no distribution: 0 < median < p95 <= {LONGEST_P95:g}, in seconds"
            )
        deviation = math.log(p95 / median) / _Z95
        drawn = median * np.exp(deviation * _normal_quantiles(LEAST_DRAWS))
        beyond = 100 * float(np.mean(drawn > LONGEST))
        cut = f"{beyond:.2g} % of the runs would take more than a week: cut there."
        return cls(
            {"lognormal": np.minimum(drawn, LONGEST)},
            f"lognormal, median {median:g} s, p95 {p95:g} s",
            exact=True,
            sure=unit is not None,
            remarks=(cut,) if beyond else (),
        )

    @property
    def count(self) -> int:
        """How many durations."""
        return sum(map(len, self.kinds.values()))

    def median(self) -> float:
        """In seconds."""
        return float(np.median(np.concatenate(list(self.kinds.values()))))

    def _require_seconds(self) -> None:
        """Refuse what is probably in milliseconds."""
        median = self.median()
        whole = not self.exact and self.step() == STEPS[0]
        if median <= (SUSPICIOUS_IF_WHOLE if whole else SUSPICIOUS):
            return
        why = (
            "all are whole numbers" if median <= SUSPICIOUS
            else "a run expires after 10 minutes unless you say otherwise"
        )  # fmt: skip
        raise InvalidSetting(
            f"{self.source}: half of the runs take longer than {0.99 * median:,.0f} s, and {why}: "
            'are these milliseconds? Say --unit ms, or --unit s if they are seconds (unit="ms", '
            'unit="s" in a program)'
        )

    def step(self) -> float:
        """To what all durations are rounded, in seconds; 0 where they are not."""
        values = list(self.kinds.values())
        return next((step for step in STEPS if all(_is_rounded(v, step) for v in values)), 0.0)

    def sample(self, seed: int = 1) -> Sample:
        """What policies are judged by: the durations in no order, smoothed.

        What is rounded is spread evenly over what it may have been: whole seconds would suit
        whoever looks every second. The kernel is Gaussian in the logarithm. Its width is the one of
        some under which each run is likeliest given the others, so that runs which take either 1 or
        12 s stay such; deviation and mean stay what they are (Silverman, "Density Estimation",
        1986, 3.4.1 and 6.4.1). A policy that learns is judged by runs that it has not learned from.
        """
        rng = np.random.default_rng(seed)
        if self.exact:
            seen = self.seen or {kind: rng.choice(raw, HISTORY) for kind, raw in self.kinds.items()}
            return Sample(self.kinds, (Lesson(seen, self.kinds),))
        copies, step = math.ceil(LEAST_DRAWS / self.count), self.step()
        rows, drawn = {}, {}
        for kind, raw in self.kinds.items():
            spread = rng.permutation(raw)
            if step:
                spread = np.abs(spread + step * rng.uniform(-0.5, 0.5, len(spread)))
                np.maximum(spread, SHORTEST, out=spread)
            rows[kind], drawn[kind] = spread, _smoothed(spread, copies, rng)
        parts = PARTS if len(rows) <= FEW_KINDS else 2
        lessons = (self._lesson(rows, drawn, part, parts) for part in range(parts))
        return Sample(
            {kind: each.ravel() for kind, each in drawn.items()},
            tuple(each for each in lessons if each.draws),
        )

    def _lesson(
        self, rows: Mapping[str, Floats], drawn: Mapping[str, Floats], part: int, parts: int
    ) -> Lesson:
        seen, draws = {}, {}
        for kind, each in rows.items():
            judged = np.arange(len(each)) % parts == part
            if len(each) == 1:
                judged[:] = part == 0
                seen[kind] = each
            elif len(each) > 2 * HISTORY:  # enough for both, and the others count for those learned
                judged = np.resize(np.arange(HISTORY, len(each)), len(each) if part == 0 else 0)
                seen[kind] = each[:HISTORY]
            else:
                seen[kind] = each[~judged][:HISTORY]
            if judged.any():
                draws[kind] = drawn[kind][judged].ravel()
        return Lesson(self.seen or seen, draws)


def is_number(value: object) -> bool:
    """Python's or NumPy's."""
    kinds = int | float | np.integer | np.floating
    return isinstance(value, kinds) and not isinstance(value, bool)


def _scale(unit: Unit | None) -> float:
    """Seconds that one of the unit is.

    Raises:
        InvalidSetting: there is no such unit.
    """
    if unit not in (None, "s", "ms"):
        raise InvalidSetting(f'unit is {unit!r}: it has to be "s" or "ms"')
    return 0.001 if unit == "ms" else 1.0


def _seconds(durations: Iterable[float]) -> Floats:
    """An array of them.

    Raises:
        InvalidSetting: these are no numbers.
    """
    try:
        if isinstance(durations, str | bytes | Mapping):
            raise TypeError(f"{type(durations).__name__} is no list of numbers")
        if isinstance(durations, np.ndarray):
            return durations.astype(np.float64, casting="safe", copy=False).reshape(-1)
        return np.fromiter(durations, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"durations have to be numbers, in seconds: {error}") from error


def lasting(draws: Mapping[str, Floats], count: int) -> Floats:
    """That many durations that stand for all: the middles of equal shares, ascending."""
    everything = np.concatenate(list(draws.values()))
    middles: Floats = np.quantile(everything, (np.arange(count) + 0.5) / count)
    return middles


def _most_frequent(kinds: Mapping[str, Floats]) -> dict[str, Floats]:
    """Without kinds that have no runs, and the rare ones taken together."""
    names = (kind for kind in kinds if len(kinds[kind]) and kind != OTHERS)
    order = sorted(names, key=lambda kind: -len(kinds[kind]))
    rare = [kinds[OTHERS]] if len(kinds.get(OTHERS, ())) else []
    if len(order) + len(rare) > MOST_KINDS:
        rare += [kinds[kind] for kind in order[MOST_KINDS - 1 :]]
        order = order[: MOST_KINDS - 1]
    kept = {kind: kinds[kind] for kind in order}
    return kept | {OTHERS: np.concatenate(rare)} if rare else kept


def _is_rounded(values: Floats, step: float) -> bool:
    """Whether all are multiples, or so short that they were raised."""
    some = values[:COMPARED]
    for each in (some, values):  # a few tell most that are not
        off = np.abs(each / step - np.round(each / step))
        if not np.all((off < 1e-6) | (each <= SHORTEST)):
            return False
    return True


def _smoothed(rows: Floats, copies: int, rng: np.random.Generator) -> Floats:
    """So many draws for each of the rows, which are the first axis."""
    logs = np.log(rows)
    width, deviation = _width(logs), float(logs.std())
    drawn = np.repeat(logs[:, None], copies, axis=1)
    drawn += width * rng.standard_normal(drawn.shape)
    if deviation:
        drawn -= logs.mean()
        drawn /= math.sqrt(1 + (width / deviation) ** 2)
        drawn += logs.mean()
    np.exp(drawn, out=drawn)
    drawn *= rows.mean() / drawn.mean()
    np.clip(drawn, SHORTEST, LONGEST, out=drawn)
    return drawn


def _width(logs: Floats) -> float:
    """The kernel's: the likeliest of some, each run judged by the kernels of the others."""
    if len(logs) == 1:
        return _SPREAD_OF_ONE
    some = logs[:COMPARED]
    thumb = _rule_of_thumb(some)
    if not thumb:
        return 0.0
    apart = (some[:, None] - some[None, :]) ** 2
    np.fill_diagonal(apart, np.inf)

    def likely(width: float) -> float:
        near = np.exp(-0.5 * apart / width**2).sum(axis=1) / width
        return float(np.log(near + 1e-12).sum())

    best = max(WIDTHS, key=lambda each: likely(each * thumb))
    return best * _rule_of_thumb(logs)


def _rule_of_thumb(logs: Floats) -> float:
    """Silverman's width: 0.9·min(deviation, IQR/1.34)·n^-0.2."""
    high, low = np.percentile(logs, [75, 25])
    deviation = float(logs.std(ddof=1))
    narrow = min(deviation, float(high - low) / 1.34) or deviation
    return float(0.9 * narrow * len(logs) ** -0.2)


def _normal_quantiles(count: int) -> Floats:
    """The middles of equal shares of the standard normal distribution, ascending."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse((place + 0.5) / count) for place in range(count)])
