"""What can be measured: the numbers of one service, and the page on which they stand.

Each service has a registry of its own, so that several can live in one process. Nothing here asks
the database: what a scrape has to look up is handed in (`operations/backlog.py`).
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from runbell import __version__
from runbell.runs import EVENT_TYPES, Run, event_type

__all__ = ["ATTEMPT_OUTCOMES", "UNMATCHED", "Backlog", "Due", "Metrics", "Page"]

UNMATCHED = "unmatched"
"""The route of requests that no route takes: what they asked for is never a label."""

METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})
"""Methods that are told apart; clients can invent others, and every label is kept for ever."""

ATTEMPT_OUTCOMES = ("succeeded", "refused", "unanswered", "blocked")
"""What can come of an attempt: a 2xx, another answer, no answer, an address that is not allowed."""

LAG_EVERY_SECONDS = 0.5
"""How often the event loop's lag is looked at."""

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_REQUEST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0)
_MODEL_CALL = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_ATTEMPT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_DELAY = (0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 300.0, 3_600.0, 36_000.0, 360_000.0)
_GROUP = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Due:
    """Jobs of one kind whose time has come: how many, and since when (seconds) the oldest is."""

    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class Backlog:
    """What the tables say at the moment of a scrape.

    Attributes:
        runs: runs that have not ended, by status; every such status is there.
        due: jobs that are due, by kind; of webhooks, deliveries.
        held: jobs that failed too often and were kept aside, by kind.
        undelivered_seconds: since the event of the oldest delivery that is owed to an endpoint
            that is enabled.
    """

    runs: Mapping[str, int]
    due: Mapping[str, Due]
    undelivered_seconds: float = 0.0
    held: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Page:
    """The numbers, as text."""

    content_type: str
    body: bytes


class Metrics:
    """The numbers of one service. Everything that happens often costs about a microsecond."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        build = Info("runbell_build", "The Runbell that serves.", registry=registry)
        build.info({"version": __version__})
        self._runs = Gauge(
            "runbell_runs",
            "Runs that have not ended, by status.",
            ["status"],
            registry=registry,
        )
        self._transitions = Counter(
            "runbell_run_transitions",
            "Status changes of runs, by the type of their event.",
            ["type"],
            registry=registry,
        )
        self._moved = {kind: self._transitions.labels(kind) for kind in EVENT_TYPES}
        self._model_call = Histogram(
            "runbell_model_call_seconds",
            "Duration of model calls, each try for itself, by whom they asked and how they ended.",
            ["upstream", "outcome"],
            buckets=_MODEL_CALL,
            registry=registry,
        )
        self._model_retries = Counter(
            "runbell_model_call_retries",
            "Model calls that were tries behind the first one, by whom they asked.",
            ["upstream"],
            registry=registry,
        )
        self.waits_held = Gauge(
            "runbell_waits_held",
            "Requests that wait for a change of a run.",
            registry=registry,
        )
        self.streams_held = Gauge(
            "runbell_streams_held", "Streams that are open.", registry=registry
        )
        self.writer_waiting = Gauge(
            "runbell_writer_waiting_units",
            "Units of work that wait for the database's writer.",
            registry=registry,
        )
        self._group_units = Histogram(
            "runbell_group_commit_units",
            "Units of work in one commit.",
            buckets=_GROUP,
            registry=registry,
        )
        self._group_seconds = Histogram(
            "runbell_group_commit_seconds",
            "Duration of executing and committing a group of units.",
            buckets=_FAST,
            registry=registry,
        )
        self.retention_removed = Counter(
            "runbell_retention_removed_rows",
            "Rows of old runs, steps and events that retention has removed.",
            registry=registry,
        )
        self._attempts = Counter(
            "runbell_webhook_attempts",
            "Attempts to deliver webhooks, by what came of them.",
            ["outcome"],
            registry=registry,
        )
        self._attempted = {word: self._attempts.labels(word) for word in ATTEMPT_OUTCOMES}
        self._attempt_seconds = Histogram(
            "runbell_webhook_attempt_seconds",
            "Duration of attempts to deliver webhooks.",
            buckets=_ATTEMPT,
            registry=registry,
        )
        self._first_attempt = Histogram(
            "runbell_webhook_first_attempt_delay_seconds",
            "Time from an event to the beginning of its first attempt.",
            buckets=_DELAY,
            registry=registry,
        )
        self._delivered = Histogram(
            "runbell_webhook_delivery_delay_seconds",
            "Time from an event to its delivery.",
            buckets=_DELAY,
            registry=registry,
        )
        self._requests = _Requests()
        registry.register(self._requests)
        self._declare_scraped(registry)

    def _declare_scraped(self, registry: CollectorRegistry) -> None:
        self._due = Gauge(
            "runbell_jobs_due", "Jobs whose time has come, by kind.", ["kind"], registry=registry
        )
        self._oldest_due = Gauge(
            "runbell_jobs_oldest_due_seconds",
            "For how long the oldest due job has been due, by kind; 0 where none is.",
            ["kind"],
            registry=registry,
        )
        self._held = Gauge(
            "runbell_jobs_held",
            "Jobs that failed too often and were kept aside, by kind.",
            ["kind"],
            registry=registry,
        )
        self._undelivered = Gauge(
            "runbell_webhook_oldest_undelivered_seconds",
            "Time since the oldest event that an enabled endpoint has not got yet; 0 for none.",
            registry=registry,
        )
        self._readable = Gauge(
            "runbell_database_readable",
            "1 where this page could ask the database, 0 where what it says is left out.",
            registry=registry,
        )
        self._lag = Histogram(
            "runbell_event_loop_lag_seconds",
            f"How late the event loop was, looked at every {LAG_EVERY_SECONDS:g} s.",
            buckets=_FAST,
            registry=registry,
        )
        # Memory, CPU and open files; silent where there is no /proc.
        ProcessCollector(registry=registry)

    def moved(self, run: Run) -> None:
        """A run has changed its status."""
        self._moved[event_type(run)].inc()

    def first_attempt(self, delay: float) -> None:
        """The first attempt of a delivery begins, so many seconds after its event."""
        self._first_attempt.observe(max(0.0, delay))

    def attempted(self, outcome: str, seconds: float, delay: float | None) -> None:
        """An attempt to deliver a webhook has ended.

        Args:
            outcome: one of `ATTEMPT_OUTCOMES`.
            delay: of one that succeeded: seconds since its event.
        """
        self._attempted[outcome].inc()
        self._attempt_seconds.observe(seconds)
        if delay is not None:
            self._delivered.observe(max(0.0, delay))

    def model_called(self, upstream: str, outcome: str, seconds: float) -> None:
        """A model call, or a try of one, is over.

        Args:
            upstream: the name of the model server, from the settings alone.
        """
        self._model_call.labels(upstream, outcome).observe(seconds)

    def model_tried_again(self, upstream: str) -> None:
        """A model call that failed begins anew."""
        self._model_retries.labels(upstream).inc()

    def committed(self, units: int, seconds: float) -> None:
        """The writer has committed a group of units; called on its thread."""
        self._group_units.observe(units)
        self._group_seconds.observe(seconds)

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered.

        Args:
            route: the template of its path, never the path itself; `UNMATCHED` without one.
        """
        self._requests.add(method, route, status, seconds)

    async def watch_loop(self) -> None:
        """Observe the event loop's lag, until this is cancelled."""
        while True:
            began = time.perf_counter()
            await asyncio.sleep(LAG_EVERY_SECONDS)
            late = time.perf_counter() - began - LAG_EVERY_SECONDS
            self._lag.observe(max(0.0, late))

    def page(self, accept: str, backlog: Backlog | None) -> Page:
        """All numbers.

        Args:
            accept: the Accept header of who asks: Prometheus' text format, or OpenMetrics.
            backlog: None where the database could not be asked.
        """
        self._readable.set(backlog is not None)
        for gauge in (self._runs, self._due, self._oldest_due, self._held):
            # What the tables do not say now is left out, rather than shown as it was.
            gauge.clear()
        if backlog is not None:
            for status, count in backlog.runs.items():
                self._runs.labels(status).set(count)
            self._undelivered.set(backlog.undelivered_seconds)
            for kind, due in backlog.due.items():
                self._due.labels(kind).set(due.count)
                self._oldest_due.labels(kind).set(due.oldest_seconds)
            for kind, count in backlog.held.items():
                self._held.labels(kind).set(count)
        encode, content_type = choose_encoder(accept)
        return Page(content_type, encode(_WithoutCreated(self._registry)))


