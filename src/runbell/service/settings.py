"""Every setting of the service, in one place: its name, default, environment variable and help."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from runbell.errors import InvalidSetting
from runbell.service.upstreams import UpstreamSettings, read_upstreams
from runbell.service.variables import FILE, variable
from runbell.storage.urls import EMBEDDED, check_readable, sqlite_file, without_password

__all__ = [
    "EMBEDDED",
    "Settings",
    "environment_name",
    "location",
    "mistaken_variables",
    "number",
    "sqlite_path",
]

N = TypeVar("N", int, float)

SIMILAR = 0.9
"""How much of its letters an unknown variable shares with a setting's to be one misspelt."""


def _setting(default: Any, help: str, *, low: float | None = None) -> Any:  # noqa: A002
    # `low` is the smallest value that makes sense.
    return field(default=default, metadata={"help": help, "option": True, "low": low})


@dataclass(frozen=True, slots=True)
class Settings:
    """How one service process behaves. Durations are seconds, sizes bytes."""

    host: str = _setting(
        "127.0.0.1",
        "Address to listen on; one that is not loopback needs a key that you made yourself.",
    )
    port: int = _setting(8100, "Port to listen on; 0 takes a free one.", low=0)
    metrics_port: int | None = _setting(
        None,
        "Port of a worker, for /healthz, /readyz and /metrics alone; 0 takes a free one. By "
        "default a worker listens nowhere.",
        low=0,
    )
    database: str = _setting(
        "sqlite:///runbell.db",
        "Where everything is kept: sqlite:///FILE, or sqlite:////FILE from the root; "
        "postgresql://USER@HOST/DATABASE; or postgresql-embedded, a server of its own.",
    )
    upstream: tuple[UpstreamSettings, ...] = _setting(
        (),
        "Base URL of an OpenAI-compatible model server; may be given several times, and is followed"
        " by the options that belong to it.",
    )
    run_expiry: float = _setting(
        600.0,
        "Seconds from a run's creation to its end as `expired`, where the run does not say.",
        low=0.001,
    )
    max_concurrent_runs: int = _setting(
        500,
        "Runs that may be in progress at the same time for each model server, and for `echo`; "
        "others stay queued.",
        low=1,
    )
    cancel_grace: float = _setting(
        10.0,
        "Seconds after which a cancelled run whose worker does not answer is ended.",
        low=0.001,
    )
    rpm: int = _setting(
        0,
        "Requests a minute that a key may make, where the key has no limit of its own; "
        "0 is no limit.",
        low=0,
    )
    max_body: int = _setting(8_388_608, "Largest request body, in bytes.", low=1_024)
    body_timeout: float = _setting(
        30.0, "Seconds within which a request's body has to arrive.", low=0.001
    )
    shutdown_grace: float = _setting(
        3.0, "Seconds that open requests and model calls are given when the service stops.", low=0
    )
    log_level: str = _setting("info", "debug, info, warning or error.")
    log_format: str = _setting("text", "text, or json: one object a line.")
    retain_days: float = _setting(
        0.0,
        "Days after which runs that have ended, their steps and their events are removed; 0 keeps "
        "everything.",
        low=0,
    )
    key_file: str | None = _setting(
        None,
        "File with the key that encrypts signing secrets; made if it is not there. By default "
        "runbell.key beside the SQLite file, else in the working folder.",
    )
    encryption_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "That key itself, instead of a file: 32 bytes in base64. Environment only.",
            "option": False,
            "low": None,
        },
    )
    allow_private_webhooks: bool = _setting(
        False,
        "Send webhooks to http:// URLs and to addresses that are not public too: for receivers on "
        "your own machine.",
    )
    webhook_retries: str = _setting(
        "5 60 300 1800 7200 18000 36000 50400 72000 72000",
        "Seconds before each further attempt of a webhook that was not delivered, in order.",
    )
    webhook_patience: float = _setting(
        259_200.0, "Seconds after which a webhook that was not delivered is given up.", low=1
    )
    webhook_connect_timeout: float = _setting(
        5.0, "Seconds within which there has to be a connection to an endpoint.", low=0.001
    )
    webhook_answer_timeout: float = _setting(
        15.0, "Seconds that an endpoint may pause before and in its answer.", low=0.001
    )
    webhook_timeout: float = _setting(
        20.0, "Seconds that one attempt may take as a whole.", low=0.001
    )
    webhook_concurrency: int = _setting(
        16, "Attempts that may be under way to one endpoint at the same time.", low=1
    )
    api_key: str | None = field(
        default=None,
        repr=False,
        metadata={
            "help": "A key for the project `default`, beside those made by `runbell keys create`. "
            "Environment only: command lines are visible to other users.",
            "option": False,
            "low": None,
        },
    )

    @classmethod
    def load(
        cls, given: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ
    ) -> Settings:
        """The settings from what was given, else the environment, else the defaults.

        Raises:
            InvalidSetting: a value that makes no sense; names the setting.
        """
        values: dict[str, Any] = {}
        for item in dataclasses.fields(cls):
            value: Any = (given or {}).get(item.name)
            if value is None:
                value = variable(environment_name(item.name), environ) or None
            if value is not None and item.name == "upstream":
                values[item.name] = read_upstreams(value, environ)
            elif value is not None:
                values[item.name] = _checked(item, value)
        settings = cls(**values)
        if settings.log_level not in ("debug", "info", "warning", "error"):
            raise _wrong("log_level", settings.log_level, "use debug, info, warning or error")
        if settings.log_format not in ("text", "json"):
            raise _wrong("log_format", settings.log_format, "use text or json")
        key = settings.api_key
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise InvalidSetting(
                "RUNBELL_API_KEY holds spaces or characters that a header cannot carry"
            )
        for name in ("port", "metrics_port"):
            if (getattr(settings, name) or 0) > 65_535:
                raise _wrong(name, getattr(settings, name), "the largest value is 65535")
        _check_database(settings.database)
        settings.retry_delays  # noqa: B018 - raises where it can't be read
        return settings

    @property
    def retry_delays(self) -> tuple[float, ...]:
        """Seconds before each attempt of a webhook, the first one at once.

        Raises:
            InvalidSetting: they are no numbers.
        """
        try:
            delays = tuple(float(each) for each in self.webhook_retries.replace(",", " ").split())
        except ValueError:
            delays = (-1.0,)
        if not all(0 <= delay < float("inf") for delay in delays):
            raise _wrong(
                "webhook_retries",
                self.webhook_retries,
                "use seconds, with spaces between them, such as '5 60 300'",
            )
        return (0.0, *delays)


