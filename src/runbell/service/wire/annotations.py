"""What documents say about a field beyond its type; decoding takes no notice of it."""

from __future__ import annotations

from typing import Any

from msgspec import Meta

__all__ = ["EXTENSION", "NEVER", "OURS", "UNSUPPORTED", "UNSUPPORTED_MARK", "about", "rule"]

EXTENSION = "x-runbell-extension"
"""Marks, in the OpenAPI document, what OpenAI's API does not have."""

UNSUPPORTED_MARK = "x-runbell-unsupported"
"""Marks what is known and refused: a 400 says what to do instead."""

OURS = Meta(extra_json_schema={EXTENSION: True})
UNSUPPORTED = Meta(extra_json_schema={UNSUPPORTED_MARK: True})
NEVER = Meta(extra_json_schema={"not": {}})
"""No value will do."""


def about(text: str) -> Meta:
    """A sentence on what the field means."""
    return Meta(description=text)


def rule(**keywords: Any) -> Meta:
    """Keywords of JSON Schema for what the decoder's types cannot express.

    Whoever checks the rule takes its values from the same names.
    """
    return Meta(extra_json_schema=keywords)
