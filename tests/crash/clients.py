"""Clients that live through crashes of the service: what each wants, and how it goes on.

A story is what one client does. It can be played again after the connection was lost: a client
that does not know whether a request was done looks at what is there, as a careful program would,
and goes on from that. Whatever was answered with 200 is remembered, and has to be there for ever.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle
from typing import Any, ClassVar

from runbell.testing.histories import check_histories
from tests.served import Answer, Served, eventually

__all__ = ["KINDS", "Client", "Crowd", "Lost", "Story", "run_object"]

LIMIT_S = 60.0
"""How long a run may take to get where a story waits for it, on a busy machine."""

PAUSE_S = 0.015

Histories = Mapping[str, Sequence[Any]]
"""The events of each run, by its id."""

TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g-2")]


class Lost(Exception):
    """The connection broke, or nobody listens: the client does not know what was done."""


class GivenUp(Lost):
    """The story of somebody else has gone wrong, and no other goes on."""


class Client:
    """Plain HTTP; a 503 is tried again, as its `retry-after` says.

    Attributes:
        answers: how many there were.
        is_over: nothing more is asked.
    """

    def __init__(self, served: Served) -> None:
        self._served = served
        self.assistant = ""
        self.answers = 0
        self.is_over = False

    def ask(self, method: str, path: str, json: Any = None) -> Answer:
        """One request, for as long as it takes to get an answer to it.

        Raises:
            Lost: there was none.
        """
        deadline = time.monotonic() + LIMIT_S
        while True:
            if self.is_over:
                raise GivenUp
            try:
                answer = self._served.request(method, f"/v1{path}", json=json, key=self._served.key)
            except (OSError, http.client.HTTPException) as error:
                raise Lost from error
            self.answers += 1
            if answer.status != 503 or time.monotonic() > deadline:
                return answer
            assert answer.headers["retry-after"] == "1"
            time.sleep(0.1)

    def get(self, path: str) -> Any:
        return self.ask("GET", path).ok()

    def post(self, path: str, json: Any = None) -> Any:
        return self.ask("POST", path, json).ok()

    def prepare(self) -> None:
        """Make the one assistant."""
        self.assistant = self.post("/assistants", {"model": "echo", "tools": TOOLS})["id"]

    def events(self) -> list[Any]:
        """The whole feed, page by page."""
        found: list[Any] = []
        more = True
        while more:
            after = f"&after={found[-1]['id']}" if found else ""
            page = self.get(f"/events?limit=100{after}")
            assert not found or page["first_id"] != found[-1]["id"]
            found += page["data"]
            more = page["has_more"]
        return found

    def listed(self, path: str) -> list[Any]:
        """A whole list, the oldest first."""
        page = self.get(f"{path}?order=asc&limit=100")
        assert not page["has_more"]
        data: list[Any] = page["data"]
        return data

    def dialogue(self, thread: str) -> list[tuple[str, str]]:
        """A thread's messages: who said what."""
        return [
            (message["role"], message["content"][0]["text"]["value"])
            for message in self.listed(f"/threads/{thread}/messages")
        ]


def run_object(client: Client, thread: str, run: str) -> Any:
    return client.get(f"/threads/{thread}/runs/{run}")


