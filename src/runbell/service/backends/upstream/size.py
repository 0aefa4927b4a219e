"""How large a prompt is, without a tokenizer: estimates from the bytes of its text.

No tokenizer is at hand, and every model has its own. English has about 4 bytes a token, code and
Latin script with accents 3, Chinese 3 bytes a character and about one token for each. So what is
*likely* is 4 bytes a token; a *careful* guess, which is rarely exceeded, 3; and a prompt whose
*least* size, at 6 bytes a token, is over a limit will hardly fit.
"""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

__all__ = ["careful_tokens", "least_tokens", "likely_tokens", "weight"]

LIKELY: Final = 4
CAREFUL: Final = 3
LEAST: Final = 6

MESSAGE: Final = 16
"""Bytes for what a message has around its text: four tokens or so."""

IMAGES: Final = {"low": 340, "auto": 3_060, "high": 3_060}
"""Bytes that an image counts for: 85 tokens, or 765, which a square of 1,024 costs at OpenAI."""


def weight(message: Any) -> int:
    """The size of a message of a chat completion, in bytes of text."""
    content = message.get("content")
    total = MESSAGE
    if isinstance(content, str):
        total += len(content.encode())
    for part in content if isinstance(content, list) else ():
        if part["type"] == "text":
            total += len(part["text"].encode())
        else:
            total += IMAGES[part["image_url"].get("detail", "auto")]
    if calls := message.get("tool_calls"):
        total += len(msgspec.json.encode(calls))
    return total


def likely_tokens(size: int) -> int:
    """The best guess."""
    return math.ceil(size / LIKELY)


def careful_tokens(size: int) -> int:
    """A guess that is rarely exceeded."""
    return math.ceil(size / CAREFUL)


def least_tokens(size: int) -> int:
    """A guess that is rarely fallen short of."""
    return size // LEAST
