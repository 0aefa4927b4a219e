"""What a request says about how it wants to be answered: waiting, and what it knows already."""

from __future__ import annotations

import re
import zlib

__all__ = ["MAX_WAIT_SECONDS", "entity_tag", "knows", "wait_seconds"]

MAX_WAIT_SECONDS = 60
"""How long an answer is held at the most: below the time limits of common proxies."""

_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?([0-9]{1,9})\"?(?=$|[,;\s])", re.IGNORECASE)


def wait_seconds(prefer: str | None) -> int | None:
    """The seconds of `Prefer: wait=N`, at most `MAX_WAIT_SECONDS`.

    None where the header asks for no waiting. A preference that can't be read is none: RFC 7240,
    section 2, has servers ignore what they can't honour.
    """
    found = _WAIT.search(prefer) if prefer else None
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else None


def entity_tag(body: bytes) -> str:
    """The `ETag` of an answer: changes with any byte of it."""
    return f'"{len(body):x}-{zlib.crc32(body):08x}"'


def knows(if_none_match: str | None, tag: str) -> bool:
    """The client has what `tag` stands for (RFC 9110, section 13.1.2)."""
    if if_none_match is None:
        return False
    tags = [each.strip().removeprefix("W/") for each in if_none_match.split(",")]
    return "*" in tags or tag in tags
