"""What the tests of the receiver share: an inbox on each kind of database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.receiver.databases import empty_database, new_inbox


@pytest.fixture(params=["sqlite", "postgresql"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox without rows; a test that has it is executed once on each database."""
    if request.param == "postgresql":
        return empty_database()
    return f"sqlite:///{new_inbox(tmp_path / 'inbox.db')}"
