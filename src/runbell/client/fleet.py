"""Many waits on one budget: which request is sent when, for whom, and together with whom.

A fleet plays the flows of its waits. It does nothing itself: `turn` is told what has happened and
says which deeds are to be begun and until when nothing else is to be done, and a driver does that.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runbell.client import records
from runbell.client.deeds import (
    Deed,
    Order,
    Retrieve,
    RetrieveMany,
    RetrieveThread,
    UseTool,
)
from runbell.client.flow import TimeIsUp, Wait
from runbell.client.hands import ToolOutcome
from runbell.client.server import Server
from runbell.client.tools import Tool
from runbell.client.trouble import retry_after, status_of
from runbell.client.view import Answer
from runbell.client.wishes import Do, Flow, Look, UseTools, Wish
from runbell.clock import Clock
from runbell.pacing import Pacer
from runbell.runs import Deliver, EventSource, ToolCall

__all__ = ["Fleet", "Join", "Landed", "Leave", "Mail", "Told", "Turn"]

MAX_IN_FLIGHT = 64
"""Requests at the same time: each may be a connection, and a thread."""

BATCH = 200
"""Runs in one request: what Runbell's service takes."""

ALONG_SECONDS = 10.0
"""Who is due this soon is asked about along with who is due now."""

REMEMBERED_CALLS = 10_000
"""Outputs of tool calls that are kept in memory, for waits that begin again."""


@dataclass(frozen=True, slots=True)
class Join:
    """Play these waits' flows."""

    waits: Sequence[Wait]
    play: Callable[[Wait], Flow[Any]]


@dataclass(frozen=True, slots=True)
class Leave:
    """Forget a wait: nobody waits any more."""

    wait: Wait


@dataclass(frozen=True, slots=True)
class Landed:
    """An order was carried out, or failed."""

    number: int
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Told:
    """An event source delivered this."""

    event: dict[str, Any]


Mail = Join | Leave | Landed | Told


@dataclass(frozen=True, slots=True)
class Turn:
    """What to do now: begin the orders, then wait for mail, or until a moment (None: for mail)."""

    orders: Sequence[Order]
    until: float | None


@dataclass(frozen=True, slots=True)
class _Flight:
    """An order that is being carried out: for whom, since when."""

    waits: Sequence[Wait]
    deed: Deed
    began: float
    hold: int | None = None


