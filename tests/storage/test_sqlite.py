"""SQLite passes the contract."""

from __future__ import annotations

from itertools import count

import pytest

from runbell.testing.databases import migrated_sqlite, opened
from runbell.testing.storage_contract import StorageContract, Stores


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    """Files beside each other, made as the migrations make them."""
    directory = tmp_path_factory.mktemp("contract")
    numbers = count()
    return lambda: opened(migrated_sqlite(directory / f"{next(numbers)}.db"))


class TestSQLite(StorageContract):
    """What every database has to pass."""
