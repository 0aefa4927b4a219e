"""What the tests of the command line share: a command run here, with its exit code and output."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from runbell.cli import main
from tests.served import Served


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


Command = Callable[..., Done]
NewProject = Callable[[str], str]


@pytest.fixture
def runbell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process, as its entry point does; faster than one of its own."""
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "argv", ["runbell", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        code = ended.value.code
        # What the interpreter does with a message: it goes to stderr, and the exit code is 1.
        return (
            Done(1, out, f"{err}{code}\n") if isinstance(code, str) else Done(code or 0, out, err)
        )

    return run


@pytest.fixture
def new_project(served: Served, runbell: Command) -> NewProject:
    """Make a project of this name, or find it; the result is a key of it."""

    def make(name: str) -> str:
        done = runbell("keys", "create", "--project", name, "--database", served.database)
        assert done.code == 0, done
        return done.out.strip()

    return make


@pytest.fixture
def project(
    served: Served,
    new_project: NewProject,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """The key of a project that only this test uses; clients find it in the environment."""
    key = new_project(request.node.name)
    monkeypatch.setenv("OPENAI_BASE_URL", served.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    return key
