"""What a run costs on PostgreSQL: CPU of all processes together, rows, WAL, and what others wait.

The server is the private one of `--database postgresql-embedded`, flushing what it commits, on the
same machine; it is started here, so that two services can use it and its processes can be watched.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from bench.figures import Figure, percentile, significant, within
from bench.server import Server, served
from bench.waits import since_commit
from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.testing.postgresql import own_server

__all__ = ["Sizes", "measure"]

CLIENTS = 32
PAUSE_SECONDS = 0.05
"""Between two runs, or two changes, of idle services."""

COUNTED_SECONDS = 12.0
"""After so long a PostgreSQL that rests has counted every row that was written."""

MAX_CPU_MS_A_RUN = 6.0
MAX_IDLE_P50_MS = 25.0
MAX_WAKE_P99_MS = 20.0
MAX_DEFERRED_PERCENT = 3.0
MAX_DEFERRED_SLOWER_PERCENT = 5.0


@dataclass(frozen=True)
class Sizes:
    """How much to do.

    Attributes:
        runs: a round, of each number of processes.
        idle: runs of idle services.
        changes: that another process waits for.
        deferred: jobs that are not due while they are watched.
        watched: seconds for which idle services are watched, with them and without.
        rounds: of everything under load; the median counts.
    """

    runs: int
    idle: int
    changes: int
    deferred: int
    watched: float
    rounds: int


class Database:
    """The server, and what it says of itself."""

    def __init__(self, server: PrivatePostgresql) -> None:
        self.url = server.url()
        self._process = psutil.Process(server.pid)

    def cpu_ms(self) -> float:
        """CPU of all its processes; those that have ended count with what their parent was told."""
        times = self._process.cpu_times()
        total = times.user + times.system + times.children_user + times.children_system
        for process in self._process.children(recursive=True):
            try:
                of_one = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += of_one.user + of_one.system
        return total * 1000

    def written(self) -> tuple[int, int, int]:
        """Rows that were inserted, updated or deleted, in all tables; bytes of WAL; and bytes that
        the tables have with their indexes."""
        rows, lsn, size = self.execute(
            "SELECT (SELECT sum(n_tup_ins + n_tup_upd + n_tup_del) FROM pg_stat_user_tables), "
            "pg_current_wal_lsn() - '0/0', "
            "(SELECT sum(pg_total_relation_size(relid)) FROM pg_stat_user_tables)"
        )[0]
        return int(rows), int(lsn), int(size)

    def execute(self, *statements: str) -> list[Any]:
        """Execute statements; the rows of the last."""

        async def work() -> list[Any]:
            connection = await asyncpg.connect(self.url)
            try:
                for statement in statements[:-1]:
                    await connection.execute(statement)
                return list(await connection.fetch(statements[-1]))
            finally:
                await connection.close()

        return asyncio.run(work())


def measure(sizes: Sizes) -> Iterator[Figure]:
    """Everything about PostgreSQL, on a fresh database."""
    with _database() as database, _services(database, 1) as alone:
        yield from _idle(alone[0], sizes.idle)
        yield from _busy(database, alone, sizes)
        yield from _deferred(database, alone, sizes)
    with _database() as database, _services(database, 2) as both:
        yield from _busy(database, both, sizes)
    with _database() as database, tempfile.TemporaryDirectory() as directory:
        yield from _wake(database, Path(directory) / "commits", sizes.changes)


@contextmanager
def _database() -> Iterator[Database]:
    with own_server() as server:
        yield Database(server)


@contextmanager
def _services(database: Database, count: int, *program: str) -> Iterator[list[Server]]:
    """So many services on it, each having made some runs: connections and plans are there."""
    if not count:
        yield []
        return
    with (
        served(*program, options=("--database", database.url)) as first,
        _services(database, count - 1) as others,
    ):
        _round(database, [first], 400)
        yield [first, *others]


def _idle(service: Server, count: int) -> Iterator[Figure]:
    prepared = service.load("prepare_threads", count=count, clients=CLIENTS)
    service.wait_idle()
    ids = service.load("one_at_a_time", **prepared, pause=PAUSE_SECONDS)
    every = service.load("completed_events")
    delays = [every[run_id] for run_id in ids]
    yield within(
        "postgresql_idle_created_to_completed_p50_ms",
        percentile(delays, 50),
        MAX_IDLE_P50_MS,
        "created_at_ms to completed_at_ms of the completed event; one run at a time, one process",
        runs=count,
        p99_ms=percentile(delays, 99),
    )


def _busy(database: Database, services: list[Server], sizes: Sizes) -> Iterator[Figure]:
    number = len(services)
    rounds = [_round(database, services, sizes.runs) for _ in range(sizes.rounds)]
    name = f"postgresql_{number}_process{'es' if number > 1 else ''}"
    yield within(
        f"{name}_cpu_a_run_ms",
        statistics.median(each.cpu_ms for each in rounds),
        MAX_CPU_MS_A_RUN,
        "CPU (user + system) of all services and of all of PostgreSQL's processes together, for "
        f"create run + execute + one read of the result; {CLIENTS} clients at a time at each "
        "process; each run on a thread of its own, which was made before and is not counted",
        rounds=[significant(each.cpu_ms) for each in rounds],
        of_postgresql_ms=[significant(each.postgresql_ms) for each in rounds],
        runs_a_round=sizes.runs,
    )
    yield Figure(
        f"{name}_runs_a_second",
        significant(statistics.median(each.rate for each in rounds)),
        how="from the first create to the last read of the result; the load client, the services "
        "and PostgreSQL share the machine",
        detail={"rounds": [significant(each.rate) for each in rounds]},
    )
    if number == 1:
        yield from _written(database, services[0], sizes.runs)


def _written(database: Database, service: Server, count: int) -> Iterator[Figure]:
    prepared = service.load("prepare_threads", count=count, clients=CLIENTS)
    time.sleep(COUNTED_SECONDS)
    before = database.written()
    service.load("create_and_read", **prepared, clients=CLIENTS)
    time.sleep(COUNTED_SECONDS)
    after = database.written()
    yield Figure(
        "postgresql_rows_a_run",
        significant((after[0] - before[0]) / count),
        how="rows inserted, updated or deleted in all tables, the engine's too, by "
        "pg_stat_user_tables; without endpoints and without the end of the expire job",
    )
    yield Figure(
        "postgresql_wal_a_run_bytes",
        significant((after[1] - before[1]) / count),
        how="by pg_current_wal_lsn; full page images behind checkpoints are among it",
    )
    yield Figure(
        "postgresql_kept_a_run_bytes",
        significant((after[2] - before[2]) / count),
        how="growth of all tables with their indexes, a thread with one message not counted",
    )


@dataclass(frozen=True)
class _Round:
    """Figures of one round; CPU is a run's."""

    cpu_ms: float
    postgresql_ms: float
    rate: float


