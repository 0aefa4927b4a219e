"""The service against its own document: requests that schemathesis makes from it, good and bad.

Whatever is asked, the answer is one that the document describes, and no server error. What the
schemas do not allow is refused; what they allow is refused only for reasons that no schema can
tell, such as a run that has ended.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from runbell.service.routes import ROUTES
from tests.served import Served

if TYPE_CHECKING:
    from tests.openapi.fuzzing import Fuzzer

NAMES = [route.operation for route in ROUTES]


@pytest.fixture(scope="module")
def fuzzer(house: Served) -> Iterator[Fuzzer]:
    # A project of its own each time: a worker may come back to this module.
    # Late: schemathesis takes its time to import, and most tests do without it.
    from tests.openapi.fuzzing import Fuzzer

    with Fuzzer(house.api(house.create_key(f"fuzz-{secrets.token_hex(4)}"))) as fuzzer:
        yield fuzzer


def test_every_operation_is_fuzzed(fuzzer: Fuzzer):
    assert set(fuzzer.operations) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_the_edges_of_every_schema(name: str, fuzzer: Fuzzer):
    """Systematically: each value at and beyond each limit, each field absent, each type wrong."""
    cases = list(fuzzer.edges(name))
    assert cases
    for case in cases:
        fuzzer.ask(case)


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("name", NAMES)
def test_random_requests(name: str, mode: str, fuzzer: Fuzzer):
    fuzzer.ask_at_random(name, mode)
