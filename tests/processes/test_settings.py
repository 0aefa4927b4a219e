"""What a database is called in messages, and which command can use which."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbell.errors import ConfigurationError, InvalidSetting
from runbell.service import server
from runbell.service.settings import Settings, location


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush@db/runbell",
        "postgres://me:hu@sh@db/runbell",
        "postgresql://db/runbell?user=me&password=hush",
        "postgresql://db/runbell?password=hush&sslmode=require",
        "postgresql://db/runbell?sslpassword=hush",
    ],
)
def test_a_password_is_in_no_message(url: str) -> None:
    """The database can still be told from another."""
    assert Settings.load({"database": url}, {}).database == url
    shown = location(url)
    assert "hu" not in shown
    assert "db/runbell" in shown


@pytest.mark.parametrize(
    "url", ["postgresql://", "postgresql", "mysql://db/x", "postgresql-embedded://x", "db"]
)
def test_what_is_no_database_is_refused(url: str) -> None:
    """The message says what can be used."""
    with pytest.raises(InvalidSetting, match="postgresql://USER@HOST/DATABASE"):
        Settings.load({"database": url}, {})


def test_a_worker_needs_a_database_for_several(tmp_path: Path) -> None:
    """A SQLite file is not even made."""
    settings = Settings(database=f"sqlite:///{tmp_path}/runbell.db")
    with pytest.raises(ConfigurationError, match="has one process"):
        server.work(settings)
    assert list(tmp_path.iterdir()) == []
