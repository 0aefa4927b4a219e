"""Which model servers there are: the options of `--upstream`, read in the order they stand in.

An option belongs to the `--upstream` before it, so the order matters; the command line and the
environment variable are the same words, and are read here, by the same few lines.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlsplit

from runbell.errors import InvalidSetting
from runbell.service.variables import variable

__all__ = ["ANY", "OPTIONS", "UpstreamOption", "UpstreamSettings", "read_upstreams"]

ANY = "*"
"""In a map: every name that nobody else serves."""

FIRST_ANSWER: Final = 300.0
"""Long enough for a large model to be loaded from disk, or to think first."""


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """One model server. Durations are seconds.

    Attributes:
        url: its base URL, without a slash at the end.
        key: what it is sent as `Authorization: Bearer`.
        key_env: the variable that the key came from, for messages.
        models: names here and their names there, in the order given; empty: what it lists itself.
        first_answer: how long it may take to begin its answer, and to pause in it.
        total: how long one call may take as a whole; 0 for as long as the run lives.
        concurrency: calls that it gets at the same time; 0 for any number.
    """

    url: str
    key: str | None = field(default=None, repr=False)
    key_env: str | None = None
    models: tuple[tuple[str, str], ...] = ()
    first_answer: float = FIRST_ANSWER
    total: float = 0.0
    concurrency: int = 0

    @property
    def name(self) -> str:
        """Its host and port, for logs and metrics: `127.0.0.1:11434`."""
        parts = urlsplit(self.url)
        host = parts.hostname or ""
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def is_versioned(self) -> bool:
        """The path of its URL names a version of the API, as almost all base URLs do."""
        return re.search(r"/v\d", urlsplit(self.url).path) is not None


@dataclass(frozen=True, slots=True)
class UpstreamOption:
    """One option that belongs to the `--upstream` before it.

    Attributes:
        option: as it is written.
        metavar: what it takes.
        help: what it does.
        default: what holds without it; None where there is nothing to say.
        apply: the upstream with it. Raises ValueError with what is wrong about the value.
    """

    option: str
    metavar: str
    help: str
    default: float | None
    apply: Callable[[UpstreamSettings, str, Mapping[str, str]], UpstreamSettings]


def read_upstreams(
    given: str | Sequence[str], environ: Mapping[str, str]
) -> tuple[UpstreamSettings, ...]:
    """The upstreams that words name.

    Args:
        given: the words, or one text of them as the environment has it, where the first
            `--upstream` may be left out.
        environ: where the variables that hold keys are looked up.

    Raises:
        InvalidSetting: they make no sense; names the option, and never holds a key.
    """
    words = _split(given) if isinstance(given, str) else list(given)
    origin = " (RUNBELL_UPSTREAM)" if isinstance(given, str) else ""
    found: list[UpstreamSettings] = []
    for option, value in _pairs(words):
        try:
            if option == "--upstream":
                found.append(UpstreamSettings(_url(value)))
            elif not found:
                raise InvalidSetting(
                    f"{option} stands before any --upstream: it belongs to the one before it"
                )
            else:
                found[-1] = _BY_NAME[option].apply(found[-1], value, environ)
        except ValueError as error:
            raise InvalidSetting(f"{option}: {error}{origin}") from None
    for number, upstream in enumerate(found):
        # With another key it is another server: what it lists and how much it takes may differ.
        if any((each.url, each.key) == (upstream.url, upstream.key) for each in found[:number]):
            raise InvalidSetting(
                f"--upstream {upstream.url} is there twice: name it once, with all of its options"
            )
    return tuple(found)


def _split(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InvalidSetting(f"RUNBELL_UPSTREAM cannot be read: {error}") from None
    return words if not words or words[0].startswith("--") else ["--upstream", *words]


def _pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option != "--upstream" and option not in _BY_NAME:
            raise InvalidSetting(
                f"RUNBELL_UPSTREAM holds {_clipped(word)!r} where an option is expected: "
                f"--upstream, {', '.join(_BY_NAME)}"
            )
        if not equals:
            following = next(rest, None)
            if following is None:
                raise InvalidSetting(f"{option} needs a value")
            value = following
        yield option, value


# What each option takes.


def _url(value: str) -> str:
    url = value.strip().rstrip("/")
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what checks it
    except ValueError as error:
        raise ValueError(f"it is no URL ({error})") from None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the URL may not hold a password, a query or a fragment: "
            "name the variable that holds the key with --upstream-key-env"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or re.search(r"\s", url):
        raise ValueError(f"{_clipped(value)!r} is no base URL: write http://127.0.0.1:11434/v1")
    if url.endswith("/chat/completions"):
        raise ValueError("give the base URL, which mostly ends in /v1, without /chat/completions")
    return url


_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _with_key(
    upstream: UpstreamSettings, value: str, environ: Mapping[str, str]
) -> UpstreamSettings:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("give the name of the variable that holds the key, not the key itself")
    if upstream.key_env is not None:
        raise ValueError(f"{upstream.url} has one already, {upstream.key_env}")
    key = variable(value, environ)
    if not key:
        # Some keys look like a name, and are given here by mistake: only what can't be one is said.
        shown = value if re.fullmatch("[A-Z_][A-Z0-9_]{0,63}", value) else "of that name"
        raise ValueError(f"the variable {shown} is not set: export it before the start")
    if not (key.isascii() and key.isprintable()):
        raise ValueError(f"the variable {value} holds characters that no key has")
    return replace(upstream, key=key, key_env=value)


def _with_model(
    upstream: UpstreamSettings, value: str, environ: Mapping[str, str]
) -> UpstreamSettings:
    name, equals, model = (part.strip() for part in value.partition("="))
    if not (name and equals and model) or (model == ANY and name != ANY):
        raise ValueError(
            f"{_clipped(value)!r} is no map: write NAME=MODEL, the name that runs ask for and the "
            "model's name there, or *=MODEL for every name that nobody else serves"
        )
    if name in dict(upstream.models):
        return upstream
    return replace(upstream, models=(*upstream.models, (name, model)))


def _with_first_answer(
    upstream: UpstreamSettings, value: str, environ: Mapping[str, str]
) -> UpstreamSettings:
    return replace(upstream, first_answer=_number(value, 0.001))


def _with_total(
    upstream: UpstreamSettings, value: str, environ: Mapping[str, str]
) -> UpstreamSettings:
    return replace(upstream, total=_number(value, 0))


def _with_concurrency(
    upstream: UpstreamSettings, value: str, environ: Mapping[str, str]
) -> UpstreamSettings:
    number = _number(value, 0)
    if not number.is_integer():
        raise ValueError(f"{value} is no whole number")
    return replace(upstream, concurrency=int(number))


def _number(value: str, low: float) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"{_clipped(value)!r} is no number") from None
    if not low <= number < math.inf:
        raise ValueError(f"{value} is too small or too large: the smallest value is {low:g}")
    return number


def _clipped(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


OPTIONS = (
    UpstreamOption(
        "--upstream-key-env",
        "NAME",
        "Environment variable that holds the key for this model server.",
        None,
        _with_key,
    ),
    UpstreamOption(
        "--model-map",
        "NAME=MODEL",
        "Serve this model under that name; `*=MODEL` takes every name that nobody else serves. "
        "Without a map, the models that the server lists are served.",
        None,
        _with_model,
    ),
    UpstreamOption(
        "--upstream-first-answer",
        "SECONDS",
        "Time until its answer has to begin, and longest pause in an answer.",
        FIRST_ANSWER,
        _with_first_answer,
    ),
    UpstreamOption(
        "--upstream-total",
        "SECONDS",
        "Time that one call may take as a whole; 0 for as long as the run lives.",
        0,
        _with_total,
    ),
    UpstreamOption(
        "--upstream-concurrency",
        "NUMBER",
        "Calls that it gets at the same time, other runs stay queued; 0 for any number.",
        0,
        _with_concurrency,
    ),
)
"""Every option of an upstream, in the order of the help."""

_BY_NAME = {option.option: option for option in OPTIONS}
