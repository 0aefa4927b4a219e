"""One wait, from its beginning to its end: the flow that every driver plays.

A flow is a generator. It yields what it wants (`wishes.py`), is sent what came of that, or has the
error thrown into it, and returns the object that was waited for. It has no I/O, and knows neither
threads nor event loops: the same flow runs under all drivers, and under a virtual clock.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from runbell.client import records
from runbell.client.deeds import Again, Cancel, Deed, FindAgain, Submit
from runbell.client.endings import action_required
from runbell.client.tools import check, error_output
from runbell.client.trouble import is_not_accepting, is_stale_submission, may_have_worked, status_of
from runbell.client.view import Answer, View
from runbell.client.wait import CANCEL_SECONDS, LONGEST_WAIT, NONE, TimeIsUp, Wait, words
from runbell.client.wishes import Do, Flow, Look, UseTools
from runbell.errors import BadAnswer

__all__ = ["cancelling", "waiting"]

log = logging.getLogger("runbell")

LAST_LOOK = 0.5
"""Seconds before the deadline at which to look once more, if the policy would be too late."""

SUBMIT_MARGIN = 2.0
"""Seconds before `expires_at` at which tool outputs are handed in, finished or not."""

EXPIRY_WARNING = 15.0
"""Seconds before `expires_at` at which unfinished tools are warned about."""

AFTER_EXPIRY = 2.0
"""Seconds after `expires_at` at which a wait that is told of events looks for itself."""

AT_EXPIRY = 0.15
"""The same for a wait that polls: whatever a policy foresees, the run is over then."""


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
    held = holds = False
    try:
        while True:
            if view.has_ended:
                reason = _reason_to_restart(wait, view)
                if reason is None:
                    return wait.item
                yield from _restart(wait, view, reason)
                held = holds
            elif _asks(wait, view) and (yield from _answer_calls(wait, view)):
                held = holds  # its holding the next request is the pause
            view = wait.view
            if view.has_ended:
                continue
            try:
                answer: Answer = yield Look(_next_look(wait, held))
                held, holds = answer.held, answer.holds
                view = _saw(wait, answer)
            except TimeIsUp:
                raise
            except Exception as error:  # noqa: BLE001 - raised again where it is not transient
                held = False
                wait.bear(error)
    except TimeIsUp as up:
        why, last_error = str(up) or "the time for waiting was over", wait.last_error
    wait.learn(wait.view, None)
    cancelled = False
    if wait.terms.cancel_on_timeout:
        cancelled = yield from _cancel_at_the_end(wait)
    raise wait.timed_out(why, last_error, cancelled)


def cancelling(wait: Wait) -> Flow[Any]:
    """Cancel a run and see it through `cancelling`; one that has ended is left as it is."""
    try:
        item = yield from _insist(wait, Cancel(wait.item))
        if item is not None:
            wait.begin_part(item)
    except TimeIsUp:
        why = "the time was over, and no cancel had got through"
        raise wait.timed_out(why, wait.last_error) from wait.last_error
    except Exception as error:
        if status_of(error) != 400:
            raise
        log.debug("%s can't be cancelled, it may have ended: %s", wait.name, error)
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
        raise TimeIsUp("its policy ended polling")
    if held:  # the server's holding the request was the pause
        return now
    at = now + max(delay, 0.0)
    over = wait.expires + (AFTER_EXPIRY if wait.terms.pushed else AT_EXPIRY)
    return min(at, over) if now < over else at


def _saw(wait: Wait, answer: Answer) -> View:
    """Take an answer in.

    Raises:
        BadAnswer: it is about something else.
    """
    view = wait.read(answer.item)
    if view.stage == "wants" and not view.calls and wait.terms.answers_actions:
        raise BadAnswer(f"{wait.name} is {view.status} and does not say what it wants")
    previous, wait.status = wait.status, view.status
    wait.item = answer.item
    if not answer.pushed:
        wait.polls += 1
        wait.polls_of_part += 1
    wait.recovered()
    if not view.has_ended:
        wait.pending_until = wait.now
        wait.set_expiry(answer.server_time)
    wait.noticed(view, answer.server_time)
    if not view.has_ended:
        saw = getattr(wait.policy, "saw", None)
        if saw is not None:
            saw(view, answer.hint)
    found = {"run_id": view.id, "status": view.status, "previous": previous, "run": answer.item}
    if answer.pushed:
        log.debug("%s is %s (told)", view.name, view.status)
        wait.tell(records.Told, **found)
    else:
        log.debug("%s is %s (look %d)", view.name, view.status, wait.polls)
        wait.tell(records.Polled, polls=wait.polls, **found)
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


def _answer_calls(wait: Wait, view: View) -> Flow[bool]:
    """Call the functions, once each, and hand their outputs in together.

    Returns:
        Whether the server took them.

    Raises:
        ActionRequired: there is no function for some of the calls; none was called.
        ToolMismatch: a function does not fit the tool that the model sees.
    """
    ids = frozenset(call.id for call in view.calls)
    if wait.was_refused(ids):
        return False
    provider: Any = wait.terms.provider
    tools = check(wait.terms.tools, provider.schemas(wait.item))
    missing = tuple(call for call in view.calls if call.name not in tools)
    if missing:
        raise action_required(wait.item, view, missing)
    limit = max(wait.expires - SUBMIT_MARGIN, wait.now)
    warning = min(limit, wait.expires - EXPIRY_WARNING)
    if wait.expires <= wait.now:  # the server has not ended it: it is our clock that is wrong
        limit = warning = wait.deadline
    outputs = yield UseTools(view.calls, tools, warning)
    late = tuple(call.id for call in view.calls if call.id not in outputs)
    if late and wait.now < limit:
        seconds = wait.expires - wait.now
        if seconds <= EXPIRY_WARNING:
            log.warning("%s expires in %.1f s and waits for %s", view.name, seconds, late)
            wait.tell(records.ExpiryNear, seconds=seconds, call_ids=late)
        outputs = yield UseTools(view.calls, tools, limit)
    for call in view.calls:
        outputs.setdefault(call.id, error_output("not finished before the run expires"))
    try:
        item = yield from _insist(wait, Submit(wait.item, outputs))
    except Exception as error:
        # The server does not want them: somebody else's came first, or the run has moved on.
        if not is_stale_submission(error):
            raise
        log.info("%s: %s", view.name, words(error))
        if is_not_accepting(error):
            wait.answered |= ids
        wait.refuse(ids, error)
        return False
    wait.answered |= ids
    wait.begin_part(item)
    wait.tell(records.Submitted, call_ids=tuple(outputs))
    return True


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
    wait.begin_part((yield from _begin_again(wait, wait.now + delay)))
    new = wait.view
    wait.status, wait.answered, wait.refused = new.status, NONE, None
    wait.expires_at, wait.expires, wait.dated = None, math.inf, False
    wait.set_expiry()
    log.warning("%s ended (%s): %s does its work again", view.name, reason, new.id)
    wait.tell(
        records.Restarted, run_id=view.id, new_run_id=new.id, reason=reason, restarts=wait.restarts
    )


def _begin_again(wait: Wait, at: float) -> Flow[Any]:
    """Create a run that does the same work: that run.

    Not every server heeds an `Idempotency-Key`: where the answer was lost, what the request has
    made is looked for before it is sent again.
    """
    deed = Again(wait.item, f"runbell-{wait.id}-again")
    search = hasattr(wait.terms.provider, "made_again")
    while True:
        try:
            item = yield Do(deed, at)
            wait.read(item, same=False)
        except TimeIsUp:
            raise
        except Exception as error:  # noqa: BLE001 - raised again where it is not transient
            wait.bear(error)
            at = wait.retry_at or wait.now
            if not (search and may_have_worked(error)):
                continue
        else:
            return item
        found = yield from _insist(wait, FindAgain(wait.item), at)
        if found is not None:
            log.info("%s: the answer to its restart was lost, and what it made found", wait.name)
            return found
        at = wait.now


def _insist(wait: Wait, deed: Deed, at: float | None = None) -> Flow[Any]:
    """One request with an effect, until it is answered: what it gave.

    It may reach the server twice, where an answer was lost or was none: the providers send it so
    that the second has no effect, or is refused. A cancel may be answered with nothing, and what is
    looked for may not be there.
    """
    while True:
        try:
            reply = yield Do(deed, wait.now if at is None else at)
            if reply is not None or not isinstance(deed, Cancel | FindAgain):
                wait.read(reply, same=not isinstance(deed, FindAgain))
        except TimeIsUp:
            raise
        except Exception as error:  # noqa: BLE001 - raised again where it is not transient
            wait.bear(error)
            at = wait.retry_at
        else:
            wait.recovered()
            return reply


def _cancel_at_the_end(wait: Wait) -> Flow[bool]:
    """Whether the server took a cancel, in what is left of the time."""
    wait.deadline = min(wait.end, wait.now + CANCEL_SECONDS)
    try:
        yield from _insist(wait, Cancel(wait.item))
    except Exception as error:  # noqa: BLE001 - the timeout is what the caller has to hear of
        log.warning("%s could not be cancelled: %s", wait.name, words(error))
        return False
    return True
