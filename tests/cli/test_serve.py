"""What `runbell serve` says to whoever starts and stops it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.protocol.scenario import ask, until
from tests.served import Served, eventually

ON_A_TERMINAL = (
    sys.executable,
    "-c",
    "import sys; sys.stdout.isatty = lambda: True; from runbell.cli import main; main()",
)


def exported(lines: str) -> dict[str, str]:
    """What the variables hold that a shell has after these lines, as somebody pastes them."""
    script = f'{lines}\nprintf \'%s\\n\' "$OPENAI_BASE_URL" "$OPENAI_API_KEY"'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    url, key = done.stdout.splitlines()
    return {"url": url, "key": key}


def exports(said: str) -> str:
    """The lines to paste; none before both are there."""
    lines = [line for line in said.splitlines(keepends=True) if line.startswith("export ")]
    return "".join(lines) if len(lines) == 2 and lines[1].endswith("\n") else ""


def test_without_a_terminal_the_first_key_is_in_a_file_that_can_be_used_at_once(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    with Served(folder, key=None, as_users_do=True) as served:
        said = eventually(lambda: exports(served.stdout()) or None, "the key is told of")
        assert f"is in {folder}/runbell.db.api-key; to use it:" in served.stdout()
        found = exported(said)
        assert found["url"] == served.base_url
        assert found["key"] not in served.stdout()
        served.api(found["key"]).get("/v1/models").ok()


def test_on_a_terminal_the_first_key_is_shown_once(tmp_path: Path) -> None:
    """At later starts, how to make another is."""
    with Served(tmp_path, key=None, command=ON_A_TERMINAL) as served:
        key = exported(eventually(lambda: exports(served.stdout()) or None, "the key is shown"))[
            "key"
        ]
        assert not list(tmp_path.glob("*.api-key"))
        served.restart()
        line = f"1 API key is open; for another: runbell keys create --database {served.database}"
        eventually(lambda: line in served.stdout(), "it says that there is a key")
        assert key not in served.stdout()
        served.api(key).get("/v1/models").ok()


def test_it_says_what_it_waits_for_when_it_stops_and_what_goes_on(tmp_path: Path) -> None:
    with Served(tmp_path, args=["--shutdown-grace", "0.2"]) as served:
        client = served.client()
        assistant = client.beta.assistants.create(model="echo")
        until(client, ask(client, assistant, "sleep 600"), "in_progress")
        log = served.stderr
        served.stop()
        assert "stopping: open requests, and 1 model call, have 0.2 s" in log()
        assert "stopped; to go on at the next start: 1 run\n" in log()


def test_the_address_that_it_names_is_one_that_clients_can_use(tmp_path: Path) -> None:
    with Served(tmp_path, args=["--host", "0.0.0.0"]) as served:
        assert served.root.startswith("http://127.0.0.1:")
        served.api().get("/v1/models").ok()


def test_a_variable_that_is_nearly_a_setting_is_warned_about(tmp_path: Path) -> None:
    with Served(tmp_path, env={"RUNBELL_RETAIN_DAY": "30"}) as served:
        assert "RUNBELL_RETAIN_DAY is no setting: is RUNBELL_RETAIN_DAYS meant?" in served.stderr()


@pytest.mark.parametrize(("days", "said"), [("0", False), ("1.5", True)])
def test_it_says_that_it_removes_what_is_old(tmp_path: Path, days: str, said: bool) -> None:
    with Served(tmp_path, args=["--retain-days", days]) as served:
        assert ("what ended more than 1.5 days ago is removed" in served.stderr()) == said
