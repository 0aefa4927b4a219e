"""One wait, from its beginning to its end: the flow that every driver plays.

A flow is a generator. It yields what it wants (`wishes.py`), is sent what came of that, or has the
error thrown into it, and returns the object that was waited for. It has no I/O, and knows neither
threads nor event loops: the same flow runs under all drivers, and under a virtual clock.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from runbell.client import records
from runbell.client.deeds import Again, Cancel, Deed, Submit
from runbell.client.endings import action_required, timed_out
from runbell.client.tools import check, error_output
from runbell.client.trouble import (
    is_not_accepting,
    is_stale_submission,
    is_transient,
    retry_after,
    status_of,
)
from runbell.client.view import Answer, View
from runbell.client.wishes import Do, Flow, Look, UseTools
from runbell.clock import Clock
from runbell.errors import BadAnswer, WaitTimeout
from runbell.pacing import Policy, PolicySource, RetryBackoff
from runbell.pacing.policies import begin

if TYPE_CHECKING:
    import random

    from runbell.client.providers.base import Provider
    from runbell.client.tools import Tool

__all__ = ["Done", "Terms", "TimeIsUp", "Wait", "cancelling", "waiting"]

log = logging.getLogger("runbell")

EXPIRY_GRACE = 15.0
"""Seconds after `expires_at` at which a wait without a `timeout` gives up: the server may be late
with its sweep, and its clock is not ours."""

LONGEST_WAIT = 86_400.0
"""Seconds for a wait without a `timeout`, for something that has no `expires_at`."""

LAST_LOOK = 0.5
"""Seconds before the deadline at which to look once more, if the policy would be too late."""

SUBMIT_MARGIN = 2.0
"""Seconds before `expires_at` at which tool outputs are handed in, finished or not."""

EXPIRY_WARNING = 15.0
"""Seconds before `expires_at` at which unfinished tools are warned about."""

AFTER_EXPIRY = 2.0
"""Seconds after `expires_at` at which a wait that is told of events looks for itself."""

CANCEL_SECONDS = 5.0
"""What a cancel at the deadline may take beyond it."""


class TimeIsUp(Exception):
    """Thrown into a flow at its deadline."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for one or many waits. Times are in seconds.

    Attributes:
        timeout: for the whole wait; None for a little after `expires_at`.
        raise_tool_errors: a tool that raises ends the wait, instead of telling the model.
        hold: the server may hold requests; then only the statuses that settle a run are seen.
        pushed: somebody tells of events.
        answers_actions: tool calls are this wait's business; not while it sees a cancel through.
    """

    provider: Provider[Any]
    policy: PolicySource
    clock: Clock
    rng: random.Random
    timeout: float | None = None
    tools: Mapping[str, Tool] = field(default_factory=dict)
    raise_tool_errors: bool = False
    tool_timeout: float | None = None
    hold: bool = True
    max_errors: int = 10
    restart_on: frozenset[str] = frozenset()
    max_restarts: int = 0
    cancel_on_timeout: bool = False
    hooks: Sequence[records.Hook] = ()
    retry: RetryBackoff = field(default_factory=lambda: RetryBackoff(0.5, 2.0, 20.0))
    restart: RetryBackoff = field(default_factory=lambda: RetryBackoff(1.0, 2.0, 30.0))
    pushed: bool = False
    answers_actions: bool = True
    context: Context | None = None


Done = Callable[["Wait", Any, BaseException | None], None]


class Wait:
    """One wait: what it has seen, and until when it goes on. Moments are monotonic seconds.

    Attributes:
        item: the SDK's object, as it was last seen.
        done: is called with the wait, its result and its error, one of them None, at the end.
        status: as it was last seen; None before the first look.
        expires: when the run does, as far as we know.
        retry_at: when to try again after a failure; None while all is well.
        answered, refused: calls whose outputs the server has, and whose outputs it refused.
    """

    # A hundred thousand of these have to fit into memory.
    __slots__ = (
        "answered", "began", "deadline", "done", "expires", "failures", "flow", "item",
        "last_error", "order", "part_began", "pending_until", "policy", "polls", "polls_of_part",
        "refused", "restarts", "retry_at", "status", "terms", "wish",
    )  # fmt: skip

    def __init__(self, item: Any, terms: Terms, done: Done) -> None:
        now = terms.clock.monotonic()
        self.item = item
        self.terms = terms
        self.done = done
        self.began = self.part_began = self.pending_until = now
        self.polls = self.polls_of_part = self.failures = self.restarts = 0
        self.status: str | None = None
        self.last_error: Exception | None = None
        self.retry_at: float | None = None
        self.policy: Policy = begin(terms.policy, item)
        self.answered: frozenset[str] = frozenset()
        self.refused: frozenset[str] = frozenset()
        self.expires = self.deadline = 0.0
        self.set_expiry(terms.clock.now_ms() / 1000)
        # The fleet's.
        self.flow: Flow[Any] | None = None
        self.wish: Any = None
        self.order: int | None = None

    @property
    def view(self) -> View:
        """The object, in words."""
        return self.terms.provider.view(self.item)

    @property
    def id(self) -> str:
        """The object's id; it changes with a restart."""
        return self.view.id

    @property
    def now(self) -> float:
        return self.terms.clock.monotonic()

    def tell(self, kind: type[records.Record], **about: Any) -> None:
        """Hand a record to the hooks."""
        if self.terms.hooks:
            about.setdefault("run_id", self.view.id)
            records.tell(self.terms.hooks, kind(elapsed=self.now - self.began, **about))

    def timed_out(self, why: str) -> WaitTimeout:
        """The error that says that it has not ended."""
        return timed_out(self.item, self.view, self.now - self.began, self.polls, why)

    def set_expiry(self, server_now: float) -> None:
        """Take the expiry from the object, by the server's clock (seconds since the epoch)."""
        expires_at = self.view.expires_at
        if expires_at is None:
            self.expires, limit = math.inf, self.began + LONGEST_WAIT
        else:
            self.expires = self.now + max(expires_at - server_now, 0.0)
            limit = self.expires + EXPIRY_GRACE
        timeout = self.terms.timeout
        self.deadline = limit if timeout is None else self.began + timeout

    def begin_part(self, item: Any) -> None:
        """Go on from an answer to a request of ours, anew with the policy, whose first look in
        this part the answer was."""
        self.item = item
        self.part_began = self.now
        self.polls_of_part = 1
        self.policy = begin(self.terms.policy, item)
        self.recovered()

    def recovered(self) -> None:
        """The server answered: what failed before it is forgotten."""
        self.failures, self.retry_at, self.last_error = 0, None, None

    def bear(self, error: Exception, backoff: RetryBackoff | None = None) -> None:
        """Take note of a failure after which trying again can help, or raise it.

        Raises:
            Exception: `error`, if it can't, or if there were too many.
        """
        if not is_transient(error):
            raise error
        terms = self.terms
        self.failures += 1
        if self.failures >= terms.max_errors:
            error.add_note(f"{self.failures} requests in a row failed: this is the last of them")
            raise error
        delay = (backoff or terms.retry).delay(self.failures, terms.rng)
        delay = max(delay, retry_after(error, terms.clock.now_ms() / 1000) or 0.0)
        self.last_error, self.retry_at = error, self.now + delay
        log.info("%s: %s; trying again in %.2f s", self.view.name, _words(error), delay)
        self.tell(records.Retried, error=error, failures=self.failures, delay=delay)


