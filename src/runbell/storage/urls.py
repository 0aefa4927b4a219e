"""What of a database's URL may be shown, and whether it can be read."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from urllib.parse import parse_qsl, unquote, urlsplit

from runbell.errors import ConfigurationError

__all__ = ["check_readable", "place", "readable", "without_password"]

_HOST = re.compile(r"(?P<host>\[[^\]]*\]|[^:]*)(?::(?P<port>\d*))?")


def without_password(url: str) -> str:
    """The URL for messages: without who logs in, and without what proves it."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    host = re.sub(r"(?i)((?:ssl)?password=)[^&]*", r"\1***", host)
    return f"{scheme}{separator}{'***@' if at and credentials else ''}{host}"


def place(url: str) -> str:
    """Which PostgreSQL database a URL names, for errors: `'NAME' at HOST:PORT`, and nothing else.

    Empty where a `@` stands behind the place of the host: what is in front of it may be a part of a
    password.

    Raises:
        ValueError: the URL can't be read.
    """
    parts = urlsplit(url)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return ""
    query = dict(parse_qsl(parts.query))
    # As the driver: the URL's own, what stands behind its `?`, the environment's.
    hosts = parts.netloc.rpartition("@")[2] or query.get("host") or os.environ.get("PGHOST")
    port = query.get("port") or os.environ.get("PGPORT") or "5432"
    name = parts.path[1:] or query.get("dbname") or query.get("database")
    name = unquote(name or os.environ.get("PGDATABASE") or "")
    servers = [_HOST.fullmatch(each) for each in unquote(hosts or "localhost").split(",")]
    at = ", ".join(f"{each['host']}:{each['port'] or port}" for each in servers if each)
    return f"{name!r} at {at}" if name else f"at {at}"


@contextlib.contextmanager
def readable(name: str = "database") -> Iterator[None]:
    """Say of a URL that can't be read that it can't, and nothing of what is in it.

    The drivers' errors quote what they can't read, which may be a part of a password.

    Args:
        name: whose URL it is, for the message.

    Raises:
        ConfigurationError: a ValueError came out of the block.
    """
    try:
        yield
    except ValueError:
        raise ConfigurationError(
            f"the {name}'s URL cannot be read: write postgresql://USER:PASSWORD@HOST:5432/DATABASE,"
            " with %40 for a @, %3A for a : and %2F for a / in the password"
        ) from None


def check_readable(url: str, name: str = "database") -> None:
    """See `readable`."""
    with readable(name):
        _ = urlsplit(url).port
