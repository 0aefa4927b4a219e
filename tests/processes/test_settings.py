"""What a database is called in messages, and which command can use which."""

from __future__ import annotations

from pathlib import Path

import pytest

from runbell.errors import ConfigurationError, InvalidSetting
from runbell.service import server
from runbell.service.settings import Settings, location, mistaken_variables


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


def test_a_file_stands_for_a_variable(tmp_path: Path) -> None:
    """As secrets are mounted: with a line feed at their end, also the key of a model server."""
    for name in ("database", "api_key", "model_key"):
        (tmp_path / name).write_text(f"postgresql://{name}\n")
    settings = Settings.load(
        environ={
            "RUNBELL_DATABASE_FILE": f"{tmp_path}/database",
            "RUNBELL_API_KEY_FILE": f"{tmp_path}/api_key",
            "RUNBELL_UPSTREAM": "http://models/v1 --upstream-key-env MODEL_KEY",
            "MODEL_KEY_FILE": f"{tmp_path}/model_key",
        }
    )
    assert settings.database == "postgresql://database"
    assert settings.api_key == "postgresql://api_key"
    assert settings.upstream[0].key == "postgresql://model_key"


@pytest.mark.parametrize(
    ("content", "environ", "said"),
    [
        (b"hush", {"RUNBELL_API_KEY": "other"}, "both set"),
        (b" \n", {}, "empty"),
        (b"hush\xff", {}, "no text"),
        (b"hush" * 20_000, {}, "too long"),
        (None, {}, "No such file"),
    ],
)
def test_a_secret_that_is_not_there_ends_the_start(
    tmp_path: Path, content: bytes | None, environ: dict[str, str], said: str
) -> None:
    """It is never as if nothing had been asked for; and no message holds what a file does."""
    secret = tmp_path / "secret"
    if content is not None:
        secret.write_bytes(content)
    with pytest.raises(InvalidSetting, match=said) as refused:
        Settings.load(environ={"RUNBELL_API_KEY_FILE": str(secret), **environ})
    assert "RUNBELL_API_KEY_FILE" in str(refused.value)
    assert "hush" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_the_name_of_a_file_is_no_misspelt_setting() -> None:
    assert mistaken_variables(["RUNBELL_API_KEY_FILE", "RUNBELL_KEY_FILE"]) == {}
    assert mistaken_variables(["RUNBELL_API_KEY_FIL"]) == {
        "RUNBELL_API_KEY_FIL": "RUNBELL_API_KEY_FILE"
    }


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush/er@db/runbell",
        "postgresql://me:hush@db:x/runbell",
        "postgresql://me:hush@[::1/runbell",
        "postgresql://me:hush@db:99999/runbell",
    ],
)
def test_a_url_that_cannot_be_read_is_not_quoted(url: str) -> None:
    with pytest.raises(ConfigurationError, match="%2F for a /") as caught:
        Settings.load({"database": url}, {})
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
