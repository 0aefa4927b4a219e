"""An inbox on PostgreSQL: what happens where several processes are in it at the same time."""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from runbell.clock import SystemClock, VirtualClock
from runbell.errors import ConfigurationError, MissingExtra, StorageUnavailable
from runbell.receiver import Inbox, InProgress, Once, Receiver, arrivals, desk, rows
from runbell.receiver.events import read
from runbell.receiver.places import place_of
from runbell.receiver.postgresql import WRITERS, Follower, Intake, Teller, _messages
from runbell.receiver.schema import INBOX, metadata
from runbell.storage.migrate_postgresql import bring_forward, statements, upgrade_postgresql
from runbell.storage.postgresql import PostgresqlStore
from runbell.storage.private_postgresql import PrivatePostgresql
from runbell.testing.postgresql import own_server
from runbell.webhooks import headers_for
from tests.receiver.databases import asked, empty_database, new_inbox
from tests.receiver.house import SECRET, body_of, call, eventually, housed, run_event
from tests.receiver.serving import Served, limited
from tests.storage.shapes import declared, empty, shape

BODY = body_of("response.completed")
RELEASED = [f"{number:04}" for number in range(1, int(INBOX.head) + 1)]
NEVER = 10_000.0
MINUTE_MS = 60_000


@asynccontextmanager
async def opened(url: str | None = None) -> AsyncIterator[PostgresqlStore]:
    """The inbox as one more process has it; without rows, unless its URL is given."""
    store = await PostgresqlStore.open(url or empty_database())
    try:
        yield store
    finally:
        await store.close()


class Paused:
    """A unit of work that has done all and is not committed."""

    def __init__(self, store: PostgresqlStore, work: Callable[[Any], Awaitable[Any]]) -> None:
        self._work = work
        self._reached, self._go_on = asyncio.Event(), asyncio.Event()
        self._ending = asyncio.create_task(store.write(self._unit))

    async def _unit(self, tx: Any) -> Any:
        found = await self._work(tx)
        self._reached.set()
        await self._go_on.wait()
        return found

    async def __aenter__(self) -> Paused:
        async with asyncio.timeout(60):
            await self._reached.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.commit()

    async def commit(self) -> Any:
        self._go_on.set()
        return await self._ending


def storing(event_id: str, body: bytes, at_ms: int = 0) -> Callable[[Any], Awaitable[Any]]:
    return lambda tx: arrivals.store(tx, arrivals.Arrival(event_id, body, read(body), at_ms))


def claiming(holder: str, limit: int = 9) -> Callable[[Any], Awaitable[rows.Claims]]:
    how: Any = {"now_ms": 10, "lease_ms": 30_000, "gap_ms": 5_000, "max_attempts": 9}
    return lambda tx: rows.claim(tx, holder, limit=limit, **how)


def ids(claims: rows.Claims) -> list[str]:
    return [claimed.id for claimed in claims.taken]


def test_every_released_schema_becomes_what_is_declared() -> None:
    """Also beside the tables of a service, of which it changes none; what is newer is refused."""

    async def story() -> None:
        async with empty() as (connection, _):
            await connection.execute(declared(metadata))
            wanted = await shape(connection)
        for released in RELEASED:
            async with empty() as (connection, url):
                await upgrade_postgresql(connection)
                service = await shape(connection)
                await connection.execute(statements(None, released, lineage=INBOX))
                await connection.execute("INSERT INTO inbox_cursors VALUES ('f', 'evt_1', 1)")
                for _ in range(2):
                    async with connection.transaction():
                        await bring_forward(connection, INBOX)
                    assert await shape(connection) == wanted | service
                assert await connection.fetchval("SELECT event_id FROM inbox_cursors") == "evt_1"
                await connection.execute("UPDATE inbox_version SET version_num = '9999'")
                with pytest.raises(ConfigurationError, match="newer version"):
                    async with place_of(url).open():
                        raise AssertionError

    asyncio.run(story())


def test_of_several_that_start_one_makes_the_schema() -> None:
    """The others wait for it, and find it made."""

    async def story() -> None:
        async with empty() as (_, url):

            async def start() -> None:
                async with place_of(url).open() as inbox:
                    assert await inbox.store.read(desk.newest) == 0

            await asyncio.gather(*(start() for _ in range(4)))

    asyncio.run(story())


