"""The simulating driver: the flow that programs wait with, in a time that costs nothing.

What it does is what the waiters do, since the flow and the fleet are the same; only the server is
played, by a `World`.

    world = Scripted({"run_1": [(0.0, "queued"), (4.2, "completed")]}, latency=0.15)
    simulation = Simulation(world)
    simulation.begin(0.0, ["run_1"], policy=Backoff())
    for ending in simulation.run():
        print(ending.item.status, ending.at, ending.polls)
"""

from __future__ import annotations

import heapq
import itertools
import random
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from runbell.client.deeds import Order, Retrieve, RetrieveMany
from runbell.client.fleet import Fleet
from runbell.client.flow import waiting
from runbell.client.learning import Learning
from runbell.client.mail import Join, Landed, Mail, Told
from runbell.client.providers.runs import stage_of
from runbell.client.server import Server
from runbell.client.view import Answer, View
from runbell.client.wait import Done, Terms, Wait
from runbell.client.wishes import Flow
from runbell.clock import VirtualClock
from runbell.pacing import Pacer, PolicySource, WorthPacer
from runbell.pacing.policies import Backoff
from runbell.runs import Deliver, ToolCall

__all__ = ["Ending", "Scripted", "SimulatedRun", "Simulation", "World"]


class World(Protocol):
    """The server, and whatever else answers."""

    def perform(self, order: Order, sent: float) -> tuple[float, Landed]:
        """The moment at which the order has landed, in seconds of the simulation, and as what."""
        ...


