"""Text that can be stored: Unicode without halves of surrogate pairs.

JSON can say half of a pair (`"\\ud83d"`), and a server that streams byte by byte cuts an emoji in
two: the halves come in deltas of their own. No database takes a half.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["PairedText", "json_or_text", "storable"]


def storable(text: str) -> str:
    """The text with its pairs joined, and each lone half replaced by U+FFFD."""
    if _is_sound(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def json_or_text(data: bytes) -> Any:
    """What JSON says, halves of pairs and all; the text as it is where it is no JSON."""
    text = data.decode(errors="replace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


class PairedText:
    """A text that comes in parts: a half at the end of one waits for the next."""

    def __init__(self) -> None:
        self._half = ""

    def add(self, part: str) -> str:
        """What can be said so far and was not said yet."""
        if not self._half and _is_sound(part):
            return part
        text = self._half + part
        self._half = ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            self._half = text[-1]
            text = text[:-1]
        return storable(text)

    def end(self) -> str:
        """What is left: a half that nothing followed."""
        rest, self._half = storable(self._half), ""
        return rest


def _is_sound(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