def waiting(wait: Wait) -> Flow[Any]:
    """See a run to its end.

    Returns:
        The SDK's object, in whatever status it ended.

    Raises:
        WaitTimeout: it has not ended when its time is over.
        ActionRequired: it wants tool outputs for which there is no function.
        Exception: what the SDK raised, where trying again can't help or did not.
    """
    view = wait.view
    held = False
    try:
        while True:
            if view.has_ended:
                reason = _reason_to_restart(wait, view)
                if reason is None:
                    return wait.item
                yield from _restart(wait, view, reason)
            elif _asks(wait, view):
                yield from _answer_calls(wait, view)
            view = wait.view
            if view.has_ended:
                continue
            try:
                answer: Answer = yield Look(_next_look(wait, held))
                held = answer.held
                view = _saw(wait, answer)
            except (TimeIsUp, WaitTimeout):
                raise
            except Exception as error:  # noqa: BLE001 - raised again where it is not transient
                held = False
                wait.bear(error)
    except TimeIsUp:
        last_error = wait.last_error
        if wait.terms.cancel_on_timeout:
            yield from _cancel_at_the_end(wait)
    raise wait.timed_out("the time for waiting was over") from last_error


def cancelling(wait: Wait) -> Flow[Any]:
    """Cancel a run and see it through `cancelling`; one that has ended is left as it is."""
    try:
        wait.begin_part((yield from _insist(wait, Cancel(wait.item))))
    except TimeIsUp:
        raise wait.timed_out("the time was over, and no cancel had got through") from (
            wait.last_error
        )
    except Exception as error:
        if status_of(error) != 400:
            raise
        log.debug("%s can't be cancelled, it may have ended: %s", wait.view.name, error)
    return (yield from waiting(wait))