def test_an_event_goes_to_whoever_locks_it_first() -> None:
    """Who looks for work waits for nobody, and takes what is left."""

    async def story() -> None:
        async with opened() as store:
            for n in range(4):
                await store.write(storing(f"wh_{n}", BODY))
            async with Paused(store, claiming("one", limit=3)) as paused:
                assert ids(await store.write(claiming("two"))) == ["wh_3"]
                assert ids(await paused.commit()) == ["wh_0", "wh_1", "wh_2"]
            assert ids(await store.write(claiming("two"))) == []

    asyncio.run(story())


def test_of_two_events_of_a_run_that_are_due_together_one_is_handed_out() -> None:
    """The other one waits for as long as that is held, and is not looked at again and again."""
    url = empty_database()

    async def story() -> None:
        async with opened(url) as store:
            for n in (1, 2):
                await store.write(storing(f"e{n}", run_event("in_progress", n)))
            await store.write(storing("other", BODY))
            assert ids(await store.write(claiming("one"))) == ["e1", "other"]

    asyncio.run(story())
    due = "SELECT id, due_at_ms FROM inbox_events ORDER BY position"
    assert asked(url, due) == [("e1", 30_010), ("e2", 30_010), ("other", 30_010)]


def test_what_is_asked_does_not_grow_with_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request to PostgreSQL costs CPU on both sides: a look at many runs has as many as one at
    two, and an event ends with five of them."""
    asked_: list[str] = []
    for name in ("execute", "fetch", "fetchrow"):
        real = getattr(asyncpg.Connection, name)

        async def noted(self: Any, text: str, *args: Any, real: Any = real, **more: Any) -> Any:
            asked_.append(text)
            return await real(self, text, *args, **more)

        monkeypatch.setattr(asyncpg.Connection, name, noted)

    async def look(store: PostgresqlStore, runs: int) -> tuple[int, list[rows.Claimed]]:
        for run in range(runs):
            for n in (1, 2):
                event = run_event("in_progress", n, f"of{runs}run{run}")
                await store.write(storing(f"of{runs}r{run}e{n}", event))
        asked_.clear()
        claims = await store.write(claiming("one", limit=99))
        assert ids(claims) == [f"of{runs}r{run}e1" for run in range(runs)]
        return len(asked_), list(claims.taken)

    async def story() -> None:
        async with opened() as store:
            few, _ = await look(store, 2)
            many, taken = await look(store, 20)
            assert few == many
            asked_.clear()
            assert await store.write(lambda tx: rows.finish(tx, taken[0], "one", 10))
            assert len(asked_) == 5

    asyncio.run(story())


def test_nobody_decides_on_a_run_on_which_somebody_else_decides() -> None:
    """`completed` is about to be handed out when what should have come before it arrives: that is
    stale then, and not handled beside it."""

    async def story() -> None:
        async with opened() as store:
            await store.write(storing("e5", run_event("completed", 5)))
            async with Paused(store, claiming("one")) as paused:
                await store.write(storing("e4", run_event("in_progress", 4)))
                second = await store.write(claiming("two"))
                assert (ids(second), list(second.over)) == ([], [])
                assert ids(await paused.commit()) == ["e5"]
            third = await store.write(claiming("two"))
            assert [each.claimed.id for each in third.over] == ["e4"]
            assert await store.write(lambda tx: rows.mark(tx, third.over[0], 11))
            assert not await store.write(lambda tx: rows.mark(tx, third.over[0], 11))

    asyncio.run(story())


def test_what_arrives_while_the_event_before_it_ends_does_not_wait_for_a_lease() -> None:
    """Who ends an event wakes the next one, and cannot see one that comes just then; so whoever
    looks at that one must not believe that the first is still held."""

    async def story() -> None:
        async with opened() as store:
            await store.write(storing("e1", run_event("queued", 1)))
            (first,) = (await store.write(claiming("one"))).taken
            async with Paused(store, lambda tx: rows.finish(tx, first, "one", 10)) as paused:
                await store.write(storing("e2", run_event("in_progress", 2)))
                assert ids(await store.write(claiming("two"))) == []
                assert await paused.commit()
            assert ids(await store.write(claiming("two"))) == ["e2"]

    asyncio.run(story())


def test_a_replay_is_not_undone_by_who_had_looked_before() -> None:
    """An event was found to be stale; then somebody asked for it by hand."""

    async def story() -> None:
        async with opened() as store:
            await store.write(storing("e2", run_event("completed", 2)))
            (held,) = (await store.write(claiming("one"))).taken
            await store.write(lambda tx: rows.finish(tx, held, "one", 10))
            await store.write(storing("e1", run_event("queued", 1)))
            (over,) = (await store.write(claiming("one"))).over
            assert await store.write(lambda tx: desk.replay(tx, "e1", 10))
            assert not await store.write(lambda tx: rows.mark(tx, over, 10))
            assert ids(await store.write(claiming("one"))) == ["e1"]

    asyncio.run(story())


class Slow:
    """A transaction that has read something, and does nothing with it before it is told to."""

    def __init__(self, tx: Any) -> None:
        self._tx = tx
        self.execute = tx.execute

    async def fetch_one(self, *what: Any) -> Any:
        row = await self._tx.fetch_one(*what)
        self.has_read.set()
        await self.may_go_on.wait()
        return row

    has_read, may_go_on = asyncio.Event(), asyncio.Event()


def test_a_side_effect_whose_process_died_is_taken_over_by_one_alone() -> None:
    """Two find at the same moment that its time is over."""
    url = empty_database()

    async def story() -> None:
        async with opened(url) as store:
            clock, loop = VirtualClock(), asyncio.get_running_loop()
            one, two, dead = (Once("mail", store, clock, 1_000, loop) for _ in range(3))
            assert await dead.__aenter__()
            clock.advance(2)
            taking = asyncio.create_task(store.write(lambda tx: one._take(Slow(tx))))  # type: ignore[arg-type]
            await Slow.has_read.wait()
            entering = asyncio.create_task(two.__aenter__())
            await eventually(lambda: entering.done() or asked(url, WAITING_FOR_A_LOCK) != [(0,)])
            Slow.may_go_on.set()
            assert await taking
            with pytest.raises(InProgress):
                await entering

    asyncio.run(story())


HERE = "FROM pg_stat_activity WHERE datname = current_database()"
WAITING_FOR_A_LOCK = f"SELECT count(*) {HERE} AND wait_event_type = 'Lock'"


def test_what_is_being_claimed_when_it_stops_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction goes on when nobody waits for it any more: it is let go of behind that."""
    url = empty_database()
    claim = rows.claim

    async def story() -> None:
        claimed, may_commit = asyncio.Event(), asyncio.Event()

        async def slow(*arguments: Any, **more: Any) -> rows.Claims:
            claims = await claim(*arguments, **more)
            claimed.set()
            await may_commit.wait()
            return claims

        monkeypatch.setattr(rows, "claim", slow)
        async with housed(url) as house:
            house.note()
            async with house.receiver.running():
                await house.push("wh_1", BODY)
                await claimed.wait()
                asyncio.get_running_loop().call_later(0.05, may_commit.set)
            assert house.rows("SELECT claim, attempts FROM inbox_events") == [(None, 0)]

    asyncio.run(story())


