"""The policies that a plan compares, and what comes of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runbell.pacing import Backoff, Backstop, Fixed, Policy, PolicySource
from runbell.pacing.foresight import Foresight
from runbell.planner.crowd import Crowd, Rush, loops, within
from runbell.planner.playing import Outcome, held, merged, polled, told
from runbell.planner.traces import SECONDS_A_MONTH, Floats
from runbell.planner.workload import Workload

__all__ = [
    "ADVISED", "BACKSTOP", "FORESIGHT", "LONG_POLL", "ROSTER", "SDK", "WEBHOOK", "Contender",
    "Setting", "taught",
]  # fmt: skip

FORESIGHT, LONG_POLL, SDK, ADVISED = "Foresight", "long poll", "openai SDK", "SDK, advised"
WEBHOOK, BACKSTOP = "webhook", "webhook with backstop"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all policies are played in.

    Attributes:
        draws: how long runs take, by kind.
        lessons: what waiters have learned of such runs, and other runs to judge them by.
        rush: the busiest minute; None without a quota.
    """

    load: Workload
    draws: Mapping[str, Floats]
    lessons: tuple[tuple[Foresight, Mapping[str, Floats]], ...]
    rush: Rush | None

    @classmethod
    def of(cls, load: Workload) -> Setting:
        """For what is planned for."""
        sample = load.trace.sample()
        lessons = tuple((taught(load, each.seen), each.draws) for each in sample.lessons)
        arrivals = load.runs * load.peak / SECONDS_A_MONTH
        rush = None if load.rpm is None else Rush(sample.draws, load.rpm, arrivals, load.latency)
        return cls(load, sample.draws, lessons, rush)

    @property
    def known(self) -> Foresight:
        """What one of the waiters has learned."""
        return self.lessons[0][0]


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to hear of the end of a run.

    Attributes:
        what: in words, for the report.
        play: what comes of it.
        crowd: the same at a rush, given the calls of a run that is refused nothing.
        paced: the waiter keeps its calls within the quota, so that none is refused.
        pushed: it needs an endpoint.
    """

    name: str
    what: str
    play: Callable[[Setting], Outcome]
    crowd: Callable[[Setting, Rush, float], Crowd]
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


def taught(load: Workload, seen: Mapping[str, Floats]) -> Foresight:
    """What a waiter knows that has seen these runs, by kind."""
    known = Foresight(load.delay_price, load.latency)
    for kind, seconds in seen.items():
        for each in seconds:
            known.observe(kind, float(each))
    return known


def _by(policy: Policy) -> Callable[[Setting], Outcome]:
    def play(here: Setting) -> Outcome:
        return polled(here.draws, dict.fromkeys(here.draws, policy), here.load.latency)

    return play


def _crowd_by(policy: Policy, *, retries: bool = False) -> Callable[[Setting, Rush, float], Crowd]:
    def play(here: Setting, rush: Rush, calls: float) -> Crowd:
        return loops(rush, lambda kind: policy, calls, retries=retries)

    return play


def _loop(name: str, what: str, policy: Policy, *, retries: bool = False) -> Contender:
    return Contender(name, what, _by(policy), _crowd_by(policy, retries=retries))


def _hint(seconds: float) -> float:
    """What the service makes of it: whole milliseconds, from 50 to a minute."""
    return max(50, min(round(1000 * seconds), 60_000)) / 1000


def _told_once(known: Foresight, kind: str, latency: float) -> _Advised:
    return _Advised(_hint(known.poll_after(kind, latency / 2)))


def _learning(here: Setting, policy_of: Callable[[Foresight, str], PolicySource]) -> Outcome:
    """Each lesson's waiter, judged by runs that it has not learned from."""
    return merged(
        [
            polled(draws, {kind: policy_of(known, kind) for kind in draws}, here.load.latency)
            for known, draws in here.lessons
        ]
    )


def _advised(here: Setting) -> Outcome:
    return _learning(here, lambda known, kind: _told_once(known, kind, here.load.latency))


def _crowd_advised(here: Setting, rush: Rush, calls: float) -> Crowd:
    policies = {kind: _told_once(here.known, kind, rush.latency) for kind in rush.draws}
    return loops(rush, policies.__getitem__, calls, retries=True)


def _foresight(here: Setting) -> Outcome:
    return _learning(here, lambda known, kind: known.policy(kind))


def _crowd_foresight(here: Setting, rush: Rush, calls: float) -> Crowd:
    return within(rush, here.known, here.known.policy)


def _long_poll(here: Setting) -> Outcome:
    return held(here.draws, Backoff(), here.load.latency)


def _crowd_held(here: Setting, rush: Rush, calls: float) -> Crowd:
    return within(rush, here.known, lambda kind: Backoff(), holds=True)


def _webhook(here: Setting) -> Outcome:
    return told(here.draws, _Silent(), here.load.latency, here.load.webhook_loss)


def _backstop(here: Setting) -> Outcome:
    return told(here.draws, Backstop(), here.load.latency, here.load.webhook_loss)


def _crowd_heard(policy: PolicySource) -> Callable[[Setting, Rush, float], Crowd]:
    def play(here: Setting, rush: Rush, calls: float) -> Crowd:
        heard = 1 - here.load.webhook_loss
        return within(rush, here.known, lambda kind: policy, heard=heard)

    return play


ROSTER: tuple[Contender, ...] = (
    _loop("tight loop", "ask again as soon as it is answered", _TightLoop()),
    _loop("fixed 1 s", "at once, then a second after each answer", Fixed(1.0)),
    _loop("fixed 2 s", "at once, then every two seconds", Fixed(2.0)),
    _loop("fixed 3 s", "at once, then every three seconds", Fixed(3.0)),
    _loop("tutorial", "0.5 s, each pause 1.5 times longer, 5 s at most", Backoff()),
    _loop(SDK, "its poll methods, on a server that advises nothing", Fixed(1.0), retries=True),
    Contender(
        ADVISED, "the same, told its pause once by Runbell's service", _advised, _crowd_advised
    ),
    Contender(
        FORESIGHT, "Runbell's waiter: polls where runs of this kind end", _foresight,
        _crowd_foresight, True,
    ),
    Contender(
        LONG_POLL, "the waiter, on a server that holds the request", _long_poll, _crowd_held, True
    ),
    Contender(
        WEBHOOK, "a signed event, and nothing else", _webhook, _crowd_heard(_Silent()), True, True
    ),
    Contender(
        BACKSTOP, "an event, and a poll after 30 s of silence", _backstop,
        _crowd_heard(Backstop()), True, True,
    ),
)  # fmt: skip
