"""One wait: what was agreed for it, what it has seen, and until when it goes on. Pure."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from runbell.client import records
from runbell.client.endings import timed_out
from runbell.client.learning import FRESH_SECONDS, Learning, Seen
from runbell.client.trouble import is_transient, retry_after
from runbell.client.view import View, name_of
from runbell.client.wishes import Flow
from runbell.clock import Clock
from runbell.errors import BadAnswer, WaitTimeout
from runbell.pacing import Policy, PolicySource, RetryBackoff
from runbell.pacing.policies import begin

if TYPE_CHECKING:
    import random

    from runbell.client.providers.base import Provider
    from runbell.client.tools import Tool

__all__ = ["Done", "Terms", "TimeIsUp", "Wait", "words"]

log = logging.getLogger("runbell")

EXPIRY_GRACE = 15.0
"""Seconds after `expires_at` at which a wait without a `timeout` gives up: the server may be late
with its sweep, and its clock is not ours."""

LONGEST_WAIT = 86_400.0
"""Seconds for a wait without a `timeout`, for something that has no `expires_at`."""

CANCEL_SECONDS = 2.0
"""Seconds before the deadline at which a run is cancelled that has not ended, where that was
agreed; half of the time where that is less."""


NONE: frozenset[str] = frozenset()
"""No calls; one for all waits, since Python makes a new one each time."""


class TimeIsUp(Exception):
    """Thrown into a flow at its deadline, or raised in it where its policy says so: why."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What was agreed for one or many waits. Times are in seconds.

    Attributes:
        timeout: for the whole wait; None for a little after `expires_at`.
        raise_tool_errors: a tool that raises ends the wait, instead of telling the model.
        hold: the server may hold requests; then only the statuses that settle a run are seen.
        pushed: somebody tells of events.
        answers_actions: tool calls are this wait's business; not while it sees a cancel through.
        learning: is told how long runs took.
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
    learning: Learning | None = None

    @property
    def cancel_seconds(self) -> float:
        """What is kept of the time for a cancel at its end, so that this too is within it."""
        if not self.cancel_on_timeout:
            return 0.0
        return CANCEL_SECONDS if self.timeout is None else min(CANCEL_SECONDS, self.timeout / 2)


class Refusal(NamedTuple):
    """Outputs that the server refused.

    Attributes:
        ids: the calls.
        error: what the SDK raised.
        looks: how often they were shown since, as if they were wanted.
    """

    ids: frozenset[str]
    error: Exception
    looks: int = 0


Done = Callable[["Wait", Any, BaseException | None], None]


def _heard(wait: Wait, value: Any, error: BaseException | None) -> None:
    """Whoever waited has heard of the end."""


