"""Who serves a model: the first backend that has it, else the first that takes every name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from runbell.clock import Clock, SystemClock
from runbell.errors import ModelError
from runbell.service.backends.base import Backend, ModelRequest, Piece, RemoteBackend
from runbell.service.backends.timing import BUILT_IN, Observer, timed
from runbell.service.upstreams import ANY

__all__ = ["Backends"]

logger = logging.getLogger("runbell.models")

WATCH_SECONDS: Final = 30.0
"""How often the servers are asked which models they have, when nobody else wants to know."""

RETRY_SECONDS: Final = 5.0
"""How often, while one of them could not say."""

PATIENCE_SECONDS: Final = 2.0
"""How long a request waits for the servers to say which models they have."""

FIRST_SECONDS: Final = 1.0
"""How long the list of models waits for them after the start."""


class _Lane:
    """Runs that wait for no server: all may begin, or none of them."""

    def __init__(self, *, is_open: bool) -> None:
        self._is_open = is_open

    def takes(self, running: int) -> bool:
        return self._is_open


class Backends:
    """All backends of a service, in the order in which they are asked.

    It is also the lanes in which runs stand in line: one for each backend, so that a server that is
    slow or away holds up its own runs and no others; one for runs of which nobody knows yet whose
    they are; and one for those that are nobody's, which are let in to fail.

    Args:
        clock: for the pauses between looks, and for what runs wait for.
        observer: is told of each call of a backend that does not count its calls itself.
    """

    def __init__(
        self,
        backends: Sequence[Backend],
        clock: Clock | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._backends = tuple(backends)
        self._remote = [each for each in backends if isinstance(each, RemoteBackend)]
        self._clock = clock or SystemClock()
        self._observer = observer
        self._serving: dict[str, Backend] = {}
        self._rest: RemoteBackend | None = None
        self._lanes = {
            each: each if isinstance(each, RemoteBackend) else _Lane(is_open=True)
            for each in backends
        }
        self._unknown = _Lane(is_open=False)
        self._nobody = _Lane(is_open=True)
        self._on_move: Callable[[], None] = _nothing
        self._news = asyncio.Event()
        self._starting = False
        self._watching: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._index()

    def _index(self) -> None:
        serving: dict[str, Backend] = {}
        for backend in self._backends:
            for model in backend.models():
                serving.setdefault(model, backend)
        self._rest = next((each for each in self._remote if each.rest is not None), None)
        # Put in place as a whole: a transaction looks from the database's thread.
        self._serving = serving
        # Whoever waits for a model looks again.
        self._news.set()
        self._news = asyncio.Event()
        self._on_move()

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
    def undecided(self) -> int:
        """Servers that could not say yet which models they have: any may be among them."""
        return sum(not remote.heard for remote in self._remote)

    # The lanes.

    def lane(self, model: str) -> RemoteBackend | _Lane:
        """Where a run of this model stands in line."""
        backend = self._serving.get(model)
        if backend is None and not self._starting:
            backend = self._rest
        if backend is not None:
            return self._lanes[backend]
        return self._unknown if self._starting or self.undecided else self._nobody

    def subscribe(self, room: Callable[[], None], moved: Callable[[], None]) -> None:
        """Be told when a lane has room again, and when runs may belong into other lanes."""
        self._on_move = moved
        for remote in self._remote:
            remote.on_room(room)

    # What the servers say.

    def start(self) -> None:
        """Begin to ask the servers for their models, and go on with it; nobody waits for that."""
        if self._remote:
            # Until each was asked once, who takes every name is not given what another may have.
            self._starting = True
            self._watching = asyncio.create_task(self._watch(), name="backends-watch")

    async def _watch(self) -> None:
        while True:
            await self._ask()
            if self._starting:
                self._starting = False
                self._index()
            await self._clock.sleep(RETRY_SECONDS if self.undecided else WATCH_SECONDS)

    async def _ask(self) -> None:
        async def look(remote: RemoteBackend) -> None:
            before = remote.models(), remote.heard
            await remote.look_up()
            # At once: others may take their time.
            if (remote.models(), remote.heard) != before:
                self._index()

        for error in await asyncio.gather(*map(look, self._remote), return_exceptions=True):
            if isinstance(error, Exception):
                logger.error("a model server could not be asked", exc_info=error)

    async def refresh(self, patience: float = PATIENCE_SECONDS) -> bool:
        """Ask the servers again which models they have, unless they were asked a moment ago.

        Args:
            patience: seconds after which it is not waited for any more; what a server says later
                is known then.

        Returns:
            False where there is nobody to ask.
        """
        if not self._remote:
            return False
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask(), name="backends-ask")
        await self._within(patience, self._asking)
        return True

    async def known(self) -> tuple[str, ...]:
        """Every model that is served, as far as is known now; the servers are asked behind that.

        Right after the start, when nothing can be known, they get a moment to say it.
        """
        if self._starting:
            await self.refresh(FIRST_SECONDS)
        elif self._remote:
            await self.refresh(0)
        return self.models()

    async def _within(self, seconds: float, task: asyncio.Task[None]) -> None:
        if seconds <= 0:
            return
        over = asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            # Who asks may leave; the others still want to know.
            await asyncio.wait([task, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            over.cancel()

    # One turn.

    async def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        """The answer of whoever serves the request's model, as that backend gives it, once it is
        known who that is.

        Lanes let nobody in whose server is not known. Should it be forgotten just then, the run
        waits until every server has said what it has.

        Raises:
            ModelError: nobody serves it.
        """
        model = request.config.model
        while model not in self._serving and self._starting:
            # It may be one that a server is about to list: who takes every name comes last.
            await self._news.wait()
        while self.find(model) is None and self.undecided:
            await self._news.wait()
        backend = self.find(model)
        if backend is None:
            raise ModelError("server_error", f"The model '{model}' is not served any more.")
        pieces = backend.answer(request)
        if self._observer is not None and backend not in self._remote:
            return timed(pieces, self._clock, self._observer, BUILT_IN)
        return pieces

    async def close(self) -> None:
        """Let go of all connections."""
        for task in (self._watching, self._asking):
            if task is not None:
                task.cancel()
        await asyncio.gather(*(remote.close() for remote in self._remote))


def _nothing() -> None:
    pass
