"""Ends that come from outside: `kill -9` at any moment, and SIGTERM in the middle of the work."""

from __future__ import annotations

import random
from pathlib import Path

from tests.crash.crashing import crowded


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """Five times, each after another number of answers: the same promises as at the fault points,
    for all the moments that have no name."""
    rng = random.Random(20_260_826)
    with crowded(tmp_path) as (served, crowd):
        for _ in range(5):
            served.start()
            wanted = crowd.client.answers + rng.randrange(5, 250)
            with crowd.playing():
                crowd.eventually(lambda: crowd.client.answers >= wanted, "the crowd is at work")  # noqa: B023
                served.kill()


def test_stopped_in_the_middle_of_its_work_it_ends_gracefully(tmp_path: Path) -> None:
    """Exit code 0 in time, three times, with model calls under way that would take much longer;
    after the next start they go on. Whoever got an answer got a whole one."""
    with crowded(tmp_path) as (served, crowd):
        for _ in range(3):
            served.start()
            wanted = crowd.client.answers + 150
            with crowd.playing():
                crowd.eventually(lambda: crowd.client.answers >= wanted, "the crowd is at work")  # noqa: B023
                served.stop()
