"""Who serves a model: the first backend that has it, else the first that takes every name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from runbell.clock import Clock, SystemClock
from runbell.errors import ModelError
from runbell.service.backends.base import Backend, ModelRequest, Piece, RemoteBackend
from runbell.service.upstreams import ANY

__all__ = ["Backends"]

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""How often a server that did not list its models is asked again while a run waits for it."""


class Backends:
    """All backends of a service, in the order in which they are asked.

    Args:
        clock: for runs that wait for a server to come back.
    """

    def __init__(self, backends: Sequence[Backend], clock: Clock | None = None) -> None:
        self._backends = tuple(backends)
        self._remote = [each for each in backends if isinstance(each, RemoteBackend)]
        self._clock = clock or SystemClock()
        self._serving: dict[str, Backend] = {}
        self._rest: RemoteBackend | None = None
        self._starting: asyncio.Task[bool] | None = None
        self._index()

    def _index(self) -> None:
        serving: dict[str, Backend] = {}
        for backend in self._backends:
            for model in backend.models():
                serving.setdefault(model, backend)
        self._rest = next((each for each in self._remote if each.rest is not None), None)
        # Put in place as a whole: a transaction looks from the database's thread.
        self._serving = serving

    def models(self) -> tuple[str, ...]:
        """Every model that is served; of a server that takes every name, the one that answers."""
        names = set(self._serving)
        if self._rest is not None and self._rest.rest not in (None, ANY):
            names.add(str(self._rest.rest))
        return tuple(sorted(names))

    def find(self, model: str) -> Backend | None:
        """Who serves this model. May be called from any thread."""
        return self._serving.get(model) or self._rest

    @property
    def undecided(self) -> bool:
        """Some server could not say yet which models it has: any may be among them."""
        return not all(remote.heard for remote in self._remote)

    def start(self) -> None:
        """Begin to ask the servers for their models; nobody waits for that."""
        self._starting = asyncio.create_task(self.refresh(), name="backends-start")

    async def refresh(self) -> bool:
        """Ask the servers again which models they have, unless they were asked a moment ago.

        Returns:
            False where there is nobody to ask.
        """
        if not self._remote:
            return False
        await asyncio.gather(*(remote.look_up() for remote in self._remote))
        self._index()
        return True

    async def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """The answer of whoever serves the request's model, as that backend gives it.

        A run that was accepted may come here before its server is back after a restart: then it
        waits until every server has said what it has.
        """
        model = request.config.model
        if self._starting is not None and model not in self._serving:
            # It may be one that a server is about to list: who takes every name comes last.
            await asyncio.shield(self._starting)
        await self._decided(request.run_id, model)
        backend = self.find(model)
        if backend is None:
            raise ModelError("server_error", f"The model '{model}' is not served any more.")
        async with aclosing(backend.answer(request)) as pieces:
            async for piece in pieces:
                yield piece

    async def _decided(self, run_id: str, model: str) -> None:
        """Wait until it is known whether somebody serves the model."""
        waits = False
        while self.find(model) is None and self.undecided:
            if waits:
                await self._clock.sleep(RETRY_SECONDS)
            await self.refresh()
            if not waits and self.undecided:
                logger.warning("%s waits for a server that has %r", run_id, model)
            waits = True

    async def close(self) -> None:
        """Let go of all connections."""
        if self._starting is not None:
            self._starting.cancel()
        await asyncio.gather(*(remote.close() for remote in self._remote))
