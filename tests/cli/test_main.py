"""The command line as a whole: quick, and every error a sentence with the right exit code."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runbell import __version__
from runbell.service.settings import mistaken_variables
from runbell.service.upstreams import OPTIONS
from runbell.testing.postgresql import without_tables
from tests.cli.conftest import Command, Done
from tests.served import Served

HEAVY = (
    "openai",
    "sqlalchemy",
    "alembic",
    "starlette",
    "uvicorn",
    "msgspec",
    "aiohttp",
)

WITHOUT = """
import sys
for name in sys.argv.pop(1).split(","):
    sys.modules[name] = None
from runbell.cli import main
main()
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["assistants", "--help"]])
def test_help_and_version_need_none_of_the_large_packages(arguments: list[str]) -> None:
    done = python("-c", WITHOUT, ",".join(HEAVY), *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"runbell {__version__}" or "Usage" in done.stdout


@pytest.mark.parametrize(
    ("missing", "extra", "arguments"),
    [
        ("typer", "cli", ["--version"]),
        ("rich", "cli", ["demo"]),
        ("uvicorn", "serve", ["serve"]),
        ("sqlalchemy", "serve", ["keys", "list"]),
    ],
)
def test_a_missing_package_names_the_extra(missing: str, extra: str, arguments: list[str]) -> None:
    done = python("-c", WITHOUT, missing, *arguments)
    assert done.returncode == 1
    assert f"pip install 'runbell[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_http_client_names_the_extra_where_a_model_server_is_named(
    tmp_path: Path,
) -> None:
    """Without one, the service does not need it."""
    database = f"sqlite:///{tmp_path}/runbell.db"
    words = ["serve", "--port", "0", "--database", database, "--upstream", "http://127.0.0.1:9"]
    done = python("-c", WITHOUT, "aiohttp", *words)
    assert (done.returncode, "pip install 'runbell[serve]'" in done.stderr) == (1, True), done


def test_the_module_is_the_command() -> None:
    assert python("-m", "runbell", "--version").stdout == f"runbell {__version__}\n"


class Interrupting:
    """Ctrl-C, at the moment in which a module is looked for."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "runbell.cli.commands":
            raise KeyboardInterrupt


def test_ctrl_c_while_it_is_imported_ends_it_without_a_word(
    runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the exit code that a shell expects."""
    monkeypatch.delitem(sys.modules, "runbell.cli.commands", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupting, *sys.meta_path])
    assert runbell("--version") == Done(130, "", "")


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["assistants", "import"], ["assistants", "import", "no/such/file"]],
)
def test_wrong_arguments_end_with_2(runbell: Command, arguments: list[str]) -> None:
    assert runbell(*arguments).code == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["serve", "--rpm", "x"], "rpm is 'x': a whole number is needed (--rpm or RUNBELL_RPM)"),
        (
            ["serve", "--run-expiry", "nan"],
            "run_expiry is nan: the smallest value is 0.001 (--run-expiry",
        ),
        (
            ["serve", "--port", "99999"],
            "port is 99999: the largest value is 65535 (--port or RUNBELL_PORT)",
        ),
        (
            ["serve", "--log-level", "loud"],
            "log_level is 'loud': use debug, info, warning or error (--log-level",
        ),
        (
            ["check", "--database", "sqlite:///:memory:"],
            "database is 'sqlite:///:memory:': it has to be a file, so that runs survive",
        ),
        (["serve", "--upstream", "x"], "--upstream: 'x' is no base URL: write http://127.0.0.1"),
        (["keys", "create", "--rpm", "x"], "rpm is 'x': a whole number is needed (--rpm)"),
        (["keys", "create", "--rpm", "-1"], "rpm is -1: the smallest value is 0 (--rpm)"),
        (["keys", "create", "--project", " "], "project is ' ': a name is needed (--project)"),
    ],
)
def test_a_wrong_setting_is_named_and_ends_with_2(
    runbell: Command, arguments: list[str], sentence: str
) -> None:
    done = runbell(*arguments)
    assert done.code == 2
    assert done.err.startswith(f"runbell: {sentence}")
    assert done.err.count("\n") == 1


