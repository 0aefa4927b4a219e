"""Chunks of a streamed answer, decoded; and whole answers of servers that do not stream."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct

__all__ = ["Chunk", "Delta", "NotAChunk", "decode_chunks"]


class Delta(Struct, frozen=True):
    """What a chunk adds. Nothing is promised about the types: servers send null for all of it."""

    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    function_call: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class Choice(Struct, frozen=True):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: Any = None


class Chunk(Struct, frozen=True):
    choices: list[Choice] | None = None
    usage: Any = None
    error: Any = None


class NotAChunk(Exception):
    """The server sent something that is no chunk."""


_decode = msgspec.json.Decoder(Chunk).decode


def decode_chunks(data: bytes) -> list[Chunk | None]:
    """What an event holds: a chunk, or None for the end of the stream.

    More than one only where a server forgets the empty lines between its events.

    Raises:
        NotAChunk: it holds something else.
    """
    if data.startswith(b"[DONE]"):
        return [None]
    try:
        return [_decode(data)]
    except (msgspec.ValidationError, RecursionError):
        raise NotAChunk from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    # msgspec refuses halves of surrogate pairs, and bytes that are no UTF-8.
    text = data.decode(errors="replace")
    try:
        return [msgspec.convert(json.loads(text), Chunk)]
    except (ValueError, RecursionError):
        lines = [line for line in data.split(b"\n") if line.strip()]
    if len(lines) < 2:
        raise NotAChunk
    return [chunk for line in lines for chunk in decode_chunks(line)]