class _Durations:
    """How long the requests of one method and route took."""

    __slots__ = ("buckets", "seconds")

    def __init__(self) -> None:
        self.buckets = [0] * (len(_REQUEST) + 1)
        self.seconds = 0.0


class _Requests(Collector):
    """Requests, by method, route and status, and how long they took.

    The library's own counters take a lock each and cost 2.3 µs a request, these 0.5: only the event
    loop's thread counts and collects.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str, int], int] = {}
        self._durations: dict[tuple[str, str], _Durations] = {}

    def add(self, method: str, route: str, status: int, seconds: float) -> None:
        if method not in METHODS:
            method = "other"
        answer = (method, route, status)
        self._counts[answer] = self._counts.get(answer, 0) + 1
        durations = self._durations.get((method, route))
        if durations is None:
            durations = self._durations[method, route] = _Durations()
        durations.buckets[bisect_left(_REQUEST, seconds)] += 1
        durations.seconds += seconds

    def collect(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "runbell_http_requests",
            "Requests that were answered; 499 is one whose client left before the answer.",
            labels=["method", "route", "status"],
        )
        for (method, route, status), count in self._counts.items():
            requests.add_metric([method, route, str(status)], count)
        yield requests
        seconds = HistogramMetricFamily(
            "runbell_http_request_seconds",
            "Time until an answer was ready, or began to stream.",
            labels=["method", "route"],
        )
        limits = [*map(str, _REQUEST), "+Inf"]
        for labels, durations in self._durations.items():
            buckets = list(zip(limits, accumulate(durations.buckets), strict=True))
            seconds.add_metric(labels, buckets, durations.seconds)
        yield seconds


class _WithoutCreated(Collector):
    """A registry without the `_created` stamps, one for each series, which nobody asks for.

    The library can leave them out itself, but only for the whole process.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [
                sample for sample in metric.samples if not sample.name.endswith("_created")
            ]
            yield metric
