"""What every test can have: a served instance, shared by all tests of one worker."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

pytest.register_assert_rewrite("runbell.testing.storage_contract")

if TYPE_CHECKING:
    from openai import OpenAI

    from tests.served import Api, Served


def pytest_configure(config: pytest.Config) -> None:
    # The SDK marks all of the Assistants API as deprecated, which is what this product is about.
    for message in ("deprecated$", "The Assistants API is deprecated"):
        config.addinivalue_line("filterwarnings", f"ignore:{message}:DeprecationWarning")
    # A process that was started in the background ignores these, and so would all that the tests
    # start, to which they then send them.
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service; whatever it answers, to whomever, is held against the types of the wire, and
    against its own document."""
    # Late: the SDK takes its time to import, and many tests talk to no service.
    from tests.openapi.conformance import conforms
    from tests.protocol.wire import inspect
    from tests.served import Answer, Served

    def watch(answer: Answer) -> None:
        inspect(answer)
        conforms(answer)

    # A cancel has to reach its worker by itself: nothing ends it by force within a test's time.
    env = {"RUNBELL_CANCEL_GRACE": "3600"}
    with Served(tmp_path_factory.mktemp("served"), env=env, watch=watch) as served:
        yield served


@pytest.fixture(scope="session")
def client(served: Served) -> OpenAI:
    """The stock SDK in the project `default`, which many tests use at a time."""
    return served.client()


@pytest.fixture(scope="session")
def api(served: Served) -> Api:
    """Plain HTTP in the project `default`."""
    return served.api()
