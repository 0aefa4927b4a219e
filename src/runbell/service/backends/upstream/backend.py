"""One model server as a backend: its models, its slots, and when a call is tried again."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace
from typing import Final

from runbell.clock import Clock
from runbell.pacing import RetryBackoff
from runbell.runs import Usage
from runbell.service.backends.base import Finished, ModelRequest, Piece
from runbell.service.backends.timing import Observer, timed
from runbell.service.backends.upstream.answer import AnswerReader
from runbell.service.backends.upstream.chunks import Chunk, NotAChunk, decode_chunks
from runbell.service.backends.upstream.connection import Connection
from runbell.service.backends.upstream.failures import CallFailed, Secret, error_in_stream
from runbell.service.backends.upstream.limits import TimeLimits
from runbell.service.backends.upstream.prompt import Prompt, prompt_of
from runbell.service.backends.upstream.request import Dialect, chat_body
from runbell.service.backends.upstream.sse import Event
from runbell.service.backends.upstream.text import json_or_text, storable
from runbell.service.logs import having
from runbell.service.upstreams import ANY, UpstreamSettings

__all__ = ["Upstream"]

logger = logging.getLogger("runbell.models")

LOOK_UP_SECONDS: Final = 5.0
"""How long a list of models may take, and how old it has to be to be asked for again."""

MAX_MODEL: Final = 256
"""Characters of a model's name, as requests may have them."""

GONE_SECONDS: Final = 60.0
"""For how long a server that does not list its models any more is taken to have them still."""

LAST_MOMENT_MS: Final = 500
"""A run is not left less than this for another try: it fails in time to say why."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is sent, and in which words."""

    model: str
    prompt: Prompt
    dialect: Dialect


