"""A server that does everything that the table of statuses allows, and everything that networks
do, in virtual time."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

from runbell.client.deeds import Again, Cancel, Retrieve, Submit, UseTool
from runbell.client.hands import ToolOutcome
from runbell.client.mail import Landed
from runbell.client.simulation import SimulatedRun
from runbell.client.view import Answer
from runbell.errors import BadAnswer
from runbell.runs import TRANSITIONS, RunStatus, ToolCall

S = RunStatus


class Refused(Exception):
    """An HTTP error, as the flow sees the SDK's."""

    def __init__(self, status, message="", headers=None):
        super().__init__(message)
        self.status_code = status
        self.response = type("Response", (), {"headers": headers or {}})()


class LegalServer:
    """One run with a random legal history; stale, failing and late answers.

    Attributes:
        ran: how often the function of each call id was called.
        accepted: the outputs that the server took, in order.
        truth: the status at the end of the history so far.
    """

    def __init__(self, seed, *, trouble=0.3, expires_in=60.0):
        self.rng = random.Random(seed)
        self.trouble = trouble
        self.expires_at = expires_in
        self.now = 0.0
        self.status = S.QUEUED
        self.turn = 0
        self.calls = ()
        self.next_at = self.rng.expovariate(0.5)
        self.old = []
        self.ran = Counter()
        self.accepted = []
        self.runs = 1
        self.looks = []

    # The run.

    def _move_on(self, now):
        while self.next_at <= now and not self.status.is_terminal:
            self.now = self.next_at
            self._step()
        if not self.status.is_terminal and now >= self.expires_at:
            self._become(S.EXPIRED)
        self.now = now

    def _step(self):
        ways = sorted(TRANSITIONS[self.status] - {S.EXPIRED})
        if self.status is S.REQUIRES_ACTION:
            ways = [S.CANCELLED] if self.rng.random() < 0.05 else []
        if ways:
            self._become(self.rng.choice(ways))
        self.next_at = self.now + self.rng.expovariate(0.5)

    def _become(self, status):
        self.old.append(self._run())
        self.status = status
        if status is S.REQUIRES_ACTION:
            self.turn += 1
            count = self.rng.randint(1, 3)
            self.calls = tuple(
                ToolCall(f"call_{self.turn}_{number}", "f", "{}") for number in range(count)
            )

    def _run(self):
        wants = self.calls if self.status is S.REQUIRES_ACTION else ()
        return SimulatedRun(
            "run", str(self.status), created_at=0.0, expires_at=self.expires_at, calls=wants
        )

    # The wire.

    def perform(self, order, sent):
        latency = self.rng.uniform(0.01, 0.5)
        if self.rng.random() < 0.05 * self.trouble:
            latency = min(self.rng.uniform(1, 40), order.timeout)
        if isinstance(order.deed, UseTool):
            self.ran[order.deed.call.id] += 1
            took = self.rng.choice([0.0, 0.5, 5.0, 100.0])
            return sent + took, Landed(order.number, ToolOutcome("out", took))
        try:
            if self.rng.random() < self.trouble / 2:
                raise self._problem()
            value = self._serve(order.deed, sent + latency / 2)
            if self.rng.random() < self.trouble / 4:
                raise self._problem()  # the answer is lost, what was asked is done
        except Exception as error:  # noqa: BLE001 - it is thrown into the flow
            return sent + latency, Landed(order.number, error=error)
        return sent + latency, Landed(order.number, value)

    def _problem(self):
        return self.rng.choice(
            [
                Refused(429, headers={"retry-after-ms": "300"}),
                Refused(429),
                Refused(500),
                Refused(503),
                ConnectionResetError(),
                TimeoutError(),
                BadAnswer("a page"),
            ]
        )

    def _serve(self, deed, now):
        self._move_on(now)
        match deed:
            case Retrieve():
                self.looks.append(now)
                run = self._run()
                if not self.status.is_terminal and self.old and self.rng.random() < self.trouble:
                    run = self.rng.choice(self.old[-2:])
                return Answer(run, server_time=now)
            case Submit(_, outputs):
                if self.status is not S.REQUIRES_ACTION:
                    raise Refused(
                        400, f'Runs in status "{self.status}" do not accept tool outputs.'
                    )
                if set(outputs) != {call.id for call in self.calls}:
                    raise Refused(400, "Expected tool outputs for call_ids [...], got [...]")
                self.accepted += outputs
                self._become(S.QUEUED)
                self.next_at = now + self.rng.expovariate(0.5)
                return self._run()
            case Cancel():
                if self.status.is_terminal:
                    raise Refused(400, f"Cannot cancel run with status '{self.status}'.")
                self._become(S.CANCELLED)
                return self._run()
            case Again():
                raise AssertionError("nobody asked for another run")
        raise AssertionError(deed)

    def settled(self, now):
        """How the run stands in truth."""
        self._move_on(now)
        return replace(self._run())