def environment_name(setting: str) -> str:
    """The environment variable of a setting."""
    return f"RUNBELL_{setting.upper()}"


def mistaken_variables(environ: Iterable[str]) -> dict[str, str]:
    """Variables that look like a setting's name and are none, each with the one it looks like."""
    known = [environment_name(item.name) for item in dataclasses.fields(Settings)]
    known += [f"{name}{FILE}" for name in known]
    close = {
        name: difflib.get_close_matches(name, known, n=1, cutoff=SIMILAR)
        for name in environ
        if name.startswith("RUNBELL_") and name not in known
    }
    return {name: found[0] for name, found in close.items() if found}


def location(database: str) -> str:
    """Where a database is, for messages: without a password."""
    if database.startswith("sqlite:"):
        return str(sqlite_path(database).resolve())
    return without_password(database)


def _check_database(url: str) -> None:
    scheme, separator, rest = url.partition("://")
    if scheme in ("postgresql", "postgres") and separator and rest:
        check_readable(url)
        return
    if scheme == EMBEDDED and (not separator or (len(rest) > 1 and rest.startswith("/"))):
        return
    sqlite_path(url)


def sqlite_path(url: str) -> Path:
    """The file that a database URL names.

    Raises:
        InvalidSetting: the URL is not one that this version can use.
    """
    try:
        path = sqlite_file(url)
    except ValueError as error:
        raise _wrong("database", url, str(error)) from None
    if path is None:
        raise _wrong(
            "database",
            without_password(url),
            "use sqlite:///runbell.db, beside you, or sqlite:////var/lib/runbell.db, from the "
            f"root; to serve, postgresql://USER@HOST/DATABASE or {EMBEDDED} too",
        )
    return path


def _checked(item: dataclasses.Field[Any], value: Any) -> Any:
    if item.type == "bool":
        return _switch(item.name, value)
    kind = {"int": int, "float": float}.get(str(item.type).removesuffix(" | None"))
    if kind is None:
        return str(value)
    return number(item.name, value, kind, item.metadata["low"], _place(item.name))


def number(name: str, value: Any, kind: type[N], low: float, place: str) -> N:
    """A number that somebody wrote.

    Args:
        low: the smallest value that makes sense.
        place: where it was written, for the message.

    Raises:
        InvalidSetting: it is none, or too small.
    """
    try:
        converted = kind(value)
    except ValueError:
        needed = "a whole number" if kind is int else "a number"
        raise InvalidSetting(f"{name} is {value!r}: {needed} is needed ({place})") from None
    # Written so that NaN, which is neither below nor above anything, is refused too.
    if not low <= converted < float("inf"):
        raise InvalidSetting(f"{name} is {value}: the smallest value is {low:g} ({place})")
    return converted


def _switch(name: str, value: Any) -> bool:
    switched = {"1": True, "true": True, "0": False, "false": False}.get(str(value).lower())
    if switched is None:
        raise _wrong(name, value, "use true or false")
    return switched


def _wrong(setting: str, value: object, advice: str) -> InvalidSetting:
    return InvalidSetting(f"{setting} is {value!r}: {advice} ({_place(setting)})")


def _place(setting: str) -> str:
    return f"--{setting.replace('_', '-')} or {environment_name(setting)}"
