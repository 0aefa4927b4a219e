"""The options of `--upstream`: on the command line and in the environment, in their order."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runbell.errors import ConfigurationError
from runbell.service.settings import Settings
from runbell.service.upstreams import OPTIONS, UpstreamSettings, read_upstreams

KEYS = {"THE_KEY": "sk-1234567890", "OTHER": " sk-2 \n", "EMPTY": " ", "BAD": "sk-é", "lower": "k"}

URL = "http://127.0.0.1:11434/v1"


def read(*words: str) -> tuple[UpstreamSettings, ...]:
    return read_upstreams(words, KEYS)


def refused(*words: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        read(*words)
    return str(caught.value)


def test_an_option_belongs_to_the_upstream_before_it() -> None:
    one, two, three = read(
        *("--upstream", URL),
        *("--upstream", "https://api.example.com/v1/", "--upstream-key-env", "THE_KEY"),
        *("--model-map", "gpt-4o=big", "--model-map", "*=small", "--upstream-concurrency", "4"),
        *("--upstream=http://[::1]:8000", "--upstream-key-env=OTHER", "--model-map=a=b=c"),
        *("--upstream-first-answer", "1.5", "--upstream-total", "60"),
    )
    assert one == UpstreamSettings(URL)
    assert two == UpstreamSettings(
        "https://api.example.com/v1",
        "sk-1234567890",
        "THE_KEY",
        (("gpt-4o", "big"), ("*", "small")),
        concurrency=4,
    )
    assert three == UpstreamSettings(
        "http://[::1]:8000", "sk-2", "OTHER", (("a", "b=c"),), first_answer=1.5, total=60.0
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("http://127.0.0.1:11434/v1", "127.0.0.1:11434"),
        ("https://API.example.com/v1", "api.example.com:443"),
        ("http://models", "models:80"),
        ("http://[::1]:8000/x", "[::1]:8000"),
    ],
)
def test_a_server_has_a_name(url: str, name: str) -> None:
    assert UpstreamSettings(url).name == name


@pytest.mark.parametrize(
    "text",
    [
        f"{URL} --model-map 'a b=x y' --upstream https://b",
        f"--upstream {URL} --model-map 'a b=x y' --upstream https://b",
        f"\n  --upstream={URL}\n  --model-map='a b=x y'\n  --upstream https://b\n",
    ],
)
def test_the_environment_has_the_same_words(text: str) -> None:
    """The first option may be left out, and lines may be broken."""
    expected = (UpstreamSettings(URL, models=(("a b", "x y"),)), UpstreamSettings("https://b"))
    assert Settings.load(environ={"RUNBELL_UPSTREAM": text}).upstream == expected


def test_the_command_line_wins() -> None:
    environ = {"RUNBELL_UPSTREAM": URL}
    assert Settings.load({"upstream": ["--upstream", "http://b"]}, environ).upstream == (
        UpstreamSettings("http://b"),
    )
    assert Settings.load({}, environ).upstream == (UpstreamSettings(URL),)
    assert Settings.load({}, {"RUNBELL_UPSTREAM": ""}).upstream == ()


def test_of_two_maps_of_a_name_the_first_holds() -> None:
    (one,) = read("--upstream", URL, "--model-map", "a=x", "--model-map", "a=y")
    assert one.models == (("a", "x"),)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--model-map", "a=b"), "--model-map stands before any --upstream"),
        (("--upstream-key-env", "THE_KEY"), "--upstream-key-env stands before any --upstream"),
        (("--upstream",), "--upstream needs a value"),
        (("--upstream", URL, "--model-map", "a=b", "--upstream", f"{URL}/"), "is there twice"),
        (("--upstream", URL, "--model-map"), "--model-map needs a value"),
        (("--upstream", URL, "http://b"), "'http://b' where an option is expected"),
        (("--upstream", URL, "--port", "1"), "'--port' where an option is expected"),
        *(
            (("--upstream", url), "is no base URL: write http://")
            for url in ("ftp://a", "localhost:11434", "/v1", "", "http://", "http://a b/v1")
        ),
        (("--upstream", "http://[::1/v1"), "it is no URL"),
        (("--upstream", "http://a:99999/v1"), "it is no URL"),
        (("--upstream", f"{URL}/chat/completions"), "without /chat/completions"),
        *(
            (("--upstream", URL, "--model-map", value), "is no map: write NAME=MODEL")
            for value in ("a", "=b", "a=", "", "a=*", " = ")
        ),
        (("--upstream", URL, "--upstream-key-env", "NOPE"), "the variable NOPE is not set"),
        (("--upstream", URL, "--upstream-key-env", "EMPTY"), "the variable EMPTY is not set"),
        (("--upstream", URL, "--upstream-key-env", "BAD"), "holds characters that no key has"),
        (("--upstream", URL, *("--upstream-key-env", "THE_KEY") * 2), "has one already, THE_KEY"),
        (("--upstream", URL, "--upstream-first-answer", "0"), "the smallest value is 0.001"),
        (("--upstream", URL, "--upstream-first-answer", "x"), "'x' is no number"),
        (("--upstream", URL, "--upstream-total", "-1"), "the smallest value is 0"),
        (("--upstream", URL, "--upstream-total", "nan"), "the smallest value is 0"),
        (("--upstream", URL, "--upstream-total", "inf"), "the smallest value is 0"),
        (("--upstream", URL, "--upstream-concurrency", "1.5"), "1.5 is no whole number"),
    ],
)
def test_what_makes_no_sense_is_named(words: tuple[str, ...], complaint: str) -> None:
    assert complaint in refused(*words)


def test_one_url_with_two_keys_is_two_upstreams() -> None:
    one, two = read("--upstream", URL, "--upstream", URL, "--upstream-key-env", "THE_KEY")
    assert (one.url, one.key, two.url, two.key) == (URL, None, URL, "sk-1234567890")


def test_quotes_that_do_not_match_are_named() -> None:
    with pytest.raises(ConfigurationError, match="RUNBELL_UPSTREAM cannot be read"):
        Settings.load(environ={"RUNBELL_UPSTREAM": f"{URL} --model-map 'a=b"})


@pytest.mark.parametrize(
    "words",
    [
        ("--upstream", "http://user:hunter22@a/v1"),
        ("--upstream", "http://a/v1?key=hunter22"),
        ("--upstream", "http://a/v1#hunter22"),
        ("--upstream", URL, "--upstream-key-env", "sk-hunter22"),
        ("--upstream", URL, "--upstream-key-env", "sk_hunter22"),
    ],
)
def test_a_key_in_the_wrong_place_is_not_repeated(words: tuple[str, ...]) -> None:
    message = refused(*words)
    assert "hunter" not in message
    assert "variable" in message


def test_a_key_is_in_no_repr() -> None:
    settings = Settings(upstream=read("--upstream", URL, "--upstream-key-env", "THE_KEY"))
    assert "sk-1234567890" not in repr(settings)
    assert "THE_KEY" in repr(settings)


# The real command line.

PRINT = """
import sys
from runbell.cli import serve
from runbell.service.settings import Settings
def load(given):
    settings = Settings.load(given)
    print([(u.url, u.models, u.concurrency, u.key_env) for u in settings.upstream], settings.port)
    raise SystemExit(0)
