"""A service whose keys have a limit that a test does not reach unless it wants to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.protocol.wire import inspect
from tests.served import Answer, Served

SERVICE_RPM = 5_000


def watch(answer: Answer) -> None:
    """Hold every answer against the types of the wire that is one object."""
    if answer.status != 304 and "text/event-stream" not in answer.headers["content-type"]:
        inspect(answer)


@pytest.fixture(scope="session")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("limited")
    with Served(directory, args=("--rpm", str(SERVICE_RPM)), watch=watch) as served:
        yield served


@pytest.fixture(scope="session")
def new_key(limited: Served) -> Callable[[int | None], str]:
    """Make a key with a limit of its own, in a project of its own."""
    numbers = count(1)

    def make(rpm: int | None) -> str:
        more = () if rpm is None else ("--rpm", str(rpm))
        project = f"limited-{next(numbers)}"
        return limited.command_line("keys", "create", "--project", project, *more).strip()

    return make
