"""What the tests of care share: services whose answers need not be JSON."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.served import Served


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """A service that only this test uses."""
    with Served(tmp_path) as served:
        yield served


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service that several tests use; what it answers is held against nothing."""
    with Served(tmp_path_factory.mktemp("plain")) as served:
        yield served
