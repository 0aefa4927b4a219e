"""The measurements work, on numbers too small to say anything about speed."""

from __future__ import annotations

import asyncio

import pytest

from bench import hearing, memory, planning, runs, waits, webhooks
from bench.figures import Figure, percentile, within
from bench.server import served


@pytest.mark.parametrize(
    ("percent", "value"), [(1, 10), (25, 10), (26, 20), (50, 20), (75, 30), (99, 40), (100, 40)]
)
def test_percentile_is_the_nearest_rank(percent: float, value: float) -> None:
    assert percentile([40, 10, 30, 20], percent) == value


def test_a_figure_knows_whether_it_met_its_target() -> None:
    assert within("a", 1.5, 1.5, "").met
    assert not within("a", 1.51, 1.5, "").met


def test_a_figure_is_told_beside_its_target() -> None:
    assert within("a_ms", 0.31999, 0.15, "").line() == "a_ms: 0.32, target <= 0.15: MISSED"
    assert within("a_ms", 12.6933, 15, "").line() == "a_ms: 12.7, target <= 15: met"
    assert Figure("a_mb", 120.0).line() == "a_mb: 120"


def test_a_figure_is_judged_before_it_is_rounded() -> None:
    figure = within("a", 1.5004, 1.5, "")
    assert (figure.value, figure.met) == (1.5, False)


def test_everything_is_measured() -> None:
    with served() as server:
        idle = server.cpu_ms()
        figures = [
            *runs.measure(server, runs.Sizes(runs=40, reads=80, idle=4)),
            *memory.measure(server, few=20, many=60),
        ]
        assert server.cpu_ms() > idle
    values = {figure.name: figure.value for figure in figures}
    assert set(values) == {
        "idle_created_to_completed_p50_ms",
        "idle_created_to_completed_p99_ms",
        "idle_seen_by_client_p50_ms",
        "cpu_a_run_ms",
        "cpu_a_read_ms",
        "rss_at_20_runs_mb",
        "rss_at_60_runs_mb",
        "rss_ratio",
    }
    assert values["idle_seen_by_client_p50_ms"] > 0
    assert 10 < values["rss_at_60_runs_mb"] < 1000
    details = {figure.name: figure.detail for figure in figures}
    assert details["cpu_a_run_ms"]["reads_a_run"] >= 1


def test_what_it_costs_to_be_waited_for_is_measured() -> None:
    figures = {each.name: each for each in waits.measure(waits.Sizes(held=25, changes=5))}
    assert set(figures) == {
        "rss_a_wait_kib",
        "threads_and_files_for_every_wait",
        "rss_a_wait_stream_or_feed_kib",
        "threads_and_files_for_every_wait_stream_or_feed",
        "wake_wait_p99_ms",
        "wake_feed_p99_ms",
    }
    assert figures["threads_and_files_for_every_wait"].value == 0
    for name in ("wake_wait_p99_ms", "wake_feed_p99_ms"):
        assert figures[name].detail["changes"] == 5
        assert figures[name].value > 0
        # From the commit, which is later than the request.
        assert figures[name].detail["p50_ms"] < figures[name].detail["from_request_p50_ms"]


def test_what_is_not_held_ends_the_measurement() -> None:
    with served() as server:
        prepared = server.load("enqueue", threads=1, runs=1, clients=1)
        path = prepared["paths"][0][0]
        held = {"assistant": prepared["assistant"], "waits": [path], "streams": [], "followers": 0}
        with pytest.raises(RuntimeError, match="did not hold"), server.holding("hold", **held):
            server.load("wake", paths=[path], pause=0.01)


def test_a_job_that_fails_ends_the_measurement() -> None:
    with served() as server, pytest.raises(Exception, match="exit status 1"):
        server.load("read_runs", paths=["/threads/thread_none/runs/run_none"], count=1, clients=1)


def test_what_webhooks_cost_is_measured() -> None:
    sizes = webhooks.Sizes(timed=20, burst=2, waiting=300, watched=0.5, rounds=1)
    figures = {each.name: each for each in webhooks.measure(sizes)}
    assert set(figures) == {
        "webhook_commit_to_arrival_p50_ms",
        "webhook_commit_to_arrival_p99_ms",
        "webhook_deliveries_a_second",
        "cpu_a_delivery_ms",
        "webhook_rate_lost_to_a_dead_endpoint",
        "webhook_waiting_mib",
        "webhook_waiting_cpu_share",
    }
    # Nothing comes before it is committed.
    assert figures["webhook_commit_to_arrival_p50_ms"].value > 0
    assert figures["webhook_deliveries_a_second"].value > 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_plan_is_held_against_the_waiter() -> None:
    earlier, later = [0.2, 0.3, 0.5], [0.2, 0.4, 0.6]
    compared, machine = asyncio.run(planning.compare(earlier, later, 0.05))
    found = {each.policy: each for each in compared}
    assert list(found) == [
        "fixed 1 s", "fixed 2 s", "tutorial", "Foresight", "long poll", "waiter as it is",
    ]  # fmt: skip
    for each in found.values():
        # Not how well: that is for more runs than three.
        assert each.calls > 0
        assert each.delay > 0
        assert each.row().startswith(f"| {each.policy} | {each.calls_planned:.2f} |")
    assert machine.latency > 0
    assert machine.visible >= 0
    # Of runs that take as long as they did here: a busy machine makes them longer.
    assert found["fixed 1 s"].calls_planned >= 2
    assert found["fixed 1 s"].delay_planned > found["long poll"].delay_planned


def test_a_prediction_holds_within_its_limits() -> None:
    def held(calls: float, delay: float) -> bool:
        return planning.Compared("x", 10.0, calls, 1.0, delay).held

    assert held(10.4, 1.14)
    assert not held(10.6, 1.0)
    assert not held(9.4, 1.0)
    assert not held(10.0, 1.16)
    assert not held(10.0, 0.84)
    # A millisecond and a half, which no stamp tells for certain; three are told.
    assert planning.Compared("x", 1.0, 1.0, 0.005, 0.0065).held
    assert not planning.Compared("x", 1.0, 1.0, 0.005, 0.0080).held


def test_what_waiting_by_webhook_costs_is_measured() -> None:
    figures = {each.name: each for each in hearing.measure(hearing.Sizes(runs=5))}
    assert set(figures) == {
        "wait_by_webhook_p50_ms",
        "wait_by_webhook_p99_ms",
        "calls_a_run_by_webhook",
    }
    # Nobody knows of an end before it is there; the feed's milliseconds are cut off.
    assert figures["wait_by_webhook_p50_ms"].value > 0