class Fleet:
    """Plays waits until all have ended.

    Args:
        deliver: what to subscribe with at `events`; hands what it is given back as `Told`.
        explain: is called with an error and the wait that it ends.
    """

    def __init__(
        self,
        clock: Clock,
        pacer: Pacer,
        server: Server,
        events: EventSource | None = None,
        deliver: Deliver = lambda event: None,
        explain: Callable[[BaseException, Wait], None] = lambda error, wait: None,
    ) -> None:
        self._clock = clock
        self._pacer = pacer
        self._server = server
        self._events = events
        self._deliver = deliver
        self._explain = explain
        self._numbers = itertools.count(1)
        self._orders: list[Order] = []
        self._open: set[Wait] = set()
        self._by_run: defaultdict[str, set[Wait]] = defaultdict(set)
        self._by_thread: defaultdict[str, set[Wait]] = defaultdict(set)
        self._alone: set[Wait] = set()
        self._flights: dict[int, _Flight] = {}
        self._timers: list[tuple[float, int, Wait]] = []
        self._at_work: dict[int, UseTool] = {}
        self._acting: set[Wait] = set()
        self._calls: dict[tuple[str, str], ToolOutcome | None] = {}

    @property
    def is_idle(self) -> bool:
        """Nobody waits, and no tool is at work."""
        return not self._open and not self._at_work

    def abandon(self, error: BaseException) -> None:
        """End every wait with this error, and forget what is under way: its driver has ended."""
        for wait in list(self._open):
            self._forget(wait)
            wait.done(wait, None, error)
        for deed in self._at_work.values():
            self._calls.pop((deed.run_id, deed.call.id), None)
        self._at_work.clear()
        self._flights.clear()
        self._timers.clear()
        self._orders.clear()

    def turn(self, mail: Iterable[Mail]) -> Turn:
        """Take in what has happened; what to do next."""
        for each in mail:
            match each:
                case Join():
                    self._join(each)
                case Leave():
                    self._leave(each.wait)
                case Landed():
                    self._landed(each)
                case Told():
                    self._told(each.event)
        now = self._clock.monotonic()
        self._ring(now)
        self._grant(now)
        orders, self._orders = self._orders, []
        return Turn(orders, self._until())

    def _until(self) -> float | None:
        moments = [self._timers[0][0]] if self._timers else []
        if len(self._flights) < MAX_IN_FLIGHT and (at := self._pacer.next_at()) is not None:
            moments.append(at)
        return min(moments, default=None)

    # Waits.

    def _join(self, join: Join) -> None:
        for wait in join.waits:
            wait.flow = join.play(wait)
            self._open.add(wait)
            self._timer(wait.deadline, wait)
            self._index(wait)
            self._step(wait)

    def _leave(self, wait: Wait) -> None:
        if wait.flow is not None:
            wait.flow.close()
            self._forget(wait)

    def _step(self, wait: Wait, value: Any = None, error: Exception | None = None) -> None:
        """Let a flow go on to its next wish, or to its end."""
        assert wait.flow is not None
        run_id = wait.id if wait.terms.max_restarts else None
        wait.order = None
        try:
            wish = wait.flow.send(value) if error is None else wait.flow.throw(error)
        except StopIteration as end:
            self._end(wait, end.value, None)
        except Exception as raised:  # noqa: BLE001 - it belongs to whoever waits
            self._end(wait, None, raised)
        else:
            if run_id is not None and run_id != wait.id:
                self._unindex(wait, run_id)
                self._index(wait)
            self._heed(wait, wish)

    def _heed(self, wait: Wait, wish: Wish) -> None:
        wait.wish = wish
        match wish:
            case Look(at):
                if at < math.inf:
                    self._pacer.want(wait, at)
                else:
                    self._pacer.forget(wait)
            case Do(_, at):
                self._pacer.want(wait, at, urgent=True)
            case UseTools():
                self._use_tools(wait, wish)

    def _end(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        if error is not None:
            self._explain(error, wait)
        if wait.terms.hooks:
            wait.tell(
                records.Ended,
                status=wait.view.status,
                polls=wait.polls,
                run=wait.item,
                error=error,
                pending_until=wait.pending_until - wait.began,
                ended_by=wait.now - wait.began,
            )
        try:
            self._forget(wait)
        finally:  # whatever goes wrong in here, nobody waits for ever
            wait.done(wait, value, error)

    def _forget(self, wait: Wait) -> None:
        wait.flow = wait.wish = wait.order = None
        self._open.discard(wait)
        self._alone.discard(wait)
        self._pacer.forget(wait)
        self._unindex(wait, wait.id)

    def _index(self, wait: Wait) -> None:
        if self._events is not None and wait.terms.pushed:
            self._by_run[wait.id].add(wait)
            self._events.subscribe(wait.id, self._deliver)
        if self._server.batches is False:
            self._by_thread[getattr(wait.item, "thread_id", "")].add(wait)

    def _unindex(self, wait: Wait, run_id: str) -> None:
        for index, key in (
            (self._by_run, run_id),
            (self._by_thread, getattr(wait.item, "thread_id", "")),
        ):
            if key in index:
                index[key].discard(wait)
                if not index[key]:
                    del index[key]
                    if index is self._by_run and self._events is not None:
                        self._events.unsubscribe(run_id, self._deliver)

    # Time.

    def _timer(self, at: float, wait: Wait) -> None:
        if at < math.inf:
            heapq.heappush(self._timers, (at, next(self._numbers), wait))

    def _ring(self, now: float) -> None:
        while self._timers and self._timers[0][0] <= now:
            wait = heapq.heappop(self._timers)[2]
            if wait.flow is None:
                continue
            if wait.deadline <= now:
                self._pacer.forget(wait)
                self._step(wait, error=TimeIsUp())
            elif isinstance(wait.wish, UseTools) and wait.wish.until <= now:
                self._step(wait, self._outputs(wait, wait.wish))
            if wait.flow is not None:
                self._timer(wait.deadline, wait)

    # Requests.

    def _grant(self, now: float) -> None:
        while len(self._flights) < MAX_IN_FLIGHT:
            wait: Any = self._pacer.take(now)
            if wait is None:
                return
            if isinstance(wait.wish, Do):
                self._order([wait], wait.wish.deed, now)
            else:
                self._look(wait, now)

    def _look(self, wait: Wait, now: float) -> None:
        """Spend a call on a look: for one, or for as many as it can be."""
        server, provider = self._server, wait.terms.provider
        thread = getattr(wait.item, "thread_id", None)
        if wait not in self._alone and hasattr(provider, "retrieve_many"):
            if server.batches is False and len(self._by_thread.get(thread or "", ())) > 1:
                together = [
                    other
                    for other in self._by_thread[thread or ""]
                    if other is wait or (isinstance(other.wish, Look) and other.order is None)
                ]
                for other in together:
                    self._pacer.forget(other)
                return self._order(together, RetrieveThread(str(thread)), now)
            if server.asks_together(len(self._open), self._may_hold(wait)):
                together = [wait, *self._along(wait, now)]
                if len(together) > 1:
                    hold = self._hold(together, now)
                    items = [each.item for each in together]
                    return self._order(together, RetrieveMany(items, hold), now, hold)
        hold = self._hold([wait], now)
        return self._order([wait], Retrieve(wait.item, hold), now, hold)

    def _along(self, wait: Wait, now: float) -> list[Wait]:
        """Whoever else can be asked about in the same request."""
        found: list[Any] = self._pacer.along(BATCH - 1, now + ALONG_SECONDS)
        fitting = []
        for other in found:
            if other.terms.provider is wait.terms.provider and other not in self._alone:
                fitting.append(other)
            else:
                self._pacer.want(other, other.wish.at)
        return fitting

    def _hold(self, waits: Sequence[Wait], now: float) -> int | None:
        """Seconds for which the server is asked to hold the request; None to say nothing."""
        if not self._may_hold(waits[0]):
            return None
        left = min(wait.deadline for wait in waits) - now
        return self._server.hold(left)

    @staticmethod
    def _may_hold(wait: Wait) -> bool:
        terms = wait.terms
        return terms.hold and not terms.pushed and getattr(terms.provider, "holds", False)

    def _order(
        self, waits: Sequence[Wait], deed: Deed, now: float, hold: int | None = None
    ) -> None:
        number = next(self._numbers)
        for wait in waits:
            wait.order = number
        left = max(wait.deadline for wait in waits) - now
        limit = self._server.limit(hold)
        self._flights[number] = _Flight(waits, deed, now, hold)
        provider = waits[0].terms.provider
        self._orders.append(Order(number, provider, deed, max(min(limit, left), 0.05)))

    def _landed(self, landed: Landed) -> None:
        if landed.number in self._at_work:
            self._called(self._at_work.pop(landed.number), landed)
            return
        flight = self._flights.pop(landed.number, None)
        if flight is None:  # of a driver that has ended meanwhile
            return
        now = self._clock.monotonic()
        if landed.error is not None:
            self._failed(landed.error, flight, now)
        waits = [wait for wait in flight.waits if wait.order == landed.number]
        match flight.deed:
            case Retrieve():
                value = self._heard(landed.value, flight, now) if landed.value else None
                for wait in waits:
                    self._step(wait, value, landed.error)
            case RetrieveMany() | RetrieveThread():
                self._landed_together(waits, flight, landed, now)
            case _:
                for wait in waits:
                    self._step(wait, landed.value, landed.error)

    def _failed(self, error: Exception, flight: _Flight, now: float) -> None:
        """What a failure says about the server, for everybody."""
        pause = retry_after(error, self._clock.now_ms() / 1000)
        if pause is not None and status_of(error) == 429:
            self._pacer.pause(now + pause)
        if flight.hold:
            self._server.broke(error)

    def _heard(self, answer: Answer, flight: _Flight, now: float) -> Answer:
        """The answer, `held` if the server's holding it was a pause."""
        self._server.answered(flight.hold, answer.held)
        return self._server.patient(answer, flight.hold, now - flight.began)

    def _landed_together(
        self, waits: Sequence[Wait], flight: _Flight, landed: Landed, now: float
    ) -> None:
        error = landed.error
        found: dict[str, Any] | None = landed.value.item if landed.value else None
        if isinstance(flight.deed, RetrieveMany):
            if self._server.refuses_batches(error, found):
                self._ask_one_by_one(waits, now)
                return
            self._server.batches = True
        answer = self._heard(landed.value, flight, now) if landed.value else None
        for wait in waits:
            if error is not None:
                self._step(wait, error=error)
            elif answer is not None and found and wait.id in found:
                self._step(wait, answer.about(found[wait.id]))
            else:  # the server may say more about it when it is asked for it alone
                self._alone.add(wait)
                wait.order = None
                self._pacer.want(wait, now)

    def _ask_one_by_one(self, waits: Sequence[Wait], now: float) -> None:
        if self._server.batches is not False:
            self._server.batches = False
            for wait in self._open:
                self._by_thread[getattr(wait.item, "thread_id", "")].add(wait)
        for wait in waits:
            wait.order = None
            self._pacer.want(wait, now)

    # Events.

    def _told(self, event: dict[str, Any]) -> None:
        data = event.get("data")
        run_id = data.get("id") if isinstance(data, dict) else None
        for wait in list(self._by_run.get(str(run_id), ())):
            if not isinstance(wait.wish, Look):
                continue  # it is busy with the run, and looks again afterwards
            provider: Any = wait.terms.provider
            told = getattr(provider, "told", None)
            item = None if told is None else told(wait.item, event)
            if item is None:
                if wait.order is None:
                    self._pacer.want(wait, self._clock.monotonic())
                continue
            self._pacer.forget(wait)
            self._step(wait, Answer(item, pushed=True))

    # Tools.

    def _use_tools(self, wait: Wait, wish: UseTools) -> None:
        now = self._clock.monotonic()
        if now < wish.until:
            for call in wish.calls:
                if (wait.id, call.id) not in self._calls:
                    self._use_tool(wait, call, wish.tools[call.name])
        outputs = self._outputs(wait, wish)
        if self._all(wish, outputs) or now >= wish.until:
            self._step(wait, outputs)
        else:
            self._acting.add(wait)
            self._timer(wish.until, wait)

    def _use_tool(self, wait: Wait, call: ToolCall, tool: Tool) -> None:
        terms, number = wait.terms, next(self._numbers)
        deed = UseTool(
            run_id=wait.id,
            call=call,
            tool=tool,
            limit=terms.tool_timeout,
            forget_errors=terms.raise_tool_errors,
            context=terms.context,
            tell=wait.tell,
        )
        self._remember((deed.run_id, call.id))
        self._at_work[number] = deed
        self._orders.append(Order(number, terms.provider, deed, math.inf))

    def _outputs(self, wait: Wait, wish: UseTools) -> dict[str, str]:
        found = {call.id: self._calls.get((wait.id, call.id)) for call in wish.calls}
        return {call_id: each.output for call_id, each in found.items() if each is not None}

    @staticmethod
    def _all(wish: UseTools, outputs: dict[str, str]) -> bool:
        return all(call.id in outputs for call in wish.calls)

    def _called(self, deed: UseTool, landed: Landed) -> None:
        key = (deed.run_id, deed.call.id)
        outcome: ToolOutcome | None = landed.value
        error = landed.error
        if outcome is not None:
            self._calls[key] = outcome
            deed.tell(
                records.ToolCalled,
                run_id=deed.run_id,
                call_id=deed.call.id,
                name=deed.call.name,
                seconds=outcome.seconds,
                error=outcome.error,
                recorded=outcome.recorded,
            )
            if deed.forget_errors:
                error = outcome.raised
        if error is not None:  # nothing came of it, so it may be called again
            del self._calls[key]
        for wait in list(self._acting):
            if not isinstance(wait.wish, UseTools):
                self._acting.discard(wait)
            elif wait.id == deed.run_id:
                outputs = self._outputs(wait, wait.wish)
                if error is not None or self._all(wait.wish, outputs):
                    self._step(wait, outputs, error)

    def _remember(self, key: tuple[str, str]) -> None:
        """Keep a place for the output of a call that is being made."""
        self._calls[key] = None
        if len(self._calls) > REMEMBERED_CALLS:
            done = next((old for old, each in self._calls.items() if each is not None), None)
            if done is not None:
                del self._calls[done]
