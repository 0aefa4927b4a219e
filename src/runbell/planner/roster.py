"""The policies that a plan compares, and what comes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runbell.pacing import Backoff, Backstop, Fixed
from runbell.pacing.foresight import Foresight
from runbell.planner.playing import Outcome, held, polled, told
from runbell.planner.traces import Floats
from runbell.planner.workload import Workload

__all__ = ["BACKSTOP", "FORESIGHT", "LONG_POLL", "ROSTER", "SDK", "Contender", "Setting", "taught"]

FORESIGHT, LONG_POLL, SDK = "Foresight", "long poll", "openai SDK"
WEBHOOK, BACKSTOP = "webhook", "webhook with backstop"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all policies are played in.

    Attributes:
        draws: how long runs take, by kind.
        known: what a waiter has learned of such runs.
    """

    load: Workload
    draws: Mapping[str, Floats]
    known: Foresight


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to hear of the end of a run.

    Attributes:
        what: in words, for the report.
        play: what comes of it.
        paced: the waiter keeps its calls within the quota, so that none is refused.
        pushed: it needs an endpoint.
    """

    name: str
    what: str
    play: Callable[[Setting], Outcome]
    paced: bool = False
    pushed: bool = False


@dataclass(frozen=True, slots=True)
class _TightLoop:
    """Asks again as soon as it is answered."""

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        return 0.0


@dataclass(frozen=True, slots=True)
class _Silent:
    """Never asks: what events do not tell is noticed at the deadline of the wait."""

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class _Advised:
    """The SDK's loop where the server sends `openai-poll-after-ms`: it is read once."""

    pause: float

    def next_delay(self, elapsed: float, polls: int) -> float | None:
        return self.pause if polls else 0.0


def taught(load: Workload) -> Foresight:
    """What a waiter knows that has seen the latest runs of each kind."""
    known = Foresight(load.delay_price, load.latency)
    for kind, seconds in load.trace.history().items():
        for each in seconds:
            known.observe(kind, float(each))
    return known


def _by(policy: object) -> Callable[[Setting], Outcome]:
    def play(here: Setting) -> Outcome:
        return polled(here.draws, dict.fromkeys(here.draws, policy), here.load.latency)  # type: ignore[arg-type]

    return play


def _hint(seconds: float) -> float:
    """What the service makes of it: whole milliseconds, from 50 to a minute."""
    return max(50, min(round(1000 * seconds), 60_000)) / 1000


def _advised(here: Setting) -> Outcome:
    half = here.load.latency / 2
    policies = {kind: _Advised(_hint(here.known.poll_after(kind, half))) for kind in here.draws}
    return polled(here.draws, policies, here.load.latency)


def _foresight(here: Setting) -> Outcome:
    policies = {kind: here.known.policy(kind) for kind in here.draws}
    return polled(here.draws, policies, here.load.latency)


def _long_poll(here: Setting) -> Outcome:
    return held(here.draws, Backoff(), here.load.latency)


def _webhook(here: Setting) -> Outcome:
    return told(here.draws, _Silent(), here.load.latency, here.load.webhook_loss)


def _backstop(here: Setting) -> Outcome:
    return told(here.draws, Backstop(), here.load.latency, here.load.webhook_loss)


ROSTER: tuple[Contender, ...] = (
    Contender("tight loop", "ask again as soon as it is answered", _by(_TightLoop())),
    Contender("fixed 1 s", "at once, then a second after each answer", _by(Fixed(1.0))),
    Contender("fixed 2 s", "at once, then every two seconds", _by(Fixed(2.0))),
    Contender("fixed 3 s", "at once, then every three seconds", _by(Fixed(3.0))),
    Contender("tutorial", "0.5 s, each pause 1.5 times longer, 5 s at most", _by(Backoff())),
    Contender(SDK, "its poll methods, on a server that advises nothing", _by(Fixed(1.0))),
    Contender("SDK, advised", "the same, told its pause once by Runbell's service", _advised),
    Contender(FORESIGHT, "Runbell's waiter: polls where runs of this kind end", _foresight, True),
    Contender(LONG_POLL, "the waiter, on a server that holds the request", _long_poll, True),
    Contender(WEBHOOK, "a signed event, and nothing else", _webhook, True, True),
    Contender(BACKSTOP, "an event, and a poll after 30 s of silence", _backstop, True, True),
)