class Upstream:
    """The backend of one model server.

    Args:
        rng: draws the jitter between tries.
        observer: is told of each call: of each try, and not of what lies between them.
    """

    def __init__(
        self,
        settings: UpstreamSettings,
        clock: Clock,
        rng: random.Random | None = None,
        observer: Observer | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._rng = rng or random.Random()
        self._observer = observer
        self._name = settings.name
        self._secret = Secret(settings.key)
        self._connection = Connection(settings.url, settings.key, clock)
        self._backoff = RetryBackoff(start=0.5, cap=30.0)
        self._map = {name: model for name, model in settings.models if name != ANY}
        self._listed: tuple[str, ...] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._looked: float | None = None
        self._failing_since: float | None = None
        self._pausing = 0
        self._on_room: Callable[[], None] | None = None
        self._slots = (
            asyncio.Semaphore(settings.concurrency) if settings.concurrency else nullcontext()
        )
        self._dialects: dict[str, Dialect] = {}

    def __repr__(self) -> str:
        return f"Upstream({self._settings.url!r})"

    # Which models it has.

    def models(self) -> tuple[str, ...]:
        return tuple(self._map) if self._settings.models else self._listed or ()

    @property
    def rest(self) -> str | None:
        return dict(self._settings.models).get(ANY)

    @property
    def heard(self) -> bool:
        return bool(self._settings.models) or self._listed is not None

    async def look_up(self) -> None:
        if self._settings.models:
            return
        if self._looking is None:
            if self._looked is not None and self._age() < LOOK_UP_SECONDS:
                return
            self._looking = asyncio.create_task(self._look(), name="upstream-models")
        # Who asks may leave; the others still want to know.
        await asyncio.shield(self._looking)

    def _age(self) -> float:
        return self._clock.monotonic() - (self._looked or 0.0)

    async def _look(self) -> None:
        try:
            async with TimeLimits(self._clock, LOOK_UP_SECONDS) as limits:
                listed = _names(await self._connection.get("/models", limits))
        except CallFailed as failed:
            why = failed.message.rstrip(".") + "."
            if failed.misplaced and (hint := self._hint(self._settings.url)):
                why += f" {hint[0].upper()}{hint[1:]}."
            extra = having({"upstream": self._name, "status": failed.status})
            logger.warning("%s does not list its models: %s", self._settings.url, why, extra=extra)
            self._failed_to_list()
        else:
            self._failing_since = None
            if listed != self._listed:
                shown = ", ".join(listed[:20]) + (", …" if len(listed) > 20 else "")
                what = (self._settings.url, len(listed), shown)
                logger.info(
                    "%s serves %d models: %s", *what, extra=having({"upstream": self._name})
                )
            self._listed = listed
        finally:
            self._looked = self._clock.monotonic()
            self._looking = None

    def _failed_to_list(self) -> None:
        """What it had is what it has when it is back; but not for ever."""
        now = self._clock.monotonic()
        if self._failing_since is None:
            self._failing_since = now
        if self._listed is not None and now - self._failing_since >= GONE_SECONDS:
            away = (self._settings.url, GONE_SECONDS)
            logger.warning(
                "%s is away for %g s: its models are not served until it is back",
                *away,
                extra=having({"upstream": self._name}),
            )
            self._listed = None

    def _hint(self, url: str) -> str:
        """What may be wrong where something is not found at that URL; empty for nothing."""
        if self._settings.is_versioned:
            return ""
        return f"a base URL mostly ends in /v1: try {url}/v1"

    # How many runs at a time.

    def takes(self, running: int) -> bool:
        most = self._settings.concurrency
        return not most or running - self._pausing < most

    def on_room(self, call: Callable[[], None]) -> None:
        self._on_room = call

    # One turn.

    async def answer(self, request: ModelRequest) -> AsyncGenerator[Piece, None]:
        plan = self._plan(request)
        if plan is None:
            yield Finished("max_prompt_tokens", Usage())
            return
        if request.max_completion_tokens == 0:
            yield Finished("max_completion_tokens", Usage())
            return
        failures = 0
        delivered = False
        while True:
            try:
                async with self._slots, aclosing(self._try(request, plan)) as pieces:
                    async for piece in pieces:
                        delivered = True
                        yield piece
                return
            except CallFailed as failed:
                # What was said is not taken back: there may be somebody who has read it.
                if delivered:
                    why = "not tried again, since a part of the answer was delivered"
                    raise self._given_up(request, plan, failed, failures + 1, why) from None
                other = self._otherwise(request, plan, failed)
                if other is None:
                    failures += 1
                    await self._pause(request, plan, failed, failures)
                plan = other or plan

    def _plan(self, request: ModelRequest) -> _Plan | None:
        """How to ask; None where the prompt is larger than the run allows."""
        prompt: Prompt | None = prompt_of(request)
        if prompt is not None and request.max_prompt_tokens is not None:
            auto = request.config.truncation_strategy.type == "auto"
            prompt = prompt.within(request.max_prompt_tokens, drop=auto)
        if prompt is None:
            return None
        name = request.config.model
        model = self._map.get(name) or self.rest or ANY
        model = name if model == ANY else model
        return _Plan(model, prompt, self._dialects.get(model, Dialect()))

    def _try(self, request: ModelRequest, plan: _Plan) -> AsyncGenerator[Piece, None]:
        pieces = self._call(request, plan)
        if self._observer is None:
            return pieces
        return timed(pieces, self._clock, self._observer, self._name)

    async def _call(self, request: ModelRequest, plan: _Plan) -> AsyncGenerator[Piece, None]:
        """Ask once."""
        body = chat_body(request, plan.model, plan.prompt, plan.dialect)
        reader = AnswerReader(request, plan.prompt.size, self._secret, self._name)
        settings = self._settings
        told = False
        try:
            async with (
                TimeLimits(self._clock, settings.first_answer, settings.total) as limits,
                aclosing(self._connection.events("/chat/completions", body, limits)) as events,
            ):
                async for event in events:
                    for chunk in self._chunks(event):
                        if chunk is None:
                            told = True
                            break
                        for piece in reader.read(chunk):
                            yield piece
                    if told:
                        break
                    limits.follow(reader)
                    told = event.kind == "document"
        except CallFailed:
            # Behind the end of the answer only the count of tokens can be lost.
            if not reader.ended:
                raise
        self._dialects[plan.model] = plan.dialect
        for piece in reader.end(told=told):
            yield piece

    def _chunks(self, event: Event) -> list[Chunk | None]:
        if event.kind == "error":
            raise error_in_stream(json_or_text(event.data), self._secret)
        try:
            return decode_chunks(event.data)
        except NotAChunk:
            message = "The model server sent something that is no chat completion."
            raise CallFailed("server_error", message, misplaced=True) from None

    def _otherwise(self, request: ModelRequest, plan: _Plan, failed: CallFailed) -> _Plan | None:
        """Another way to ask, where something about the question was wrong; else None."""
        if failed.context and request.config.truncation_strategy.type == "auto":
            shorter = plan.prompt.halved()
            if shorter is not None:
                dropped = len(plan.prompt.thread) - len(shorter.thread)
                fields = {"upstream": self._name, "dropped": dropped, **request.ids}
                logger.info("messages are left out to fit", extra=having(fields))
                return replace(plan, prompt=shorter)
        body = chat_body(request, plan.model, plan.prompt, plan.dialect)
        dialect = plan.dialect.adapted(body, failed)
        return replace(plan, dialect=dialect) if dialect is not None else None

    async def _pause(
        self, request: ModelRequest, plan: _Plan, failed: CallFailed, failures: int
    ) -> None:
        """Wait until the call may be tried again; raises the failure where it may not."""
        if not failed.again:
            raise self._given_up(request, plan, failed, failures) from None
        delay = self._backoff.delay(failures, self._rng)
        if failed.after:
            # A server may ask for more, never for less: its word must not make us hammer on it.
            delay = max(delay, failed.after * (1 + 0.1 * self._rng.random()))
        left_ms = math.inf
        if request.expires_at_ms is not None:
            left_ms = request.expires_at_ms - self._clock.now_ms()
        if delay * 1000 + LAST_MOMENT_MS > left_ms:
            why = "the run's time is too short for another try"
            raise self._given_up(request, plan, failed, failures, why) from None
        self._tell(request, failed, failures, "it is tried again", pause_ms=round(delay * 1000))
        # Others are answered meanwhile, on the place that this run does not need.
        self._pausing += 1
        try:
            if self._on_room is not None:
                self._on_room()
            await self._clock.sleep(delay)
        finally:
            self._pausing -= 1
        if self._observer is not None:
            self._observer.model_tried_again(self._name)

    def _given_up(
        self, request: ModelRequest, plan: _Plan, failed: CallFailed, tries: int, why: str = ""
    ) -> CallFailed:
        """The failure with which the run ends: also why there is no other try, and after how many.

        Args:
            why: what kept it from being tried again, other than that it would not help.
        """
        self._tell(request, failed, tries, why or "it is given up")
        reasons = []
        if failed.status == 404:
            reasons.append(f"asked for the model '{plan.model}'")
        if failed.misplaced and (hint := self._hint("…")):
            # Who reads this need not know where the server is.
            reasons.append(hint)
        if tries > 1:
            reasons.append(f"tried {tries} times")
        if why:
            reasons.append(why)
        if not reasons:
            return failed
        message = f"{failed.message.rstrip('.')} ({'; '.join(reasons)})."
        return CallFailed(failed.code, message, status=failed.status)

    def _tell(
        self, request: ModelRequest, failed: CallFailed, tries: int, then: str, **more: int
    ) -> None:
        """Log a call that failed; `then` says what comes of it."""
        key = self._settings.key_env
        # What the server said may repeat what it was asked, which is no business of the log.
        what = f"HTTP {failed.status}" if failed.status is not None else failed.message.rstrip(".")
        if failed.status in (401, 403) and key is not None:
            what += f", the key is that of {key}"
        fields = {"upstream": self._name, "status": failed.status, "try": tries}
        extra = having({**fields, **more, **request.ids})
        logger.warning("a model call failed: %s; %s", what, then, extra=extra)

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
        await self._connection.close()


def _names(body: bytes) -> tuple[str, ...]:
    """The models of a list; Together's server sends the bare list."""
    listed = json_or_text(body)
    if isinstance(listed, dict):
        listed = listed.get("data")
    if not isinstance(listed, list):
        raise CallFailed("server_error", "Its answer is no list of models.", misplaced=True)
    names = (entry.get("id") for entry in listed if isinstance(entry, dict))
    usable = (
        name
        for name in names
        if isinstance(name, str) and 0 < len(name) <= MAX_MODEL and storable(name) == name
    )
    return tuple(dict.fromkeys(usable))
