"""What can be measured of a receiver: its numbers, and the page on which they stand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric

from runbell.receiver.desk import Load

__all__ = ["REASONS", "Numbers", "Page"]

REASONS = (
    "missing_header",
    "duplicate_header",
    "malformed_header",
    "no_match",
    "too_old",
    "too_new",
    "method",
    "content_type",
    "content_encoding",
    "malformed_length",
    "too_large",
    "too_slow",
    "cut_off",
    "busy",
    "storage",
    "not_running",
)
"""Why a request was not accepted."""

OUTCOMES = ("handled", "unhandled", "failed", "set_aside", "dead", "stale", "lost")
"""How the handling of an event ended; `set_aside`: a side effect of it was in progress elsewhere;
`lost`: somebody else had taken it by then."""

_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0)


@dataclass(frozen=True, slots=True)
class Page:
    """The numbers, as text."""

    content_type: str
    body: bytes


class Numbers:
    """The numbers of one receiver, in a registry of their own."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        prefix = "runbell_receiver"
        self.accepted = Counter(
            f"{prefix}_accepted", "Events that were stored.", ["origin"], registry=registry
        )
        self.duplicates = Counter(
            f"{prefix}_duplicates",
            "Events that were there already.",
            ["origin"],
            registry=registry,
        )
        self.unreadable = Counter(
            f"{prefix}_unreadable",
            "Validly signed bodies that are no events: stored as dead letters.",
            registry=registry,
        )
        self.quarantined = Counter(
            f"{prefix}_quarantined",
            "Other bodies, validly signed, that came under the id of an event.",
            registry=registry,
        )
        self.rejected = Counter(
            f"{prefix}_rejected", "Requests that were refused.", ["reason"], registry=registry
        )
        for reason in REASONS:
            self.rejected.labels(reason)
        self.outcomes = Counter(
            f"{prefix}_events", "How handling events ended.", ["outcome"], registry=registry
        )
        self.ended = {outcome: self.outcomes.labels(outcome) for outcome in OUTCOMES}
        self.lag = Histogram(
            f"{prefix}_lag_seconds",
            "From the moment an event was stored until a handler was called for it first.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.handling = Histogram(
            f"{prefix}_handling_seconds",
            "Duration of handling an event.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.skew = Gauge(
            f"{prefix}_clock_skew_seconds",
            "By how much the stamp of the latest webhook of its sender was ahead of this clock.",
            registry=registry,
        )
        self._declare_scraped(registry)
        self._accepted = self.accepted.labels("push")

    def _declare_scraped(self, registry: CollectorRegistry) -> None:
        self._waiting = Gauge(
            "runbell_receiver_waiting_events", "Events that are not done with.", registry=registry
        )
        self._oldest = Gauge(
            "runbell_receiver_oldest_due_seconds",
            "For how long the event that is most overdue has been due; 0 where none is.",
            registry=registry,
        )
        self._dead = Gauge("runbell_receiver_dead_events", "Dead letters.", registry=registry)

    def pushed(self, skew: float) -> None:
        """A webhook was stored whose sender's clock is ahead by `skew` seconds."""
        self._accepted.inc()
        self.skew.set(skew)

    def page(self, accept: str, load: Load, now_ms: int) -> Page:
        """The page, in the newest format that the value of `Accept` allows."""
        self._waiting.set(load.waiting)
        self._dead.set(load.dead)
        due = load.oldest_due_ms
        self._oldest.set(max(0.0, (now_ms - due) / 1000) if due is not None else 0.0)
        encode, content_type = choose_encoder(accept)
        return Page(content_type, encode(_WithoutCreated(self._registry)))


class _WithoutCreated(CollectorRegistry):
    """A registry without the `_created` stamps, one for each series, which nobody asks for.

    The library can leave them out itself, but only for the whole process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._whole = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._whole.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric
