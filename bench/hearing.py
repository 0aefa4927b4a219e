"""Waiting by webhook: how soon after a status change `wait` returns, and for how many calls.

The service is one process; the program that begins runs, has the receiver and waits is another.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.figures import Figure, percentile, within
from bench.server import served

__all__ = ["Sizes", "measure"]

RATE = 50.0
SLEEP_SECONDS = 0.3
"""What each run takes, so that it ends long after its wait has begun."""

LIMIT_SECONDS = 300.0


@dataclass(frozen=True)
class Sizes:
    """How many runs are begun, 50 a second."""

    runs: int


@dataclass(frozen=True)
class _Heard:
    """Delays in milliseconds, status requests, and CPU seconds of the program."""

    delays_ms: list[float]
    calls: int
    cpu: float


def measure(sizes: Sizes) -> Iterator[Figure]:
    """The delay of waits by webhook, and what they cost in calls and CPU."""
    with served(options=["--allow-private-webhooks"]) as server:
        heard = _in_a_process(server.base_url, server.api_key, sizes.runs)
    how = (
        "from the status change, by its `updated_at_ms`, until `AsyncWaiter.wait` has returned in "
        f"the program with the receiver; {RATE:g} runs a second, SQLite FULL on both sides, "
        "gc.freeze() behind the start"
    )
    for name, share, target in (("p50", 50, 15.0), ("p99", 99, 60.0)):
        yield within(
            f"wait_by_webhook_{name}_ms",
            percentile(heard.delays_ms, share),
            target,
            how,
            runs=sizes.runs,
            max_ms=round(max(heard.delays_ms), 2),
        )
    yield within(
        "calls_a_run_by_webhook",
        heard.calls / sizes.runs,
        0.05,
        "status requests of the waiter, from the first run to the last, by the number of runs",
        cpu_ms_a_run=round(heard.cpu * 1000 / sizes.runs, 2),
    )


def _in_a_process(base_url: str, api_key: str, runs: int) -> _Heard:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_program, args=(theirs, base_url, api_key, runs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(LIMIT_SECONDS):
            raise RuntimeError("the program that waits by webhook did not come to an end")
        heard: _Heard = ours.recv()
    finally:
        process.kill()
        process.join()
    return heard


def _program(answer: Any, base_url: str, api_key: str, runs: int) -> None:
    import uvloop

    answer.send(uvloop.run(_wait_for_all(base_url, api_key, runs)))


async def _wait_for_all(base_url: str, api_key: str, runs: int) -> _Heard:
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    from runbell import AsyncWaiter

    calls = 0

    async def count(request: Any) -> None:
        nonlocal calls
        calls += request.method == "GET"

    http_client = DefaultAsyncHttpxClient(event_hooks={"request": [count]}, trust_env=False)
    async with (
        AsyncOpenAI(base_url=base_url, api_key=api_key, http_client=http_client) as client,
        _receiver(client) as receiver,
        AsyncWaiter(client, events=receiver, hold=False) as waiter,
    ):
        beta = client.beta
        assistant = await beta.assistants.create(model="echo")
        content = f"sleep {SLEEP_SECONDS}"

        async def one() -> tuple[str, float]:
            thread: Any = {"messages": [{"role": "user", "content": content}]}
            run = await beta.threads.create_and_run(assistant_id=assistant.id, thread=thread)
            ended = await waiter.wait(run)
            known_ms = time.time() * 1000
            if ended.status != "completed":
                raise RuntimeError(f"{run.id} ended as {ended.status}")
            return run.id, known_ms

        await asyncio.gather(*(one() for _ in range(20)))  # connections, and what is imported late
        # As the service does it: each look of the collector at all modules takes 0.15 s here.
        gc.collect()
        gc.freeze()
        calls, cpu, began = 0, time.process_time(), time.monotonic()
        waits = []
        for number in range(runs):
            await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
            waits.append(asyncio.create_task(one()))
        known_ms = dict(await asyncio.gather(*waits))
        heard = calls, time.process_time() - cpu
        ended_ms = await _ended(client)
    return _Heard([at - ended_ms[run] for run, at in known_ms.items()], *heard)


async def _ended(client: Any) -> dict[str, float]:
    """When each run completed, in milliseconds since the epoch, by the feed of events."""
    moments: dict[str, float] = {}
    query: dict[str, Any] = {"limit": 100, "types": "thread.run.completed"}
    while True:
        page: Any = await client.get("/events", cast_to=object, options={"params": query})
        moments |= {each["data"]["id"]: each["data"]["updated_at_ms"] for each in page["data"]}
        if not page["has_more"]:
            return moments
        query["after"] = page["last_id"]


@contextlib.asynccontextmanager
async def _receiver(client: Any) -> Any:
    """A receiver that listens on loopback, and to which the service pushes."""
    import uvicorn

    from runbell.receiver import Receiver

    with (
        tempfile.TemporaryDirectory() as folder,
        socket.create_server(("127.0.0.1", 0)) as listener,
    ):
        endpoint = await client.webhooks.create(
            name="bench",
            url=f"http://127.0.0.1:{listener.getsockname()[1]}/hooks",
            event_types=["thread.run.completed"],
        )
        receiver = Receiver([endpoint.signing_secret], f"sqlite:///{Path(folder) / 'inbox.db'}")

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Any:
                yield

        config = uvicorn.Config(receiver.asgi(), log_level="warning", access_log=False)
        server = Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not (server.started or serving.done()):  # noqa: ASYNC110 - uvicorn has no event
            await asyncio.sleep(0.001)
        try:
            yield receiver
        finally:
            server.should_exit = True
            await serving
