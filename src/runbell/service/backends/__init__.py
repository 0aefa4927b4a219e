"""Which models there are, and who serves each."""

from runbell.service.backends.base import (
    Backend,
    Finished,
    ModelRequest,
    Piece,
    RemoteBackend,
    TextDelta,
    ToolCallDelta,
)
from runbell.service.backends.registry import Backends

__all__ = [
    "Backend",
    "Backends",
    "Finished",
    "ModelRequest",
    "Piece",
    "RemoteBackend",
    "TextDelta",
    "ToolCallDelta",
]