def _next_look(wait: Wait, held: bool) -> float:
    """When to look; infinity where only an event or the deadline can help."""
    now = wait.now
    at = _wanted(wait, now, held)
    if at >= wait.deadline:
        # What is too late for the policy is looked at once more before the end; but a server that
        # asked to be left alone is.
        last = wait.deadline - min(LAST_LOOK, 0.1 * (wait.deadline - wait.began))
        at = last if last > now and wait.retry_at is None else math.inf
    wait.tell(records.Planned, delay=None if at == math.inf else at - now)
    return at


def _wanted(wait: Wait, now: float, held: bool) -> float:
    if wait.retry_at is not None:
        return wait.retry_at
    delay = wait.policy.next_delay(now - wait.part_began, wait.polls_of_part)
    if delay is None:
        if wait.terms.pushed:
            return math.inf
        raise wait.timed_out("its policy ended polling")
    if held:  # the server's holding the request was the pause
        return now
    at = now + max(delay, 0.0)
    if wait.terms.pushed and now < wait.expires + AFTER_EXPIRY:
        return min(at, wait.expires + AFTER_EXPIRY)
    return at


def _saw(wait: Wait, answer: Answer) -> View:
    """Take an answer in.

    Raises:
        BadAnswer: it is about something else.
    """
    view = wait.terms.provider.view(answer.item)
    if view.id != wait.view.id:
        raise BadAnswer(f"{wait.view.name} was asked for, and the answer is about {view.id}")
    previous, wait.status = wait.status, view.status
    wait.item = answer.item
    if not answer.pushed:
        wait.polls += 1
        wait.polls_of_part += 1
    wait.recovered()
    if not view.has_ended:
        wait.pending_until = wait.now
        if answer.server_time is not None:
            wait.set_expiry(answer.server_time)
        saw = getattr(wait.policy, "saw", None)
        if saw is not None:
            saw(view, answer.hint)
    log.debug("%s is %s (look %d)", view.name, view.status, wait.polls)
    wait.tell(
        records.Polled,
        run_id=view.id,
        status=view.status,
        previous=previous,
        polls=wait.polls,
        run=answer.item,
        pushed=answer.pushed,
    )
    return view


def _asks(wait: Wait, view: View) -> bool:
    """It wants outputs that it has not got from us; for a moment after it got them, a reader may
    still be shown the old calls."""
    return (
        view.stage == "wants"
        and wait.terms.answers_actions
        # The object that a wait begins with may be older than the run is.
        and wait.status is not None
        and not wait.answered.issuperset(call.id for call in view.calls)
    )


