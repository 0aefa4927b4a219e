"""What to say about an error that trying again does not mend: where, with which key, what to do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from runbell.client.trouble import status_of

__all__ = ["explain", "key_note", "masked", "shown"]

KEY_VARIABLES = ("OPENAI_API_KEY", "AZURE_OPENAI_API_KEY")


def explain(error: BaseException, client: Any, name: str) -> None:
    """Add notes to an error of the SDK: which run, which server, which key.

    Args:
        name: of the run, for a sentence.
    """
    if status_of(error) is None and not hasattr(error, "request"):
        return
    if getattr(error, "__notes__", None) and any("base_url" in each for each in error.__notes__):
        return  # one error may end many waits
    url = shown(getattr(client, "base_url", None))
    error.add_note(f"while waiting for {name} at base_url {url}")
    if status_of(error) in (400, 401, 403, 404):
        error.add_note(key_note(getattr(client, "api_key", None), client))


def shown(url: object) -> str:
    """A URL without what may be secret in it: who signs in, and the query."""
    try:
        parts = urlsplit(str(url))
        host = parts.netloc.rpartition("@")[2]
    except ValueError:
        return "that is no URL"
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def key_note(key: Any, client: Any, environ: Mapping[str, str] = os.environ) -> str:
    """Where the client's key came from, as far as one can tell; the key itself is masked."""
    if not isinstance(key, str) or not key:
        return "the client's key is not a fixed one: a function or another credential gives it"
    azure = "azure" in type(client).__name__.lower()
    variable = KEY_VARIABLES[1] if azure else KEY_VARIABLES[0]
    now = environ.get(variable, "").strip()
    said = f"the client's key is {masked(key)}, "
    if now == key:
        return said + f"which is the one in {variable} now"
    if not now:
        return said + f"and {variable} is not set in this process"
    return (
        said + f"which is not the one in {variable} now ({masked(now)}): a client reads the "
        "variable once, when it is made. If the key was exported or changed after that, make a new "
        "client"
    )


def masked(key: str) -> str:
    """A key that cannot be used, as the API's own errors show it: `sk-ab***yz`."""
    return f"{key[:5]}***{key[-2:]}" if len(key) > 11 else "***"
