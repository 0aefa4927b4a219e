"""A front before the shared service, and the runs that stories need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI, OpenAI

if TYPE_CHECKING:
    from runbell.testing.front import Front
    from tests.served import Served

FUNCTION = {
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
TOOLS = [
    {"type": "function", "function": FUNCTION},
    {"type": "function", "function": {"name": "look-up"}},
]


class Stage:
    """A client behind a front, and an assistant that has two tools."""

    def __init__(self, served: Served, front: Front) -> None:
        self.served = served
        self.front = front
        self.direct = served.client()
        # Plain ones: what a front answers need not be what the API does.
        self.client = OpenAI(base_url=front.base_url, api_key=served.key)
        self.assistant = self.direct.beta.assistants.create(model="echo", tools=TOOLS).id

    def async_client(self):
        return AsyncOpenAI(base_url=self.front.base_url, api_key=self.served.key)

    def run(self, text, *, thread=None, **options):
        """A new run, created past the front."""
        beta = self.direct.beta
        if thread is None:
            thread = beta.threads.create(messages=[{"role": "user", "content": text}]).id
        return beta.threads.runs.create(thread, assistant_id=self.assistant, **options)

    def at_work(self):
        """A new run, whose model is at work for longer than any test."""
        run, runs = self.run("sleep 600"), self.direct.beta.threads.runs
        while run.status != "in_progress":
            run = runs.retrieve(run.id, thread_id=run.thread_id)
        return run

    def cancel(self, run):
        """Cancel it past the front."""
        self.direct.beta.threads.runs.cancel(run.id, thread_id=run.thread_id)

    def text(self, run):
        """What the run answered."""
        page = self.direct.beta.threads.messages.list(run.thread_id, run_id=run.id)
        return "".join(part.text.value for message in page for part in message.content)


@pytest.fixture
def front(served: Served) -> Iterator[Front]:
    from runbell.testing.front import Front

    with Front(served.base_url) as front:
        yield front


@pytest.fixture
def stage(served: Served, front: Front) -> Iterator[Stage]:
    stage = Stage(served, front)
    yield stage
    stage.client.close()