def _answer_calls(wait: Wait, view: View) -> Flow[None]:
    """Call the functions, once each, and hand their outputs in together.

    Raises:
        ActionRequired: there is no function for some of the calls; none was called.
        ToolMismatch: a function does not fit the tool that the model sees.
    """
    provider: Any = wait.terms.provider
    tools = check(wait.terms.tools, provider.schemas(wait.item))
    missing = tuple(call for call in view.calls if call.name not in tools)
    if missing:
        raise action_required(wait.item, view, missing)
    limit = max(wait.expires - SUBMIT_MARGIN, wait.now)
    outputs = yield UseTools(view.calls, tools, min(limit, wait.expires - EXPIRY_WARNING))
    late = tuple(call.id for call in view.calls if call.id not in outputs)
    if late and wait.now < limit:
        seconds = wait.expires - wait.now
        if seconds <= EXPIRY_WARNING:
            log.warning("%s expires in %.1f s and waits for %s", view.name, seconds, late)
            wait.tell(records.ExpiryNear, seconds=seconds, call_ids=late)
        outputs = yield UseTools(view.calls, tools, limit)
    for call in view.calls:
        outputs.setdefault(call.id, error_output("not finished before the run expires"))
    ids = frozenset(outputs)
    try:
        item = yield from _insist(wait, Submit(wait.item, outputs))
    except Exception as error:
        # The server does not want them: somebody else's came first, or the run has moved on.
        if not is_stale_submission(error) or ids <= wait.refused:
            raise
        log.info("%s: %s", view.name, _words(error))
        if is_not_accepting(error):
            wait.answered |= ids
        wait.refused |= ids
        wait.part_began, wait.polls_of_part = wait.now, 1
        return
    wait.answered |= ids
    wait.begin_part(item)
    wait.tell(records.Submitted, call_ids=tuple(outputs))


def _reason_to_restart(wait: Wait, view: View) -> str | None:
    terms = wait.terms
    if wait.restarts >= terms.max_restarts or view.stage == "completed":
        return None
    return next((why for why in (view.status, view.code) if why in terms.restart_on), None)


def _restart(wait: Wait, view: View, reason: str) -> Flow[None]:
    """Have the same work done by a new run, after a pause."""
    terms = wait.terms
    wait.restarts += 1
    delay = terms.restart.delay(wait.restarts, terms.rng)
    if terms.timeout is None:  # the expiry of the old run is not that of the new one
        wait.deadline = wait.now + LONGEST_WAIT
    deed = Again(wait.item, f"runbell-{view.id}-again")
    wait.begin_part((yield from _insist(wait, deed, wait.now + delay)))
    new = wait.view
    wait.status, wait.answered, wait.refused = new.status, frozenset(), frozenset()
    wait.set_expiry(terms.clock.now_ms() / 1000)
    log.warning("%s ended (%s): %s does its work again", view.name, reason, new.id)
    wait.tell(
        records.Restarted, run_id=view.id, new_run_id=new.id, reason=reason, restarts=wait.restarts
    )


def _insist(wait: Wait, deed: Deed, at: float | None = None) -> Flow[Any]:
    """One request with an effect, until it is answered: what it gave.

    It may reach the server twice, where an answer was lost: the providers send it so that the
    second has no effect, or is refused.
    """
    while True:
        try:
            reply = yield Do(deed, wait.now if at is None else at)
        except TimeIsUp:
            raise
        except Exception as error:  # noqa: BLE001 - raised again where it is not transient
            wait.bear(error)
            at = wait.retry_at
        else:
            wait.recovered()
            return reply


def _cancel_at_the_end(wait: Wait) -> Flow[None]:
    wait.deadline = wait.now + CANCEL_SECONDS
    try:
        yield from _insist(wait, Cancel(wait.item))
    except Exception as error:  # noqa: BLE001 - the timeout is what the caller has to hear of
        log.warning("%s could not be cancelled: %s", wait.view.name, _words(error))


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error)[:200]}"
