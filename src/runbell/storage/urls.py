"""What of a database's URL may be shown."""

from __future__ import annotations

import re

__all__ = ["without_password"]


def without_password(url: str) -> str:
    """The URL for messages: without who logs in, and without what proves it."""
    scheme, separator, rest = url.partition("://")
    credentials, at, host = rest.rpartition("@")
    host = re.sub(r"(?i)((?:ssl)?password=)[^&]*", r"\1***", host)
    return f"{scheme}{separator}{'***@' if at and credentials else ''}{host}"
