"""How an event gets through the inbox: units of work, written once for every database.

    waiting ──claim──► waiting, held by somebody ──► handled
       ▲                 │   │   │
       │   it failed     │   │   └──► dead, after its last try
       └─────────────────┘   └──────► waiting again, once the claim has lapsed

`attempts` counts the claims and is the fence: what a holder writes that lost its claim changes
nothing.

Several processes claim at a time, on PostgreSQL truly at the same time: an event goes to whoever
locks its row first, and the others pass over it. A unit that claims changes no other rows than
those, so that it waits for nobody; what follows from what it found is done in units of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    ColumnElement,
    bindparam,
    cast,
    false,
    func,
    literal_column,
    null,
    select,
    text,
    update,
)

from runbell.receiver import schema, turns
from runbell.receiver.events import Envelope
from runbell.receiver.order import HANDLE, Around, Verdict, decide
from runbell.storage.codec import JsonColumn, to_json
from runbell.storage.statements import Statement, limited
from runbell.storage.store import Row, Transaction

__all__ = [
    "Claimed",
    "Claims",
    "Over",
    "bury",
    "claim",
    "finish",
    "hurry",
    "mark",
    "next_due",
    "release",
    "renew",
    "retry",
    "set_aside",
]

LONGEST_ERROR = 500
"""Characters of an error that are kept."""

_e = schema.events.c
_first: ColumnElement[int] = literal_column("1")
_waiting = text(schema.WAITING)

DUE = Statement(
    "inbox_events.due",
    "Events whose time has come, those that have waited longest first; on PostgreSQL locked, and "
    "without those that somebody else has locked.",
    limited(
        select(
            _e.position,
            _e.id,
            _e.type,
            _e.subject,
            _e.sequence,
            _e.urgent,
            _e.body,
            _e.received_at_ms,
            _e.attempts,
            _e.done,
            _e.forced,
            _e.claim,
            _e.error,
        )
        .where(_waiting, _e.due_at_ms <= bindparam("now_ms"))
        .order_by(_e.due_at_ms, _e.position)
    ).with_for_update(key_share=True, skip_locked=True),
)
NEXT_DUE = Statement(
    "inbox_events.next_due",
    "When the next event is due.",
    select(func.min(_e.due_at_ms)).where(_waiting),
)
_claimed_now = update(schema.events).values(
    claim=bindparam("holder"), due_at_ms=bindparam("until_ms"), attempts=_e.attempts + _first
)
_places = func.json_each(bindparam("places")).table_valued("value")
_places_there = func.json_array_elements_text(cast(bindparam("places"), JSON)).table_valued("value")
CLAIM = Statement(
    "inbox_events.claim",
    "Hold events until a moment.",
    _claimed_now.where(_e.position.in_(select(_places.c.value))),
    postgresql=_claimed_now.where(
        _e.position.in_(select(cast(_places_there.c.value, _e.position.type)))
    ),
)
_untils = func.json_each(bindparam("untils")).table_valued("key")
_untils_there = (
    func.json_each_text(cast(bindparam("untils"), JSON))
    .table_valued("key", "value")
    .alias("untils")
)
_place = _e.position.type
POSTPONE = Statement(
    "inbox_events.postpone",
    "It is not the turn of some events yet; each has its own moment.",
    # Not from the list itself, as below: SQLite can't do that in the versions of old systems.
    update(schema.events)
    .values(
        due_at_ms=func.json_extract(
            bindparam("untils"), literal_column("'$.\"' || position || '\"'")
        )
    )
    .where(_e.position.in_(select(cast(_untils.c.key, _place)))),
    postgresql=update(schema.events)
    .values(due_at_ms=cast(_untils_there.c.value, _e.due_at_ms.type))
    .where(_e.position == cast(_untils_there.c.key, _place)),
)
_ended = update(schema.events).values(
    state=bindparam("outcome"),
    ended_at_ms=bindparam("now_ms"),
    claim=null(),
    forced=false(),
    error=bindparam("why"),
)
_seen = (_e.position == bindparam("place"), _waiting, _e.attempts == bindparam("attempt"))
_held = (*_seen, _e.claim == bindparam("holder"))
MARK = Statement(
    "inbox_events.mark",
    "An event is done with, or dead, without having been held since it was looked at.",
    _ended.where(*_seen, _e.forced == bindparam("by_hand")),
)
END = Statement("inbox_events.end", "Its holder is done with an event.", _ended.where(*_held))
RETRY = Statement(
    "inbox_events.retry",
    "It failed: try again at a moment, without the handlers that have succeeded.",
    update(schema.events)
    .values(
        due_at_ms=bindparam("until_ms"),
        claim=null(),
        done=bindparam("succeeded"),
        error=bindparam("why"),
    )
    .where(*_held),
)
RENEW = Statement(
    "inbox_events.renew",
    "Hold on to an event.",
    update(schema.events).values(due_at_ms=bindparam("until_ms")).where(*_held),
)
SET_ASIDE = Statement(
    "inbox_events.set_aside",
    "Its turn has not come after all: look again at a moment, as if it had never been held.",
    update(schema.events)
    .values(
        due_at_ms=bindparam("until_ms"),
        claim=null(),
        attempts=_e.attempts - _first,
        done=bindparam("succeeded"),
        error=bindparam("why"),
    )
    .where(*_held),
)
RELEASE = Statement(
    "inbox_events.release",
    "Let go of all that a process holds, as if it had never been held: it is due at once.",
    update(schema.events)
    .values(due_at_ms=bindparam("now_ms"), claim=null(), attempts=_e.attempts - _first)
    .where(_waiting, _e.claim == bindparam("holder")),
)

_names = JsonColumn(list[str])


@dataclass(frozen=True, slots=True)
class Claimed:
    """An event that is held, for its handlers.

    Attributes:
        attempt: 1 the first time; the fence of whoever holds it.
        done: names of handlers that have succeeded already.
        lapsed: somebody held it before, and let it lapse.
        is_first: no handler has had it yet, as far as is known.
    """

    position: int
    id: str
    envelope: Envelope
    body: bytes
    received_at_ms: int
    attempt: int
    done: frozenset[str]
    lapsed: bool
    is_first: bool


@dataclass(frozen=True, slots=True)
class Over:
    """An event that is not handled: to be marked as such, unless it has changed by then.

    Attributes:
        outcome: `stale`, since it was overtaken, or `dead`, since its last try ended the process.
        forced: somebody had asked for it by hand.
    """

    claimed: Claimed
    outcome: Literal["stale", "dead"]
    forced: bool


@dataclass(frozen=True, slots=True)
class Claims:
    """What came of looking for work.

    Attributes:
        taken: events that are held now.
        over: events to be marked.
        hurried: runs whose first event need not wait for a gap any more, to be woken.
        full: there may be more that is due.
    """

    taken: Sequence[Claimed] = ()
    over: Sequence[Over] = ()
    hurried: Collection[str] = ()
    full: bool = False


async def claim(
    tx: Transaction,
    holder: str,
    *,
    now_ms: int,
    lease_ms: int,
    gap_ms: int,
    max_attempts: int,
    limit: int,
    held: Collection[int] = (),
) -> Claims:
    """Hold up to `limit` events whose time and turn have come, until `lease_ms` from now.

    Args:
        held: positions of events whose handlers run in this very process: they are not handed out
            again, whatever the clock says of their claims.
    """
    rows = await tx.fetch_all(DUE, {"now_ms": now_ms, "limit": limit})
    free = await turns.hold_free(tx, (row[3] for row in rows if row[4] is not None))
    looking = _Looking(tx, holder, now_ms, now_ms + lease_ms, gap_ms, free)
    due: list[_Due] = []
    for row in rows:
        claimed, forced = _claimed(row), bool(row[10])
        if claimed.position in held:
            # The clock was set, or nobody here came to renew it: its handler still runs.
            looking.postponed[claimed.position] = now_ms + lease_ms
        elif claimed.attempt > max_attempts:
            # It ended every process that held it: nobody was left to say that it failed.
            looking.over.append(Over(claimed, "dead", forced))
        else:
            due.append((claimed, forced))
    await looking.at(due)
    return Claims(looking.taken, looking.over, looking.hurried, len(rows) == limit)


async def mark(tx: Transaction, over: Over, now_ms: int) -> bool:
    """An event is not handled; False where it has changed since it was looked at."""
    await turns.hold(tx, over.claimed.envelope)
    claimed = over.claimed
    seen = {"place": claimed.position, "attempt": claimed.attempt - 1, "by_hand": over.forced}
    why = "its handler never ended" if over.outcome == "dead" else None
    ended = {"outcome": over.outcome, "now_ms": now_ms, "why": why}
    if not await tx.execute(MARK, seen | ended):
        return False
    await turns.advance(tx, claimed.envelope, now_ms)
    return True


async def hurry(tx: Transaction, run: str, now_ms: int) -> None:
    """Look at once at the first event of a run, behind which somebody waits for one."""
    await turns.wake_first(tx, run, now_ms)


async def next_due(tx: Transaction) -> int | None:
    """When the next event is due, in milliseconds since the epoch; None where none waits."""
    row = await tx.fetch_one(NEXT_DUE, {})
    return row[0] if row is not None else None


async def finish(
    tx: Transaction, claimed: Claimed, holder: str, now_ms: int, *, wanted: bool = True
) -> bool:
    """An event is handled; False where somebody else holds it by now.

    Args:
        wanted: there was a handler for it.
    """
    outcome = "handled" if wanted else "unhandled"
    return await _end(tx, claimed, holder, now_ms, outcome, None)


async def bury(tx: Transaction, claimed: Claimed, holder: str, now_ms: int, error: str) -> bool:
    """An event has failed for the last time; False where somebody else holds it by now."""
    return await _end(tx, claimed, holder, now_ms, "dead", error[:LONGEST_ERROR])


async def retry(
    tx: Transaction,
    claimed: Claimed,
    holder: str,
    *,
    until_ms: int,
    done: frozenset[str],
    error: str,
) -> bool:
    """An event has failed and is tried again; False where somebody else holds it by now."""
    params = _hold(claimed, holder) | {
        "until_ms": until_ms,
        "succeeded": _written(done),
        "why": error[:LONGEST_ERROR],
    }
    return bool(await tx.execute(RETRY, params))


async def renew(
    tx: Transaction, held: Iterable[Claimed], holder: str, until_ms: int
) -> list[Claimed]:
    """Hold on to what is held; those that somebody else holds by now."""
    return [
        claimed
        for claimed in held
        if not await tx.execute(RENEW, _hold(claimed, holder) | {"until_ms": until_ms})
    ]


async def set_aside(
    tx: Transaction, claimed: Claimed, holder: str, *, until_ms: int, done: frozenset[str]
) -> bool:
    """Handle an event later, without having failed; False where somebody else holds it by now."""
    why = "a side effect of it is in progress elsewhere"
    params = {"until_ms": until_ms, "succeeded": _written(done), "why": why}
    return bool(await tx.execute(SET_ASIDE, _hold(claimed, holder) | params))


async def release(tx: Transaction, holder: str, now_ms: int) -> None:
    """Let go of everything that is held, without having failed."""
    await tx.execute(RELEASE, {"holder": holder, "now_ms": now_ms})


_Due = tuple[Claimed, bool]
"""An event whose time has come, and whether somebody has asked for it by hand."""


@dataclass(slots=True)
class _Looking:
    """One look at what is due, and what came of it so far.

    Attributes:
        until_ms: for how long events are held.
        free: runs that nobody else decides on meanwhile.
        taken_now: those of `taken` of which the inbox does not know yet.
        postponed: likewise, until when events are put off.
    """

    tx: Transaction
    holder: str
    now_ms: int
    until_ms: int
    gap_ms: int
    free: Collection[str]
    taken: list[Claimed] = field(default_factory=list)
    over: list[Over] = field(default_factory=list)
    hurried: set[str] = field(default_factory=set)
    taken_now: list[Claimed] = field(default_factory=list)
    postponed: dict[int, int] = field(default_factory=dict)

    async def at(self, due: Sequence[_Due]) -> None:
        """Take those events whose turn it is.

        What is decided on an event depends on what was decided on one of the same run: so they are
        looked at together with those of other runs, and after one another.
        """
        while due:
            first, due = _first_of_each_run(due)
            await self._decide(first)
            await self._write_down()
        await self._write_down()

    async def _decide(self, due: Sequence[_Due]) -> None:
        ordered = [each for each in due if _run_of(each) in self.free]
        envelopes = [claimed.envelope for claimed, _ in ordered]
        around = await turns.around(self.tx, envelopes) if ordered else ()
        known = {each[0].position: found for each, found in zip(ordered, around, strict=True)}
        for each in due:
            if _run_of(each) is None:
                self._do(each, HANDLE)
            elif each[0].position in known:
                self._do(each, self._turn(each, known[each[0].position]))
            # Or it is looked at again when whoever decides on its run has decided.

    def _turn(self, due: _Due, around: Around) -> Verdict:
        claimed, forced = due
        return decide(
            claimed.envelope.sequence or 0,
            around,
            urgent=claimed.envelope.urgent,
            forced=forced,
            gap_until_ms=claimed.received_at_ms + self.gap_ms,
            now_ms=self.now_ms,
        )

    def _do(self, due: _Due, verdict: Verdict) -> None:
        claimed, forced = due
        run = claimed.envelope.subject
        if verdict.what == "stale":
            self.over.append(Over(claimed, "stale", forced))
        elif verdict.what == "handle":
            self.taken.append(claimed)
            self.taken_now.append(claimed)
        else:
            self.postponed[claimed.position] = verdict.until_ms
            if claimed.envelope.urgent and run is not None:
                # What stands in front of it may wait for a gap, and has to wait no longer.
                self.hurried.add(run)

    async def _write_down(self) -> None:
        """Tell the inbox who holds what was taken, and until when the others are put off."""
        if self.taken_now:
            places = to_json([claimed.position for claimed in self.taken_now])
            held = {"places": places, "holder": self.holder, "until_ms": self.until_ms}
            await self.tx.execute(CLAIM, held)
            self.taken_now.clear()
        if self.postponed:
            untils = to_json({str(place): until for place, until in self.postponed.items()})
            await self.tx.execute(POSTPONE, {"untils": untils})
            self.postponed.clear()


def _run_of(due: _Due) -> str | None:
    """The run that an event has a number in."""
    envelope = due[0].envelope
    return envelope.subject if envelope.sequence is not None else None


def _first_of_each_run(due: Sequence[_Due]) -> tuple[list[_Due], list[_Due]]:
    """The first event of each run, and all that belong to none; and those behind them."""
    first: list[_Due] = []
    others: list[_Due] = []
    seen: set[str] = set()
    for each in due:
        run = _run_of(each)
        if run in seen:
            others.append(each)
            continue
        if run is not None:
            seen.add(run)
        first.append(each)
    return first, others


async def _end(
    tx: Transaction, claimed: Claimed, holder: str, now_ms: int, outcome: str, error: str | None
) -> bool:
    await turns.hold(tx, claimed.envelope)
    params = _hold(claimed, holder) | {"outcome": outcome, "now_ms": now_ms, "why": error}
    if not await tx.execute(END, params):
        return False
    await turns.advance(tx, claimed.envelope, now_ms)
    return True


def _hold(claimed: Claimed, holder: str) -> dict[str, Any]:
    return {"place": claimed.position, "holder": holder, "attempt": claimed.attempt}


def _written(names: frozenset[str]) -> str | None:
    return to_json(sorted(names)) if names else None


def _claimed(row: Row) -> Claimed:
    (position, event_id, kind, subject, sequence, urgent, body, at_ms, attempts, done, *rest) = row
    _, held, error = rest
    return Claimed(
        position,
        event_id,
        Envelope(kind, subject, sequence, bool(urgent)),
        body,
        at_ms,
        attempts + 1,
        frozenset(_names.decode(done)) if done else frozenset(),
        held is not None,
        attempts == 0 and error is None,
    )
