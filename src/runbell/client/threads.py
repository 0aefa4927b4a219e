"""The synchronous driver: a thread for the fleet, and one for each deed.

The threads are daemons: they never keep a process from ending.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

from runbell.client.deeds import Order, UseTool
from runbell.client.fleet import Fleet
from runbell.client.hands import Entry, Hands, OutOfTime, contained, run_async, run_now
from runbell.client.mail import Join, Landed, Leave, Mail, Told
from runbell.clock import Clock
from runbell.errors import RunbellError

__all__ = ["Mailbox", "Threads", "call_function"]


class Mailbox:
    """Where mail waits for the fleet."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queue: queue.SimpleQueue[Mail | None] = queue.SimpleQueue()

    def put(self, mail: Mail | None) -> None:
        """Add mail; None only wakes whoever waits."""
        self._queue.put(mail)

    def drain(self) -> list[Mail]:
        """All the mail there is."""
        found: list[Mail] = []
        with contextlib.suppress(queue.Empty):
            while True:
                each = self._queue.get_nowait()
                if each is not None:
                    found.append(each)
        return found

    def take(self, until: float | None) -> list[Mail]:
        """All the mail, as soon as there is some; nothing, where there is none until then."""
        timeout = None if until is None else max(0.0, until - self._clock.monotonic())
        if timeout is not None:  # the platform's waits have an end
            timeout = min(timeout, threading.TIMEOUT_MAX)
        try:
            first = self._queue.get(timeout=timeout)
        except queue.Empty:
            return []
        return ([] if first is None else [first]) + self.drain()

    @property
    def is_empty(self) -> bool:
        return self._queue.empty()


class Threads:
    """Plays a fleet in a thread, for as long as anybody waits.

    Args:
        fleet: makes the fleet, given what takes events.
    """

    def __init__(
        self, fleet: Callable[[Callable[[dict[str, Any]], None]], Fleet], hands: Hands, box: Mailbox
    ) -> None:
        self._fleet = fleet(lambda event: self._box.put(Told(event)))
        self._hands = hands
        self._box = box
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False

    def post(self, mail: Mail) -> None:
        """Tell the fleet something; begins to play it if it does not play.

        Raises:
            RunbellError: the waiter was closed.
        """
        with self._lock:
            if self._closed:
                if isinstance(mail, Leave):  # whoever leaves has heard of the end
                    return
                raise RunbellError("the waiter was closed")
            if self._thread is threading.current_thread() and isinstance(mail, Join):
                raise RunbellError(
                    "a hook must not wait: it runs in the thread that all waits depend on"
                )
            self._box.put(mail)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._play, name="runbell-waiter", daemon=True
                )
                self._thread.start()

    def close(self) -> None:
        """Stop: waits that are open end with an error; what is under way is not waited for."""
        with self._lock:
            self._closed, thread = True, self._thread
        self._box.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def _abandon(self, problem: BaseException, mail: list[Mail]) -> None:
        """End every wait, those included that the fleet has not heard of yet."""
        with self._lock:  # what is posted from here on begins a thread of its own, or is refused
            self._thread = None
            self._fleet.abandon(problem, [*mail, *self._box.drain()])

    def _play(self) -> None:
        problem: BaseException = RunbellError("the waiter was closed")
        mail: list[Mail] = []
        try:
            while not self._closed:
                turn = self._fleet.turn(mail)
                for order in turn.orders:
                    self._begin(order)
                with self._lock:
                    if self._fleet.is_idle and self._box.is_empty:
                        self._thread = None
                        return
                mail = self._box.take(turn.until)
        except BaseException as error:
            problem = error
            raise
        finally:
            if self._thread is threading.current_thread():
                self._abandon(problem, mail)

    def _begin(self, order: Order) -> None:
        threading.Thread(
            target=self._carry_out, args=(order,), name="runbell-call", daemon=True
        ).start()

    def _carry_out(self, order: Order) -> None:
        try:
            value = run_now(self._hands.perform(order))
        except BaseException as error:  # noqa: BLE001 - the flow decides what it means
            self._box.put(Landed(order.number, error=contained(error)))
        else:
            self._box.put(Landed(order.number, value))


async def call_function(deed: UseTool, arguments: dict[str, Any], entry: Entry) -> Any:
    """Call a tool in this thread, or where it has a time limit in one that can be left alone.

    The threads of this driver outlive whoever waits: the entry is written when the call is over.

    Raises:
        OutOfTime: it took longer than its limit. A function can't be stopped: it goes on, and
            nobody hears of it.
    """
    context = deed.context.copy() if deed.context else contextvars.copy_context()

    def call() -> Any:
        if deed.tool.is_async:
            return run_async(deed.tool.function, arguments, deed.limit)
        result = deed.tool.function(**arguments)
        if inspect.isawaitable(result):
            return run_async(lambda: result, {}, deed.limit)
        return result

    if deed.limit is None:
        try:
            return context.run(call)
        except BaseException as error:  # noqa: BLE001 - raised again
            found = contained(error)
            raise found from found.__cause__
    outcome: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((context.run(call), None))
        except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
            outcome.put((None, contained(error)))

    threading.Thread(target=work, name="runbell-tool", daemon=True).start()
    try:
        value, failure = outcome.get(timeout=min(deed.limit, threading.TIMEOUT_MAX))
    except queue.Empty:
        raise OutOfTime(deed.limit) from None
    if failure is not None:
        raise failure
    return value
