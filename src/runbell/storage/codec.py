"""How values get into columns and back: JSON text for documents, plain values for the rest."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

__all__ = ["JsonColumn", "to_json"]

T = TypeVar("T")

_encoder = msgspec.json.Encoder()


def to_json(value: Any) -> str:
    """JSON text for a column."""
    return _encoder.encode(value).decode()


class JsonColumn:
    """A column of JSON text that holds values of one type."""

    __slots__ = ("decode",)

    def __init__(self, type: Any) -> None:  # noqa: A002 - what it is
        self.decode = msgspec.json.Decoder(type).decode
