"""What the tests of the receiver share: an inbox on each kind of database."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbell.storage import postgresql
from tests.receiver.databases import empty_database, new_inbox


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer for a connection than anybody would wait elsewhere."""
    monkeypatch.setattr(postgresql, "WAIT_SECONDS", 60.0)


@pytest.fixture(params=["sqlite", "postgresql"])
def inbox(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an inbox without rows; a test that has it is executed once on each database."""
    if request.param == "postgresql":
        return empty_database()
    return f"sqlite:///{new_inbox(tmp_path / 'inbox.db')}"