def test_two_processes_get_the_same_webhook_at_once() -> None:
    """Fifty times: each answer is a 200, one is stored, and handled once, by either."""
    url = empty_database()

    async def story() -> None:
        clock = VirtualClock()
        async with housed(url, clock=clock) as one, housed(url, clock=clock) as two:
            for house in (one, two):
                house.beside = [one, two]
                house.note()
            async with one.receiver.running(), two.receiver.running():
                answers = await asyncio.gather(
                    *(house.push("wh_1", BODY) for _ in range(25) for house in (one, two))
                )
                assert {answer.status for answer in answers} == {200}
                await one.until(lambda: one.state("wh_1") == "handled")
                await one.pass_time(3)
            assert one.ids + two.ids == ["wh_1"]

    asyncio.run(story())


def test_one_arrival_that_cannot_be_stored_harms_no_other() -> None:
    """They share a transaction; which of them the database refuses is found out."""
    bad = body_of("response.completed", "resp_2")

    async def story() -> None:
        async with place_of(empty_database()).open() as inbox:
            huge = arrivals.Arrival("wh_bad", bad, read(bad), 2**70)
            good = [arrivals.Arrival(f"wh_{n}", BODY, read(BODY), 1) for n in range(9)]
            found = await asyncio.gather(
                *map(inbox.take_in, [*good[:5], huge, *good[5:], good[0]]), return_exceptions=True
            )
            assert isinstance(found.pop(5), Exception)
            assert sorted(map(str, found)) == [*["accepted"] * 9, "duplicate"]

    asyncio.run(story())


