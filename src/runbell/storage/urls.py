"""What of a database's URL may be shown, and whether it can be read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from runbell.errors import ConfigurationError

__all__ = ["check_readable", "readable", "without_password"]


def without_password(url: str) -> str:
    """The URL for messages: without who logs in, and without what proves it."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    host = re.sub(r"(?i)((?:ssl)?password=)[^&]*", r"\1***", host)
    return f"{scheme}{separator}{'***@' if at and credentials else ''}{host}"


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
