"""A service for these tests alone: what they call would be in the way of others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.served import Api, Served


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose answers are held against the document, and nothing else."""
    # Endpoints are on this machine, where nobody listens, and give up after a second attempt.
    args = ("--allow-private-webhooks", "--webhook-retries", "0.05")
    with Served(tmp_path_factory.mktemp("openapi"), args=args) as served:
        yield served


@pytest.fixture(scope="session")
def house_api(house: Served) -> Api:
    """Plain HTTP in its project `default`."""
    return house.api()
