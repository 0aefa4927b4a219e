"""`runbell doctor`: why does it not work? Key, base URL, clock, SDK, and a round trip."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import typer

from runbell.cli.client import API_KEY_VARIABLE, BASE_URL_VARIABLE, ApiKey, BaseUrl, sentence
from runbell.client.diagnosis import shown

if TYPE_CHECKING:
    from openai import OpenAI

__all__ = ["doctor"]

OLDEST_SDK = (1, 109)
MAX_CLOCK_SECONDS = 5.0
TIMEOUT_SECONDS = 15.0
HOSTED = "api.openai.com"
DEFAULT_URL = f"https://{HOSTED}/v1"


class Finding(NamedTuple):
    """One thing that was looked at; `advice` says what to do where it is not good."""

    good: bool
    what: str
    advice: str = ""


def doctor(base_url: BaseUrl = None, api_key: ApiKey = None) -> None:
    """Check the key, the base URL, the clock, the SDK and a round trip, and say what to do.

    Exit code: 0 if all is well, 1 if not.
    """
    well = True
    for finding in _examine(base_url, api_key):
        well = well and finding.good
        typer.echo(f"{'ok ' if finding.good else '!! '} {finding.what}")
        if not finding.good:
            typer.echo(f"    → {finding.advice}")
    raise typer.Exit(0 if well else 1)


def _examine(base_url: str | None, api_key: str | None) -> Iterator[Finding]:
    yield _sdk()
    key, url = (api_key or "").strip(), (base_url or "").strip() or DEFAULT_URL
    keys, urls = _key(key), _url(url, bool(base_url))
    yield keys
    yield urls
    if keys.good and urls.good:
        from openai import OpenAI

        with OpenAI(base_url=url, api_key=key, timeout=TIMEOUT_SECONDS, max_retries=0) as client:
            yield from _round_trip(client, url)


def _sdk() -> Finding:
    import openai

    version = tuple(int(part) for part in openai.__version__.split(".")[:2])
    return Finding(
        version >= OLDEST_SDK,
        f"the openai SDK is {openai.__version__}",
        "pip install --upgrade openai: this version is older than what Runbell is tested with",
    )


def _key(key: str) -> Finding:
    from runbell.client.diagnosis import masked

    if not key:
        return Finding(False, "there is no API key", f"export {API_KEY_VARIABLE}=… or --api-key")
    if not (key.isascii() and key.isprintable()) or " " in key or key.strip("\"'") != key:
        return Finding(
            False, "the API key holds characters that no key has", "look for quotes and spaces"
        )
    inherited = os.environ.get(API_KEY_VARIABLE, "").strip()
    origin = API_KEY_VARIABLE if inherited == key else "--api-key"
    what = f"the API key is {masked(key)}, from {origin}"
    if inherited and inherited != key:
        what += f"; {API_KEY_VARIABLE} has another one ({masked(inherited)}), which is not used"
    return Finding(True, what)


def _url(url: str, given: bool) -> Finding:
    what = f"the base URL is {shown(url)}" if given else f"no base URL is set: it is {shown(url)}"
    if not url.startswith(("http://", "https://")):
        return Finding(False, what, "it has to start with http:// or https://")
    if (urlsplit(url).hostname or "").rstrip(".").lower() == HOSTED:
        return Finding(
            False,
            what + ", where the Assistants API was shut down on 2026-08-26",
            f"export {BASE_URL_VARIABLE}=… or --base-url, such as http://127.0.0.1:8100/v1",
        )
    return Finding(True, what)


def _round_trip(client: OpenAI, url: str) -> Iterator[Finding]:
    from openai import APIConnectionError, APIStatusError

    began = time.monotonic()
    try:
        raw = client.models.with_raw_response.list()
    except APIStatusError as error:
        yield _refusal(error, url)
        return
    except APIConnectionError as error:
        cause = str(error.__cause__ or error)
        yield Finding(
            False,
            f"nobody answers at {shown(url)} ({cause})",
            "is the service running, is the URL right?",
        )
        return
    took = time.monotonic() - began
    yield Finding(True, f"it answered within {took * 1000:.0f} ms, and took the key")
    yield _clock(raw.headers.get("date"), took)
    yield from _abilities(client)


def _refusal(error: Any, url: str) -> Finding:
    what = f"{shown(url)} answered {error.status_code}: {sentence(error)}"
    if error.status_code in (401, 403):
        return Finding(
            False,
            what,
            "the key is not one of this service. If you exported another one meanwhile, programs "
            "that run already, and clients that were made before, still use the old one",
        )
    if error.status_code == 404:
        return Finding(False, what, "a base URL mostly ends in /v1")
    return Finding(False, what, "the service is not well: see its logs, and try again")


def _clock(date: str | None, took: float) -> Finding:
    from runbell.client.trouble import date_seconds

    theirs = date_seconds(date)
    if theirs is None:
        return Finding(True, "the service does not say what time it is")
    off = time.time() - took / 2 - theirs
    return Finding(
        abs(off) <= MAX_CLOCK_SECONDS,
        f"this machine's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} its clock",
        "set it (NTP): expiries and signatures depend on the time",
    )


def _abilities(client: OpenAI) -> Iterator[Finding]:
    """What the service can do for waits; nothing of it is needed."""
    from openai import APIError

    asked: Any = {"params": {"ids": "run_none"}, "headers": {"Prefer": "wait=0"}}
    try:
        found = client.get("/runs", cast_to=object, options=asked)
    except APIError:
        found = None
    if isinstance(found, dict) and "data" in found:
        yield Finding(True, "many runs can be asked about in one request")
    else:
        yield Finding(True, "runs are asked about one by one: it has no GET /runs?ids=")
