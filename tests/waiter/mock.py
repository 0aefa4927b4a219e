"""A server in this process, for answers that no front can think of."""

from __future__ import annotations

import contextlib
import threading
import time

import httpx
import openai
from openai.types.beta.threads import Run

from runbell.clock import SystemClock
from runbell.pacing import Fixed

QUICK = Fixed(0.02)
LIMIT = 60.0
"""Seconds after which a story that hangs has failed."""


def fields(status="queued", run_id="run_1", *, calls=(), expires_in=600, **more):
    """A run as the API sends it; `calls` are (id, name) of the functions that it wants."""
    found = {
        "id": run_id,
        "object": "thread.run",
        "thread_id": "thread_1",
        "assistant_id": "asst_1",
        "status": status,
        "created_at": int(time.time()),
        "expires_at": int(time.time()) + expires_in,
        "started_at": None,
        "last_error": None,
        "incomplete_details": None,
        "required_action": None,
        "model": "m",
        "instructions": "",
        "tools": [],
    }
    if calls:
        wanted = [
            {"id": each, "type": "function", "function": {"name": name, "arguments": "{}"}}
            for each, name in calls
        ]
        found["required_action"] = {
            "type": "submit_tool_outputs",
            "submit_tool_outputs": {"tool_calls": wanted},
        }
    return found | more


def asking(run_id="run_1", calls=(("call_1", "f"),), **more):
    return fields("requires_action", run_id, calls=calls, **more)


def run(*given, **more):
    return Run.construct(**fields(*given, **more))


def answer(run_fields):
    return httpx.Response(200, json=run_fields)


PAGE = httpx.Response(200, text="<html>sign in</html>", headers={"content-type": "text/html"})


def client(handler, base_url="http://server.test/v1"):
    transport = httpx.MockTransport(handler)
    return openai.OpenAI(
        api_key="sk-abcdefghijklmnop",
        base_url=base_url,
        http_client=httpx.Client(transport=transport),
    )


def async_client(handler):
    transport = httpx.MockTransport(handler)
    return openai.AsyncOpenAI(
        api_key="sk-abcdefghijklmnop",
        base_url="http://server.test/v1",
        http_client=httpx.AsyncClient(transport=transport),
    )


class Ahead(SystemClock):
    """The machine's time, which a test sets forward, by `seconds`."""

    seconds = 0.0

    def monotonic(self):
        return super().monotonic() + self.seconds


class Story:
    """Something that might wait for ever, in a thread of its own."""

    def __init__(self, function, *arguments, **options):
        self._result = []
        self._error = []

        def tell():
            try:
                self._result.append(function(*arguments, **options))
            except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                self._error.append(error)

        self._thread = threading.Thread(target=tell, daemon=True)
        self._thread.start()

    def end(self):
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "it waits for ever"
        if self._error:
            raise self._error[0]
        return self._result[0]


def ended(function, *arguments, **options):
    """What a function gives that might wait for ever."""
    return Story(function, *arguments, **options).end()


def wants_one_call(request):
    """A run that is completed as soon as it has the output of its call."""
    return answer(fields("completed") if request.method == "POST" else asking())


def until(condition):
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, "it never came to this"
        time.sleep(0.005)


@contextlib.contextmanager
def after(gate):
    """Whatever happens, whoever waits at this gate is let through."""
    try:
        yield
    finally:
        gate.set()
