"""Which models there are, and who serves each."""

from __future__ import annotations

from collections.abc import Sequence

from runbell.service.backends.base import (
    Backend,
    Finished,
    ModelRequest,
    Piece,
    TextDelta,
    ToolCallDelta,
)

__all__ = [
    "Backend",
    "Backends",
    "Finished",
    "ModelRequest",
    "Piece",
    "TextDelta",
    "ToolCallDelta",
]


class Backends:
    """All backends of a service; the first that serves a model answers for it."""

    def __init__(self, backends: Sequence[Backend]) -> None:
        self._serving: dict[str, Backend] = {}
        for backend in backends:
            for model in backend.models():
                self._serving.setdefault(model, backend)

    def models(self) -> tuple[str, ...]:
        """Every model that is served, by name."""
        return tuple(sorted(self._serving))

    def find(self, model: str) -> Backend | None:
        """Who serves this model."""
        return self._serving.get(model)