def test_what_arrives_just_as_all_writers_end_is_stored() -> None:
    class Store:
        def __init__(self) -> None:
            self.commits: list[asyncio.Future[list[str]]] = []

        async def write(self, work: object) -> list[str]:
            self.commits.append(asyncio.get_running_loop().create_future())
            return await self.commits[-1]

    async def story() -> None:
        store = Store()
        intake = Intake(store)  # type: ignore[arg-type]
        taken = []
        for number in range(WRITERS):
            taken.append(asyncio.create_task(intake.take("an arrival")))  # type: ignore[arg-type]
            await eventually(lambda: len(store.commits) == number + 1)  # noqa: B023
        for commit in store.commits:
            commit.set_result(["accepted"])
        # It comes in the very turn in which they find nothing else to write.
        taken.append(asyncio.create_task(intake.take("one more")))  # type: ignore[arg-type]
        await eventually(lambda: len(store.commits) == WRITERS + 1)
        store.commits[-1].set_result(["duplicate"])
        assert await asyncio.gather(*taken) == [*["accepted"] * WRITERS, "duplicate"]

    asyncio.run(story())


def test_the_character_0_in_a_body_is_kept() -> None:
    """PostgreSQL's texts cannot hold it: the body is bytes, and nobody's id has it."""
    url = empty_database()
    got: list[Any] = []

    async def story() -> None:
        async with housed(url) as house:
            house.receiver.on("*")(got.append)
            async with house.receiver.running():
                for n, subject in enumerate(("run_1", "run\0_2")):
                    body = body_of("thread.run.completed", subject, text="a\0b", sequence=2)
                    assert (await house.push(f"wh_{n}", body)).status == 200
                await house.until(lambda: len(got) == 2)

    asyncio.run(story())
    assert {event.data["text"] for event in got} == {"a\0b"}


class Audience:
    """Whoever waits for `run_1`."""

    def __init__(self) -> None:
        self.told: list[int] = []

    def subjects(self) -> list[str]:
        return ["run_1"]

    def wants(self, subject: str | None) -> bool:
        return subject == "run_1"

    def tell(self, subject: str | None, body: bytes) -> None:
        self.told.append(read(body).sequence or 0)


def test_the_sweep_finds_what_was_committed_behind_something_newer() -> None:
    """A position is given before the commit: one that comes late stands in front of what was read
    already. What was told is not told again."""

    async def story() -> None:
        async with opened() as store:
            audience = Audience()
            follower = Follower(store, audience)  # type: ignore[arg-type]
            follower._ends.append(await store.read(desk.newest))
            async with Paused(store, storing("e1", run_event("queued", 1))) as late:
                await store.write(storing("e2", run_event("in_progress", 2)))
                await follower._sweep()
                await follower._read_heard()
                assert audience.told == [2]
                await late.commit()
            await follower._sweep()
            await follower._read_heard()
            assert audience.told == [2, 1]

    asyncio.run(story())


