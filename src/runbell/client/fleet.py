"""Many waits on one budget: which request is sent when, for whom, and together with whom.

A fleet plays the flows of its waits. It does nothing itself: `turn` is told what has happened and
says which deeds are to be begun and until when nothing else is to be done, and a driver does that.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from runbell.client import records
from runbell.client.alarms import Alarms
from runbell.client.asking import Asking
from runbell.client.calls import Calls
from runbell.client.deeds import (
    Deed,
    Order,
    Retrieve,
    RetrieveMany,
    RetrieveThread,
    UseTool,
)
from runbell.client.mail import Join, Landed, Leave, Mail, Told, Turn
from runbell.client.quota import Quota, quota_of
from runbell.client.server import Server
from runbell.client.tools import Tool
from runbell.client.trouble import copy_of, retry_after, status_of
from runbell.client.view import Answer
from runbell.client.wait import TimeIsUp, Wait
from runbell.client.wishes import Do, Look, UseTools, Wish
from runbell.clock import Clock
from runbell.pacing import Pacer
from runbell.runs import Deliver, EventSource

__all__ = ["Fleet"]

log = logging.getLogger("runbell")

MAX_IN_FLIGHT = 64
"""Requests at the same time: each may be a connection, and a thread."""

FIRST_IN_FLIGHT = 16
"""The same before the first answer."""

REMEMBERED_CALLS = 10_000
"""Outputs of tool calls that are kept in memory, for waits that begin again."""


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
        takes_thread: whether a tool's function blocks a thread for as long as it is at work.
    """

    def __init__(
        self,
        clock: Clock,
        pacer: Pacer,
        server: Server,
        events: EventSource | None = None,
        deliver: Deliver = lambda event: None,
        explain: Callable[[BaseException, Wait], None] = lambda error, wait: None,
        takes_thread: Callable[[Tool], bool] = lambda tool: False,
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
        self._asking = Asking(server, pacer)
        # Not every pacer asks what a call is worth, or minds what others take.
        self._expect = getattr(pacer, "expect", None)
        self._saw_remaining = getattr(pacer, "saw_remaining", None)
        self._refused = getattr(pacer, "refused", None)
        self._answered = getattr(pacer, "answered", None)
        self._probe: Wait | None = None
        self._heard_of = False
        self._told_meanwhile: set[Wait] = set()
        self._flights: dict[int, _Flight] = {}
        self._alarms = Alarms()
        self._calls = Calls(self._call, takes_thread, REMEMBERED_CALLS)

    @property
    def is_idle(self) -> bool:
        """Nobody waits, and no tool is at work."""
        return not self._open and not self._calls

    def abandon(self, error: BaseException, mail: Iterable[Mail] = ()) -> None:
        """End every wait with this error, and forget what is under way: its driver has ended.

        Args:
            mail: what nobody will take in any more; waits that were about to join end too.
        """
        joining = [wait for each in mail if isinstance(each, Join) for wait in each.waits]
        for wait in (*self._open, *joining):
            try:
                self._forget(wait)
            finally:  # the others have to hear of it too
                wait.finish(None, error)
        self._calls.abandon()
        self._flights.clear()
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
        alarm = self._alarms.next_at()
        moments = [] if alarm is None else [alarm]
        if len(self._flights) < self._most and (at := self._pacer.next_at()) is not None:
            moments.append(at)
        return min(moments, default=None)

    # Waits.

    def _join(self, join: Join) -> None:
        for wait in join.waits:
            wait.flow = join.play(wait)
            self._open.add(wait)
            self._index(wait)
            self._step(wait)

    def _leave(self, wait: Wait) -> None:
        if wait.flow is not None:
            wait.flow.close()
            wait.learn(wait.view, None)
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
            self._arm(wait)

    def _heed(self, wait: Wait, wish: Wish) -> None:
        wait.wish = wish
        match wish:
            case Look(at):
                if wait in self._told_meanwhile and wait.retry_at is None:
                    self._told_meanwhile.discard(wait)
                    self._want(wait, min(at, self._clock.monotonic()))
                elif at < math.inf:
                    self._want(wait, at)
                else:
                    self._pacer.forget(wait)
            case Do(_, at):
                self._pacer.want(wait, at, urgent=True)
            case UseTools():
                now = self._clock.monotonic()
                if (outputs := self._calls.use(wait, wish, now)) is not None:
                    self._step(wait, outputs)

    def _end(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        try:
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
        except Exception:  # the end of this wait must not be the end of the others
            log.exception("nothing could be said about the end of %s", wait.name)
        try:
            self._forget(wait)
        finally:  # whatever goes wrong in here, nobody waits for ever
            wait.finish(value, error)

    def _forget(self, wait: Wait) -> None:
        wait.flow = wait.wish = wait.order = None
        self._open.discard(wait)
        self._told_meanwhile.discard(wait)
        if self._probe is wait:
            self._probe = None
        self._alarms.cancel(wait)
        self._calls.left(wait)
        self._pacer.forget(wait)
        self._unindex(wait, wait.id)

    def _index(self, wait: Wait) -> None:
        self._asking.joined(wait)
        if self._events is not None and wait.terms.pushed:
            self._by_run[wait.id].add(wait)
            self._events.subscribe(wait.id, self._deliver)

    def _unindex(self, wait: Wait, run_id: str) -> None:
        self._asking.left(wait)
        told = self._by_run.get(run_id)
        if told is not None:
            told.discard(wait)
            if not told:
                del self._by_run[run_id]
                if self._events is not None:
                    self._events.unsubscribe(run_id, self._deliver)

    def _want(self, wait: Wait, at: float) -> None:
        """It would like a look at this moment."""
        if wait.polls_of_part == 0 and wait.retry_at is None and self._asking.may_hold(wait):
            if self._server.holds is None and self._probe is None:
                self._probe = wait  # one is enough to find out whether the server holds requests
            if self._server.holds or self._probe is wait:
                # The server's holding the request is what takes the time.
                at = min(at, self._clock.monotonic())
        learning = wait.terms.learning
        if self._expect is not None and learning is not None and wait.kind is not None:
            curve = learning.curve(wait.kind)
            if curve is not None:
                self._expect(wait, curve, wait.started, wait.pending_until)
        self._pacer.want(wait, at)

    # Time.

    def _arm(self, wait: Wait) -> None:
        """See to it that the deadline is heeded, also one that has come nearer, and the moment at
        which outputs are wanted, finished or not."""
        if wait.flow is not None:
            wish = wait.wish
            at = min(wait.deadline, wish.until) if isinstance(wish, UseTools) else wait.deadline
            self._alarms.set(wait, at)

    def _ring(self, now: float) -> None:
        while (wait := self._alarms.due(now)) is not None:
            if wait.deadline <= now:
                self._pacer.forget(wait)
                self._step(wait, error=TimeIsUp())
            elif isinstance(wait.wish, UseTools) and wait.wish.until <= now:
                self._step(wait, self._calls.outputs(wait, wait.wish))
            self._arm(wait)

    # Requests.

    @property
    def _most(self) -> int:
        """Requests that may be on their way: few until the server said what it allows."""
        return MAX_IN_FLIGHT if self._heard_of else FIRST_IN_FLIGHT

    def _grant(self, now: float) -> None:
        while len(self._flights) < self._most:
            wait: Any = self._pacer.take(now)
            if wait is None:
                return
            if isinstance(wait.wish, Do):
                self._order([wait], wait.wish.deed, now)
            else:
                waits, deed, hold = self._asking.request(wait, now, len(self._open))
                self._order(waits, deed, now, hold)

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

    def _call(self, deed: UseTool) -> int:
        number = next(self._numbers)
        self._orders.append(Order(number, None, deed, math.inf))
        return number

    def _landed(self, landed: Landed) -> None:
        if landed.number in self._calls:
            ready = self._calls.landed(landed.number, landed.value, landed.error)
            for wait, outputs, error in ready:
                self._step(wait, outputs, error)
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
        quota = quota_of(error)
        self._heard_of = True
        self._count(quota, flight, now)
        if status_of(error) == 429:
            if pause is not None:
                self._pacer.pause(now + pause)
            told = pause is not None or (quota is not None and quota.reset is not None)
            if self._refused is not None:
                self._refused(now, flight.began, told)
        if flight.hold:
            self._server.broke(error, now - flight.began)

    def _heard(self, answer: Answer, flight: _Flight, now: float) -> Answer:
        """The answer, `held` if the server's holding it was a pause."""
        took = now - flight.began
        self._count(answer.quota, flight, now)
        self._heard_of = True
        learning = flight.waits[0].terms.learning
        if learning is not None and not flight.hold:
            learning.answered(took)
        if self._answered is not None:
            self._answered()
        unknown = self._server.holds is None
        self._server.answered(flight.hold, answer.held, took)
        if unknown and self._server.holds:
            self._ask_at_once()
        return self._server.patient(answer, flight.hold, took)

    def _count(self, quota: Quota | None, flight: _Flight, now: float) -> None:
        """Tell the pacer what the server says about its limit."""
        if quota is not None and self._saw_remaining is not None:
            self._saw_remaining(
                quota.remaining, quota.limit, now, sent=flight.began, reset=quota.reset
            )

    def _ask_at_once(self) -> None:
        """The server turned out to hold requests: nobody waits for a policy any more."""
        for wait in self._open:
            if isinstance(wait.wish, Look) and wait.order is None and wait.wish.at < math.inf:
                self._want(wait, wait.wish.at)

    def _landed_together(
        self, waits: Sequence[Wait], flight: _Flight, landed: Landed, now: float
    ) -> None:
        error = landed.error
        found: dict[str, Any] | None = landed.value.item if landed.value else None
        if isinstance(flight.deed, RetrieveMany):
            if self._server.refuses_batches(error, found):
                self._asking.one_by_one(self._open)
                for wait in waits:
                    self._again(wait, now)
                return
            self._server.batches = True
        answer = self._heard(landed.value, flight, now) if landed.value else None
        for wait in waits:
            if error is not None:
                self._step(wait, error=copy_of(error))
            elif answer is not None and found and wait.id in found:
                self._step(wait, answer.about(found[wait.id]))
            else:  # the server may say more about it when it is asked for it alone
                self._asking.alone(wait)
                self._again(wait, now)

    def _again(self, wait: Wait, now: float) -> None:
        """Ask about it once more, at once."""
        wait.order = None
        self._want(wait, now)

    # Events.

    def _told(self, event: dict[str, Any]) -> None:
        data = event.get("data")
        run_id = data.get("id") if isinstance(data, dict) else None
        for wait in list(self._by_run.get(str(run_id), ())):
            if not isinstance(wait.wish, Look):
                if (
                    isinstance(data, dict) and data.get("status") != wait.status
                ):  # it is busy with the run: it looks then
                    self._told_meanwhile.add(wait)
                continue
            provider: Any = wait.terms.provider
            told = getattr(provider, "told", None)
            try:
                item = None if told is None else told(wait.item, event)
            except Exception:  # whatever an event holds, the run itself can be looked at
                log.exception("an event about %s makes no sense", wait.name)
                item = None
            if item is None:
                if wait.order is None:
                    self._want(wait, self._clock.monotonic())
                else:  # that answer may be older than the event
                    self._told_meanwhile.add(wait)
                continue
            self._pacer.forget(wait)
            self._step(wait, Answer(item, pushed=True))