class Ending(NamedTuple):
    """How a wait went. `at` is the moment of its end in seconds of the simulation."""

    item: Any
    error: BaseException | None
    at: float
    waited: float
    polls: int


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What a simulated server answers. Stamps are seconds since the epoch of the simulation; `kind`
    is for the policy that learns."""

    id: str
    status: str = "queued"
    created_at: float | None = None
    started_at: float | None = None
    expires_at: float | None = None
    thread_id: str | None = None
    calls: tuple[ToolCall, ...] = ()
    kind: Any = ()


class SimulatedRuns:
    """The provider of simulated runs: statuses mean what they mean for real ones.

    Args:
        holds: the server may be asked to hold requests.
    """

    def __init__(self, holds: bool = False) -> None:
        self.holds = holds

    def owns(self, item: object) -> bool:
        return isinstance(item, SimulatedRun)

    def view(self, item: SimulatedRun) -> View:
        return View(
            id=item.id,
            status=item.status,
            stage=stage_of(item.status),
            thread_id=item.thread_id,
            created_at=item.created_at,
            started_at=item.started_at,
            expires_at=item.expires_at,
            calls=item.calls,
        )

    def told(self, item: SimulatedRun, event: Mapping[str, Any]) -> SimulatedRun:
        """How the run is by this event."""
        return replace(item, status=event["data"]["status"])

    def kind_of(self, item: SimulatedRun) -> Any:
        """As it was said when the simulation began."""
        return item.kind

    def schemas(self, item: SimulatedRun) -> Mapping[str, Any]:
        """Nothing is said about the functions that the model sees."""
        return {}

    def retrieve(self, client: Any, item: SimulatedRun, **options: Any) -> Any:
        """Never called: `World` answers."""
        raise NotImplementedError


class Scripted:
    """A world in which each run has its history, and every request takes the same time.

    A request is answered from the state halfway through it.

    Args:
        histories: by run id: moments in seconds of the simulation, and the status from then on.
        latency: seconds from a request to its answer.
        holds: the server applies `Prefer: wait`.
    """

    def __init__(
        self,
        histories: Mapping[str, Sequence[tuple[float, str]]],
        latency: float = 0.15,
        holds: bool = False,
    ) -> None:
        self._histories = histories
        self._latency = latency
        self._holds = holds
        self.requests: list[tuple[float, str]] = []

    def perform(self, order: Order, sent: float) -> tuple[float, Landed]:
        deed, seen = order.deed, sent + self._latency / 2
        match deed:
            case Retrieve(item, hold):
                self.requests.append((sent, item.id))
                if hold and self._holds:
                    seen = min(max(seen, self._settled(item.id)), seen + hold)
                answer = Answer(self._run(item.id, seen), held=self._holds and hold is not None)
            case RetrieveMany(items):
                self.requests.append((sent, f"{len(items)} runs"))
                answer = Answer({item.id: self._run(item.id, seen) for item in items})
            case _:
                raise NotImplementedError(f"nobody plays {type(deed).__name__}")
        return seen + self._latency / 2, Landed(order.number, answer)

    def _settled(self, run_id: str) -> float:
        ends = (at for at, status in self._histories[run_id] if stage_of(status) != "pending")
        return next(ends, float("inf"))

    def _run(self, run_id: str, at: float) -> SimulatedRun:
        history = self._histories[run_id]
        place = max(bisect_right(history, at, key=lambda each: each[0]) - 1, 0)
        started = next((when for when, status in history if status == "in_progress"), None)
        return SimulatedRun(
            run_id,
            history[place][1],
            created_at=history[0][0],
            started_at=started if started is not None and started <= at else None,
        )


class Simulation:
    """Plays waits in virtual time.

    Args:
        world: answers.
        pacer: the budget of all waits; without one there is no limit.
        hold: the server may be asked to hold requests.
        seed: of all chance.
        learning: makes the default policy, and learns.

    Attributes:
        clock: begins at 0.
    """

    def __init__(
        self,
        world: World,
        pacer: Pacer | None = None,
        *,
        hold: bool = False,
        seed: int = 0,
        learning: Learning | None = None,
    ) -> None:
        self.clock = VirtualClock(start_ms=0)
        self._world = world
        pacer = WorthPacer() if pacer is None else pacer  # an idle one may be empty, and so false
        self._fleet = Fleet(self.clock, pacer, Server(None), _Events())
        self._provider = SimulatedRuns(hold)
        self._rng = random.Random(seed)
        self._learning = learning
        self._tie = itertools.count()
        self._mail: list[tuple[float, int, Mail | _Beginning]] = []
        self._endings: list[Ending] = []

    def begin(
        self,
        at: float,
        runs: Iterable[str | SimulatedRun],
        *,
        policy: PolicySource | None = None,
        timeout: float | None = None,
        play: Callable[[Wait], Flow[Any]] = waiting,
        **terms: Any,
    ) -> None:
        """Have waits for these runs begin at a moment of the simulation.

        Args:
            play: `waiting`, or `cancelling`.
            terms: more of `Terms`.
        """
        agreed = Terms(
            provider=self._provider,
            policy=policy or (Backoff() if self._learning is None else self._learning.policy),
            learning=self._learning,
            clock=self.clock,
            rng=self._rng,
            timeout=timeout,
            **terms,
        )
        items = tuple(SimulatedRun(run) if isinstance(run, str) else run for run in runs)
        self._post(at, _Beginning(items, agreed, play))

    def tell(self, at: float, event: dict[str, Any]) -> None:
        """Have an event arrive at a moment of the simulation; waits whose terms are `pushed` hear
        of it. It has at least `data.id` and `data.status`."""
        self._post(at, Told(event))

    def run(self) -> list[Ending]:
        """Play until nobody waits any more: the endings, in order."""
        until: float | None = None
        while True:
            due = [self._mail[0][0]] if self._mail else []
            if until is not None:
                due.append(until)
            if not due:
                return self._endings
            now = self.clock.monotonic()
            self.clock.advance(max(0.0, min(due) - now))
            turn = self._fleet.turn(self._due(self.clock.monotonic()))
            now = self.clock.monotonic()
            for order in turn.orders:
                self._post(*self._world.perform(order, now))
            until = turn.until if not self._fleet.is_idle else None

    def _due(self, now: float) -> list[Mail]:
        found: list[Mail] = []
        while self._mail and self._mail[0][0] <= now:
            mail = heapq.heappop(self._mail)[2]
            found.append(mail.join(self._done) if isinstance(mail, _Beginning) else mail)
        return found

    def _post(self, at: float, mail: Mail | _Beginning) -> None:
        heapq.heappush(self._mail, (at, next(self._tie), mail))

    def _done(self, wait: Wait, value: Any, error: BaseException | None) -> None:
        now = self.clock.monotonic()
        self._endings.append(Ending(wait.item, error, now, now - wait.began, wait.polls))


class _Events:
    """An event source that needs no subscriptions: what happens is told by `Simulation.tell`."""

    def subscribe(self, run_id: str, deliver: Deliver) -> None:
        pass

    def unsubscribe(self, run_id: str, deliver: Deliver) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Waits that are to begin."""

    items: tuple[SimulatedRun, ...]
    terms: Terms
    play: Callable[[Wait], Flow[Any]]

    def join(self, done: Done) -> Join:
        return Join([Wait(item, self.terms, done) for item in self.items], self.play)