def test_what_nobody_was_told_of_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was killed between the commit and the telling; or the connection that listens
    was cut, and all is read again."""
    url = empty_database()

    def wait(condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.005)

    async def store(event_id: str, sequence: int) -> None:
        async with opened(url) as there:
            await there.write(storing(event_id, run_event("in_progress", sequence)))

    for sequence, sweep_seconds in ((1, 0.05), (2, NEVER)):
        monkeypatch.setattr("runbell.receiver.postgresql.SWEEP_SECONDS", sweep_seconds)
        inbox, got = Inbox(url), []
        inbox.subscribe("run_1", got.append)
        try:
            wait(lambda: asked(url, LISTENS) == [(1,)])
            wait(lambda: len(got) == sequence - 1)  # noqa: B023
            asyncio.run(store(f"e{sequence}", sequence))
            if sweep_seconds == NEVER:
                asked(url, CUT)
            wait(lambda: len(got) == sequence)  # noqa: B023
        finally:
            inbox.close()


LISTENS = f"SELECT count(*) {HERE} AND query ILIKE 'LISTEN %'"
CUT = f"SELECT pg_terminate_backend(pid) {HERE} AND query ILIKE 'LISTEN %'"


def test_a_machine_whose_clock_is_wrong_goes_by_the_databases(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By an hour: proper webhooks come in, are handled, and are stamped as everybody else's; and so
    does a command."""
    url = empty_database()
    its_time = "SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint"
    ahead = SystemClock().now_ms() + 60 * MINUTE_MS
    monkeypatch.setattr(SystemClock, "now_ms", lambda _: ahead)
    got: list[str] = []

    async def story() -> None:
        receiver = Receiver([SECRET], url)
        receiver.on("*")(lambda event: got.append(event.id))
        async with receiver.running():
            ((began_ms,),) = asked(url, its_time)
            headers = headers_for([SECRET], "wh_1", began_ms // 1000, BODY)
            assert (await call(receiver.asgi(), BODY, headers.items())).status == 200
            ended = "SELECT received_at_ms, ended_at_ms FROM inbox_events WHERE state = 'handled'"
            await eventually(lambda: asked(url, ended))
            ((received_ms, ended_ms),) = asked(url, ended)
            assert got == ["wh_1"]
            over_ms = asked(url, its_time)[0][0]
            # What is measured of a clock's difference is right to some milliseconds, on most days.
            for stamp_ms in (received_ms, ended_ms):
                assert began_ms - MINUTE_MS <= stamp_ms <= over_ms + MINUTE_MS
        async with place_of(url).open_existing() as store:
            began_ms = asked(url, its_time)[0][0]
            assert began_ms <= await store.read(desk.now) <= asked(url, its_time)[0][0]

    asyncio.run(story())
    monkeypatch.undo()

    async def file() -> None:
        async with place_of(f"sqlite:///{new_inbox(tmp_path / 'inbox.db')}").open() as inbox:
            began_ms = SystemClock().now_ms()
            # SQLite's days have a fraction that is right to less than a millisecond.
            assert began_ms - 1 <= await inbox.store.read(desk.now) <= SystemClock().now_ms() + 1

    asyncio.run(file())


def test_an_error_does_not_end_the_telling() -> None:
    """Whatever it is: what was to be told then is told later."""

    class Store:
        told: list[str] = []  # noqa: RUF012 - of one test
        calls = 0

        async def fetch(self, text: str, channel: str, messages: list[str]) -> None:
            self.calls += 1
            if self.calls == 1:
                raise RuntimeError("a defect")
            self.told += messages

    async def story() -> None:
        store = Store()
        teller = Teller(store)  # type: ignore[arg-type]
        teller.tell("run_1")
        await eventually(lambda: store.told == ['["run_1"]'])
        teller.tell("run_2")
        await eventually(lambda: store.told == ['["run_1"]', '["run_2"]'])
        await teller.stop()

    asyncio.run(story())


def test_rows_that_churn_are_vacuumed_in_time() -> None:
    """Unless somebody has said how; and who may not say it uses the inbox all the same."""
    tended = {"inbox_events", "inbox_runs", "inbox_once"}

    async def story() -> None:
        async with empty() as (connection, url):

            async def opened_as(user: str) -> set[str]:
                async with place_of(url.replace("runbell@", f"{user}@")).open() as inbox:
                    assert await inbox.store.read(desk.newest) == 0
                return {row[0] for row in await connection.fetch(TENDED)}

            assert await opened_as("runbell") == tended
            await connection.execute(GUEST)
            assert await opened_as("reader") == tended - {"inbox_once", "inbox_runs"}
            assert await opened_as("runbell") == tended - {"inbox_runs"}
            await connection.execute("DROP OWNED BY reader; DROP ROLE reader")

    asyncio.run(story())


TENDED = """
SELECT relname FROM pg_class
WHERE relkind = 'r' AND array_to_string(reloptions, ' ') LIKE '%vacuum_scale_factor=0.02%'
"""
GUEST = """
ALTER TABLE inbox_once RESET (autovacuum_vacuum_threshold, autovacuum_vacuum_scale_factor,
                              autovacuum_analyze_scale_factor);
ALTER TABLE inbox_runs SET (autovacuum_vacuum_scale_factor = 0.5,
                            autovacuum_analyze_scale_factor = 0.5);
CREATE ROLE reader LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader
"""


def test_messages_are_as_short_as_they_have_to_be() -> None:
    """PostgreSQL refuses one of 8,000 bytes; ids may be long, and of any letters."""
    subjects = [f"{'ü' * 250}{n}" for n in range(100)]
    messages = _messages(subjects)
    assert all(len(message.encode()) < 8_000 for message in messages)
    assert "".join(messages).count("ü" * 250) == 100


@pytest.fixture
def server() -> Iterator[PrivatePostgresql]:
    """A server of its own."""
    with own_server() as server:
        yield server


def test_a_restart_of_the_database_is_waited_for(server: PrivatePostgresql) -> None:
    """Meanwhile senders are told to come again, and afterwards all goes on by itself: what comes
    in, what is handled, and who waits."""
    got: list[Any] = []

    async def story() -> None:
        async with housed(server.url(), clock=SystemClock()) as house:
            house.note()
            inbox = Inbox(house.url)
            async with house.receiver.running():
                inbox.subscribe("run_1", got.append)
                assert (await house.push("e1", run_event("queued", 1))).status == 200
                await eventually(lambda: got and house.ids == ["e1"])
                await asyncio.to_thread(server.halt)
                refused = await house.push("e2", run_event("in_progress", 2))
                assert (refused.status, refused.reason) == (503, "storage")
                assert int(refused.headers["retry-after"]) > 0
                await asyncio.to_thread(server.resume)
                async with asyncio.timeout(60):
                    while (await house.push("e2", run_event("in_progress", 2))).status != 200:
                        await asyncio.sleep(0.05)
                await eventually(lambda: house.ids == ["e1", "e2"])
                await eventually(lambda: got[-1]["data"]["sequence"] == 2)
            await asyncio.to_thread(inbox.close)

    asyncio.run(story())


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://runbell:s3cret@127.0.0.1:1/inbox",
        "postgresql://runbell:s3/cret@127.0.0.1:1/inbox",
        "postgresql://runbell:p@s3cret@[127/inbox",
        "postgresql://127.0.0.1:1/inbox?user=runbell&password=s3cret",
        "postgres://runbell:s3cret@127.0.0.1:s3cret/inbox",
    ],
)
def test_a_password_is_shown_to_nobody(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither where the database is away, nor where the URL cannot be read."""

    async def story() -> None:
        receiver = Receiver([SECRET], url)
        assert "s3cret" not in repr(receiver) + receiver._place.name
        async with receiver.running():
            raise AssertionError

    with pytest.raises((StorageUnavailable, ConfigurationError)) as raised:
        asyncio.run(story())
    assert "s3" not in f"{raised.value!r} {raised.value} {caplog.text}"


def test_a_driver_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    for name in list(sys.modules):
        if name.startswith(("runbell.receiver.postgresql", "runbell.storage.postgresql")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "runbell.storage.listening")
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    for make in (lambda: Inbox("postgresql://a/b"), lambda: Receiver([SECRET], "postgresql://a/b")):
        with pytest.raises(MissingExtra, match=r"pip install 'runbell\[postgresql\]'"):
            make()


def test_of_two_processes_one_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    """What it had taken goes to the other one when its claims have lapsed; each event is marked as
    handled once, and a run's events are handled in their order."""
    url = empty_database()
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    events = {
        f"r{run}e{n}": run_event("in_progress", n, f"r{run}") for n in (1, 2, 3) for run in range(8)
    }
    with Served(first, url) as one, Served(second, url) as two, limited() as rest:
        one.start("--plain")
        two.start("--plain", "--kill-at", "receiver.handling:8")
        for number, (event_id, body) in enumerate(events.items()):
            while (one if number % 2 or two.has_ended else two).push(event_id, body) != 200:
                rest("a sender comes again")
        for number in itertools.count():
            # It may be that the other one was quicker with most of them.
            if two.has_ended:
                break
            events |= {(more := f"more_{number}"): body_of("response.completed", more)}
            while (one if two.has_ended else two).push(more, events[more]) != 200:
                rest("a sender comes again")
        two.wait_dead()
        while asked(url, UNHANDLED) != [(0,)]:
            rest(f"{asked(url, UNHANDLED)} are not handled")
        handled = [one.handled, two.handled]
    assert {event_id for each in handled for event_id in each} == set(events)
    for each in handled:
        assert [event_id for event_id in each if event_id[:2] == "r0"] == sorted(
            event_id for event_id in each if event_id[:2] == "r0"
        )


UNHANDLED = "SELECT count(*) FROM inbox_events WHERE state <> 'handled'"