def _round(database: Database, services: Sequence[Server], count: int) -> _Round:
    prepared = _each(
        services, "prepare_threads", [{"count": count // len(services)}] * len(services)
    )
    of_database, of_services = database.cpu_ms(), sum(each.cpu_ms() for each in services)
    made = _each(services, "create_and_read", prepared)
    of_database = (database.cpu_ms() - of_database) / count
    of_services = (sum(each.cpu_ms() for each in services) - of_services) / count
    seconds = max(each["seconds"] for each in made)
    return _Round(of_database + of_services, of_database, count / seconds)


def _each(services: Sequence[Server], job: str, arguments: Sequence[Any]) -> list[Any]:
    """Have a job done at every service at the same time; the answers."""
    with ThreadPoolExecutor(len(services)) as threads:
        return list(
            threads.map(
                lambda service, these: service.load(job, **these, clients=CLIENTS),
                services,
                arguments,
            )
        )


def _deferred(database: Database, services: list[Server], sizes: Sizes) -> Iterator[Figure]:
    """The same services without deferred jobs and with them: at rest, and under load."""
    before = _resting(database, services, sizes.watched)
    rates = [_round(database, services, sizes.runs) for _ in range(sizes.rounds)]
    database.execute(*(text.format(count=sizes.deferred) for text in DEFERRED))
    time.sleep(PAUSE_SECONDS)
    with_them = _resting(database, services, sizes.watched)
    then = [_round(database, services, sizes.runs) for _ in range(sizes.rounds)]
    yield within(
        "postgresql_deferred_jobs_cpu_percent",
        with_them - before,
        MAX_DEFERRED_PERCENT,
        "of a core, of all processes together: a service at rest with so many runs that wait for "
        "their tool outputs, each with its expire job, less one without; over several sweeps",
        jobs=sizes.deferred,
        without_percent=significant(before),
        with_percent=significant(with_them),
        seconds=sizes.watched,
    )
    cheap = statistics.median(each.cpu_ms for each in rates)
    dear = statistics.median(each.cpu_ms for each in then)
    yield within(
        "postgresql_deferred_jobs_slower_percent",
        100 * (dear - cheap) / cheap,
        MAX_DEFERRED_SLOWER_PERCENT,
        "how much more CPU a run costs, in all processes together, with so many deferred jobs: "
        "what bounds the rate",
        runs_a_second_without=[significant(each.rate) for each in rates],
        runs_a_second_with=[significant(each.rate) for each in then],
        cpu_a_run_without_ms=[significant(each.cpu_ms) for each in rates],
        cpu_a_run_with_ms=[significant(each.cpu_ms) for each in then],
    )


def _resting(database: Database, services: Sequence[Server], seconds: float) -> float:
    """The CPU of all processes while nobody asks for anything, in percent of a core."""
    for service in services:
        service.wait_idle()
    began = time.monotonic()
    before = database.cpu_ms() + sum(each.cpu_ms() for each in services)
    time.sleep(seconds)
    spent = database.cpu_ms() + sum(each.cpu_ms() for each in services) - before
    return spent / 10 / (time.monotonic() - began)


def _wake(database: Database, stamps: Path, changes: int) -> Iterator[Figure]:
    """What waits at one process for a change that another one makes."""
    program = (str(Path(__file__).with_name("stamped.py")), str(stamps))
    options = ("--database", database.url)
    with served(options=options) as here, served(*program, options=options) as there:
        prepared = here.load("enqueue", threads=-(-(changes + 20) // 90), runs=90, clients=1)
        paths = [path for each in prepared["paths"] for path in each][: changes + 20]
        elsewhere = [there.base_url, there.api_key]
        here.load("wake", paths=paths[:20], pause=PAUSE_SECONDS, elsewhere=elsewhere)
        here.wait_idle()
        there.wait_idle()
        seen = here.load("wake", paths=paths[20:], pause=PAUSE_SECONDS, elsewhere=elsewhere)
    yield from since_commit(
        "postgresql_wake_{}_elsewhere_p99_ms",
        stamps,
        seen,
        MAX_WAKE_P99_MS,
        "from the return of COMMIT in the process that cancels a run to the first bytes of the "
        "answer that another process holds, in the client; both by the system's monotonic "
        "clock. One change at a time on idle services",
    )


DEFERRED = (
    """
    INSERT INTO runs (project_id, thread_id, id, assistant_id, status, sequence, attempt, takeovers,
        waits_turn, created_at_ms, expires_at_ms, updated_at_ms, prompt_tokens, completion_tokens,
        metadata, config)
    SELECT one.project_id, 'thread_deferred_' || number, 'run_deferred_' || number,
        one.assistant_id, 'requires_action', 3, 1, 0, false, moment, moment + 36000000 + number,
        moment, 0, 0, one.metadata, one.config
    FROM generate_series(1, {count}) AS number,
        (SELECT * FROM runs ORDER BY position LIMIT 1) AS one,
        (SELECT (extract(epoch FROM now()) * 1000)::bigint AS moment) AS clock
    """,
    """
    INSERT INTO pgqueuer (priority, status, entrypoint, payload, dedupe_key, execute_after)
    SELECT 0, 'queued', 'expire', convert_to('run_deferred_' || number, 'UTF8'),
        'expire:run_deferred_' || number || ':0', now() + interval '10 hours'
    FROM generate_series(1, {count}) AS number
    """,
    "ANALYZE runs, pgqueuer",
)
"""Runs that wait for tool outputs, and the jobs that end them in ten hours: as the service itself
would have left them, in seconds."""
