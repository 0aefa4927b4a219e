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
from tests.crash.clients import Crowd
from tests.served import RUNBELL, Served, eventually

__all__ = ["ENV", "check_rows", "crowded", "die_at"]

REACH_LIMIT_S = 25.0
"""Within this time the stories of a crowd reach every point, on a busy machine too."""

ENV = {"RUNBELL_CANCEL_GRACE": "0.5"}


@contextmanager
def crowded(directory: Path) -> Iterator[tuple[Served, Crowd]]:
    """A service that was started once and stopped, and the crowd that is to use it."""
    with Served(directory, env=ENV) as served:
        crowd = Crowd(served)
        crowd.client.prepare()
        served.stop()
        yield served, crowd
        served.start()
        crowd.finish()
    check_rows(served.database_path)


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
            eventually(lambda: crowd.unanswered, f"the service reaches {kill}", REACH_LIMIT_S)
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