serve.Settings = type("Seen", (), {"load": staticmethod(load)})
from runbell.cli import main
main()
"""


def command(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RUNBELL_")}
    return subprocess.run(
        [sys.executable, "-c", PRINT, "serve", *words],
        env={**clean, "THE_KEY": "sk-1", **environ, "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_order_of_the_command_line_is_kept() -> None:
    """Between other options, with and without an equals sign."""
    done = command(
        *("--port", "5", "--upstream", URL, "--model-map", "a=b", "--model-map=*=c"),
        *("--log-level", "debug", "--upstream=http://two", "--upstream-key-env", "THE_KEY"),
        *("--upstream", "http://three", "--upstream-concurrency", "3"),
    )
    expected: list[Any] = [
        (URL, (("a", "b"), ("*", "c")), 0, None),
        ("http://two", (), 0, "THE_KEY"),
        ("http://three", (), 3, None),
    ]
    assert done.stdout == f"{expected} 5\n", done.stderr


def test_without_an_upstream_the_environment_holds() -> None:
    done = command("--port", "5", RUNBELL_UPSTREAM=f"{URL} --model-map a=b")
    assert done.stdout == f"{[(URL, (('a', 'b'),), 0, None)]} 5\n", done.stderr


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        (["--model-map", "a=b"], 2, "runbell: --model-map stands before any --upstream"),
        (["--upstream", "ftp://a"], 2, "runbell: --upstream: 'ftp://a' is no base URL"),
        (["--upstream"], 2, "requires an argument"),
        (["--upstream-nonsense", "1"], 2, "No such option"),
    ],
)
def test_a_wrong_command_line_ends_with_a_sentence(
    words: list[str], code: int, complaint: str
) -> None:
    done = command(*words)
    assert (done.returncode, complaint in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_help_shows_every_option() -> None:
    shown = command("--help").stdout
    assert all(option.option in shown for option in OPTIONS)
    assert "RUNBELL_UPSTREAM" in shown


def test_every_option_of_an_upstream_is_documented() -> None:
    """As the table of docs/running.md has it."""
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text()
    rows = [
        f"| `{option.option}` | {option.metavar} | "
        f"{f'`{option.default:g}`' if option.default is not None else ''} | {option.help} |"
        for option in OPTIONS
    ]
    found = [
        line for line in page.splitlines() if line.startswith(("| `--upstream-", "| `--model-"))
    ]
    assert [" ".join(row.split()) for row in found] == [" ".join(row.split()) for row in rows]