def test_a_wrong_variable_is_told_like_a_wrong_option(
    runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNBELL_PORT", "abc")
    done = runbell("serve")
    assert (done.code, done.err) == (
        2,
        "runbell: port is 'abc': a whole number is needed (--port or RUNBELL_PORT)\n",
    )


def test_a_missing_file_is_called_as_in_the_help(runbell: Command) -> None:
    assert "Missing argument 'FILE'" in runbell("backup").err
    assert "{FILE}" in runbell("backup", "-h").out


def test_a_paragraph_of_the_help_is_broken_once(
    runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the ends of the docstring's lines too."""
    monkeypatch.setenv("COLUMNS", "60")
    lines = [line.strip() for line in runbell("backup", "-h").out.splitlines()]
    first = lines.index("A service starts on the copy as on any database. It holds")
    assert lines[first + 1] == "everything that the database holds, conversations too, and"


def test_the_options_of_an_upstream_stand_together(runbell: Command) -> None:
    _, _, panel = runbell("serve", "-h").out.partition("Options of the --upstream before them")
    assert [line.split()[1] for line in panel.splitlines() if "--" in line] == [
        each.option for each in OPTIONS
    ]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RUNBELL_RETAIN_DAY", "RUNBELL_RETAIN_DAYS"),
        ("RUNBELL_LOGLEVEL", "RUNBELL_LOG_LEVEL"),
        ("RUNBELL_PORT", None),
        ("RUNBELL_API_KEY", None),
        ("RUNBELL_IN_ANOTHER_PROGRAM", None),
        ("PORT", None),
    ],
)
def test_a_variable_that_is_nearly_a_setting_is_noticed(name: str, meant: str | None) -> None:
    assert mistaken_variables([name]).get(name) == meant


def test_a_client_needs_to_know_where_and_with_which_key(
    runbell: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = runbell("assistants", "export")
    assert (done.code, done.err) == (
        1,
        "runbell: no base URL: set --base-url or OPENAI_BASE_URL\n",
    )
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    done = runbell("assistants", "export")
    assert (done.code, done.err) == (1, "runbell: no API key: set --api-key or OPENAI_API_KEY\n")


@pytest.mark.parametrize(
    ("base_url", "key", "complaint"),
    [
        ("127.0.0.1:8100/v1", "sk-1", "must start with http:// or https://"),
        ("http://127.0.0.1:9/v1", "sk-1", "is the service running, and is --base-url right?"),
        ("http://127.0.0.1:9/v1", "sk-\u00e9", "from --api-key holds characters that no key has"),
    ],
)
def test_a_client_that_cannot_work_says_what_to_change(
    runbell: Command, base_url: str, key: str, complaint: str
) -> None:
    done = runbell("assistants", "export", "--base-url", base_url, "--api-key", key)
    assert done.code == 1
    assert complaint in done.err
    assert key not in done.err


def test_an_error_names_where_the_wrong_value_came_from(
    runbell: Command, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-a-key-of-this-service")
    done = runbell("assistants", "export", "--base-url", served.base_url)
    assert "refused the key from OPENAI_API_KEY: Incorrect API key provided" in done.err
    monkeypatch.setenv("OPENAI_API_KEY", served.key or "")
    monkeypatch.setenv("OPENAI_BASE_URL", served.root)
    assert "a base URL mostly ends in /v1" in runbell("assistants", "export").err


def test_what_only_reads_makes_no_installation(runbell: Command, tmp_path: Path) -> None:
    """Of a database that has none it says how to make one, and leaves it as it is."""
    folder = f"postgresql-embedded:///{tmp_path}/none"
    for database in (asyncio.run(without_tables()), folder):
        for words in (["keys", "list"], ["keys", "revoke", "key_1"], ["jobs", "list"]):
            done = runbell(*words, "--database", database)
            assert (done.code, done.out) == (1, ""), done
            assert "there is no installation of Runbell in" in done.err
            assert "make one with runbell migrate" in done.err
    assert not (tmp_path / "none").exists()
