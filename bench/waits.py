"""What it costs to be waited for: memory of thousands of held requests, and how soon they wake."""

from __future__ import annotations

import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.figures import Figure, percentile, within
from bench.server import Server, served

__all__ = ["Sizes", "measure", "since_commit"]

CLIENTS = 16
THREADS = 50
"""Threads that the queued runs are spread over; each has one run that sleeps."""

MAX_BEHIND = 100
"""Runs that the service lets wait for their turn on one thread."""

MAX_KIB = 30.0
MAX_WAKE_P99_MS = 5.0
PAUSE_SECONDS = 0.03
"""From the beginning of a wait to the change that it waits for."""


@dataclass(frozen=True)
class Sizes:
    """How much to do: requests held at a time, and changes that somebody waits for."""

    held: int
    changes: int


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Memory on fresh services, then the delay on one that writes down when it commits."""
    with served() as server:
        yield from _held(server, "wait", sizes.held, waits=sizes.held)
    with served() as server:
        fifth = sizes.held // 5
        mixed = {"waits": 2 * fifth, "streams": 2 * fifth, "followers": fifth}
        yield from _held(server, "wait_stream_or_feed", 5 * fifth, **mixed)
    with tempfile.TemporaryDirectory() as directory:
        stamps = Path(directory) / "commits"
        with served(str(Path(__file__).with_name("stamped.py")), str(stamps)) as server:
            yield from _wake(server, stamps, sizes.changes)


def _held(
    server: Server, name: str, count: int, waits: int, streams: int = 0, followers: int = 0
) -> Iterator[Figure]:
    """The memory of requests that are held: each wait for a queued run of its own."""
    runs = max(1, -(-waits // THREADS))
    prepared = server.load("enqueue", threads=THREADS, runs=runs, clients=CLIENTS)
    every = [path for paths in prepared["paths"] for path in paths]
    arguments = {
        "assistant": prepared["assistant"],
        "waits": every[:waits],
        "streams": [every[n % len(every)].split("/")[2] for n in range(streams)],
        "followers": followers,
    }
    few = {
        "waits": every[:100],
        "streams": arguments["streams"][:100],
        "followers": followers // 50,
    }
    # What is made once, such as compiled statements, is not the cost of a request.
    with server.holding("hold", **{**arguments, **few}):
        pass
    server.wait_idle()
    before = (server.rss_mb(), server.threads(), server.files())
    with server.holding("hold", **arguments):
        server.wait_idle()
        connections = server.connections()
        held = (server.rss_mb(), server.threads(), server.files())
    if connections < count:
        raise RuntimeError(f"{connections} connections are open, not {count}")
    detail = {
        "held": {"waits": waits, "streams": streams, "followers": followers},
        "rss_idle_mb": round(before[0], 1),
        "rss_held_mb": round(held[0], 1),
    }
    how = "growth of resident memory, by the number of requests that are held at the same time"
    yield within(
        f"rss_a_{name}_kib", (held[0] - before[0]) * 1e6 / 1024 / count, MAX_KIB, how, **detail
    )
    yield within(
        f"threads_and_files_for_every_{name}",
        held[1] - before[1] + held[2] - before[2],
        0,
        "further threads and open files (database connections are files) while all are held",
    )


def _wake(server: Server, stamps: Path, changes: int) -> Iterator[Figure]:
    runs = min(changes + 20, MAX_BEHIND)
    threads = -(-(changes + 20) // runs)
    prepared = server.load("enqueue", threads=threads, runs=runs, clients=1)
    paths = [path for each in prepared["paths"] for path in each][: changes + 20]
    server.load("wake", paths=paths[:20], pause=PAUSE_SECONDS)
    server.wait_idle()
    seen = server.load("wake", paths=paths[20:], pause=PAUSE_SECONDS)
    yield from since_commit(
        "wake_{}_p99_ms",
        stamps,
        seen,
        MAX_WAKE_P99_MS,
        "from the return of SQLite's COMMIT of a cancel, on its thread in the service, to the "
        "first bytes of the answer in the client; both by the system's monotonic clock. "
        "One change at a time on an idle service",
    )


def since_commit(
    name: str, stamps: Path, seen: Sequence[Sequence[int]], limit: float, what: str
) -> Iterator[Figure]:
    """How long after a commit who waits, and who reads the feed, has heard of it.

    Args:
        name: of a figure, with a place for who it is about.
        stamps: when the service has committed, a line each.
        seen: when each change was sent for, and when the two have heard of it; all in nanoseconds.
    """
    commits = [int(line) for line in stamps.read_text().split()]
    for who, column in (("wait", 1), ("feed", 2)):
        delays = [_behind(commits, each[0], each[column]) for each in seen]
        asked = [(each[column] - each[0]) / 1e6 for each in seen]
        yield within(
            name.format(who),
            percentile(delays, 99),
            limit,
            what,
            changes=len(delays),
            p50_ms=round(percentile(delays, 50), 3),
            max_ms=round(max(delays), 3),
            from_request_p50_ms=round(percentile(asked, 50), 3),
        )


def _behind(commits: Sequence[int], sent_ns: int, received_ns: int) -> float:
    """Milliseconds from the one commit behind the sending."""
    first = bisect_right(commits, sent_ns)
    if first == len(commits) or commits[first] > received_ns:
        raise RuntimeError("bytes came before the change was committed")
    return (received_ns - commits[first]) / 1e6
