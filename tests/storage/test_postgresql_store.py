"""The PostgreSQL driver passes the contract of every database."""

from __future__ import annotations

import pytest

from runbell.testing.postgresql import opened_postgresql
from runbell.testing.storage_contract import StorageContract, Stores


@pytest.fixture(scope="module")
def stores() -> Stores:
    """Databases of one server, each without rows."""
    return opened_postgresql


class TestPostgresql(StorageContract):
    """What every database has to pass."""