class Wait:
    """One wait: what it has seen, and until when it goes on. Moments are monotonic seconds.

    Attributes:
        item: the SDK's object, as it was last seen.
        id, thread_id: of the object; they change with a restart.
        done: is called with the wait, its result and its error, one of them None, at the end.
        status: as it was last seen; None before the first look.
        kind: what such runs have in common; None while nobody knows.
        age: seconds that it was old when this part began, or the wait; None likewise.
        waiting_until: the moment at which it was last seen queued in this part.
        running_from: the one at which it was first seen to go on; infinity when that is over.
        expires: when the run does, as far as we know.
        retry_at: when to try again after a failure; None while all is well.
        deadline: until when it waits; what is kept for a cancel comes after it.
        answered: calls whose outputs the server has.
        refused: calls whose outputs it did not want, None while there are none.
    """

    # A hundred thousand of these have to fit into memory.
    __slots__ = (
        "age", "alarm", "answered", "began", "dated", "deadline", "done", "expires", "expires_at",
        "failures", "flow", "id", "item", "kind", "last_error", "order", "part_began",
        "pending_until", "policy", "polls", "polls_of_part", "refused", "restarts", "retry_at",
        "running_from", "status", "terms", "thread_id", "waiting_until", "wish",
    )  # fmt: skip

    def __init__(self, item: Any, terms: Terms, done: Done) -> None:
        now = terms.clock.monotonic()
        self.terms = terms
        self._take(item)
        self.done = done
        self.began = self.part_began = self.pending_until = now
        self.polls = self.polls_of_part = self.failures = self.restarts = 0
        self.status: str | None = None
        self.last_error: Exception | None = None
        self.retry_at: float | None = None
        self.waiting_until: float | None = None
        self.running_from: float | None = None
        self.kind: Any = None
        self.age: float | None = None
        self._begin_policy(item)
        if self._know_age(terms.clock.now_ms() / 1000, FRESH_SECONDS):
            self._tell_policy()
        self.answered = NONE
        self.refused: Refusal | None = None
        self.expires = self.deadline = math.inf
        self.expires_at: float | None = None
        self.dated = False
        self.set_expiry()
        # The fleet's.
        self.flow: Flow[Any] | None = None
        self.wish: Any = None
        self.order: int | None = None
        self.alarm: tuple[float, int, Wait] | None = None

    @property
    def view(self) -> View:
        """The object, in words."""
        return self.terms.provider.view(self.item)

    @property
    def name(self) -> str:
        """For sentences."""
        return name_of(self.id, self.thread_id)

    @property
    def now(self) -> float:
        return self.terms.clock.monotonic()

    def tell(self, kind: type[records.Record], **about: Any) -> None:
        """Hand a record to the hooks."""
        if self.terms.hooks:
            about.setdefault("run_id", self.id)
            records.tell(self.terms.hooks, kind(elapsed=self.now - self.began, **about))

    def timed_out(
        self, why: str, last_error: Exception | None, cancelled: bool = False
    ) -> WaitTimeout:
        """The error that says that it has not ended; `last_error`: that of the last request."""
        error = timed_out(self.item, self.view, self.now - self.began, self.polls, why, cancelled)
        if last_error is not None:
            error.add_note(f"the last request failed: {words(last_error)}")
        error.__cause__ = last_error
        return error

    def set_expiry(self, server_now: float | None = None) -> None:
        """Take the expiry from the object, by the server's clock or, where it does not tell the
        time, by ours (seconds since the epoch).

        The deadline only moves forward where the expiry did, or is known better now: a server that
        never sweeps what has expired must not be waited for without an end.
        """
        view, dated = self.view, server_now is not None
        if server_now is None:
            if view.expires_at == self.expires_at and self.expires < math.inf:
                return
            server_now = self.terms.clock.now_ms() / 1000
        if view.expires_at is None:
            expires, limit = math.inf, self.began + LONGEST_WAIT
        else:
            expires = self.now + (view.expires_at - server_now)
            limit = max(expires, self.began) + EXPIRY_GRACE  # it is looked at in any case
        if view.expires_at == self.expires_at and self.dated:
            expires, limit = min(expires, self.expires), min(limit, self.end)
        self.expires, self.expires_at, self.dated = expires, view.expires_at, dated
        timeout = self.terms.timeout
        end = limit if timeout is None else self.began + timeout
        self.deadline = end - self.terms.cancel_seconds

    @property
    def end(self) -> float:
        """When its time is over, that of a cancel included."""
        return self.deadline + self.terms.cancel_seconds

    def begin_part(self, item: Any) -> None:
        """Go on from an answer to a request of ours, anew with the policy, whose first look in
        this part the answer was."""
        self._take(item)
        self.part_began = self.pending_until = self.now
        self.polls_of_part = 1
        self.waiting_until = self.running_from = None
        self.age = 0.0
        self._begin_policy(item)
        self._tell_policy()
        self.recovered()

    def _begin_policy(self, item: Any) -> None:
        self.policy: Policy = begin(self.terms.policy, item)
        if self.terms.learning is not None and self.kind is None:
            self.kind = self.terms.learning.kind(self.terms.provider, item)

    def _know_age(self, server_now: float, at_most: float = math.inf) -> bool:
        """Find out how old the run was when the wait began, by a clock that may be another's.

        Args:
            server_now: seconds since the epoch.
            at_most: seconds; whatever seems to be older, or not made yet, is left open.
        """
        created_at = self.view.created_at
        if self.age is None and created_at is not None:
            age = server_now - created_at - (self.now - self.part_began)
            if -1.0 <= age <= at_most:
                self.age = 0.0 if age <= FRESH_SECONDS else age
        return self.age is not None

    def _tell_policy(self) -> None:
        know = getattr(self.policy, "know", None)
        if know is not None and self.kind is not None:
            know(self.kind, self.age or 0.0)

    def noticed(self, view: View, server_now: float | None) -> None:
        """Keep what an answer says about how long it takes. `server_now` as for `set_expiry`."""
        learning, now = self.terms.learning, self.now
        if learning is None:
            return
        if self.kind is None or self.age is None:
            self.kind = learning.kind(self.terms.provider, self.item)
            self._know_age(server_now or self.terms.clock.now_ms() / 1000)
            self.age = self.age or 0.0  # it does not say, or one of the clocks is wrong
            self._tell_policy()
        if view.stage == "wants" and self.answered.issuperset(call.id for call in view.calls):
            return  # that is over: a reader is shown it a moment longer
        if view.stage != "pending":
            self.learn(view, now)
        elif view.status == "queued" and self.running_from is None:
            self.waiting_until = now
        elif self.running_from is None:
            self.running_from = now

    @property
    def started(self) -> float:
        """When it started, as far as it was seen: a moment of our clock."""
        if self.waiting_until is None:
            return self.part_began - (self.age or 0.0)
        return (self.waiting_until + min(self.running_from or math.inf, self.now)) / 2

    def learn(self, view: View, over: float | None) -> None:
        """Tell how long this part took; `over` is None where nobody looks any more."""
        learning, began = self.terms.learning, self.part_began
        if learning is None or self.kind is None or self.running_from == math.inf:
            return
        seen = Seen(
            self.age,
            None if self.waiting_until is None else self.waiting_until - began,
            None if self.running_from is None else self.running_from - began,
            self.pending_until - began,
            None if over is None else over - began,
            first=not self.answered,
        )
        learning.observe(self.kind, seen, view, self.terms.clock.now_ms() / 1000)
        self.running_from = math.inf  # once

    def refuse(self, ids: frozenset[str], error: Exception) -> None:
        """Take note that the server does not want the outputs of these calls."""
        known = self.refused.ids if self.refused is not None else frozenset()
        self.refused = Refusal(ids | known, error)
        self.part_began, self.polls_of_part = self.now, 1

    def was_refused(self, ids: frozenset[str]) -> bool:
        """Whether the outputs of all these calls were refused: what shows them as wanted is old,
        and is looked past.

        Raises:
            Exception: the refusal, where that has been shown for as long as failures are borne.
        """
        if self.refused is None or not ids <= self.refused.ids:
            return False
        if self.refused.looks + 1 >= self.terms.max_errors:
            raise self.refused.error
        self.refused = self.refused._replace(looks=self.refused.looks + 1)
        return True

    def _take(self, item: Any) -> None:
        view = self.terms.provider.view(item)
        self.item, self.id, self.thread_id = item, view.id, view.thread_id

    def read(self, item: Any, same: bool = True) -> View:
        """What a server sent, in words.

        Args:
            same: it has to be about what is waited for.

        Raises:
            BadAnswer: it is nothing of this kind, or about something else.
        """
        try:
            view = self.terms.provider.view(item)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise BadAnswer(f"{self.name}: this is no answer: {str(item)[:100]!r}") from error
        if same and view.id != self.id:
            raise BadAnswer(f"{self.name} was asked for, and the answer is about {view.id}")
        return view

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Tell whoever waits, once."""
        done, self.done = self.done, _heard
        done(self, value, error)

    def recovered(self) -> None:
        """The server answered: what failed before it is forgotten."""
        self.failures, self.retry_at, self.last_error = 0, None, None

    def bear(self, error: Exception) -> None:
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
        delay = terms.retry.delay(self.failures, terms.rng)
        delay = max(delay, retry_after(error, terms.clock.now_ms() / 1000) or 0.0)
        self.last_error, self.retry_at = error, self.now + delay
        log.info("%s: %s; trying again in %.2f s", self.name, words(error), delay)
        self.tell(records.Retried, error=error, failures=self.failures, delay=delay)


def words(error: Exception) -> str:
    """An error for a line of the log."""
    return f"{type(error).__name__}: {str(error)[:200]}"
