"""Programs that try again: requests by plain HTTP and by the stock SDK, with a key."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.protocol.wire import inspect
from tests.served import Answer, Served


def watch(answer: Answer) -> None:
    """Hold every answer that is one object against the types of the wire."""
    if "text/event-stream" not in answer.headers["content-type"]:
        inspect(answer)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose streams are looked at by the tests themselves."""
    with Served(tmp_path_factory.mktemp("once"), watch=watch) as served:
        yield served