class Story:
    """One client's wish: a thread with the message `text`, and a run on it that ends as `ends`."""

    text: ClassVar[str]
    ends: ClassVar[str] = "completed"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, client: Client, number: int) -> None:
        self.client = client
        self.number = number
        self.thread = ""
        self.run = ""
        self.outputs: dict[str, str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number}: {self.thread} {self.run}>"

    def said(self) -> str:
        """The user's message."""
        return self.text.replace("#", str(self.number))

    def play(self) -> None:
        """Do what is left to do."""
        if not self.thread:
            message = {"role": "user", "content": self.said()}
            self.thread = self.client.post("/threads", {"messages": [message]})["id"]
        if not self.run:
            self.run = self.begun({}, **self.options)
        self.follow()

    def begun(self, metadata: dict[str, str], **fields: Any) -> str:
        """A run of the thread with this metadata: one that is there already, else a new one."""
        for run in self.client.listed(f"/threads/{self.thread}/runs"):
            if run["metadata"] == metadata:
                return str(run["id"])
        body = {"assistant_id": self.client.assistant, "metadata": metadata, **fields}
        created = self.client.post(f"/threads/{self.thread}/runs", body)
        assert created["status"] == "queued"
        return str(created["id"])

    def follow(self) -> None:
        """Wait until the run has ended."""
        self.until(self.run, lambda run: bool(run["status"] == self.ends))

    def until(self, run_id: str, done: Callable[[Any], bool]) -> Any:
        """Wait for a run, and answer its calls meanwhile."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            run = run_object(self.client, self.thread, run_id)
            if done(run):
                return run
            assert time.monotonic() < deadline, f"{self} is stuck: {run}"
            assert not is_over(run), f"{self} ended otherwise: {run}"
            if run["status"] == "requires_action":
                self.act(run)
            time.sleep(PAUSE_S)

    def act(self, run: Any) -> None:
        """Give the run the outputs of its calls; if they were given already, so be it."""
        calls = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        given = []
        for call in calls:
            output = f"{call['function']['name']} of {self.number} said {call['id']}"
            self.outputs[call["id"]] = output
            given.append({"tool_call_id": call["id"], "output": output})
        path = f"/threads/{self.thread}/runs/{run['id']}/submit_tool_outputs"
        answer = self.client.ask("POST", path, {"tool_outputs": given[::-1]})
        if answer.status != 200:
            assert "do not accept tool outputs" in answer.error["message"]

    # Afterwards.

    def check(self, histories: Histories) -> None:
        """Everything is as it has to be: one answer, whole, and nothing twice."""
        run = run_object(self.client, self.thread, self.run)
        assert run["status"] == self.ends, run
        assert histories[self.run][-1]["data"]["status"] == self.ends
        assert self.dialogue() == [("user", self.said()), *self.answered()], self

    def answered(self) -> list[tuple[str, str]]:
        return [("assistant", self.said())] if self.ends == "completed" else []

    def dialogue(self) -> list[tuple[str, str]]:
        return self.client.dialogue(self.thread)

    def check_free(self) -> None:
        """The thread is held by nobody: another run on it completes."""
        message = {"role": "user", "content": "and now?"}
        run = self.begun({"name": "afterwards"}, additional_messages=[message])
        self.until(run, lambda run: bool(run["status"] == "completed"))


def is_over(run: Any) -> bool:
    return run["status"] in ("completed", "failed", "cancelled", "expired", "incomplete")


class Talks(Story):
    """The common case."""

    text = "Tell me about #."


class CallsInParallel(Story):
    """Two calls at once, answered together and in another order."""

    text = 'call f {"n": #}\ncall g-2 {"n": #}'
    calls = 2

    def answered(self) -> list[tuple[str, str]]:
        return [("assistant", "\n".join(self.outputs.values()))]

    def check(self, histories: Histories) -> None:
        super().check(histories)
        steps = self.client.listed(f"/threads/{self.thread}/runs/{self.run}/steps")
        asked = [step for step in steps if step["type"] == "tool_calls"]
        assert [step["status"] for step in steps] == ["completed"] * len(steps)
        given = [
            (call["id"], call["function"]["output"])
            for step in asked
            for call in step["step_details"]["tool_calls"]
        ]
        assert given == list(self.outputs.items()), "each call was answered once"
        assert len(given) == 2
        assert len(asked) == 2 // self.calls
        assert len(steps) == len(asked) + 1


class CallsInTurn(CallsInParallel):
    """One call, its output, the next call."""

    options: ClassVar[dict[str, Any]] = {"parallel_tool_calls": False}
    calls = 1


class IsCancelled(Story):
    """A run that takes far too long, until somebody has enough."""

    text = "sleep 600"
    ends = "cancelled"

    def follow(self) -> None:
        self.until(self.run, self._cancelled)

    def _cancelled(self, run: Any) -> bool:
        if run["status"] == "in_progress":
            path = f"/threads/{self.thread}/runs/{self.run}/cancel"
            answer = self.client.ask("POST", path)
            assert answer.status == 200 or "Cannot cancel" in answer.error["message"]
        return bool(run["status"] == "cancelled")


class Expires(Story):
    """A run that takes too long for its own limit."""

    text = "sleep 600"
    ends = "expired"
    options: ClassVar[dict[str, Any]] = {"expires_after": 1}


class ExpiresUnanswered(Story):
    """A run whose calls nobody answers."""

    text = "call f {}"
    ends = "expired"
    options: ClassVar[dict[str, Any]] = {"expires_after": 1}

    def act(self, run: Any) -> None:
        pass


class Fails(Story):
    """A model that refuses."""

    text = "fail rate_limit_exceeded Not today, #."
    ends = "failed"

    def check(self, histories: Histories) -> None:
        super().check(histories)
        error = run_object(self.client, self.thread, self.run)["last_error"]
        assert error == {"code": "rate_limit_exceeded", "message": f"Not today, {self.number}."}


class StandsInLine(Story):
    """Three runs one behind the other, each with a message of its own."""

    text = "sleep 0.05\n# first"

    def __init__(self, client: Client, number: int) -> None:
        super().__init__(client, number)
        self.runs: list[str] = []

    def follow(self) -> None:
        self.runs = [self.run]
        for name in ("second", "third"):
            message = {"role": "user", "content": f"{self.number} {name}"}
            fields = {"on_active_run": "enqueue", "additional_messages": [message]}
            self.runs.append(self.begun({"name": name}, **fields))
        for run in self.runs:
            self.until(run, lambda run: bool(run["status"] == "completed"))

    def answered(self) -> list[tuple[str, str]]:
        said = [f"{self.number} {name}" for name in ("second", "third")]
        rest = [(role, text) for text in said for role in ("user", "assistant")]
        return [("assistant", self.said()), *rest]

    def check(self, histories: Histories) -> None:
        super().check(histories)
        moments = [
            event["data"]["updated_at_ms"]
            for run in self.runs
            for event in histories[run]
            if event["data"]["status"] in ("in_progress", "completed")
        ]
        assert moments == sorted(moments), "none began before the one in front of it had ended"


class GoesOnTalking(Story):
    """A thread and a run in one request, then another message and another run."""

    text = "# to begin with"

    def play(self) -> None:
        if not self.thread:
            message = {"role": "user", "content": self.said()}
            body = {"assistant_id": self.client.assistant, "thread": {"messages": [message]}}
            run = self.client.post("/threads/runs", body)
            self.thread, self.run = run["thread_id"], run["id"]
        self.follow()
        said = self.dialogue()
        if ("user", "and then?") not in said:
            message = {"role": "user", "content": "and then?"}
            self.client.post(f"/threads/{self.thread}/messages", message)
        self.run = self.begun({"name": "then"})
        self.follow()

    def answered(self) -> list[tuple[str, str]]:
        return [("assistant", self.said()), ("user", "and then?"), ("assistant", "and then?")]


class IsDeleted(Story):
    """A thread that is deleted while a run works on it: its end is in the feed alone."""

    text = "sleep 600"
    ends = "cancelled"
    gone = False

    def play(self) -> None:
        if not self.gone:
            super().play()

    def follow(self) -> None:
        if self.client.ask("GET", f"/threads/{self.thread}").status == 200:
            self.until(self.run, lambda run: bool(run["status"] == "in_progress"))
            answer = self.client.ask("DELETE", f"/threads/{self.thread}")
            assert answer.status in (200, 404)
        self.gone = True

    def check(self, histories: Histories) -> None:
        assert self.client.ask("GET", f"/threads/{self.thread}").status == 404
        assert histories[self.run][-1]["data"]["status"] == self.ends

    def check_free(self) -> None:
        """It is gone: there is nothing to hold."""


KINDS: tuple[type[Story], ...] = (
    Talks,
    CallsInParallel,
    IsCancelled,
    StandsInLine,
    CallsInTurn,
    IsDeleted,
    GoesOnTalking,
    Fails,
    Expires,
    ExpiresUnanswered,
)


class Crowd:
    """Clients that use the service at the same time, each with one story after the other."""

    def __init__(self, served: Served, size: int = 6) -> None:
        self.client = Client(served)
        self.stories: list[Story] = []
        self._unfinished: list[Story] = []
        self._size = size
        self._kinds = cycle(KINDS)
        self._lock = threading.Lock()
        self._stopping = False
        self._lost = 0
        self._failed: BaseException | None = None

    @property
    def unanswered(self) -> bool:
        """Every client has lost its connection."""
        return self._lost == self._size

    @contextmanager
    def playing(self) -> Iterator[None]:
        """Ever new stories for as long as the block lasts, or until nobody answers any more. What
        the block waits for, it waits for with `eventually`.

        Raises:
            AssertionError: one of them has gone wrong; the others stop.
        """
        self._stopping, self._lost = False, 0
        with ThreadPoolExecutor(self._size) as pool:
            for _ in range(self._size):
                pool.submit(self._play_on)
            try:
                yield
            except BaseException:
                # Nobody who waits for a run holds up the news.
                self.client.is_over = True
                raise
            finally:
                self._stopping = True
        self._check()

    def eventually(self, look: Callable[[], bool], what: str) -> None:
        """Return when `look` is true.

        Raises:
            AssertionError: it does not come true in time, or one of the stories has gone wrong.
        """

        def seen() -> bool:
            self._check()
            return look()

        eventually(seen, what)

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed

    def finish(self) -> None:
        """Play to their ends the stories that were interrupted, and check that all came true."""
        interrupted, self._unfinished = self._unfinished, []
        self._each(lambda story: story.play(), interrupted)
        histories = check_histories(self.client.events(), ended=True)
        self._each(lambda story: story.check(histories), self.stories)
        self._each(lambda story: story.check_free(), self.stories)
        check_histories(self.client.events(), ended=True)

    def _each(self, do: Callable[[Story], None], stories: Sequence[Story]) -> None:
        with ThreadPoolExecutor(self._size) as pool:
            for _ in pool.map(do, stories):
                pass

    def _play_on(self) -> None:
        while not self._stopping:
            with self._lock:
                if self._unfinished:
                    story = self._unfinished.pop(0)
                else:
                    story = next(self._kinds)(self.client, len(self.stories) + 1)
                    self.stories.append(story)
            try:
                story.play()
            except GivenUp:
                return
            except Lost:
                with self._lock:
                    self._unfinished.append(story)
                    self._lost += 1
                return
            except BaseException as error:  # noqa: BLE001 - raised where the test waits
                with self._lock:
                    self._failed = self._failed or error
                self._stopping = self.client.is_over = True
                return
