"""A service that dies, is started again, and has to have lost nothing."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sys import executable

from runbell.testing.faults import Kill
from runbell.testing.receivers import Received, Receiver
from runbell.webhooks import Secret, verify
from tests.crash.clients import Crowd
from tests.served import RUNBELL, Served, eventually

__all__ = ["ENV", "check_rows", "crowded", "die_at"]

ENV = {
    "RUNBELL_CANCEL_GRACE": "0.5",
    "RUNBELL_ALLOW_PRIVATE_WEBHOOKS": "true",
    # A receiver that answers always is asked again only for attempts that were broken off.
    "RUNBELL_WEBHOOK_RETRIES": "0.1 0.1 0.1 0.1 0.1 0.1",
}


@contextmanager
def crowded(directory: Path) -> Iterator[tuple[Served, Crowd]]:
    """A service that was started once and stopped, and the crowd that is to use it; a webhook
    endpoint hears of everything that happens."""
    with Receiver() as receiver, Served(directory, env=ENV) as served:
        crowd = Crowd(served)
        crowd.client.prepare()
        hook = {"name": "all", "url": receiver.url, "event_types": ["thread.run.*"]}
        secret = crowd.client.post("/webhook_endpoints", hook)["signing_secret"]
        served.stop()
        yield served, crowd
        served.start()
        crowd.finish()
        eventually(lambda: not _owed(served.database_path), "nothing is owed any more")
        served.stop()
        check_rows(served.database_path)
        check_webhooks(served.database_path, receiver.requests, Secret.parse(secret))
        served.start()


def _owed(path: Path) -> list[tuple[str]]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT id FROM deliveries WHERE status <> 'succeeded' LIMIT 1"
        ).fetchall()


def check_webhooks(path: Path, received: list[Received], secret: Secret) -> None:
    """Every event came, at least once; each time with the same id and bytes, signed at its time."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        events = dict(connection.execute("SELECT id, body FROM events"))
        owed = {row[0] for row in connection.execute("SELECT id FROM deliveries")}
        attempts = connection.execute("SELECT count(*) FROM attempts").fetchone()[0]
    assert owed == set(events)
    assert attempts >= len(events)
    came = set()
    for each in received:
        stamp = each.header("webhook-timestamp")
        assert stamp is not None
        verified = verify([secret], dict(each.headers), each.body, now_ms=1000 * int(stamp))
        assert events[verified.id] == each.body
        came.add(verified.id)
    assert came == set(events)


def die_at(served: Served, crowd: Crowd, kill: Kill) -> None:
    """Start the service, have the crowd use it, and see it die at the point."""
    served.command = (
        executable,
        *("-m", "runbell.testing.faulty", "--kill-at", str(kill), "--"),
    )
    try:
        served.start()
    except AssertionError:
        # Some points are reached before the service listens: what it dies of is looked at below.
        code = -signal.SIGKILL
    else:
        with crowd.playing():
            crowd.eventually(lambda: crowd.unanswered, f"the service reaches {kill}")
        code = served.wait_dead()
    finally:
        served.command = RUNBELL
    assert code == -signal.SIGKILL, served.output()
    assert served.stderr().splitlines()[-1:] == [kill.last_words], served.output()
    assert "Traceback" not in served.stderr(), served.output()


def check_rows(path: Path) -> None:
    """What no client can see all of: every run of the database, those too that nobody knows of
    because the answer to their creation was lost."""
    queries = {
        "has not ended": "status IN ('queued', 'in_progress', 'requires_action', 'cancelling')",
        "has ended and waits for its turn": "waits_turn",
        "is completed and has not said one thing": """status = 'completed' AND 1 <> (
            SELECT count(*) FROM messages WHERE messages.run_id = runs.id)""",
        "has said something and is not completed": """status <> 'completed' AND EXISTS (
            SELECT 1 FROM messages WHERE messages.run_id = runs.id)""",
        "has a step that goes on": """EXISTS (
            SELECT 1 FROM run_steps WHERE run_id = runs.id AND status = 'in_progress')""",
        "has another number of events than it counts": """sequence <> (
            SELECT count(*) FROM events WHERE run_id = runs.id)""",
    }
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT count(*) FROM runs").fetchone()[0] > 0
        for wrong, condition in queries.items():
            found = connection.execute(f"SELECT id FROM runs WHERE {condition}").fetchall()
            assert not found, f"a run {wrong}: {found}"
        lost = connection.execute(
            "SELECT id FROM threads WHERE NOT EXISTS "
            "(SELECT 1 FROM messages WHERE thread_id = threads.id)"
        ).fetchall()
        assert not lost, f"a thread without the message that it began with: {lost}"
